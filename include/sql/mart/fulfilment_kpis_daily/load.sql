-- mart.fulfilment_kpis_daily: how the orders paid on a day were shipped and signed, as known at the end of the business date.
-- Grain: one row per source and day of payment (Asia/Shanghai) with at least one paid order.
-- Params: business_date (date), promised_shipping_hours (integer).
-- Reads: core.orders, core.refunds
-- Rerun: safe; rows that do not differ are not rewritten. All figures ripen; a run for an older date leaves rows alone that
-- a later night has changed (docs/decisions/0022-ripening-figures.md).
WITH
night AS (SELECT (%(business_date)s::date + 1)::timestamptz AS ends_at),
paid_orders AS (
    SELECT
        o.source_id,
        o.order_id,
        o.goods_amount,
        o.paid_at,
        o.paid_at + make_interval(hours => %(promised_shipping_hours)s::integer) AS due_at,
        CASE WHEN o.shipped_at < n.ends_at THEN o.shipped_at END AS shipped_at,
        CASE WHEN o.signed_at < n.ends_at THEN o.signed_at END AS signed_at
    FROM core.orders AS o
    JOIN night AS n ON o.paid_at < n.ends_at
    WHERE o.is_paid
),
called_off AS (
    -- all money back before the promised hours were over, and never shipped: not late, there was nothing to ship
    SELECT o.source_id, o.order_id
    FROM paid_orders AS o
    JOIN core.refunds AS r ON r.source_id = o.source_id AND r.order_id = o.order_id
    WHERE r.is_money AND r.settled_at < o.due_at AND o.shipped_at IS NULL
    GROUP BY o.source_id, o.order_id, o.goods_amount
    HAVING sum(r.refund_amount) >= o.goods_amount
),
judged AS (
    SELECT
        o.source_id,
        o.paid_at::date AS day,
        o.shipped_at,
        o.signed_at,
        o.paid_at,
        o.due_at,
        o.due_at <= n.ends_at AND c.order_id IS NULL AS is_due
    FROM paid_orders AS o
    CROSS JOIN night AS n
    LEFT JOIN called_off AS c ON c.source_id = o.source_id AND c.order_id = o.order_id
),
final AS (
    SELECT
        j.source_id,
        j.day,
        count(*) AS paid_order_count,
        count(j.shipped_at) AS shipped_order_count,
        count(*) FILTER (WHERE j.is_due) AS due_order_count,
        count(*) FILTER (WHERE j.is_due AND j.shipped_at <= j.due_at) AS shipped_on_time_count,
        count(j.signed_at) AS signed_order_count,
        round((percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(EPOCH FROM j.shipped_at - j.paid_at) ASC) / 3600)::numeric, 2)
            AS median_hours_to_ship,
        round((percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(EPOCH FROM j.signed_at - j.paid_at) ASC) / 86400)::numeric, 2)
            AS median_days_to_sign
    FROM judged AS j
    GROUP BY j.source_id, j.day
),
vanished AS (
    DELETE FROM mart.fulfilment_kpis_daily AS m
    WHERE
        m.day <= %(business_date)s::date
        AND m.business_date <= %(business_date)s::date
        AND NOT EXISTS (SELECT 1 FROM final AS f WHERE f.source_id = m.source_id AND f.day = m.day)
)
INSERT INTO mart.fulfilment_kpis_daily (
    source_id, day, business_date, paid_order_count, shipped_order_count, due_order_count, shipped_on_time_count,
    on_time_shipping_rate, signed_order_count, median_hours_to_ship, median_days_to_sign
)
SELECT
    f.source_id,
    f.day,
    %(business_date)s::date,
    f.paid_order_count,
    f.shipped_order_count,
    f.due_order_count,
    f.shipped_on_time_count,
    f.shipped_on_time_count::numeric / nullif(f.due_order_count, 0),
    f.signed_order_count,
    f.median_hours_to_ship,
    f.median_days_to_sign
FROM final AS f
ON CONFLICT (source_id, day) DO UPDATE SET
    business_date = excluded.business_date,
    paid_order_count = excluded.paid_order_count,
    shipped_order_count = excluded.shipped_order_count,
    due_order_count = excluded.due_order_count,
    shipped_on_time_count = excluded.shipped_on_time_count,
    on_time_shipping_rate = excluded.on_time_shipping_rate,
    signed_order_count = excluded.signed_order_count,
    median_hours_to_ship = excluded.median_hours_to_ship,
    median_days_to_sign = excluded.median_days_to_sign
WHERE
    fulfilment_kpis_daily.business_date <= excluded.business_date
    AND (
        fulfilment_kpis_daily.paid_order_count, fulfilment_kpis_daily.shipped_order_count,
        fulfilment_kpis_daily.due_order_count, fulfilment_kpis_daily.shipped_on_time_count,
        fulfilment_kpis_daily.signed_order_count, fulfilment_kpis_daily.median_hours_to_ship,
        fulfilment_kpis_daily.median_days_to_sign
    )
    IS DISTINCT FROM (
        excluded.paid_order_count, excluded.shipped_order_count,
        excluded.due_order_count, excluded.shipped_on_time_count,
        excluded.signed_order_count, excluded.median_hours_to_ship,
        excluded.median_days_to_sign
    );
