-- Segment tier_changes: members whose tier of the first programme changed on the business date, to one of these tiers.
-- Grain: one row per member.
-- Params: business_date (date), tiers (text[]: the tiers that were reached), direction (text: up, down or any).
-- Reads: mart.member_tiers, mart.tier_programmes, mart.tier_rules
-- Rerun: reads only. The first tier a member ever has is no change.
SELECT
    t.member_id,
    jsonb_build_object('tier', t.tier, 'previous_tier', t.previous_tier, 'tier_since', t.valid_from) AS facts
FROM mart.member_tiers AS t
JOIN mart.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
JOIN mart.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier
JOIN mart.tier_rules AS b ON b.programme = t.programme AND b.tier = t.previous_tier
WHERE
    t.valid_from = %(business_date)s::date
    AND t.tier = any(%(tiers)s::text[])
    AND CASE %(direction)s::text WHEN 'up' THEN r.rank > b.rank WHEN 'down' THEN r.rank < b.rank ELSE r.rank <> b.rank END;
