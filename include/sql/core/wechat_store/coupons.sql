-- new_rows: coupons of a WeChat store.
-- Grain: one row per version of a coupon. Fen on the wire, yuan here; a percentage coupon has no face amount.
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes a temporary table only. core/write/coupons.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload ->> 'status' AS status, r.payload ->> 'update_time' AS update_time,
        r.payload #>> '{coupon_info,name}' AS name,
        r.payload #>> '{coupon_info,discount_info,discount_fee}' AS face,
        r.payload #>> '{coupon_info,discount_info,discount_condition,product_price}' AS minimum,
        r.payload #>> '{coupon_info,valid_info,start_time}' AS starts, r.payload #>> '{coupon_info,valid_info,end_time}' AS ends,
        r.payload #>> '{stock_info,receive_num}' AS received, r.payload #>> '{stock_info,used_num}' AS used
    FROM new_records AS r
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    t.record_key AS coupon_id, t.name, raw.to_amount(t.face) / 100 AS face_amount, raw.to_amount(t.minimum) / 100 AS minimum_amount,
    raw.from_epoch(t.starts) AS starts_at, raw.from_epoch(t.ends) AS ends_at,
    CASE t.status
        WHEN '1' THEN 'editing' WHEN '2' THEN 'live' WHEN '3' THEN 'expired' WHEN '4' THEN 'void' WHEN '5' THEN 'deleted' ELSE t.status
    END AS status,
    raw.to_amount(t.received)::integer AS issued_count,     -- issued_num on the wire is what is left
    raw.to_amount(t.used)::integer AS used_count,
    coalesce(raw.from_epoch(t.update_time), t.observed_at) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.name IS NULL OR t.name = '' THEN 'coupon_info.name is missing' END,
        CASE WHEN t.status IS NULL THEN 'status is missing' END,
        CASE WHEN raw.to_amount(t.face) IS NULL AND t.face <> '' THEN 'discount_info.discount_fee is not a number' END
    ), '') AS problem
FROM typed AS t;
