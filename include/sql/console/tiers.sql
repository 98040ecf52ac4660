-- Members per tier at the end of a business date, and who came and went that day.
-- Grain: one row per tier.   Params: business_date (date).   Reads: mart.tier_rules, mart.member_tiers
WITH
standing AS (
    SELECT t.tier, count(*) AS member_count, sum(t.window_net_amount) AS window_net_amount
    FROM mart.member_tiers AS t
    WHERE
        t.valid_from <= %(business_date)s::date
        AND (t.valid_to IS NULL OR t.valid_to > %(business_date)s::date)
    GROUP BY t.tier
),
entered AS (
    SELECT t.tier, count(*) AS entered_count
    FROM mart.member_tiers AS t
    WHERE t.valid_from = %(business_date)s::date
    GROUP BY t.tier
),
departed AS (
    SELECT t.previous_tier AS tier, count(*) AS left_count
    FROM mart.member_tiers AS t
    WHERE t.valid_from = %(business_date)s::date AND t.previous_tier IS NOT NULL
    GROUP BY t.previous_tier
)
SELECT
    r.tier,
    r.rank,
    r.name_zh,
    r.name_en,
    r.window_days,
    r.min_net_amount,
    r.max_net_amount,
    coalesce(s.member_count, 0) AS member_count,
    coalesce(s.member_count, 0)::numeric / nullif(sum(s.member_count) OVER (), 0) AS member_share_rate,
    coalesce(e.entered_count, 0) AS entered_count,
    coalesce(d.left_count, 0) AS left_count
FROM mart.tier_rules AS r
LEFT JOIN standing AS s ON r.tier = s.tier
LEFT JOIN entered AS e ON r.tier = e.tier
LEFT JOIN departed AS d ON r.tier = d.tier
ORDER BY r.rank DESC;
