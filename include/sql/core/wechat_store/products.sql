-- new_rows: products of a WeChat store.
-- Grain: one row per version of a product. Fen on the wire, yuan here: the lowest price of its SKUs.
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes a temporary table only. core/write/products.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    r.record_key AS product_id, p.title, coalesce(nullif(p.out_product_id, ''), p.spu_code) AS outer_id,
    raw.to_amount(p.min_price) / 100 AS price_amount,
    p.status = '5' AS is_listed,                    -- 5 is on the shelf; everything else is not for sale now
    coalesce(raw.from_epoch(p.edit_time), r.observed_at) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN p.title IS NULL OR p.title = '' THEN 'title is missing' END,
        CASE WHEN p.status IS NULL OR p.status !~ '^[0-9]+$' THEN 'status is missing or not a number' END,
        CASE WHEN raw.to_amount(p.min_price) IS NULL AND p.min_price <> '' THEN 'min_price is not a number' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
    title text, out_product_id text, spu_code text, min_price text, status text, edit_time text
);
