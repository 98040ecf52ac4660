-- How the orders of the last days were shipped and signed, by the day they were paid.
-- Grain: one row per source and day.   Params: first_day (date), last_day (date, inclusive).
-- Reads: mart.fulfilment_kpis_daily
SELECT
    f.source_id, f.day, f.paid_order_count, f.shipped_order_count, f.due_order_count, f.shipped_on_time_count, f.on_time_shipping_rate,
    f.signed_order_count, f.median_hours_to_ship, f.median_days_to_sign
FROM mart.fulfilment_kpis_daily AS f
WHERE f.day >= %(first_day)s::date AND f.day <= %(last_day)s::date
ORDER BY f.source_id ASC, f.day ASC;
