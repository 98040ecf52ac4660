-- Who would stand differently, since when, and why.
-- Grain: one row per member.   Params: business_date (date).
-- Reads: mart.member_tiers, mart.tier_programmes, mart.tier_rules, and the temporary tables of nightmarket.what_if.
-- Rerun: reads only.
WITH
now_standing AS (
    SELECT t.member_id, t.tier, r.rank
    FROM mart.member_tiers AS t
    JOIN mart.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
    JOIN mart.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier
    WHERE t.valid_from <= %(business_date)s::date AND (t.valid_to IS NULL OR t.valid_to > %(business_date)s::date)
),
then_standing AS (
    SELECT t.member_id, t.tier, r.rank, t.valid_from, t.reason
    FROM pg_temp.member_tiers AS t
    JOIN pg_temp.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
    JOIN pg_temp.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier
    WHERE t.valid_from <= %(business_date)s::date AND (t.valid_to IS NULL OR t.valid_to > %(business_date)s::date)
)
SELECT
    coalesce(n.member_id, t.member_id) AS member_id, n.tier AS tier_now, t.tier AS tier_proposed,
    CASE WHEN coalesce(t.rank, 0) > coalesce(n.rank, 0) THEN 'up' ELSE 'down' END AS direction,
    t.valid_from AS since, t.reason
FROM now_standing AS n
FULL JOIN then_standing AS t ON t.member_id = n.member_id
WHERE n.tier IS DISTINCT FROM t.tier
ORDER BY member_id ASC;
