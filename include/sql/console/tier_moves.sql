-- Moves between tiers on a business date; previous_tier NULL is a member's first tier.
-- Grain: one row per (programme, previous tier, tier).   Params: business_date (date).
-- Reads: mart.member_tiers, mart.tier_rules, mart.tier_programmes
SELECT
    t.programme,
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
JOIN mart.tier_programmes AS g ON g.programme = t.programme
LEFT JOIN mart.tier_rules AS n ON n.programme = t.programme AND n.tier = t.tier
LEFT JOIN mart.tier_rules AS p ON p.programme = t.programme AND p.tier = t.previous_tier
WHERE t.valid_from = %(business_date)s::date
GROUP BY g.position, t.programme, t.previous_tier, t.tier, p.name_zh, p.name_en, p.rank, n.name_zh, n.name_en, n.rank
ORDER BY g.position ASC, direction DESC, n.rank DESC, p.rank DESC;
