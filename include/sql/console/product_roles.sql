-- The products of each shop that bring most money, what they are good for, and how they move: the newest snapshot up to a date.
-- Grain: one row per source and product.   Params: business_date (date), top (integer; products per shop).
-- Reads: mart.product_roles, mart.products, mart.category_rules
SELECT
    r.business_date, r.source_id, r.gross_rank, r.product_id, p.title, c.name_zh AS category_zh, c.name_en AS category_en, r.role,
    r.growth_phase, r.gross_amount, r.gross_share_rate, r.cumulative_gross_rate, r.order_count, r.buyer_day_count, r.growth_rate
FROM mart.product_roles AS r
JOIN mart.products AS p ON p.source_id = r.source_id AND p.product_id = r.product_id
LEFT JOIN mart.category_rules AS c ON c.category = r.category
WHERE
    r.business_date = (SELECT max(n.business_date) FROM mart.product_roles AS n WHERE n.business_date <= %(business_date)s::date)
    AND r.gross_rank <= %(top)s::integer
ORDER BY r.source_id ASC, r.gross_rank ASC, r.product_id ASC;
