-- Members per tier at the end of a business date, and who came and went that day, in every programme.
-- Grain: one row per programme and tier.   Params: business_date (date).
-- Reads: mart.tier_programmes, mart.tier_rules, mart.member_tiers
WITH
standing AS (
    SELECT t.programme, t.tier, count(*) AS member_count, count(*) FILTER (WHERE t.review_date <= %(business_date)s::date) AS grace_count
    FROM mart.member_tiers AS t
    WHERE
        t.valid_from <= %(business_date)s::date
        AND (t.valid_to IS NULL OR t.valid_to > %(business_date)s::date)
    GROUP BY t.programme, t.tier
),
entered AS (
    SELECT t.programme, t.tier, count(*) AS entered_count
    FROM mart.member_tiers AS t
    WHERE t.valid_from = %(business_date)s::date
    GROUP BY t.programme, t.tier
),
departed AS (
    SELECT t.programme, t.previous_tier AS tier, count(*) AS left_count
    FROM mart.member_tiers AS t
    WHERE t.valid_from = %(business_date)s::date AND t.previous_tier IS NOT NULL
    GROUP BY t.programme, t.previous_tier
)
SELECT
    p.programme,
    p.name_zh AS programme_name_zh,
    p.name_en AS programme_name_en,
    p.measure,
    p.window_days,
    r.tier,
    r.rank,
    r.name_zh,
    r.name_en,
    r.enter_value,
    r.keep_value,
    coalesce(s.member_count, 0) AS member_count,
    coalesce(s.member_count, 0)::numeric / nullif(sum(s.member_count) OVER (PARTITION BY p.programme), 0) AS member_share_rate,
    coalesce(s.grace_count, 0) AS grace_count,
    coalesce(e.entered_count, 0) AS entered_count,
    coalesce(d.left_count, 0) AS left_count
FROM mart.tier_programmes AS p
JOIN mart.tier_rules AS r ON r.programme = p.programme
LEFT JOIN standing AS s ON s.programme = r.programme AND s.tier = r.tier
LEFT JOIN entered AS e ON e.programme = r.programme AND e.tier = r.tier
LEFT JOIN departed AS d ON d.programme = r.programme AND d.tier = r.tier
ORDER BY p.position ASC, r.rank DESC;
