-- new_rows: products of a WooCommerce shop.
-- Grain: one row per version of a product. Price in the shop's currency, what it costs today.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/products.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    r.record_key AS product_id, p.name AS title, nullif(p.sku, '') AS outer_id, raw.to_amount(p.price) AS price_amount,
    p.status = 'publish' AS is_listed, raw.to_instant(p.date_modified_gmt, 'Z') AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(p.name, '') = '' THEN 'name is missing' END,
        CASE WHEN raw.to_instant(p.date_modified_gmt, 'Z') IS NULL THEN 'date_modified_gmt is missing or not a time' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (name text, sku text, price text, status text, date_modified_gmt text);
