-- new_rows: coupons of a WooCommerce shop.
-- Grain: one row per version of a coupon. Amounts in the shop's currency.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/coupons.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    r.record_key AS coupon_id, p.code AS name,
    -- a percentage is worth nothing certain
    CASE WHEN p.discount_type IN ('fixed_cart', 'fixed_product') THEN raw.to_amount(p.amount) END AS face_amount,
    nullif(raw.to_amount(p.minimum_amount), 0) AS minimum_amount,
    raw.to_instant(p.date_created_gmt, 'Z') AS starts_at, raw.to_instant(p.date_expires_gmt, 'Z') AS ends_at,
    coalesce(nullif(p.status, ''), 'publish') AS status, NULL::integer AS issued_count,
    CASE WHEN pg_input_is_valid(p.usage_count, 'integer') THEN p.usage_count::integer END AS used_count,
    raw.to_instant(p.date_modified_gmt, 'Z') AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(p.code, '') = '' THEN 'code is missing' END,
        CASE WHEN raw.to_instant(p.date_modified_gmt, 'Z') IS NULL THEN 'date_modified_gmt is missing or not a time' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
    code text, discount_type text, amount text, minimum_amount text, date_created_gmt text, date_expires_gmt text, status text,
    usage_count text, date_modified_gmt text
);
