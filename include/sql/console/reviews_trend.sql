-- Review collection by the day of signing: signed, asked, reminded, reviewed, rewarded; days without a row are 0.
-- Grain: one row per day, all shops together.   Params: first_day, last_day (dates, inclusive).
-- Reads: mart.review_kpis_daily
SELECT
    d::date AS day,
    coalesce(sum(k.signed_order_count), 0) AS signed_order_count,
    coalesce(sum(k.asked_order_count), 0) AS asked_order_count,
    coalesce(sum(k.reminded_order_count), 0) AS reminded_order_count,
    coalesce(sum(k.reviewed_order_count), 0) AS reviewed_order_count,
    coalesce(sum(k.reviewed_after_ask_count), 0) AS reviewed_after_ask_count,
    coalesce(sum(k.reviewed_after_remind_count), 0) AS reviewed_after_remind_count,
    coalesce(sum(k.rewarded_order_count), 0) AS rewarded_order_count,
    sum(k.reviewed_order_count)::numeric / nullif(sum(k.signed_order_count), 0) AS review_rate
FROM generate_series(%(first_day)s::date, %(last_day)s::date, interval '1 day') AS d
LEFT JOIN mart.review_kpis_daily AS k ON k.day = d::date
GROUP BY d
ORDER BY d ASC;
