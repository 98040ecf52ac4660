-- mart.review_kpis_daily: review collection: the orders signed on a day, who was asked, who wrote, as known at the end of
-- the business date.
-- Grain: one row per source and day of signing (Asia/Shanghai) with at least one signed order.
-- Params: business_date (date).
-- Reads: core.orders, core.reviews, core.message_events
-- Rerun: safe; rows that do not differ are not rewritten. All figures ripen; a run for an older date leaves rows alone that
-- a later night has changed (docs/decisions/0022-ripening-figures.md).
-- Our request for an order has the message key review/<source>/<order>/<ask|remind>; asked = the platform accepted it.
WITH
night AS (SELECT (%(business_date)s::date + 1)::timestamptz AS ends_at),
signed_orders AS (
    SELECT o.source_id, o.order_id, o.signed_at::date AS day
    FROM core.orders AS o
    JOIN night AS n ON o.signed_at < n.ends_at
    WHERE o.is_paid
),
requests AS (
    SELECT
        split_part(e.message_key, '/', 2) AS source_id,
        split_part(e.message_key, '/', 3) AS order_id,
        min(e.occurred_at) FILTER (WHERE split_part(e.message_key, '/', 4) = 'ask') AS asked_at,
        min(e.occurred_at) FILTER (WHERE split_part(e.message_key, '/', 4) = 'remind') AS reminded_at
    FROM core.message_events AS e
    JOIN night AS n ON e.occurred_at < n.ends_at
    WHERE e.kind = 'accepted' AND e.message_key LIKE 'review/%%'
    GROUP BY split_part(e.message_key, '/', 2), split_part(e.message_key, '/', 3)
),
first_reviews AS (
    -- any line's review is the order's review: nobody is asked again
    SELECT v.source_id, v.order_id, min(v.created_at) AS reviewed_at
    FROM core.reviews AS v
    JOIN night AS n ON v.created_at < n.ends_at
    GROUP BY v.source_id, v.order_id
),
final AS (
    SELECT
        o.source_id,
        o.day,
        count(*) AS signed_order_count,
        count(q.asked_at) AS asked_order_count,
        count(q.reminded_at) AS reminded_order_count,
        count(v.reviewed_at) AS reviewed_order_count,
        count(*) FILTER (WHERE v.reviewed_at >= q.asked_at) AS reviewed_after_ask_count
    FROM signed_orders AS o
    LEFT JOIN requests AS q ON q.source_id = o.source_id AND q.order_id = o.order_id
    LEFT JOIN first_reviews AS v ON v.source_id = o.source_id AND v.order_id = o.order_id
    GROUP BY o.source_id, o.day
),
vanished AS (
    DELETE FROM mart.review_kpis_daily AS m
    WHERE
        m.day <= %(business_date)s::date
        AND m.business_date <= %(business_date)s::date
        AND NOT EXISTS (SELECT 1 FROM final AS f WHERE f.source_id = m.source_id AND f.day = m.day)
)
INSERT INTO mart.review_kpis_daily (
    source_id, day, business_date, signed_order_count, asked_order_count, reminded_order_count, reviewed_order_count,
    reviewed_after_ask_count, review_rate
)
SELECT
    f.source_id,
    f.day,
    %(business_date)s::date,
    f.signed_order_count,
    f.asked_order_count,
    f.reminded_order_count,
    f.reviewed_order_count,
    f.reviewed_after_ask_count,
    f.reviewed_order_count::numeric / nullif(f.signed_order_count, 0)
FROM final AS f
ON CONFLICT (source_id, day) DO UPDATE SET
    business_date = excluded.business_date,
    signed_order_count = excluded.signed_order_count,
    asked_order_count = excluded.asked_order_count,
    reminded_order_count = excluded.reminded_order_count,
    reviewed_order_count = excluded.reviewed_order_count,
    reviewed_after_ask_count = excluded.reviewed_after_ask_count,
    review_rate = excluded.review_rate
WHERE
    review_kpis_daily.business_date <= excluded.business_date
    AND (
        review_kpis_daily.signed_order_count, review_kpis_daily.asked_order_count, review_kpis_daily.reminded_order_count,
        review_kpis_daily.reviewed_order_count, review_kpis_daily.reviewed_after_ask_count
    )
    IS DISTINCT FROM (
        excluded.signed_order_count, excluded.asked_order_count, excluded.reminded_order_count,
        excluded.reviewed_order_count, excluded.reviewed_after_ask_count
    );
