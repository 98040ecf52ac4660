-- Results to compare a run with: the last run of its campaign before it, and the one nearest to a year before it.
-- Grain: one row per comparison (against = last_run, last_year), or none.   Params: run_id (text).
-- Reads: push.campaign_runs, mart.campaign_results
-- Only runs whose window was closed; last year's lies at most 45 days off.
WITH
this AS (SELECT r.campaign, r.as_of FROM push.campaign_runs AS r WHERE r.run_id = %(run_id)s::text),
earlier AS (
    SELECT
        c.run_id, c.as_of, c.treated_count, c.treated_buyer_count, c.holdout_count, c.holdout_buyer_count, c.treated_rate,
        c.holdout_rate, c.uplift_rate, c.uplift_low_rate, c.uplift_high_rate, c.incremental_order_count,
        c.incremental_revenue_amount, c.incremental_revenue_low_amount, c.incremental_revenue_high_amount, c.verdict,
        row_number() OVER (ORDER BY c.as_of DESC, c.run_id DESC) AS back,
        abs(c.as_of - (t.as_of - interval '1 year')::date) AS days_off
    FROM this AS t
    JOIN mart.campaign_results AS c ON c.campaign = t.campaign AND c.as_of < t.as_of AND c.is_window_closed
),
chosen AS (
    SELECT 'last_run' AS against, e.run_id FROM earlier AS e WHERE e.back = 1
    UNION ALL
    (
        SELECT 'last_year', e.run_id FROM earlier AS e
        WHERE e.days_off <= 45
        ORDER BY e.days_off ASC, e.as_of DESC, e.run_id DESC
        LIMIT 1
    )
)
SELECT
    c.against, e.run_id, e.as_of, e.treated_count, e.treated_buyer_count, e.holdout_count, e.holdout_buyer_count, e.treated_rate,
    e.holdout_rate, e.uplift_rate, e.uplift_low_rate, e.uplift_high_rate, e.incremental_order_count,
    e.incremental_revenue_amount, e.incremental_revenue_low_amount, e.incremental_revenue_high_amount, e.verdict
FROM chosen AS c
JOIN earlier AS e ON e.run_id = c.run_id
ORDER BY c.against ASC;
