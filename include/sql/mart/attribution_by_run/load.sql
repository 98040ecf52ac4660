-- mart.attribution_by_run: what each run may claim directly, by each model, beside what it changed against its hold-out.
-- Grain: one row per run and model that runs have; runs without a claim have rows of zeros.
-- Params: none.
-- Reads: mart.order_attributions, mart.campaign_results
-- Rerun: safe; rows that do not differ are not rewritten. Both tables tell of the newest night, whatever the business date.
-- A claim says "bought after"; only the hold-out says "bought because". Where they differ, the hold-out is right.
WITH
claimed AS (
    SELECT
        a.run_id,
        a.model,
        min(a.campaign) AS campaign,
        count(*) AS order_count,
        count(DISTINCT a.member_id) AS buyer_count,
        sum(a.credited_amount) AS credited_amount,
        count(*) FILTER (WHERE a.arm = 'holdout') AS holdout_order_count
    FROM mart.order_attributions AS a
    WHERE a.run_id IS NOT NULL
    GROUP BY a.run_id, a.model
),
rows_wanted AS (
    SELECT c.run_id, c.model, c.campaign FROM claimed AS c
    UNION
    SELECT r.run_id, m.model, r.campaign
    FROM mart.campaign_results AS r
    CROSS JOIN (VALUES ('last_touch'), ('coupon_code')) AS m (model)
),
final AS (
    SELECT
        w.run_id,
        w.model,
        w.campaign,
        coalesce(c.order_count, 0) AS order_count,
        coalesce(c.buyer_count, 0) AS buyer_count,
        coalesce(c.credited_amount, 0) AS credited_amount,
        coalesce(c.holdout_order_count, 0) AS holdout_order_count,
        r.incremental_order_count,
        r.incremental_revenue_amount,
        r.incremental_revenue_low_amount,
        r.incremental_revenue_high_amount,
        r.verdict,
        r.is_window_closed
    FROM rows_wanted AS w
    LEFT JOIN claimed AS c ON c.run_id = w.run_id AND c.model = w.model
    LEFT JOIN mart.campaign_results AS r ON r.run_id = w.run_id
),
vanished AS (
    DELETE FROM mart.attribution_by_run AS m
    WHERE NOT EXISTS (SELECT 1 FROM final AS f WHERE f.run_id = m.run_id AND f.model = m.model)
)
INSERT INTO mart.attribution_by_run (
    run_id, model, campaign, order_count, buyer_count, credited_amount, holdout_order_count, incremental_order_count,
    incremental_revenue_amount, incremental_revenue_low_amount, incremental_revenue_high_amount, verdict, is_window_closed,
    incremental_share_rate
)
SELECT
    f.run_id, f.model, f.campaign, f.order_count, f.buyer_count, f.credited_amount, f.holdout_order_count, f.incremental_order_count,
    f.incremental_revenue_amount, f.incremental_revenue_low_amount, f.incremental_revenue_high_amount, f.verdict, f.is_window_closed,
    f.incremental_revenue_amount / nullif(f.credited_amount, 0)
FROM final AS f
ON CONFLICT (run_id, model) DO UPDATE SET
    campaign = excluded.campaign,
    order_count = excluded.order_count,
    buyer_count = excluded.buyer_count,
    credited_amount = excluded.credited_amount,
    holdout_order_count = excluded.holdout_order_count,
    incremental_order_count = excluded.incremental_order_count,
    incremental_revenue_amount = excluded.incremental_revenue_amount,
    incremental_revenue_low_amount = excluded.incremental_revenue_low_amount,
    incremental_revenue_high_amount = excluded.incremental_revenue_high_amount,
    verdict = excluded.verdict,
    is_window_closed = excluded.is_window_closed,
    incremental_share_rate = excluded.incremental_share_rate
WHERE
    (
        attribution_by_run.campaign, attribution_by_run.order_count, attribution_by_run.buyer_count,
        attribution_by_run.credited_amount, attribution_by_run.holdout_order_count, attribution_by_run.incremental_order_count,
        attribution_by_run.incremental_revenue_amount, attribution_by_run.incremental_revenue_low_amount,
        attribution_by_run.incremental_revenue_high_amount, attribution_by_run.verdict, attribution_by_run.is_window_closed
    )
    IS DISTINCT FROM (
        excluded.campaign, excluded.order_count, excluded.buyer_count,
        excluded.credited_amount, excluded.holdout_order_count, excluded.incremental_order_count,
        excluded.incremental_revenue_amount, excluded.incremental_revenue_low_amount,
        excluded.incremental_revenue_high_amount, excluded.verdict, excluded.is_window_closed
    );
