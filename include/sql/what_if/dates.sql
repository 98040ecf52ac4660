-- When those who would stand differently came to the tier they would have.
-- Grain: one row per month.   Params: business_date (date).
-- Reads: mart.member_tiers, mart.tier_programmes, mart.tier_rules, and the temporary tables of nightmarket.what_if.
-- Rerun: reads only.
SELECT
    date_trunc('month', t.valid_from::timestamp)::date AS month,
    count(*) FILTER (WHERE r.rank > coalesce(a.rank, 0)) AS risen_count,
    count(*) FILTER (WHERE r.rank <= coalesce(a.rank, 0)) AS fallen_count
FROM pg_temp.member_tiers AS t
JOIN pg_temp.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
JOIN pg_temp.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier
LEFT JOIN mart.member_tiers AS n
    ON n.member_id = t.member_id AND n.programme = (SELECT g.programme FROM mart.tier_programmes AS g WHERE g.position = 1)
    AND n.valid_from <= %(business_date)s::date AND (n.valid_to IS NULL OR n.valid_to > %(business_date)s::date)
LEFT JOIN mart.tier_rules AS a ON a.programme = n.programme AND a.tier = n.tier
WHERE
    t.valid_from <= %(business_date)s::date AND (t.valid_to IS NULL OR t.valid_to > %(business_date)s::date)
    AND n.tier IS DISTINCT FROM t.tier
GROUP BY date_trunc('month', t.valid_from::timestamp)::date
ORDER BY month ASC;
