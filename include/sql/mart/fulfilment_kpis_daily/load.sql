-- mart.fulfilment_kpis_daily: how the orders paid on a day were shipped and signed, as known at the end of the business date.
-- Grain: one row per source and day of payment (Asia/Shanghai) with at least one paid order.
-- Params: business_date (date), promised_shipping_hours (integer), promised_delivery_days (integer).
-- Reads: core.accounts, core.orders, core.refunds, mart.touched_days, mart.fulfilment_kpis_daily, mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. A night computes the days that were touched, are new, whose orders were
-- shipped, signed or called off since, or whose promise fell due; without a mark, all. All figures ripen; a run for an older date
-- computes with what the newest night knew (docs/decisions/0064-kpi-days.md). Delivery is known by its signing only. What is sold over
-- the counter (sources.yaml: is_store) is carried home: nobody ships it, and it is not here.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    (greatest(%(business_date)s::date, m.business_date) + 1)::timestamptz AS ends_at,
    m.business_date AS since,
    (m.business_date + 1)::timestamptz AS since_at,
    coalesce(m.batch_id, 0) AS after_batch_id,
    greatest(m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), 0)) AS upto_batch_id,
    w.settings,
    coalesce(m.settings <> w.settings, TRUE) AS is_full
FROM (
    SELECT
        'fulfilment_kpis_daily' AS mart,
        %(promised_shipping_hours)s::integer || ' hours, ' || %(promised_delivery_days)s::integer || ' days, not of '
        || coalesce((SELECT string_agg(a.source_id, ',' ORDER BY a.source_id) FROM core.accounts AS a WHERE a.is_store), '') AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

-- When something happened that no night has looked at: touched, or since the last one.
DROP TABLE IF EXISTS pg_temp.news;
CREATE TEMPORARY TABLE news ON COMMIT DROP AS
SELECT t.day
FROM mart.touched_days AS t
CROSS JOIN mark AS k
WHERE t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id AND t.day <= k.horizon
UNION
SELECT d::date
FROM mark AS k
CROSS JOIN generate_series(k.since + 1, k.horizon, interval '1 day') AS d;
ANALYZE news;

DROP TABLE IF EXISTS pg_temp.scope_days;
CREATE TEMPORARY TABLE scope_days ON COMMIT DROP AS
SELECT s.day
FROM (
    SELECT n.day FROM news AS n
    UNION
    SELECT o.paid_at::date
    FROM mark AS k
    JOIN core.orders AS o ON o.shipped_at >= k.since_at AND o.shipped_at < k.ends_at
    WHERE o.is_paid
    UNION
    SELECT o.paid_at::date
    FROM mark AS k
    JOIN core.orders AS o ON o.signed_at >= k.since_at AND o.signed_at < k.ends_at
    WHERE o.is_paid
    UNION
    SELECT o.paid_at::date
    FROM news AS n
    JOIN core.refunds AS r
        ON (r.settled_at >= n.day::timestamptz AND r.settled_at < (n.day + 1)::timestamptz)
        OR (r.created_at >= n.day::timestamptz AND r.created_at < (n.day + 1)::timestamptz)
    JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
    WHERE o.is_paid
    UNION
    -- paid then, due since
    SELECT d::date
    FROM mark AS k
    CROSS JOIN (
        VALUES
        (make_interval(hours => %(promised_shipping_hours)s::integer)),
        (make_interval(days => %(promised_delivery_days)s::integer))
    ) AS p (promise)
    CROSS JOIN generate_series((k.since_at - p.promise)::date, (k.ends_at - p.promise)::date, interval '1 day') AS d
) AS s
CROSS JOIN mark AS h
WHERE s.day <= h.horizon;

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

-- All money back before the promised time was over, and never shipped (signed): not late, there was nothing to bring.
DROP TABLE IF EXISTS pg_temp.called_off;
CREATE TEMPORARY TABLE called_off ON COMMIT DROP AS
SELECT c.source_id, c.order_id, c.is_before_shipping, c.is_before_delivery
FROM (
    SELECT
        o.source_id, o.order_id,
        (o.shipped_at IS NULL OR o.shipped_at >= k.ends_at)
        AND coalesce(
            sum(r.refund_amount) FILTER (WHERE r.settled_at < o.paid_at + make_interval(hours => %(promised_shipping_hours)s::integer)), 0
        ) >= o.goods_amount AS is_before_shipping,
        (o.signed_at IS NULL OR o.signed_at >= k.ends_at)
        AND coalesce(
            sum(r.refund_amount) FILTER (WHERE r.settled_at < o.paid_at + make_interval(days => %(promised_delivery_days)s::integer)), 0
        ) >= o.goods_amount AS is_before_delivery
    FROM mark AS k
    JOIN core.refunds AS r ON r.settled_at >= (SELECT min(g.from_at) FROM ranges AS g) AND r.settled_at < k.ends_at
    JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
    JOIN ranges AS i ON o.paid_at >= i.from_at AND o.paid_at < i.until_at
    WHERE r.is_money AND o.is_paid AND r.settled_at >= o.paid_at
    GROUP BY o.source_id, o.order_id, o.goods_amount, o.paid_at, o.shipped_at, o.signed_at, k.ends_at
) AS c
WHERE c.is_before_shipping OR c.is_before_delivery;
ANALYZE called_off;

DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
paid_orders AS (
    SELECT
        o.source_id,
        o.order_id,
        o.paid_at,
        o.paid_at + make_interval(hours => %(promised_shipping_hours)s::integer) AS due_at,
        o.paid_at + make_interval(days => %(promised_delivery_days)s::integer) AS delivery_due_at,
        CASE WHEN o.shipped_at < k.ends_at THEN o.shipped_at END AS shipped_at,
        CASE WHEN o.signed_at < k.ends_at THEN o.signed_at END AS signed_at
    FROM ranges AS r
    CROSS JOIN mark AS k
    JOIN core.orders AS o ON o.paid_at >= r.from_at AND o.paid_at < r.until_at
    WHERE o.is_paid AND o.source_id NOT IN (SELECT a.source_id FROM core.accounts AS a WHERE a.is_store)
),
judged AS (
    SELECT
        o.source_id,
        o.paid_at::date AS day,
        o.shipped_at,
        o.signed_at,
        o.paid_at,
        o.due_at,
        o.delivery_due_at,
        o.due_at <= k.ends_at AND c.is_before_shipping IS NOT TRUE AS is_due,
        o.delivery_due_at <= k.ends_at AND c.is_before_delivery IS NOT TRUE AS is_delivery_due
    FROM paid_orders AS o
    CROSS JOIN mark AS k
    LEFT JOIN called_off AS c ON c.source_id = o.source_id AND c.order_id = o.order_id
)
SELECT
    j.source_id,
    j.day,
    -- a promise that ends at midnight is due on the day before
    greatest(
        j.day, max(j.shipped_at)::date, max(j.signed_at)::date,
        (max(j.due_at) FILTER (WHERE j.is_due) - interval '1 microsecond')::date,
        (max(j.delivery_due_at) FILTER (WHERE j.is_delivery_due) - interval '1 microsecond')::date
    ) AS business_date,
    count(*) AS paid_order_count,
    count(j.shipped_at) AS shipped_order_count,
    count(*) FILTER (WHERE j.is_due) AS due_order_count,
    count(*) FILTER (WHERE j.is_due AND j.shipped_at <= j.due_at) AS shipped_on_time_count,
    count(j.signed_at) AS signed_order_count,
    count(*) FILTER (WHERE j.is_delivery_due) AS delivery_due_count,
    count(*) FILTER (WHERE j.is_delivery_due AND j.signed_at <= j.delivery_due_at) AS delivered_on_time_count,
    round(extract(EPOCH FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY j.shipped_at - j.paid_at ASC)) / 3600, 2)
        AS median_hours_to_ship,
    round(extract(EPOCH FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY j.signed_at - j.paid_at ASC)) / 86400, 2)
        AS median_days_to_sign
FROM judged AS j
GROUP BY j.source_id, j.day;

DELETE FROM mart.fulfilment_kpis_daily AS m
USING mark AS k
WHERE
    (k.is_full OR EXISTS (SELECT FROM scope_days AS d WHERE d.day = m.day))
    AND NOT EXISTS (SELECT FROM fresh AS f WHERE f.source_id = m.source_id AND f.day = m.day);

INSERT INTO mart.fulfilment_kpis_daily AS m (
    source_id, day, business_date, paid_order_count, shipped_order_count, due_order_count, shipped_on_time_count,
    on_time_shipping_rate, signed_order_count, delivery_due_count, delivered_on_time_count, on_time_delivery_rate,
    median_hours_to_ship, median_days_to_sign
)
SELECT
    f.source_id,
    f.day,
    f.business_date,
    f.paid_order_count,
    f.shipped_order_count,
    f.due_order_count,
    f.shipped_on_time_count,
    f.shipped_on_time_count::numeric / nullif(f.due_order_count, 0),
    f.signed_order_count,
    f.delivery_due_count,
    f.delivered_on_time_count,
    f.delivered_on_time_count::numeric / nullif(f.delivery_due_count, 0),
    f.median_hours_to_ship,
    f.median_days_to_sign
FROM fresh AS f
ON CONFLICT (source_id, day) DO UPDATE SET
    business_date = excluded.business_date,
    paid_order_count = excluded.paid_order_count,
    shipped_order_count = excluded.shipped_order_count,
    due_order_count = excluded.due_order_count,
    shipped_on_time_count = excluded.shipped_on_time_count,
    on_time_shipping_rate = excluded.on_time_shipping_rate,
    signed_order_count = excluded.signed_order_count,
    delivery_due_count = excluded.delivery_due_count,
    delivered_on_time_count = excluded.delivered_on_time_count,
    on_time_delivery_rate = excluded.on_time_delivery_rate,
    median_hours_to_ship = excluded.median_hours_to_ship,
    median_days_to_sign = excluded.median_days_to_sign
WHERE
    (
        m.business_date, m.paid_order_count, m.shipped_order_count, m.due_order_count, m.shipped_on_time_count, m.signed_order_count,
        m.delivery_due_count, m.delivered_on_time_count, m.median_hours_to_ship, m.median_days_to_sign
    )
    IS DISTINCT FROM (
        excluded.business_date, excluded.paid_order_count, excluded.shipped_order_count, excluded.due_order_count,
        excluded.shipped_on_time_count, excluded.signed_order_count, excluded.delivery_due_count,
        excluded.delivered_on_time_count, excluded.median_hours_to_ship, excluded.median_days_to_sign
    );

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'fulfilment_kpis_daily', k.horizon, k.upto_batch_id, k.settings FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, excluded.batch_id, excluded.settings);
