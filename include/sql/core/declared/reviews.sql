-- new_rows: reviews of a source that is declared in YAML (files, plain REST), already in our fields.
-- Grain: one row per version of a review. Rating 1 to 5.
-- Params: source_id (text).
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/reviews.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        p.order_id, p.line_id, p.product_id, p.rating_original, p.content, p.reply, p.customer_id, p.card, p.phone, p.email, p.name,
        p.language,
        CASE WHEN p.rating ~ '^[1-5]$' THEN p.rating::smallint END AS rating,
        raw.to_instant(p.created_at) AS created_at,
        raw.to_instant(p.replied_at) AS replied_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        order_id text, line_id text, product_id text, rating text, rating_original text, content text, reply text, customer_id text,
        card text, phone text, email text, name text, language text, created_at text, replied_at text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'shop_customer_id', 'value', %(source_id)s::text || ':' || nullif(t.customer_id, '')),
        jsonb_build_object('kind', 'pos_card', 'value', %(source_id)s::text || ':' || nullif(t.card, '')),
        jsonb_build_object('kind', 'phone', 'value', t.phone),
        jsonb_build_object('kind', 'email', 'value', t.email)
    ) AS identities,
    t.name, CASE WHEN t.language IN ('zh', 'en') THEN t.language END AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS review_id, t.order_id, t.line_id, t.product_id, t.rating,
    coalesce(t.rating_original, t.rating::text) AS rating_original, t.content, t.reply, t.created_at, t.replied_at,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(t.order_id, '') = '' THEN 'order_id is missing' END,
        CASE WHEN t.rating IS NULL THEN 'rating is missing or not 1 to 5' END,
        CASE WHEN t.created_at IS NULL THEN 'created_at is missing or not a time' END
    ), '') AS problem
FROM typed AS t;
