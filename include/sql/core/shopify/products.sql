-- new_rows: products of a Shopify shop; price and article number are those of the first variant.
-- Grain: one row per version of a product. Price in the shop's currency.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/products.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    r.record_key AS product_id, p.title, nullif(r.payload #>> '{variants,0,sku}', '') AS outer_id,
    raw.to_amount(r.payload #>> '{variants,0,price}') AS price_amount, p.status = 'active' AS is_listed,
    raw.to_instant(p.updated_at) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(p.title, '') = '' THEN 'title is missing' END,
        CASE WHEN raw.to_instant(p.updated_at) IS NULL THEN 'updated_at is missing or not a time' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (title text, status text, updated_at text);
