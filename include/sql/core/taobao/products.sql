-- new_rows: the items of a Taobao shop that are on sale.
-- Grain: one row per version of an item (num_iid). Price in CNY.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/products.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        nullif(p.title, '') AS title, p.outer_id, p.approve_status, p.price,
        raw.to_amount(p.price) AS price_amount,
        raw.to_instant(p.modified, '+08') AS modified_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        title text, outer_id text, approve_status text, price text, modified text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    t.record_key AS product_id, t.title, t.outer_id, t.price_amount,
    coalesce(t.approve_status, 'onsale') = 'onsale' AS is_listed,   -- the list holds what is on sale
    t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.title IS NULL THEN 'title is missing' END,
        CASE WHEN t.price_amount IS NULL AND t.price <> '' THEN 'price is not a number' END,
        CASE WHEN t.modified_at IS NULL THEN 'modified is missing or not a time' END
    ), '') AS problem
FROM typed AS t;
