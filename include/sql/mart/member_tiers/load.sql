-- mart.member_tiers: every member's tier history in every programme, with the reason in words.
-- Grain: one row per member, programme and stretch of days [valid_from, valid_to) in one tier; valid_to NULL = still.
-- Params: business_date (date).
-- Reads: mart.member_days, mart.tier_programmes, mart.tier_rules, mart.point_rules, mart.touched_members, mart.marks,
--   mart.member_tiers, core.tier_grants, core.members
-- Rerun: safe; the history of members who were touched, or whose day of review has come, is told again from the first order on, and
-- rows that do not differ stay. What this changes before the last night goes to mart.restatements; new rules tell everybody's history
-- again. A run for an older date takes nothing back (docs/decisions/0021-tiers-by-running-sum.md).
--
-- How a history is told. A member rises on the day the measure reaches a tier's enter value. A tier is looked at review_days after it
-- began and every review_days from then on: with less than its keep value the member has grace_days to come back to it, then falls,
-- one step or to where the measure is. review_days 0: it is looked at every day.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), m.batch_id, 0) AS upto_batch_id,
    w.settings,
    m.mart IS NULL OR m.settings <> w.settings AS is_full,
    m.mart IS NOT NULL AND m.settings = w.settings AS is_log_wanted
FROM (
    SELECT
        'member_tiers' AS mart,
        md5(
            coalesce((SELECT string_agg(p::text, ';' ORDER BY p.position) FROM mart.tier_programmes AS p), '')
            || coalesce((SELECT string_agg(r::text, ';' ORDER BY r.programme, r.rank) FROM mart.tier_rules AS r), '')
            || coalesce((SELECT min(q.points_per_unit::text) FROM mart.point_rules AS q), '')
        ) AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

DROP TABLE IF EXISTS pg_temp.programmes;
CREATE TEMPORARY TABLE programmes ON COMMIT DROP AS
SELECT
    p.programme, p.position, p.measure, p.window_days, p.review_days, p.grace_days, p.downgrade,
    coalesce(p.window_days || '-day ', 'lifetime ')
    || CASE p.measure WHEN 'net_amount' THEN 'spend' WHEN 'order_count' THEN 'orders' ELSE 'points' END AS what,
    CASE p.measure WHEN 'net_amount' THEN 'FM999,999,999,999,990.00' ELSE 'FM999,999,999,999,990' END AS picture,
    coalesce((SELECT min(q.points_per_unit) FROM mart.point_rules AS q), 1) AS points_per_unit,
    array_agg(r.enter_value ORDER BY r.rank) AS enter_values,
    array_agg(r.keep_value ORDER BY r.rank) AS keep_values,
    array_agg(r.tier ORDER BY r.rank) AS tiers
FROM mart.tier_programmes AS p
JOIN mart.tier_rules AS r ON r.programme = p.programme
GROUP BY p.programme;
ANALYZE programmes;

-- Who may stand differently: who was touched, whose review is due, whom a window's far edge moved.
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
    SELECT t.member_id
    FROM mark AS k
    JOIN mart.member_tiers AS t ON t.valid_to IS NULL AND t.review_date <= k.horizon
    WHERE NOT k.is_full
    UNION ALL
    -- a refund that leaves the window lifts the measure; in a programme without reviews anything that leaves counts
    SELECT d.member_id
    FROM mark AS k
    CROSS JOIN programmes AS p
    JOIN mart.member_days AS d
        ON d.day > k.since - p.window_days - CASE p.review_days WHEN 0 THEN p.grace_days ELSE 0 END AND d.day <= k.horizon - p.window_days
    WHERE NOT k.is_full AND (d.net_amount < 0 OR p.review_days = 0)
    UNION ALL
    SELECT coalesce(m.absorbed_by, m.member_id)
    FROM mark AS k
    JOIN core.tier_grants AS g ON g.valid_to IS NULL OR g.valid_to > k.since
    JOIN core.members AS m ON m.member_id = g.member_id
    WHERE NOT k.is_full
    UNION ALL
    SELECT d.member_id FROM mart.member_days AS d WHERE (SELECT k.is_full FROM mark AS k)
    UNION ALL
    SELECT coalesce(m.absorbed_by, m.member_id)
    FROM core.tier_grants AS g
    JOIN core.members AS m ON m.member_id = g.member_id
    WHERE (SELECT k.is_full FROM mark AS k)
    UNION ALL
    SELECT t.member_id FROM mart.member_tiers AS t WHERE (SELECT k.is_full FROM mark AS k)
) AS x;
CREATE UNIQUE INDEX ON scope (member_id);
ANALYZE scope;

-- Manual decisions of these members, until they end or were revoked.
DROP TABLE IF EXISTS pg_temp.decisions;
CREATE TEMPORARY TABLE decisions ON COMMIT DROP AS
SELECT
    s.member_id, p.position, g.kind, array_position(p.tiers, g.tier) AS rank, g.valid_from,
    least(g.valid_to, g.revoked_at::date) AS valid_to, g.reason, g.grant_id
FROM core.tier_grants AS g
JOIN core.members AS m ON m.member_id = g.member_id
JOIN scope AS s ON s.member_id = coalesce(m.absorbed_by, m.member_id)
JOIN programmes AS p ON p.programme = g.programme
WHERE g.revoked_at IS NULL OR g.revoked_at::date > g.valid_from;
ANALYZE decisions;

-- The measure day by day, told only where it crosses a tier's enter or keep value. What comes in on a day leaves window_days later.
DROP TABLE IF EXISTS pg_temp.path;
CREATE TEMPORARY TABLE path ON COMMIT DROP AS
WITH
movements AS (
    SELECT
        d.member_id, p.position, p.enter_values, p.keep_values,
        CASE WHEN v.is_out THEN d.day + p.window_days ELSE d.day END AS day,
        CASE WHEN v.is_out THEN -1 ELSE 1 END
        * CASE p.measure
            WHEN 'net_amount' THEN d.net_amount
            WHEN 'order_count' THEN d.order_count
            ELSE floor(d.net_amount * p.points_per_unit)
        END AS amount,
        CASE WHEN v.is_out THEN 0 ELSE d.order_count END AS order_count
    FROM scope AS s
    JOIN mart.member_days AS d ON d.member_id = s.member_id
    CROSS JOIN programmes AS p
    CROSS JOIN (VALUES (FALSE), (TRUE)) AS v (is_out)
    WHERE CASE WHEN v.is_out THEN d.day + p.window_days ELSE d.day END <= (SELECT k.horizon FROM mark AS k)
),
measured AS (
    SELECT
        m.member_id, m.position, m.day, m.enter_values, m.keep_values,
        greatest(sum(m.amount) OVER w, 0) AS value,     -- refunds of orders before our history can make it negative: that counts as 0
        sum(m.order_count) OVER w > 0 AS has_ordered
    FROM movements AS m
    WINDOW w AS (PARTITION BY m.member_id, m.position ORDER BY m.day ASC)
),
ranked AS (
    SELECT
        m.member_id, m.position, m.day, m.value,
        width_bucket(m.value, m.enter_values) AS enter_rank,
        width_bucket(m.value, m.keep_values) AS keep_rank
    FROM measured AS m
    WHERE m.has_ordered                                 -- a member has a tier from the day of the first paid order
),
told AS (
    SELECT
        r.member_id, r.position, r.day, r.value, r.enter_rank, r.keep_rank,
        lag(r.enter_rank) OVER w AS enter_before, lag(r.keep_rank) OVER w AS keep_before
    FROM ranked AS r
    WINDOW w AS (PARTITION BY r.member_id, r.position ORDER BY r.day ASC)
)
SELECT t.member_id, t.position, t.day, t.value, t.enter_rank, t.keep_rank
FROM told AS t
WHERE t.enter_before IS NULL OR t.enter_rank <> t.enter_before OR t.keep_rank <> t.keep_before;

-- While a tier is frozen nothing is looked at; what happened meanwhile is looked at when it thaws.
DROP TABLE IF EXISTS pg_temp.thawed;
CREATE TEMPORARY TABLE thawed ON COMMIT DROP AS
SELECT DISTINCT ON (p.member_id, p.position, x.day) p.member_id, p.position, x.day, p.value, p.enter_rank, p.keep_rank
FROM (
    SELECT
        t.member_id, t.position, t.day, t.value, t.enter_rank, t.keep_rank,
        min(t.day) OVER (PARTITION BY t.member_id, t.position) AS first_day
    FROM path AS t
    WHERE EXISTS (SELECT 1 FROM decisions AS f WHERE f.kind = 'freeze' AND f.member_id = t.member_id AND f.position = t.position)
) AS p
LEFT JOIN decisions AS f
    ON f.kind = 'freeze' AND f.member_id = p.member_id AND f.position = p.position AND p.day > p.first_day
    AND p.day >= f.valid_from AND (f.valid_to IS NULL OR p.day < f.valid_to)
CROSS JOIN LATERAL (SELECT CASE WHEN f.member_id IS NULL THEN p.day ELSE f.valid_to END AS day) AS x
WHERE x.day <= (SELECT k.horizon FROM mark AS k)
ORDER BY p.member_id ASC, p.position ASC, x.day ASC, p.day DESC;
DELETE FROM path AS p
WHERE EXISTS (SELECT 1 FROM thawed AS t WHERE t.member_id = p.member_id AND t.position = p.position);
INSERT INTO path (member_id, position, day, value, enter_rank, keep_rank)
SELECT t.member_id, t.position, t.day, t.value, t.enter_rank, t.keep_rank FROM thawed AS t;
CREATE INDEX ON path (member_id, position, day) INCLUDE (enter_rank, keep_rank, value);
ANALYZE path;

-- The walk: from each tier to the next event, the first of a rise and a fall; nobody is visited twice for a day.
DROP TABLE IF EXISTS pg_temp.walk;
CREATE TEMPORARY TABLE walk ON COMMIT DROP AS
WITH RECURSIVE steps (member_id, position, day, rank, kind, value, review_date, review_days, grace_days, downgrade) AS (
    SELECT f.member_id, f.position, f.day, f.enter_rank, 'first', f.value, NULL::date, p.review_days, p.grace_days, p.downgrade
    FROM (
        SELECT DISTINCT ON (t.member_id, t.position) t.member_id, t.position, t.day, t.enter_rank, t.value
        FROM path AS t
        ORDER BY t.member_id ASC, t.position ASC, t.day ASC
    ) AS f
    JOIN programmes AS p ON p.position = f.position
    UNION ALL
    SELECT s.member_id, s.position, n.day, n.rank, n.kind, n.value, n.review_date, s.review_days, s.grace_days, s.downgrade
    FROM steps AS s
    CROSS JOIN LATERAL (
        SELECT e.day, e.rank, e.kind, e.value, e.review_date
        FROM (
            (
                SELECT t.day, t.enter_rank AS rank, 'up' AS kind, t.value, NULL::date AS review_date
                FROM path AS t
                WHERE t.member_id = s.member_id AND t.position = s.position AND t.day > s.day AND t.enter_rank > s.rank
                ORDER BY t.day ASC
                LIMIT 1
            )
            UNION ALL
            (
                -- the first review that saw less than the keep value, and no way back within the grace
                SELECT
                    r.day + s.grace_days,
                    CASE s.downgrade
                        WHEN 'one_step' THEN s.rank - 1
                        ELSE (
                            SELECT t.enter_rank FROM path AS t
                            WHERE t.member_id = s.member_id AND t.position = s.position AND t.day <= r.day + s.grace_days
                            ORDER BY t.day DESC LIMIT 1
                        )
                    END,
                    'down', NULL::numeric, r.day
                FROM (
                    SELECT coalesce(z.valid_to, g.day) AS day
                    FROM (
                        SELECT s.day + i AS day
                        FROM generate_series(
                            s.review_days, (SELECT k.horizon FROM mark AS k) - s.day - s.grace_days, nullif(s.review_days, 0)
                        ) AS i
                        WHERE s.review_days > 0
                        UNION ALL
                        SELECT t.day FROM path AS t
                        WHERE t.member_id = s.member_id AND t.position = s.position AND t.day >= s.day AND s.review_days = 0
                    ) AS g
                    LEFT JOIN decisions AS z
                        ON z.kind = 'freeze' AND z.member_id = s.member_id AND z.position = s.position
                        AND g.day >= z.valid_from AND (z.valid_to IS NULL OR g.day < z.valid_to)
                    WHERE z.member_id IS NULL OR z.valid_to IS NOT NULL
                ) AS r
                WHERE
                    s.rank > 1 AND r.day + s.grace_days > s.day AND r.day + s.grace_days <= (SELECT k.horizon FROM mark AS k)
                    AND s.rank > (
                        SELECT t.keep_rank FROM path AS t
                        WHERE t.member_id = s.member_id AND t.position = s.position AND t.day <= r.day
                        ORDER BY t.day DESC LIMIT 1
                    )
                    AND NOT EXISTS (
                        SELECT 1 FROM path AS t
                        WHERE
                            t.member_id = s.member_id AND t.position = s.position AND t.day > r.day AND t.day <= r.day + s.grace_days
                            AND t.keep_rank >= s.rank
                    )
                ORDER BY r.day ASC
                LIMIT 1
            )
        ) AS e
        ORDER BY e.day ASC, e.kind DESC                 -- a rise on the last day of the grace is a rise
        LIMIT 1
    ) AS n
)
SELECT s.member_id, s.position, s.day, s.rank, s.kind, s.value, s.review_date FROM steps AS s;
ANALYZE walk;

-- What the measure was on the day somebody fell.
UPDATE walk AS w SET value = greatest(x.value, 0)
FROM (
    SELECT
        f.member_id, f.position, f.day,
        (
            SELECT
                coalesce(sum(CASE p.measure
                    WHEN 'net_amount' THEN d.net_amount
                    WHEN 'order_count' THEN d.order_count
                    ELSE floor(d.net_amount * p.points_per_unit)
                END), 0)
            FROM mart.member_days AS d
            WHERE d.member_id = f.member_id AND d.day <= f.day AND (p.window_days IS NULL OR d.day > f.day - p.window_days)
        ) AS value
    FROM walk AS f
    JOIN programmes AS p ON p.position = f.position
    WHERE f.kind = 'down'
) AS x
WHERE w.kind = 'down' AND w.member_id = x.member_id AND w.position = x.position AND w.day = x.day;

DROP TABLE IF EXISTS pg_temp.earned;
CREATE TEMPORARY TABLE earned ON COMMIT DROP AS
SELECT
    w.member_id, w.position, w.day AS valid_from, w.rank, w.kind, w.value,
    lead(w.day) OVER o AS valid_to,
    lag(w.rank) OVER o AS previous_rank,
    CASE
        WHEN w.kind = 'down' AND p.review_days > 0
            THEN 'review of ' || w.review_date
            || CASE p.grace_days WHEN 0 THEN '' ELSE ' and ' || p.grace_days || ' days of grace' END || ': '
        ELSE ''
    END
    || p.what || ' ' || to_char(trunc(w.value, 2), p.picture)
    || CASE
        WHEN w.kind = 'down' THEN ' < ' || to_char(p.keep_values[lag(w.rank) OVER o], p.picture)
        ELSE ' ≥ ' || to_char(p.enter_values[w.rank], p.picture)
    END AS reason
FROM walk AS w
JOIN programmes AS p ON p.position = w.position
WINDOW o AS (PARTITION BY w.member_id, w.position ORDER BY w.day ASC);

-- A granted tier stands above an earned lower one; when the grant ends, what was earned counts again.
INSERT INTO earned (member_id, position, valid_from, rank, kind, value, valid_to, previous_rank, reason)
WITH
granted AS (
    SELECT d.member_id, d.position, d.rank, d.valid_from, d.valid_to, d.reason, d.grant_id
    FROM decisions AS d
    WHERE d.kind = 'grant'
),
edges AS (
    SELECT g.member_id, g.position, x.day
    FROM granted AS g
    CROSS JOIN LATERAL (VALUES (g.valid_from), (g.valid_to)) AS x (day)
    WHERE x.day <= (SELECT k.horizon FROM mark AS k)
    UNION
    SELECT e.member_id, e.position, e.valid_from
    FROM earned AS e
    WHERE EXISTS (SELECT 1 FROM granted AS g WHERE g.member_id = e.member_id AND g.position = e.position)
),
standing AS (
    SELECT
        x.member_id, x.position, x.day, e.rank AS earned_rank, e.kind, e.reason, coalesce(e.value, 0) AS value, e.valid_from AS earned_from,
        g.rank AS granted_rank, g.valid_to AS granted_to, g.reason AS grant_reason
    FROM edges AS x
    LEFT JOIN earned AS e
        ON e.member_id = x.member_id AND e.position = x.position AND e.valid_from <= x.day AND (e.valid_to IS NULL OR e.valid_to > x.day)
    LEFT JOIN LATERAL (
        SELECT g.rank, g.valid_to, g.reason
        FROM granted AS g
        WHERE g.member_id = x.member_id AND g.position = x.position AND g.valid_from <= x.day AND (g.valid_to IS NULL OR g.valid_to > x.day)
        ORDER BY g.rank DESC, g.valid_to DESC NULLS FIRST, g.grant_id ASC
        LIMIT 1
    ) AS g ON TRUE
),
placed AS (
    SELECT
        s.member_id, s.position, s.day, s.value, s.kind, s.reason, s.earned_from, s.granted_to, s.grant_reason,
        nullif(greatest(coalesce(s.earned_rank, 0), coalesce(s.granted_rank, 0)), 0) AS rank,
        coalesce(s.granted_rank, 0) > coalesce(s.earned_rank, 0) AS is_granted
    FROM standing AS s
),
moved AS (
    SELECT
        p.member_id, p.position, p.day, p.value, p.kind, p.reason, p.earned_from, p.granted_to, p.grant_reason, p.rank, p.is_granted,
        lag(p.rank) OVER o AS previous_rank, lag(p.is_granted) OVER o AS was_granted
    FROM placed AS p
    WINDOW o AS (PARTITION BY p.member_id, p.position ORDER BY p.day ASC)
)
SELECT
    m.member_id, m.position, m.day, m.rank,
    CASE
        WHEN m.is_granted THEN 'grant'
        WHEN m.earned_from = m.day THEN m.kind
        ELSE 'grant_end'
    END,
    m.value,
    '-infinity'::date,                                  -- marks these rows; the real end is set below
    m.previous_rank,
    CASE
        WHEN m.is_granted THEN 'granted' || coalesce(' until ' || m.granted_to, '') || ': ' || m.grant_reason
        WHEN m.earned_from = m.day THEN m.reason
        ELSE 'the grant ended; ' || m.reason
    END
FROM moved AS m
WHERE m.rank IS DISTINCT FROM m.previous_rank;

DELETE FROM earned AS e
WHERE
    e.valid_to IS DISTINCT FROM '-infinity'
    AND EXISTS (SELECT 1 FROM decisions AS d WHERE d.kind = 'grant' AND d.member_id = e.member_id AND d.position = e.position);

UPDATE earned AS e SET valid_to = x.valid_to
FROM (
    SELECT
        t.member_id, t.position, t.valid_from,
        lead(t.valid_from) OVER (PARTITION BY t.member_id, t.position ORDER BY t.valid_from ASC) AS valid_to
    FROM earned AS t
    WHERE EXISTS (SELECT 1 FROM decisions AS d WHERE d.kind = 'grant' AND d.member_id = t.member_id AND d.position = t.position)
) AS x
WHERE e.valid_to = '-infinity' AND e.member_id = x.member_id AND e.position = x.position AND e.valid_from = x.valid_from;
DELETE FROM earned AS e WHERE e.rank IS NULL;           -- a grant ended and nothing was earned: no tier, and no row

-- The rows as they shall stand. An open tier says when it is looked at next; inside the grace that is the review that was missed.
DROP TABLE IF EXISTS pg_temp.told_tiers;
CREATE TEMPORARY TABLE told_tiers ON COMMIT DROP AS
SELECT
    e.member_id, p.programme, e.valid_from, e.valid_to, p.tiers[e.rank] AS tier, p.tiers[e.previous_rank] AS previous_tier, e.kind,
    e.value AS measure_value,
    CASE
        WHEN e.valid_to IS NOT NULL OR e.rank = 1 OR e.kind = 'grant' OR coalesce(p.review_days, 0) = 0 THEN NULL::date
        ELSE (
            SELECT
                CASE
                    WHEN x.last_review > e.valid_from
                        AND e.rank > (
                            SELECT t.keep_rank FROM path AS t
                            WHERE t.member_id = e.member_id AND t.position = e.position AND t.day <= x.last_review
                            ORDER BY t.day DESC LIMIT 1
                        )
                        AND NOT EXISTS (
                            SELECT 1 FROM path AS t
                            WHERE
                                t.member_id = e.member_id AND t.position = e.position AND t.day > x.last_review AND t.keep_rank >= e.rank
                        ) THEN x.last_review
                    ELSE x.last_review + p.review_days
                END
            FROM (
                SELECT e.valid_from + ((SELECT k.horizon FROM mark AS k) - e.valid_from) / p.review_days * p.review_days AS last_review
            ) AS x
        )
    END AS review_date,
    e.reason
FROM earned AS e
JOIN programmes AS p ON p.position = e.position;
CREATE INDEX ON told_tiers (member_id);
ANALYZE told_tiers;

-- What the nights before told differently, day by day up to the last one.
INSERT INTO mart.restatements (business_date, about, subject, member_id, day_from, day_to, before, after)
SELECT %(business_date)s::date, 'tier', x.programme, x.member_id, x.day_from, x.day_to, x.before, x.after
FROM (
    SELECT
        coalesce(o.programme, n.programme) AS programme,
        coalesce(o.member_id, n.member_id) AS member_id,
        greatest(o.valid_from, n.valid_from) AS day_from,
        least(o.valid_to, n.valid_to, k.since + 1) AS day_to,
        coalesce(o.tier, '') AS before, coalesce(n.tier, '') AS after
    FROM mark AS k
    JOIN scope AS s ON k.is_log_wanted
    JOIN mart.member_tiers AS o ON o.member_id = s.member_id
    JOIN told_tiers AS n
        ON n.member_id = o.member_id AND n.programme = o.programme AND n.tier <> o.tier
        AND n.valid_from < coalesce(o.valid_to, 'infinity') AND o.valid_from < coalesce(n.valid_to, 'infinity')
) AS x
WHERE x.day_from < x.day_to;

DELETE FROM mart.member_tiers AS t
USING scope AS s
WHERE
    t.member_id = s.member_id
    AND NOT EXISTS (
        SELECT 1 FROM told_tiers AS n WHERE n.member_id = t.member_id AND n.programme = t.programme AND n.valid_from = t.valid_from
    );

UPDATE mart.member_tiers AS m SET
    valid_to = n.valid_to,
    tier = n.tier,
    previous_tier = n.previous_tier,
    kind = n.kind,
    measure_value = n.measure_value,
    review_date = n.review_date,
    reason = n.reason
FROM told_tiers AS n
WHERE
    m.member_id = n.member_id AND m.programme = n.programme AND m.valid_from = n.valid_from
    AND (
        m.valid_to, m.tier, m.previous_tier, m.kind, m.measure_value,
        m.review_date, m.reason
    )
    IS DISTINCT FROM (
        n.valid_to, n.tier, n.previous_tier, n.kind, n.measure_value, n.review_date,
        n.reason
    );

INSERT INTO mart.member_tiers (
    member_id, programme, valid_from, valid_to, tier, previous_tier, kind, measure_value, review_date, reason
)
SELECT n.member_id, n.programme, n.valid_from, n.valid_to, n.tier, n.previous_tier, n.kind, n.measure_value, n.review_date, n.reason
FROM told_tiers AS n
WHERE NOT EXISTS (
    SELECT 1 FROM mart.member_tiers AS m
    WHERE m.member_id = n.member_id AND m.programme = n.programme AND m.valid_from = n.valid_from
)
ORDER BY n.member_id ASC, n.programme ASC, n.valid_from ASC;

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'member_tiers', k.horizon, k.upto_batch_id, k.settings FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id), excluded.settings);
