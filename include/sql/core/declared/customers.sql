-- new_rows: customers and members of a source that is declared in YAML (files, plain REST), already in our fields.
-- Grain: one row per version of a customer. Amounts in the source's currency, as the source counts them.
-- Params: source_id (text).
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/customers.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload #>> '{at,file_of}' AS file_of,
        p.card, p.phone, p.email, p.name, p.language, p.is_member, p.level, p.order_count,
        raw.to_amount(p.points) AS points,
        raw.to_amount(p.spent_amount) AS spent_amount,
        raw.to_instant(p.joined_at) AS joined_at,
        raw.to_instant(p.last_order_at) AS last_order_at,
        raw.to_instant(p.modified_at) AS modified_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        card text, phone text, email text, name text, language text, is_member text, level text, order_count text, points text,
        spent_amount text, joined_at text, last_order_at text, modified_at text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'shop_customer_id', 'value', %(source_id)s::text || ':' || t.record_key),
        jsonb_build_object('kind', 'pos_card', 'value', %(source_id)s::text || ':' || nullif(t.card, '')),
        jsonb_build_object('kind', 'phone', 'value', t.phone),
        jsonb_build_object('kind', 'email', 'value', t.email)
    ) AS identities,
    t.name, CASE WHEN t.language IN ('zh', 'en') THEN t.language END AS language, 'profile' AS evidence,
    coalesce(t.joined_at, t.modified_at, t.observed_at) AS seen_at,
    t.record_key AS customer_id,
    -- who says nothing of membership lists members: it is what such exports are
    coalesce(t.is_member = 'true', TRUE) AS is_member,
    t.level, t.points,
    CASE WHEN pg_input_is_valid(t.order_count, 'integer') THEN t.order_count::integer END AS order_count,
    t.spent_amount, t.joined_at, t.last_order_at,
    coalesce(t.modified_at, raw.to_instant(t.file_of), greatest(t.joined_at, t.last_order_at), t.observed_at) AS modified_at,
    CASE WHEN t.order_count <> '' AND NOT pg_input_is_valid(t.order_count, 'integer') THEN 'order_count is not a whole number' END
        AS problem
FROM typed AS t;
