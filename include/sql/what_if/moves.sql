-- How many members stand where now, and where by the proposed rules; higher and lower by the place in the ladder.
-- Grain: one row per pair of tiers.   Params: business_date (date).
-- Reads: mart.member_tiers, mart.tier_programmes, mart.tier_rules, and the temporary tables of nightmarket.what_if.
-- Rerun: reads only.
WITH
now_standing AS (
    SELECT t.member_id, t.tier
    FROM mart.member_tiers AS t
    JOIN mart.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
    WHERE t.valid_from <= %(business_date)s::date AND (t.valid_to IS NULL OR t.valid_to > %(business_date)s::date)
),
then_standing AS (
    SELECT t.member_id, t.tier, t.valid_from, t.reason
    FROM pg_temp.member_tiers AS t
    JOIN pg_temp.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
    WHERE t.valid_from <= %(business_date)s::date AND (t.valid_to IS NULL OR t.valid_to > %(business_date)s::date)
)
SELECT
    n.tier AS tier_now, t.tier AS tier_proposed,
    CASE
        WHEN coalesce(n.tier, '') = coalesce(t.tier, '') THEN 'same'
        WHEN coalesce(max(b.rank), 0) > coalesce(max(a.rank), 0) THEN 'up'
        ELSE 'down'
    END AS direction,
    count(*) AS member_count
FROM now_standing AS n
FULL JOIN then_standing AS t ON t.member_id = n.member_id
LEFT JOIN mart.tier_rules AS a
    ON a.tier = n.tier AND a.programme = (SELECT p.programme FROM mart.tier_programmes AS p WHERE p.position = 1)
LEFT JOIN pg_temp.tier_rules AS b
    ON b.tier = t.tier AND b.programme = (SELECT p.programme FROM pg_temp.tier_programmes AS p WHERE p.position = 1)
GROUP BY n.tier, t.tier
ORDER BY max(a.rank) ASC NULLS FIRST, max(b.rank) ASC NULLS FIRST;
