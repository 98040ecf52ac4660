-- What a run changed, against its hold-out: the two rates, their difference and its 95 per cent interval, in money.
-- Grain: one row, or none.   Params: run_id (text).   Reads: mart.campaign_results
SELECT
    r.treated_count, r.treated_buyer_count, r.holdout_count, r.holdout_buyer_count, r.treated_rate, r.holdout_rate,
    r.uplift_rate, r.uplift_low_rate, r.uplift_high_rate, r.incremental_buyer_count, r.incremental_order_count,
    r.incremental_revenue_amount, r.incremental_revenue_low_amount, r.incremental_revenue_high_amount,
    r.verdict, r.is_window_closed,
    CASE WHEN isfinite(r.business_date) THEN r.business_date END AS business_date
FROM mart.campaign_results AS r
WHERE r.run_id = %(run_id)s::text;
