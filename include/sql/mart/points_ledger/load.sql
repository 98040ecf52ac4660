-- mart.points_ledger: every movement of a member's points: earned, taken back by a refund, spent, corrected, expired.
-- Grain: one row per member, day, kind, day the points were earned, and use.
-- Params: business_date (date).
-- Reads: core.orders, core.refunds, core.member_identities, core.members, core.point_uses, mart.member_days, mart.member_tiers,
--   mart.point_rules, mart.tier_rules, mart.tier_programmes, mart.touched_members, mart.marks, mart.points_ledger
-- Rerun: safe; the ledger of members who were touched, who changed tier or whose points expire is told again from the first order on,
-- rows that do not differ stay. New rules tell everybody's ledger again. A run for an older date takes nothing back.
-- Points are earned per day on the line value paid that day, times the multiplier of the tier that the member held at its end. A refund
-- takes back exactly what its part of the day had earned. Oldest points go first. What is not there cannot be taken: the balance, the
-- sum of the ledger at any date, is never below zero (docs/decisions/0073-points.md).
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), m.batch_id, 0) AS upto_batch_id,
    w.settings,
    m.mart IS NULL OR m.settings <> w.settings AS is_full
FROM (
    SELECT
        'points_ledger' AS mart,
        md5(
            coalesce((SELECT string_agg(q::text, ';') FROM mart.point_rules AS q), '')
            || coalesce((SELECT string_agg(r::text, ';' ORDER BY r.programme, r.rank) FROM mart.tier_rules AS r), '')
            || coalesce((SELECT string_agg(p::text, ';' ORDER BY p.position) FROM mart.tier_programmes AS p), '')
        ) AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

DROP TABLE IF EXISTS pg_temp.rules;
CREATE TEMPORARY TABLE rules ON COMMIT DROP AS
SELECT
    q.programme, q.points_per_unit, coalesce(q.expire_days, 100000) AS expire_days,
    CASE q.rounding WHEN 'floor' THEN 0 WHEN 'half_up' THEN 0.5 ELSE 0.9999999999 END AS lift
FROM mart.point_rules AS q;

DROP TABLE IF EXISTS pg_temp.multipliers;
CREATE TEMPORARY TABLE multipliers ON COMMIT DROP AS
SELECT t.tier, t.points_multiplier FROM mart.tier_rules AS t JOIN rules AS r ON r.programme = t.programme;
ANALYZE multipliers;

DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT DISTINCT x.member_id
FROM (
    SELECT t.member_id
    FROM mart.touched_members AS t
    CROSS JOIN mark AS k
    WHERE NOT k.is_full AND t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id
    UNION ALL
    SELECT d.member_id
    FROM mark AS k
    JOIN mart.member_days AS d ON d.day > k.since AND d.day <= k.horizon
    WHERE NOT k.is_full
    UNION ALL
    SELECT d.member_id
    FROM mark AS k
    CROSS JOIN rules AS r
    JOIN mart.member_days AS d ON d.day > k.since - r.expire_days AND d.day <= k.horizon - r.expire_days
    WHERE NOT k.is_full
    UNION ALL
    SELECT coalesce(m.absorbed_by, m.member_id)
    FROM mark AS k
    CROSS JOIN rules AS r
    JOIN core.point_uses AS u
        ON u.used_at >= (k.since + 1)::timestamptz
        OR (u.used_at >= (k.since + 1 - r.expire_days)::timestamptz AND u.used_at < (k.horizon + 1 - r.expire_days)::timestamptz)
    JOIN core.members AS m ON m.member_id = u.member_id
    WHERE NOT k.is_full
    UNION ALL
    SELECT t.member_id
    FROM mark AS k
    JOIN mart.member_tiers AS t ON t.valid_from > k.since
    WHERE NOT k.is_full
    UNION ALL
    SELECT d.member_id FROM mart.member_days AS d WHERE (SELECT k.is_full FROM mark AS k)
    UNION ALL
    SELECT coalesce(m.absorbed_by, m.member_id)
    FROM core.point_uses AS u
    JOIN core.members AS m ON m.member_id = u.member_id
    WHERE (SELECT k.is_full FROM mark AS k)
    UNION ALL
    SELECT l.member_id FROM mart.points_ledger AS l WHERE (SELECT k.is_full FROM mark AS k)
) AS x;
CREATE UNIQUE INDEX ON scope (member_id);
ANALYZE scope;

-- What a day's value is worth, and what had come in by then.
DROP TABLE IF EXISTS pg_temp.lots;
CREATE TEMPORARY TABLE lots ON COMMIT DROP AS
SELECT
    x.member_id, x.day, x.gross_amount, x.factor, x.lift, x.expire_days, x.points,
    (sum(x.points) OVER (PARTITION BY x.member_id ORDER BY x.day ASC ROWS UNBOUNDED PRECEDING))::bigint AS came_in
FROM (
    SELECT d.member_id, d.day, d.gross_amount, f.factor, r.lift, r.expire_days, floor(d.gross_amount * f.factor + r.lift)::bigint AS points
    FROM scope AS s
    JOIN mart.member_days AS d ON d.member_id = s.member_id AND d.order_count > 0
    CROSS JOIN rules AS r
    LEFT JOIN mart.member_tiers AS t
        ON t.member_id = d.member_id AND t.programme = r.programme AND t.valid_from <= d.day AND (t.valid_to IS NULL OR t.valid_to > d.day)
    LEFT JOIN multipliers AS q ON q.tier = t.tier
    CROSS JOIN LATERAL (SELECT r.points_per_unit * coalesce(q.points_multiplier, 1) AS factor) AS f
) AS x;
ANALYZE lots;

-- What a person gave or took by hand, and what was spent.
DROP TABLE IF EXISTS pg_temp.uses;
CREATE TEMPORARY TABLE uses ON COMMIT DROP AS
SELECT s.member_id, u.used_at::date AS day, u.kind, u.use_id, CASE u.kind WHEN 'redeem' THEN -u.points ELSE u.points END AS points
FROM core.point_uses AS u
JOIN core.members AS m ON m.member_id = u.member_id
JOIN scope AS s ON s.member_id = coalesce(m.absorbed_by, m.member_id)
WHERE u.used_at < ((SELECT k.horizon FROM mark AS k) + 1)::timestamptz;
CREATE INDEX ON uses (member_id, day);
ANALYZE uses;

DROP TABLE IF EXISTS pg_temp.returns;
CREATE TEMPORARY TABLE returns ON COMMIT DROP AS
SELECT b.member_id, b.paid_day, b.day, sum(b.refund_amount) AS refund_amount
FROM (
    SELECT mi.member_id, o.paid_at::date AS paid_day, r.settled_at::date AS day, r.refund_amount
    FROM core.refunds AS r
    JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
    JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
    WHERE
        (SELECT k.is_full FROM mark AS k)
        AND r.is_money AND o.is_paid AND r.settled_at < ((SELECT k.horizon FROM mark AS k) + 1)::timestamptz
    UNION ALL
    -- of some members: by the refund's own buyer, or by the order's where the refund has none
    SELECT s.member_id, o.paid_at::date, r.settled_at::date, r.refund_amount
    FROM scope AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    JOIN core.refunds AS r ON r.identity_id = mi.identity_id
    JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
    JOIN core.member_identities AS om ON om.identity_id = o.identity_id AND om.member_id = s.member_id
    WHERE
        NOT (SELECT k.is_full FROM mark AS k)
        AND r.is_money AND o.is_paid AND r.settled_at < ((SELECT k.horizon FROM mark AS k) + 1)::timestamptz
    UNION ALL
    SELECT s.member_id, o.paid_at::date, r.settled_at::date, r.refund_amount
    FROM core.refunds AS r
    JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
    JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
    JOIN scope AS s ON s.member_id = mi.member_id
    WHERE
        NOT (SELECT k.is_full FROM mark AS k)
        AND r.identity_id IS NULL
        AND r.is_money AND o.is_paid AND r.settled_at < ((SELECT k.horizon FROM mark AS k) + 1)::timestamptz
) AS b
GROUP BY b.member_id, b.paid_day, b.day;
ANALYZE returns;

-- Within a day: what expires went at its beginning, then comes what comes in, then what is taken back, then what is spent.
DROP TABLE IF EXISTS pg_temp.ledger;
CREATE TEMPORARY TABLE ledger ON COMMIT DROP AS
WITH
returned AS (
    -- what is left of a day's value after each refund: the difference in points is what the refund takes back
    SELECT
        b.member_id, b.day, b.paid_day,
        floor(greatest(b.gross_amount - b.before_amount, 0) * b.factor + b.lift)
        - floor(greatest(b.gross_amount - b.before_amount - b.refund_amount, 0) * b.factor + b.lift) AS points
    FROM (
        SELECT
            t.member_id, t.day, t.paid_day, t.refund_amount, l.gross_amount, l.factor, l.lift,
            coalesce(sum(t.refund_amount) OVER (
                PARTITION BY t.member_id, t.paid_day ORDER BY t.day ASC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), 0) AS before_amount
        FROM returns AS t
        JOIN lots AS l ON l.member_id = t.member_id AND l.day = t.paid_day
    ) AS b
),
movements AS (
    SELECT
        l.member_id, l.day, 2 AS place, 'earn' AS kind, l.day AS lot_day, '' AS use_id,
        l.points AS comes, 0::bigint AS goes, 0::bigint AS floor
    FROM lots AS l
    UNION ALL
    SELECT r.member_id, r.day, 3, 'reverse', r.paid_day, '', 0, r.points::bigint, 0 FROM returned AS r
    UNION ALL
    SELECT
        u.member_id, u.day, CASE WHEN u.points > 0 THEN 2 ELSE 4 END, u.kind, u.day AS lot_day, u.use_id,
        greatest(u.points, 0), greatest(-u.points, 0), 0
    FROM uses AS u
    UNION ALL
    -- when a day's points end, everything that had come in by then is gone
    SELECT
        l.member_id, l.day + l.expire_days, 1, 'expire', l.day, '', 0, 0,
        l.came_in
        + coalesce((SELECT sum(u.points) FROM uses AS u WHERE u.member_id = l.member_id AND u.day <= l.day AND u.points > 0), 0)::bigint
    FROM lots AS l
    WHERE l.day <= (SELECT k.horizon FROM mark AS k) - l.expire_days
    UNION ALL
    SELECT
        u.member_id, u.day + r.expire_days, 1, 'expire', u.day, u.use_id, 0, 0,
        coalesce((SELECT max(l.came_in) FROM lots AS l WHERE l.member_id = u.member_id AND l.day <= u.day), 0)
        + (SELECT sum(v.points) FROM uses AS v WHERE v.member_id = u.member_id AND v.day <= u.day AND v.points > 0)::bigint
    FROM uses AS u
    CROSS JOIN rules AS r
    WHERE u.points > 0 AND u.day <= (SELECT k.horizon FROM mark AS k) - r.expire_days
),
summed AS (
    SELECT
        m.member_id, m.day, m.place, m.kind, m.lot_day, m.use_id, m.comes, m.goes, m.floor,
        (sum(m.comes) OVER (
            PARTITION BY m.member_id ORDER BY m.day ASC, m.place ASC, m.lot_day ASC, m.use_id ASC ROWS UNBOUNDED PRECEDING
        ))::bigint AS came_in
    FROM movements AS m
),
gone AS (
    SELECT
        s.member_id, s.day, s.place, s.kind, s.lot_day, s.use_id, s.comes,
        mart.running_points_gone(s.goes, s.floor, s.came_in) OVER (
            PARTITION BY s.member_id ORDER BY s.day ASC, s.place ASC, s.lot_day ASC, s.use_id ASC ROWS UNBOUNDED PRECEDING
        ) AS gone
    FROM summed AS s
),
entries AS (
    SELECT
        g.member_id, g.day, g.kind, g.lot_day, g.use_id,
        g.comes - g.gone + lag(g.gone, 1, 0::bigint) OVER (
            PARTITION BY g.member_id ORDER BY g.day ASC, g.place ASC, g.lot_day ASC, g.use_id ASC
        ) AS points
    FROM gone AS g
)
SELECT e.member_id, e.day, e.kind, e.lot_day, e.use_id, e.points
FROM entries AS e
WHERE e.points <> 0;
CREATE INDEX ON ledger (member_id, day, kind, lot_day, use_id);
ANALYZE ledger;

DELETE FROM mart.points_ledger AS l
USING scope AS s
WHERE
    l.member_id = s.member_id
    AND NOT EXISTS (
        SELECT 1 FROM ledger AS n
        WHERE
            n.member_id = l.member_id AND n.day = l.day AND n.kind = l.kind AND n.lot_day = l.lot_day AND n.use_id = l.use_id
            AND n.points = l.points
    );

INSERT INTO mart.points_ledger (member_id, day, kind, lot_day, use_id, points)
SELECT n.member_id, n.day, n.kind, n.lot_day, n.use_id, n.points
FROM ledger AS n
WHERE
    NOT EXISTS (
        SELECT 1 FROM mart.points_ledger AS l
        WHERE l.member_id = n.member_id AND l.day = n.day AND l.kind = n.kind AND l.lot_day = n.lot_day AND l.use_id = n.use_id
    );

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'points_ledger', k.horizon, k.upto_batch_id, k.settings FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id), excluded.settings);
