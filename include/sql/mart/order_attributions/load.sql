-- mart.order_attributions: which touch may claim an order: the last message or click, the coupon, the QR code; three models side by side.
-- Grain: one row per model, source and order; an order is claimed once per model, or not at all.
-- Params: business_date (date), attribution_click_days (integer), attribution_message_days (integer),
--   attribution_coupon_before_minutes (integer), attribution_coupon_after_minutes (integer), attribution_scene_days (integer).
-- Reads: core.orders, core.exposures, core.message_events, core.interactions, core.coupon_events, core.follow_events, core.followers,
--   core.members, core.member_identities, mart.touched_members, mart.marks, mart.order_attributions
-- Rerun: safe; a night looks at members of whom something was written, and at who paid or redeemed since the last one; without a mark
-- or with other windows, at everybody. Rows that do not differ are not rewritten. An older date takes nothing back.
-- Only what happened before the payment counts, so later news of a message does not move an order. A code says on which order it was
-- used; a platform's coupon does not: it is the member's order that was paid nearest to the redemption
-- (docs/decisions/0068-attribution.md).
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    (greatest(%(business_date)s::date, m.business_date) + 1)::timestamptz AS ends_at,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), m.batch_id, 0) AS upto_batch_id,
    w.settings,
    coalesce(m.settings <> w.settings, TRUE) AS is_full,
    current_setting('random_page_cost') AS page_cost
FROM (
    SELECT
        'order_attributions' AS mart,
        concat_ws(
            '/', %(attribution_click_days)s::integer, %(attribution_message_days)s::integer,
            %(attribution_coupon_before_minutes)s::integer, %(attribution_coupon_after_minutes)s::integer,
            %(attribution_scene_days)s::integer
        ) AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

-- A night touches a hundredth of tables that are in memory; everybody is a scan.
SELECT set_config('random_page_cost', CASE WHEN k.is_full THEN k.page_cost ELSE '1.1' END, TRUE) FROM mark AS k;

-- Whose orders of which days; of somebody of whom anything else was written, all days.
DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT
    t.member_id,
    CASE WHEN isfinite(t.day) THEN t.day ELSE '-infinity' END AS day_from,
    CASE WHEN isfinite(t.day) THEN t.day ELSE 'infinity' END AS day_to
FROM mart.touched_members AS t
CROSS JOIN mark AS k
WHERE NOT k.is_full AND t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id
UNION
SELECT mi.member_id, o.paid_at::date AS day_from, o.paid_at::date AS day_to
FROM mark AS k
JOIN core.orders AS o ON o.paid_at >= (k.since + 1)::timestamptz AND o.paid_at < k.ends_at
JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
WHERE NOT k.is_full
UNION
-- redeemed after the payment, across the midnight of the last night
SELECT coalesce(p.absorbed_by, c.member_id), '-infinity' AS day_from, 'infinity' AS day_to
FROM mark AS k
JOIN core.coupon_events AS c ON c.occurred_at >= (k.since + 1)::timestamptz AND c.occurred_at < k.ends_at AND c.kind = 'redeemed'
LEFT JOIN core.members AS p ON p.member_id = c.member_id
WHERE NOT k.is_full;
ANALYZE scope;

DROP TABLE IF EXISTS pg_temp.scope_members;
CREATE TEMPORARY TABLE scope_members ON COMMIT DROP AS SELECT DISTINCT s.member_id FROM scope AS s;
ANALYZE scope_members;

-- Every name that the people in question have had: their own, and those of people who turned out to be them.
DROP TABLE IF EXISTS pg_temp.known_as;
CREATE TEMPORARY TABLE known_as ON COMMIT DROP AS
SELECT p.member_id AS known_id, coalesce(p.absorbed_by, p.member_id) AS member_id
FROM core.members AS p
WHERE (SELECT k.is_full FROM mark AS k)
UNION ALL
SELECT s.member_id AS known_id, s.member_id
FROM scope_members AS s
UNION ALL
SELECT p.member_id AS known_id, s.member_id
FROM scope_members AS s
JOIN core.members AS p ON p.absorbed_by = s.member_id;
ANALYZE known_as;

DROP TABLE IF EXISTS pg_temp.exposed;
CREATE TEMPORARY TABLE exposed ON COMMIT DROP AS
SELECT a.member_id, x.run_id, x.campaign, x.arm, x.purpose, x.message_key, x.group_key, x.coupon_request
FROM known_as AS a
JOIN core.exposures AS x ON x.member_id = a.known_id;
ANALYZE exposed;

-- Messages that arrived, as far as the channel tells; the answer to a mass send holds for all its messages.
DROP TABLE IF EXISTS pg_temp.message_news;
CREATE TEMPORARY TABLE message_news ON COMMIT DROP AS
SELECT x.member_id, x.run_id, x.campaign, x.arm, x.message_key, e.kind IN ('failed', 'bounced') AS is_failed, e.occurred_at
FROM exposed AS x
JOIN core.message_events AS e ON e.message_key = x.message_key
WHERE x.purpose = 'marketing' AND e.kind IN ('accepted', 'delivered', 'failed', 'bounced')
UNION ALL
SELECT x.member_id, x.run_id, x.campaign, x.arm, x.message_key, e.kind IN ('failed', 'bounced'), e.occurred_at
FROM exposed AS x
JOIN core.message_events AS e ON e.message_key = x.group_key
WHERE x.purpose = 'marketing' AND e.kind IN ('accepted', 'delivered', 'failed', 'bounced');

DROP TABLE IF EXISTS pg_temp.people;
CREATE TEMPORARY TABLE people ON COMMIT DROP AS
SELECT mi.identity_id, mi.member_id
FROM (SELECT DISTINCT a.member_id FROM known_as AS a) AS p
JOIN core.member_identities AS mi ON mi.member_id = p.member_id;
ANALYZE people;

-- One row per touch: from when to when it may claim a payment, and until which failure.
DROP TABLE IF EXISTS pg_temp.touches;
CREATE TEMPORARY TABLE touches ON COMMIT DROP AS
SELECT
    'last_touch' AS model, n.member_id, 'message' AS touch_kind, n.occurred_at AS touched_at, n.occurred_at AS counts_from,
    n.occurred_at + make_interval(days => %(attribution_message_days)s::integer) AS counts_to, f.failed_at, n.run_id, n.campaign,
    n.message_key, NULL::text AS coupon_request, n.arm, NULL::text AS touch_source_id, NULL::text AS scene,
    NULL::text AS order_source_id, NULL::text AS order_id   -- where the touch itself names the order
FROM message_news AS n
LEFT JOIN (
    SELECT b.run_id, b.message_key, min(b.occurred_at) AS failed_at
    FROM message_news AS b
    WHERE b.is_failed
    GROUP BY b.run_id, b.message_key
) AS f ON f.run_id = n.run_id AND f.message_key = n.message_key
WHERE NOT n.is_failed
UNION ALL
-- a link that was passed on claims for the person who clicked, in whichever arm that person is
SELECT
    'last_touch', p.member_id, 'click', i.occurred_at AS touched_at, i.occurred_at AS counts_from,
    i.occurred_at + make_interval(days => %(attribution_click_days)s::integer), NULL, r.run_id, r.campaign, i.message_key, NULL,
    own.arm, NULL, NULL, NULL, NULL
FROM people AS p
JOIN core.interactions AS i ON i.identity_id = p.identity_id AND i.kind = 'click' AND i.message_key IS NOT NULL
JOIN LATERAL (
    (SELECT x.run_id, x.campaign, x.purpose FROM core.exposures AS x WHERE x.message_key = i.message_key ORDER BY x.run_id ASC LIMIT 1)
    UNION ALL
    (SELECT x.run_id, x.campaign, x.purpose FROM core.exposures AS x WHERE x.group_key = i.message_key ORDER BY x.run_id ASC LIMIT 1)
) AS r ON r.purpose = 'marketing'
LEFT JOIN (
    SELECT e.run_id, e.member_id, max(e.arm) AS arm FROM exposed AS e GROUP BY e.run_id, e.member_id
) AS own ON own.run_id = r.run_id AND own.member_id = p.member_id
UNION ALL
SELECT
    'qr_scene', p.member_id, s.touch_kind, s.touched_at, s.touched_at AS counts_from,
    s.touched_at + make_interval(days => %(attribution_scene_days)s::integer), NULL, NULL, NULL, NULL, NULL, NULL, s.source_id, s.scene,
    NULL, NULL
FROM people AS p
JOIN (
    SELECT e.identity_id, 'follow' AS touch_kind, e.occurred_at AS touched_at, e.source_id, e.scene
    FROM core.follow_events AS e
    WHERE e.kind = 'follow' AND e.scene IS NOT NULL
    UNION ALL
    -- of followers who came before pushes were kept, the profile tells
    SELECT w.identity_id, 'follow', w.followed_at, w.source_id, w.qr_scene
    FROM core.followers AS w
    WHERE w.qr_scene IS NOT NULL AND w.followed_at IS NOT NULL
    UNION ALL
    SELECT i.identity_id, 'scan', i.occurred_at, i.source_id, i.scene
    FROM core.interactions AS i
    WHERE i.kind = 'scan' AND i.scene IS NOT NULL
) AS s ON s.identity_id = p.identity_id
UNION ALL
SELECT
    'coupon_code', a.member_id, 'coupon', c.occurred_at,
    c.occurred_at - make_interval(mins => %(attribution_coupon_before_minutes)s::integer),
    c.occurred_at + make_interval(mins => %(attribution_coupon_after_minutes)s::integer), NULL, x.run_id, x.campaign, x.message_key,
    c.coupon_request, x.arm, NULL, NULL, c.source_id, CASE WHEN c.source_id IS NOT NULL THEN c.order_id END
FROM known_as AS a
JOIN core.coupon_events AS c ON c.member_id = a.known_id AND c.kind = 'redeemed'
LEFT JOIN (
    SELECT DISTINCT ON (e.coupon_request) e.coupon_request, e.run_id, e.campaign, e.message_key, e.arm
    FROM exposed AS e
    WHERE e.coupon_request IS NOT NULL
    ORDER BY e.coupon_request ASC, e.run_id ASC, e.message_key ASC
) AS x ON x.coupon_request = c.coupon_request
WHERE c.occurred_at < (SELECT k.ends_at FROM mark AS k);
ANALYZE touches;

-- A coupon has one order: to know which, all of its member's are looked at.
INSERT INTO scope (member_id, day_from, day_to)
SELECT DISTINCT t.member_id, '-infinity'::date, 'infinity'::date
FROM touches AS t
WHERE t.model = 'coupon_code' AND NOT (SELECT k.is_full FROM mark AS k);
ANALYZE scope;

-- The orders in question of people with a touch.
DROP TABLE IF EXISTS pg_temp.scope_orders;
CREATE TEMPORARY TABLE scope_orders ON COMMIT DROP AS
SELECT mi.member_id, o.source_id, o.order_id, o.paid_at, o.goods_amount
FROM (SELECT DISTINCT t.member_id FROM touches AS t WHERE (SELECT k.is_full FROM mark AS k)) AS p
JOIN core.member_identities AS mi ON mi.member_id = p.member_id
JOIN core.orders AS o ON o.identity_id = mi.identity_id
WHERE o.is_paid AND o.paid_at < (SELECT k.ends_at FROM mark AS k)
UNION
SELECT mi.member_id, o.source_id, o.order_id, o.paid_at, o.goods_amount
FROM scope AS s
JOIN core.member_identities AS mi ON mi.member_id = s.member_id
JOIN LATERAL (
    -- a fence, so that both ends of the days are looked up in the index
    SELECT i.source_id, i.order_id, i.paid_at, i.goods_amount
    FROM core.orders AS i
    WHERE
        i.identity_id = mi.identity_id AND i.is_paid
        AND i.paid_at >= s.day_from::timestamptz AND i.paid_at < (s.day_to + 1)::timestamptz
    ORDER BY i.paid_at ASC
    OFFSET 0
) AS o ON TRUE
WHERE
    o.paid_at < (SELECT k.ends_at FROM mark AS k)
    AND EXISTS (SELECT 1 FROM touches AS t WHERE t.member_id = s.member_id);
ANALYZE scope_orders;

DROP TABLE IF EXISTS pg_temp.candidates;
CREATE TEMPORARY TABLE candidates ON COMMIT DROP AS
SELECT
    t.model, o.source_id, o.order_id, t.member_id, o.paid_at, t.touch_kind, t.touched_at, t.run_id, t.campaign, t.message_key,
    t.coupon_request, t.arm, t.touch_source_id, t.scene, o.goods_amount,
    greatest(o.paid_at - t.touched_at, t.touched_at - o.paid_at) AS distance
FROM touches AS t
JOIN scope_orders AS o
    ON o.member_id = t.member_id
    AND CASE
        WHEN t.order_id IS NULL THEN o.paid_at >= t.counts_from AND o.paid_at < t.counts_to
        ELSE o.source_id = t.order_source_id AND o.order_id = t.order_id
    END
WHERE t.failed_at > o.paid_at OR t.failed_at IS NULL;

DROP TABLE IF EXISTS pg_temp.claims;
CREATE TEMPORARY TABLE claims ON COMMIT DROP AS
SELECT DISTINCT ON (c.model, c.source_id, c.order_id)
    c.model, c.source_id, c.order_id, c.member_id, c.paid_at, c.touch_kind, c.touched_at, c.run_id, c.campaign, c.message_key,
    c.coupon_request, c.arm, c.touch_source_id, c.scene, c.goods_amount, c.distance
FROM (
    SELECT
        t.model, t.source_id, t.order_id, t.member_id, t.paid_at, t.touch_kind, t.touched_at, t.run_id, t.campaign, t.message_key,
        t.coupon_request, t.arm, t.touch_source_id, t.scene, t.goods_amount, t.distance
    FROM candidates AS t
    WHERE t.model <> 'coupon_code'
    UNION ALL
    -- a coupon has one order: the one that was named, or the nearest
    (
        SELECT DISTINCT ON (n.coupon_request)
            n.model, n.source_id, n.order_id, n.member_id, n.paid_at, n.touch_kind, n.touched_at, n.run_id, n.campaign, n.message_key,
            n.coupon_request, n.arm, n.touch_source_id, n.scene, n.goods_amount, n.distance
        FROM candidates AS n
        WHERE n.model = 'coupon_code'
        ORDER BY n.coupon_request ASC, n.distance ASC, n.paid_at DESC, n.source_id ASC, n.order_id ASC
    )
) AS c
ORDER BY
    c.model ASC, c.source_id ASC, c.order_id ASC, c.distance ASC, c.touch_kind ASC, c.run_id ASC, c.message_key ASC,
    c.coupon_request ASC, c.touch_source_id ASC, c.scene ASC;
ANALYZE claims;

DELETE FROM mart.order_attributions AS m
USING scope AS s
WHERE
    m.member_id = s.member_id AND m.day >= s.day_from AND m.day <= s.day_to
    AND NOT EXISTS (
        SELECT 1 FROM claims AS c WHERE c.model = m.model AND c.source_id = m.source_id AND c.order_id = m.order_id
    );
DELETE FROM mart.order_attributions AS m
WHERE
    (SELECT k.is_full FROM mark AS k) AND m.day <= %(business_date)s::date
    AND NOT EXISTS (
        SELECT 1 FROM claims AS c WHERE c.model = m.model AND c.source_id = m.source_id AND c.order_id = m.order_id
    );

INSERT INTO mart.order_attributions (
    model, source_id, order_id, member_id, day, touch_kind, touched_at, run_id, campaign, message_key, coupon_request, arm,
    touch_source_id, scene, credited_amount
)
SELECT
    c.model, c.source_id, c.order_id, c.member_id, c.paid_at::date, c.touch_kind, c.touched_at, c.run_id, c.campaign, c.message_key,
    c.coupon_request, c.arm, c.touch_source_id, c.scene, c.goods_amount
FROM claims AS c
ON CONFLICT (model, source_id, order_id) DO UPDATE SET
    member_id = excluded.member_id,
    day = excluded.day,
    touch_kind = excluded.touch_kind,
    touched_at = excluded.touched_at,
    run_id = excluded.run_id,
    campaign = excluded.campaign,
    message_key = excluded.message_key,
    coupon_request = excluded.coupon_request,
    arm = excluded.arm,
    touch_source_id = excluded.touch_source_id,
    scene = excluded.scene,
    credited_amount = excluded.credited_amount
WHERE
    (
        order_attributions.member_id, order_attributions.day, order_attributions.touch_kind, order_attributions.touched_at,
        order_attributions.run_id, order_attributions.campaign, order_attributions.message_key, order_attributions.coupon_request,
        order_attributions.arm, order_attributions.touch_source_id, order_attributions.scene, order_attributions.credited_amount
    )
    IS DISTINCT FROM (
        excluded.member_id, excluded.day, excluded.touch_kind, excluded.touched_at,
        excluded.run_id, excluded.campaign, excluded.message_key, excluded.coupon_request,
        excluded.arm, excluded.touch_source_id, excluded.scene, excluded.credited_amount
    );

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'order_attributions', k.horizon, k.upto_batch_id, k.settings
FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id), excluded.settings);

SELECT set_config('random_page_cost', k.page_cost, TRUE) FROM mark AS k;
