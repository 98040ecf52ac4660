-- What runs may claim directly, by each model, beside what they changed against their hold-out; the newest runs first.
-- Grain: one row per run and model.   Params: campaign (text; empty: all).   Reads: mart.attribution_by_run
SELECT
    a.run_id, a.model, a.campaign, a.order_count, a.buyer_count, a.credited_amount, a.holdout_order_count, a.incremental_order_count,
    a.incremental_revenue_amount, a.incremental_revenue_low_amount, a.incremental_revenue_high_amount, a.incremental_share_rate,
    a.verdict, a.is_window_closed
FROM mart.attribution_by_run AS a
WHERE %(campaign)s::text IN ('', a.campaign)
ORDER BY a.run_id DESC, a.model ASC;
