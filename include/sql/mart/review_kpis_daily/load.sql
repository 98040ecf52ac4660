-- mart.review_kpis_daily: review collection: the orders signed on a day, who was asked, who wrote, as known at the end of
-- the business date.
-- Grain: one row per source and day of signing (Asia/Shanghai) with at least one signed order.
-- Params: business_date (date).
-- Reads: core.orders, core.reviews, core.message_events, core.point_uses, mart.touched_days, mart.touched_facts,
--   mart.review_kpis_daily, mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. A night computes the days that were touched, are new, or whose orders
-- were asked about, reviewed or rewarded since; without a mark, all. All figures ripen; a run for an older date computes with what the
-- newest night knew (docs/decisions/0064-kpi-days.md).
-- Our request for an order has the message key review/<source>/<order>/<ask|remind>; asked = the platform accepted it, on the
-- day of signing or later. The reward of its review is a use of points named review/<source>/<order>/reward.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    (greatest(%(business_date)s::date, m.business_date) + 1)::timestamptz AS ends_at,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    greatest(
        m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), 0),
        (SELECT max(t.batch_id) FROM mart.touched_facts AS t)
    ) AS upto_batch_id,
    m.mart IS NULL AS is_full
FROM (SELECT 'review_kpis_daily' AS mart) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

-- When something happened that no night has looked at: touched, or since the last one.
DROP TABLE IF EXISTS pg_temp.news;
CREATE TEMPORARY TABLE news ON COMMIT DROP AS
SELECT t.day, TRUE AS is_order, FALSE AS is_message
FROM mart.touched_days AS t
CROSS JOIN mark AS k
WHERE t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id AND t.day <= k.horizon
UNION
SELECT t.day, FALSE, TRUE
FROM mart.touched_facts AS t
CROSS JOIN mark AS k
WHERE t.about = 'message' AND t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id AND t.day <= k.horizon
UNION
SELECT d::date, TRUE, TRUE
FROM mark AS k
CROSS JOIN generate_series(k.since + 1, k.horizon, interval '1 day') AS d;
ANALYZE news;

DROP TABLE IF EXISTS pg_temp.scope_days;
CREATE TEMPORARY TABLE scope_days ON COMMIT DROP AS
SELECT s.day
FROM (
    SELECT n.day FROM news AS n WHERE n.is_order
    UNION
    SELECT o.signed_at::date
    FROM news AS n
    JOIN core.reviews AS v ON v.created_at >= n.day::timestamptz AND v.created_at < (n.day + 1)::timestamptz
    JOIN core.orders AS o ON o.source_id = v.source_id AND o.order_id = v.order_id
    WHERE n.is_order
    UNION
    SELECT o.signed_at::date
    FROM news AS n
    JOIN core.message_events AS e ON e.occurred_at >= n.day::timestamptz AND e.occurred_at < (n.day + 1)::timestamptz
    JOIN core.orders AS o
        ON o.source_id = split_part(e.message_key, '/', 2) AND o.order_id = split_part(e.message_key, '/', 3)
    WHERE n.is_message AND e.message_key LIKE 'review/%%'
    UNION
    SELECT o.signed_at::date
    FROM news AS n
    JOIN core.point_uses AS u ON u.used_at >= n.day::timestamptz AND u.used_at < (n.day + 1)::timestamptz
    JOIN core.orders AS o
        ON o.source_id = split_part(u.use_id, '/', 2) AND o.order_id = split_part(u.use_id, '/', 3)
    WHERE n.is_message AND u.use_id LIKE 'review/%%'
) AS s
CROSS JOIN mark AS k
WHERE s.day <= k.horizon;

DROP TABLE IF EXISTS pg_temp.ranges;
CREATE TEMPORARY TABLE ranges ON COMMIT DROP AS
SELECT min(i.day)::timestamptz AS from_at, (max(i.day) + 1)::timestamptz AS until_at
FROM (SELECT d.day, d.day - row_number() OVER (ORDER BY d.day ASC)::integer AS island FROM scope_days AS d) AS i
CROSS JOIN mark AS k
WHERE NOT k.is_full
GROUP BY i.island
UNION ALL
SELECT '-infinity'::timestamptz, k.ends_at FROM mark AS k WHERE k.is_full;
ANALYZE ranges;

DROP TABLE IF EXISTS pg_temp.signed_orders;
CREATE TEMPORARY TABLE signed_orders ON COMMIT DROP AS
SELECT o.source_id, o.order_id, o.signed_at::date AS day
FROM ranges AS r
JOIN core.orders AS o ON o.signed_at >= r.from_at AND o.signed_at < r.until_at
WHERE o.is_paid;
ANALYZE signed_orders;

DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
requests AS (
    SELECT
        o.source_id,
        o.order_id,
        min(e.occurred_at) FILTER (WHERE split_part(e.message_key, '/', 4) = 'ask') AS asked_at,
        min(e.occurred_at) FILTER (WHERE split_part(e.message_key, '/', 4) = 'remind') AS reminded_at
    FROM core.message_events AS e
    JOIN mark AS k ON e.occurred_at < k.ends_at
    JOIN signed_orders AS o
        ON o.source_id = split_part(e.message_key, '/', 2) AND o.order_id = split_part(e.message_key, '/', 3)
        AND e.occurred_at >= o.day::timestamptz
    WHERE e.kind = 'accepted' AND e.message_key LIKE 'review/%%' AND e.occurred_at >= (SELECT min(r.from_at) FROM ranges AS r)
    GROUP BY o.source_id, o.order_id
),
first_reviews AS (
    -- any line's review is the order's review: nobody is asked again
    SELECT v.source_id, v.order_id, min(v.created_at) AS reviewed_at
    FROM signed_orders AS o
    JOIN core.reviews AS v ON v.source_id = o.source_id AND v.order_id = o.order_id
    JOIN mark AS k ON v.created_at < k.ends_at
    GROUP BY v.source_id, v.order_id
),
rewards AS (
    SELECT o.source_id, o.order_id, u.used_at AS rewarded_at
    FROM signed_orders AS o
    JOIN core.point_uses AS u ON u.use_id = 'review/' || o.source_id || '/' || o.order_id || '/reward'
    JOIN mark AS k ON u.used_at < k.ends_at
)
SELECT
    o.source_id,
    o.day,
    greatest(
        o.day, max(q.asked_at)::date, max(q.reminded_at)::date, max(v.reviewed_at)::date, max(w.rewarded_at)::date
    ) AS business_date,
    count(*) AS signed_order_count,
    count(q.asked_at) AS asked_order_count,
    count(q.reminded_at) AS reminded_order_count,
    count(v.reviewed_at) AS reviewed_order_count,
    count(*) FILTER (WHERE v.reviewed_at >= q.asked_at) AS reviewed_after_ask_count,
    count(*) FILTER (WHERE v.reviewed_at >= q.reminded_at) AS reviewed_after_remind_count,
    count(w.rewarded_at) AS rewarded_order_count
FROM signed_orders AS o
LEFT JOIN requests AS q ON q.source_id = o.source_id AND q.order_id = o.order_id
LEFT JOIN first_reviews AS v ON v.source_id = o.source_id AND v.order_id = o.order_id
LEFT JOIN rewards AS w ON w.source_id = o.source_id AND w.order_id = o.order_id
GROUP BY o.source_id, o.day;

DELETE FROM mart.review_kpis_daily AS m
USING mark AS k
WHERE
    (k.is_full OR EXISTS (SELECT FROM scope_days AS d WHERE d.day = m.day))
    AND NOT EXISTS (SELECT FROM fresh AS f WHERE f.source_id = m.source_id AND f.day = m.day);

INSERT INTO mart.review_kpis_daily AS m (
    source_id, day, business_date, signed_order_count, asked_order_count, reminded_order_count, reviewed_order_count,
    reviewed_after_ask_count, reviewed_after_remind_count, rewarded_order_count, review_rate
)
SELECT
    f.source_id,
    f.day,
    f.business_date,
    f.signed_order_count,
    f.asked_order_count,
    f.reminded_order_count,
    f.reviewed_order_count,
    f.reviewed_after_ask_count,
    f.reviewed_after_remind_count,
    f.rewarded_order_count,
    f.reviewed_order_count::numeric / nullif(f.signed_order_count, 0)
FROM fresh AS f
ON CONFLICT (source_id, day) DO UPDATE SET
    business_date = excluded.business_date,
    signed_order_count = excluded.signed_order_count,
    asked_order_count = excluded.asked_order_count,
    reminded_order_count = excluded.reminded_order_count,
    reviewed_order_count = excluded.reviewed_order_count,
    reviewed_after_ask_count = excluded.reviewed_after_ask_count,
    reviewed_after_remind_count = excluded.reviewed_after_remind_count,
    rewarded_order_count = excluded.rewarded_order_count,
    review_rate = excluded.review_rate
WHERE
    (
        m.business_date, m.signed_order_count, m.asked_order_count, m.reminded_order_count, m.reviewed_order_count,
        m.reviewed_after_ask_count, m.reviewed_after_remind_count, m.rewarded_order_count
    )
    IS DISTINCT FROM (
        excluded.business_date, excluded.signed_order_count, excluded.asked_order_count, excluded.reminded_order_count,
        excluded.reviewed_order_count, excluded.reviewed_after_ask_count, excluded.reviewed_after_remind_count,
        excluded.rewarded_order_count
    );

INSERT INTO mart.marks (mart, business_date, batch_id)
SELECT 'review_kpis_daily', k.horizon, k.upto_batch_id FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, computed_at = clock_timestamp()
WHERE (marks.business_date, marks.batch_id) IS DISTINCT FROM (excluded.business_date, excluded.batch_id);
