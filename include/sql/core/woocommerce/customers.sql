-- new_rows: accounts of a WooCommerce shop. The shop itself knows no points, levels or sums: those are plug-ins.
-- Grain: one row per version of an account.
-- Params: source_id (text).
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/customers.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, p.full_name,
        coalesce(nullif(p.email, ''), r.payload #>> '{billing,email}') AS email,
        r.payload #>> '{billing,phone}' AS phone,
        raw.to_instant(p.date_created_gmt, 'Z') AS joined_at,
        raw.to_instant(p.date_modified_gmt, 'Z') AS modified_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (full_name text, email text, date_created_gmt text, date_modified_gmt text)
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'shop_customer_id', 'value', %(source_id)s::text || ':' || t.record_key),
        jsonb_build_object('kind', 'phone', 'value', t.phone),
        jsonb_build_object('kind', 'email', 'value', t.email)
    ) AS identities,
    t.full_name AS name, NULL::text AS language, 'profile' AS evidence, t.joined_at AS seen_at,
    t.record_key AS customer_id, TRUE AS is_member, NULL::text AS level, NULL::numeric AS points, NULL::integer AS order_count,
    NULL::numeric AS spent_amount, t.joined_at, NULL::timestamptz AS last_order_at,
    coalesce(t.modified_at, t.joined_at) AS modified_at,            -- an account that was never changed may have no time of change
    CASE WHEN t.joined_at IS NULL THEN 'date_created_gmt is missing or not a time' END AS problem
FROM typed AS t;
