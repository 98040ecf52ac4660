-- new_rows: what a JD shop sells.
-- Grain: one row per version of a SKU (of a ware, where the application may read only those). Price in CNY, what it costs today.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/products.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    r.record_key AS product_id, t.title, nullif(p."outerId", '') AS outer_id, raw.to_amount(p."jdPrice") AS price_amount,
    coalesce(p.status = '1', p."wareStatus" = '8') AS is_listed, t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.title IS NULL THEN 'skuName, wareTitle and title are missing' END,
        CASE WHEN t.modified_at IS NULL THEN 'modified is missing or not a time' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
    "skuName" text, "wareTitle" text, title text, "outerId" text, "jdPrice" text, status text, "wareStatus" text, modified text
)
CROSS JOIN LATERAL (
    SELECT
        coalesce(nullif(p."skuName", ''), nullif(p."wareTitle", ''), nullif(p.title, '')) AS title,
        coalesce(raw.from_epoch_ms(p.modified), raw.to_instant(p.modified, '+08')) AS modified_at
) AS t;
