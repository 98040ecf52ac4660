-- new_rows: customers of a Youzan shop.
-- Grain: one row per version of a customer. Youzan lists neither levels nor what was spent.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/customers.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'youzan_open_id', 'value', r.record_key),
        jsonb_build_object('kind', 'phone', 'value', p.mobile)
    ) AS identities,
    CASE WHEN p.name LIKE 'name:%%' THEN p.name ELSE p.show_name END AS name,
    NULL::text AS language, 'profile' AS evidence, coalesce(t.joined_at, r.observed_at) AS seen_at,
    r.record_key AS customer_id, m.is_member, NULL::text AS level,
    raw.to_amount(p.points) AS points,
    CASE WHEN pg_input_is_valid(p.trade_count, 'integer') THEN p.trade_count::integer END AS order_count,
    NULL::numeric AS spent_amount, t.joined_at, NULL::timestamptz AS last_order_at,
    r.observed_at AS modified_at,               -- the list has no time of change: the newest look counts
    nullif(concat_ws('; ',
        CASE WHEN m.is_member IS NULL THEN 'is_member is missing or unknown' END,
        CASE WHEN t.joined_at IS NULL THEN 'created_at is missing or not a time' END,
        CASE WHEN p.points <> '' AND raw.to_amount(p.points) IS NULL THEN 'points is not a number' END,
        CASE WHEN p.trade_count <> '' AND NOT pg_input_is_valid(p.trade_count, 'integer') THEN 'trade_count is not a number' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
    mobile text, name text, show_name text, is_member text, points text, trade_count text, created_at text
)
CROSS JOIN LATERAL (
    SELECT coalesce(raw.from_epoch(p.created_at), raw.from_epoch_ms(p.created_at), raw.to_instant(p.created_at, '+08')) AS joined_at
) AS t
CROSS JOIN LATERAL (
    SELECT CASE WHEN p.is_member IN ('1', 'true') THEN TRUE WHEN p.is_member IN ('0', 'false') THEN FALSE END AS is_member
) AS m;
