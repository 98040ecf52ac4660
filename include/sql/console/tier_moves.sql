-- Moves between tiers on a business date; previous_tier NULL is a member's first tier.
-- Grain: one row per (previous tier, tier).   Params: business_date (date).   Reads: mart.member_tiers, mart.tier_rules
SELECT
    t.previous_tier,
    t.tier,
    p.name_zh AS previous_name_zh,
    p.name_en AS previous_name_en,
    n.name_zh,
    n.name_en,
    CASE
        WHEN t.previous_tier IS NULL THEN 'first'
        WHEN n.rank > p.rank THEN 'up'
        ELSE 'down'
    END AS direction,
    count(*) AS member_count
FROM mart.member_tiers AS t
LEFT JOIN mart.tier_rules AS n ON t.tier = n.tier
LEFT JOIN mart.tier_rules AS p ON t.previous_tier = p.tier
WHERE t.valid_from = %(business_date)s::date
GROUP BY t.previous_tier, t.tier, p.name_zh, p.name_en, p.rank, n.name_zh, n.name_en, n.rank
ORDER BY direction DESC, n.rank DESC, p.rank DESC;
