-- new_rows: articles of a source that is declared in YAML (files, plain REST), already in our fields.
-- Grain: one row per version of an article. Price in the source's currency.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/products.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    r.record_key AS product_id, p.title, p.outer_id,
    raw.to_amount(p.price_amount) AS price_amount,
    CASE p.is_listed WHEN 'true' THEN TRUE WHEN 'false' THEN FALSE END AS is_listed,
    coalesce(raw.to_instant(p.modified_at), raw.to_instant(r.payload #>> '{at,file_of}'), r.observed_at) AS modified_at,
    CASE WHEN coalesce(p.title, '') = '' THEN 'title is missing' END AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (title text, outer_id text, price_amount text, is_listed text, modified_at text);
