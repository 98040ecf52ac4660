-- new_rows: voucher activities of a Youzan shop. Neither the method nor its fields are confirmed: docs/connections/youzan.md.
-- Grain: one row per version of an activity. Amounts in yuan.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/coupons.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    r.record_key AS coupon_id, p.title AS name,
    raw.to_amount(p.value) AS face_amount, raw.to_amount(p.condition) AS minimum_amount,
    coalesce(raw.from_epoch(p.start_at), raw.from_epoch_ms(p.start_at), raw.to_instant(p.start_at, '+08')) AS starts_at,
    coalesce(raw.from_epoch(p.end_at), raw.from_epoch_ms(p.end_at), raw.to_instant(p.end_at, '+08')) AS ends_at,
    coalesce(nullif(p.status, ''), 'unknown') AS status,
    CASE WHEN pg_input_is_valid(p.taken_qty, 'integer') THEN p.taken_qty::integer END AS issued_count,
    CASE WHEN pg_input_is_valid(p.used_qty, 'integer') THEN p.used_qty::integer END AS used_count,
    r.observed_at AS modified_at,               -- counts change without a time: the newest look counts
    nullif(concat_ws('; ',
        CASE WHEN p.title IS NULL OR p.title = '' THEN 'title is missing' END,
        CASE WHEN p.value <> '' AND raw.to_amount(p.value) IS NULL THEN 'value is not a number' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
    title text, value text, condition text, start_at text, end_at text, status text, taken_qty text, used_qty text
);
