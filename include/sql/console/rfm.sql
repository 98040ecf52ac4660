-- The RFM segments at the end of a business date, beside the day before.
-- Grain: one row per segment.   Params: business_date (date).   Reads: mart.member_rfm
WITH
today AS (
    SELECT
        r.rfm_segment,
        count(*) AS member_count,
        sum(r.monetary_amount) AS monetary_amount,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY %(business_date)s::date + 1 - r.last_order_date ASC) AS median_recency_days,
        avg(r.frequency_count) AS mean_frequency_count
    FROM mart.member_rfm AS r
    WHERE r.valid_from <= %(business_date)s::date AND (r.valid_to IS NULL OR r.valid_to > %(business_date)s::date)
    GROUP BY r.rfm_segment
),
yesterday AS (
    SELECT r.rfm_segment, count(*) AS member_count
    FROM mart.member_rfm AS r
    WHERE r.valid_from < %(business_date)s::date AND (r.valid_to IS NULL OR r.valid_to >= %(business_date)s::date)
    GROUP BY r.rfm_segment
)
SELECT
    t.rfm_segment,
    t.member_count,
    t.member_count::numeric / sum(t.member_count) OVER () AS member_share_rate,
    t.monetary_amount,
    t.monetary_amount / nullif(sum(t.monetary_amount) OVER (), 0) AS monetary_share_rate,
    t.median_recency_days,
    t.mean_frequency_count,
    -- NULL when there was no night before this one
    CASE WHEN EXISTS (SELECT 1 FROM yesterday) THEN t.member_count - coalesce(y.member_count, 0) END AS change_count
FROM today AS t
LEFT JOIN yesterday AS y ON t.rfm_segment = y.rfm_segment
ORDER BY t.monetary_amount DESC, t.rfm_segment ASC;
