-- new_rows: customers of a Shopify shop. Points and levels are a matter of apps.
-- Grain: one row per version of a customer. Amounts in the shop's currency, as Shopify counts them.
-- Params: source_id (text).
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/customers.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'shop_customer_id', 'value', %(source_id)s::text || ':' || r.record_key),
        jsonb_build_object('kind', 'phone', 'value', coalesce(nullif(p.phone, ''), r.payload #>> '{default_address,phone}')),
        jsonb_build_object('kind', 'email', 'value', p.email)
    ) AS identities,
    p.full_name AS name, NULL::text AS language, 'profile' AS evidence, raw.to_instant(p.created_at) AS seen_at,
    r.record_key AS customer_id,
    coalesce(p.state = 'enabled', FALSE) AS is_member,                  -- has an account; others only bought
    NULL::text AS level, NULL::numeric AS points,
    CASE WHEN pg_input_is_valid(p.orders_count, 'integer') THEN p.orders_count::integer END AS order_count,
    raw.to_amount(p.total_spent) AS spent_amount, raw.to_instant(p.created_at) AS joined_at, NULL::timestamptz AS last_order_at,
    raw.to_instant(p.updated_at) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN raw.to_instant(p.created_at) IS NULL THEN 'created_at is missing or not a time' END,
        CASE WHEN raw.to_instant(p.updated_at) IS NULL THEN 'updated_at is missing or not a time' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
    phone text, email text, full_name text, state text, orders_count text, total_spent text, created_at text, updated_at text
);
