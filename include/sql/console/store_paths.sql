-- From a phone to the till: store orders of some days that a coupon, a QR code or a message led to, of all orders of that store.
-- Grain: one row per source and path.   Params: first_day (date), last_day (date, inclusive).
-- Reads: mart.store_paths, mart.shop_kpis_daily
WITH
every AS (
    SELECT k.source_id, sum(k.paid_order_count) AS order_count
    FROM mart.shop_kpis_daily AS k
    WHERE k.day >= %(first_day)s::date AND k.day <= %(last_day)s::date
    GROUP BY k.source_id
)
SELECT
    p.source_id,
    p.path,
    count(*) AS order_count,
    count(DISTINCT p.member_id) AS buyer_count,
    sum(p.gross_amount) AS gross_amount,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY p.hours_to_order ASC)::numeric AS median_hours_to_order,
    e.order_count AS store_order_count,
    count(*)::numeric / nullif(e.order_count, 0) AS store_order_rate
FROM mart.store_paths AS p
LEFT JOIN every AS e ON e.source_id = p.source_id
WHERE p.day >= %(first_day)s::date AND p.day <= %(last_day)s::date
GROUP BY p.source_id, p.path, e.order_count
ORDER BY p.source_id ASC, count(*) DESC, p.path ASC;
