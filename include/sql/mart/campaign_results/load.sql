-- mart.campaign_results: what a marketing run changed, against its hold-out: conversion, orders, revenue, with 95 per cent intervals.
-- Grain: one row per run.
-- Params: business_date (date), min_arm_members (integer), min_buyers (integer).
-- Reads: mart.campaign_funnels
-- Rerun: safe; rows that do not differ are not rewritten; a run for an older date leaves rows alone that a later night has
-- changed (docs/decisions/0022-ripening-figures.md).
-- Interval of the conversion: Agresti and Caffo (2000): one buyer and one non-buyer are added to each arm, then Wald.
-- Interval of the revenue: Welch, normal approximation, over net revenue per member (docs/decisions/0023-uplift.md).
WITH
constants AS (
    SELECT
        1.959963984540054 AS z, -- 97.5 per cent of a normal distribution lie below it
        (%(business_date)s::date + 1)::timestamptz AS ends_at
),
arms AS (
    SELECT
        f.run_id,
        f.arm,
        f.campaign,
        f.as_of,
        f.attribution_until,
        f.member_count::numeric AS n,
        f.buyer_count::numeric AS buyers,
        f.order_count::numeric AS orders,
        f.revenue_amount - f.refund_amount AS net_revenue,
        f.net_revenue_square_sum AS squares
    FROM mart.campaign_funnels AS f
    WHERE f.variant = '' AND f.purpose = 'marketing'
),
runs AS (
    SELECT
        a.run_id,
        min(a.campaign) AS campaign,
        min(a.as_of) AS as_of,
        max(a.attribution_until) AS attribution_until,
        coalesce(sum(a.n) FILTER (WHERE a.arm = 'treatment'), 0) AS n1,
        coalesce(sum(a.buyers) FILTER (WHERE a.arm = 'treatment'), 0) AS x1,
        coalesce(sum(a.orders) FILTER (WHERE a.arm = 'treatment'), 0) AS o1,
        coalesce(sum(a.net_revenue) FILTER (WHERE a.arm = 'treatment'), 0) AS s1,
        coalesce(sum(a.squares) FILTER (WHERE a.arm = 'treatment'), 0) AS q1,
        coalesce(sum(a.n) FILTER (WHERE a.arm = 'holdout'), 0) AS n0,
        coalesce(sum(a.buyers) FILTER (WHERE a.arm = 'holdout'), 0) AS x0,
        coalesce(sum(a.orders) FILTER (WHERE a.arm = 'holdout'), 0) AS o0,
        coalesce(sum(a.net_revenue) FILTER (WHERE a.arm = 'holdout'), 0) AS s0,
        coalesce(sum(a.squares) FILTER (WHERE a.arm = 'holdout'), 0) AS q0
    FROM arms AS a
    GROUP BY a.run_id
),
moments AS (
    SELECT
        r.*,
        r.x1 / nullif(r.n1, 0) AS treated_rate,
        r.x0 / nullif(r.n0, 0) AS holdout_rate,
        (r.x1 + 1) / (r.n1 + 2) AS p1, -- Agresti-Caffo
        (r.x0 + 1) / (r.n0 + 2) AS p0,
        r.n1 * sqrt(
            greatest(r.q1 - r.s1 * r.s1 / nullif(r.n1, 0), 0) / nullif(r.n1 - 1, 0) / nullif(r.n1, 0)
            + greatest(r.q0 - r.s0 * r.s0 / nullif(r.n0, 0), 0) / nullif(r.n0 - 1, 0) / nullif(r.n0, 0)
        ) AS revenue_error
    FROM runs AS r
),
bounds AS (
    SELECT
        m.*,
        c.ends_at,
        m.p1 - m.p0 - c.z * sqrt(m.p1 * (1 - m.p1) / (m.n1 + 2) + m.p0 * (1 - m.p0) / (m.n0 + 2)) AS low,
        m.p1 - m.p0 + c.z * sqrt(m.p1 * (1 - m.p1) / (m.n1 + 2) + m.p0 * (1 - m.p0) / (m.n0 + 2)) AS high,
        c.z * m.revenue_error AS revenue_margin
    FROM moments AS m
    CROSS JOIN constants AS c
),
final AS (
    SELECT
        b.run_id,
        b.campaign,
        b.as_of,
        b.n1,
        b.x1,
        b.n0,
        b.x0,
        b.treated_rate,
        b.holdout_rate,
        b.treated_rate - b.holdout_rate AS uplift_rate,
        CASE WHEN b.n1 > 0 AND b.n0 > 0 THEN b.low END AS low,
        CASE WHEN b.n1 > 0 AND b.n0 > 0 THEN b.high END AS high,
        -- against a hold-out as large as the treated arm
        b.x1 - b.x0 * nullif(b.n1, 0) / nullif(b.n0, 0) AS buyers,
        b.o1 - b.o0 * nullif(b.n1, 0) / nullif(b.n0, 0) AS orders,
        b.s1 - b.s0 * nullif(b.n1, 0) / nullif(b.n0, 0) AS revenue,
        b.s1 - b.s0 * nullif(b.n1, 0) / nullif(b.n0, 0) - b.revenue_margin AS revenue_low,
        b.s1 - b.s0 * nullif(b.n1, 0) / nullif(b.n0, 0) + b.revenue_margin AS revenue_high,
        CASE
            WHEN
                least(b.n1, b.n0) < %(min_arm_members)s::integer OR b.x1 + b.x0 < %(min_buyers)s::integer
                THEN 'not enough data'
            WHEN b.low > 0 THEN 'positive'
            WHEN b.high < 0 THEN 'negative'
            ELSE 'no effect shown'
        END AS verdict,
        coalesce(b.attribution_until <= b.ends_at, FALSE) AS is_window_closed
    FROM bounds AS b
),
vanished AS (
    DELETE FROM mart.campaign_results AS m
    WHERE
        m.business_date <= %(business_date)s::date
        AND NOT EXISTS (SELECT 1 FROM final AS f WHERE f.run_id = m.run_id)
)
INSERT INTO mart.campaign_results (
    run_id, campaign, as_of, business_date, treated_count, treated_buyer_count, holdout_count, holdout_buyer_count,
    treated_rate, holdout_rate, uplift_rate, uplift_low_rate, uplift_high_rate, incremental_buyer_count,
    incremental_order_count, incremental_revenue_amount, incremental_revenue_low_amount, incremental_revenue_high_amount,
    verdict, is_window_closed
)
SELECT
    f.run_id, f.campaign, f.as_of, %(business_date)s::date, f.n1, f.x1, f.n0, f.x0, f.treated_rate, f.holdout_rate,
    f.uplift_rate, f.low, f.high, f.buyers, f.orders, f.revenue, f.revenue_low, f.revenue_high, f.verdict,
    f.is_window_closed
FROM final AS f
ON CONFLICT (run_id) DO UPDATE SET
    campaign = excluded.campaign,
    as_of = excluded.as_of,
    business_date = excluded.business_date,
    treated_count = excluded.treated_count,
    treated_buyer_count = excluded.treated_buyer_count,
    holdout_count = excluded.holdout_count,
    holdout_buyer_count = excluded.holdout_buyer_count,
    treated_rate = excluded.treated_rate,
    holdout_rate = excluded.holdout_rate,
    uplift_rate = excluded.uplift_rate,
    uplift_low_rate = excluded.uplift_low_rate,
    uplift_high_rate = excluded.uplift_high_rate,
    incremental_buyer_count = excluded.incremental_buyer_count,
    incremental_order_count = excluded.incremental_order_count,
    incremental_revenue_amount = excluded.incremental_revenue_amount,
    incremental_revenue_low_amount = excluded.incremental_revenue_low_amount,
    incremental_revenue_high_amount = excluded.incremental_revenue_high_amount,
    verdict = excluded.verdict,
    is_window_closed = excluded.is_window_closed
WHERE
    campaign_results.business_date <= excluded.business_date
    AND (
        campaign_results.campaign, campaign_results.as_of, campaign_results.treated_count,
        campaign_results.treated_buyer_count, campaign_results.holdout_count, campaign_results.holdout_buyer_count,
        campaign_results.incremental_order_count, campaign_results.incremental_revenue_amount,
        campaign_results.incremental_revenue_low_amount, campaign_results.verdict, campaign_results.is_window_closed
    )
    IS DISTINCT FROM (
        excluded.campaign, excluded.as_of, excluded.treated_count,
        excluded.treated_buyer_count, excluded.holdout_count, excluded.holdout_buyer_count,
        excluded.incremental_order_count, excluded.incremental_revenue_amount,
        excluded.incremental_revenue_low_amount, excluded.verdict, excluded.is_window_closed
    );
