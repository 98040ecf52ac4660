-- The strongest pairs of products of each shop: the newest Sunday up to a date.
-- Grain: one row per source and pair.   Params: business_date (date), top (integer; pairs per shop).
-- Reads: mart.product_pairs, mart.products
SELECT
    x.business_date, x.source_id, x.pair_rank, a.title AS title_a, b.title AS title_b, x.product_a, x.product_b, x.order_count,
    x.support_rate, x.a_to_b_rate, x.b_to_a_rate, x.lift
FROM mart.product_pairs AS x
LEFT JOIN mart.products AS a ON a.source_id = x.source_id AND a.product_id = x.product_a
LEFT JOIN mart.products AS b ON b.source_id = x.source_id AND b.product_id = x.product_b
WHERE
    x.business_date = (SELECT max(n.business_date) FROM mart.product_pairs AS n WHERE n.business_date <= %(business_date)s::date)
    AND x.pair_rank <= %(top)s::integer
ORDER BY x.source_id ASC, x.pair_rank ASC;
