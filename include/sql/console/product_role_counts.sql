-- How many products of each shop play which role, and what share of money and buyers they bring: the newest snapshot up to a date.
-- Grain: one row per source and role.   Params: business_date (date).   Reads: mart.product_roles
SELECT
    r.business_date,
    r.source_id,
    r.role,
    count(*) AS product_count,
    sum(r.gross_amount) AS gross_amount,
    sum(r.gross_amount) / nullif(max(r.source_gross_amount), 0) AS gross_share_rate,
    sum(r.buyer_day_count)::numeric / nullif(max(r.source_buyer_day_count), 0) AS buyer_share_rate,
    count(*) FILTER (WHERE r.growth_phase = 'new') AS new_count,
    count(*) FILTER (WHERE r.growth_phase = 'growing') AS growing_count,
    count(*) FILTER (WHERE r.growth_phase = 'mature') AS mature_count,
    count(*) FILTER (WHERE r.growth_phase = 'declining') AS declining_count
FROM mart.product_roles AS r
WHERE r.business_date = (SELECT max(n.business_date) FROM mart.product_roles AS n WHERE n.business_date <= %(business_date)s::date)
GROUP BY r.business_date, r.source_id, r.role
ORDER BY r.source_id ASC, sum(r.gross_amount) DESC, r.role ASC;
