-- new_rows: product reviews of a WooCommerce shop. They name a product and a person, not an order: the order is found by both.
-- Grain: one row per version of a review. Rating 1 to 5.
-- Params: source_id (text).
-- Reads: core.identities, core.identity_links, core.orders, core.order_lines
-- Rerun: safe; writes a temporary table only. core/write/reviews.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, p.product_id, p.reviewer, p.reviewer_email, p.rating AS rating_original,
        CASE WHEN p.rating ~ '^[1-5]$' THEN p.rating::smallint END AS rating,
        nullif(btrim(regexp_replace(p.review, '<[^>]*>', ' ', 'g'), E' \n\r\t'), '') AS content,
        raw.to_instant(p.date_created_gmt, 'Z') AS created_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        product_id text, reviewer text, reviewer_email text, rating text, review text, date_created_gmt text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(jsonb_build_object('kind', 'email', 'value', t.reviewer_email)) AS identities,
    t.reviewer AS name, NULL::text AS language, 'profile' AS evidence, t.created_at AS seen_at,
    t.record_key AS review_id, o.order_id, o.line_id, t.product_id, t.rating, t.rating_original, t.content, NULL::text AS reply,
    t.created_at, NULL::timestamptz AS replied_at,
    nullif(concat_ws('; ',
        CASE WHEN t.rating IS NULL THEN 'rating is missing or not 1 to 5' END,
        CASE WHEN t.created_at IS NULL THEN 'date_created_gmt is missing or not a time' END
    ), '') AS problem
FROM typed AS t
LEFT JOIN LATERAL (
    -- the last order before the review in which somebody with this e-mail address bought this product
    SELECT o.order_id, l.line_id
    FROM core.identities AS i
    JOIN LATERAL (
        SELECT i.identity_id
        UNION
        SELECT CASE WHEN k.identity_a = i.identity_id THEN k.identity_b ELSE k.identity_a END
        FROM core.identity_links AS k
        WHERE k.source_id = %(source_id)s::text AND k.revoked_at IS NULL AND i.identity_id IN (k.identity_a, k.identity_b)
    ) AS b ON TRUE
    JOIN core.orders AS o ON o.identity_id = b.identity_id AND o.source_id = %(source_id)s::text AND o.created_at <= t.created_at
    JOIN core.order_lines AS l ON l.source_id = o.source_id AND l.order_id = o.order_id AND l.product_id = t.product_id
    WHERE i.kind = 'email' AND i.value = t.reviewer_email
    ORDER BY o.created_at DESC, o.order_id DESC, l.line_id ASC
    LIMIT 1
) AS o ON TRUE;
