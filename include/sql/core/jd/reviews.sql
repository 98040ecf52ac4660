-- new_rows: what buyers of a JD shop said about what they bought.
-- Grain: one row per version of a comment. Rating 1 to 5; scoreScale says whether JD's score goes to 5 or to 3.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/reviews.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        p."orderId" AS order_id, p.skuid AS sku_id, nullif(p.content, '') AS content, p.score, p.open_id_buyer,
        CASE
            WHEN p."scoreScale" = '3' THEN CASE p.score WHEN '1' THEN 1 WHEN '2' THEN 3 WHEN '3' THEN 5 END
            WHEN p.score ~ '^[1-5]$' THEN p.score::integer
        END AS rating,
        nullif(r.payload #>> '{replies,0,content}', '') AS reply,
        coalesce(raw.from_epoch_ms(p."creationTime"), raw.to_instant(p."creationTime", '+08')) AS created_at,
        coalesce(
            raw.from_epoch_ms(r.payload #>> '{replies,0,creationTime}'), raw.to_instant(r.payload #>> '{replies,0,creationTime}', '+08')
        ) AS replied_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        "orderId" text, skuid text, content text, score text, "scoreScale" text, open_id_buyer text, "creationTime" text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(jsonb_build_object('kind', 'jd_open_id', 'value', t.open_id_buyer)) AS identities,
    NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS review_id, nullif(t.order_id, '') AS order_id, t.sku_id AS line_id, t.sku_id AS product_id,
    t.rating, t.score AS rating_original, t.content, t.reply, t.created_at, t.replied_at,
    nullif(concat_ws('; ',
        CASE WHEN t.rating IS NULL THEN 'score is missing or not on its scale' END,
        CASE WHEN t.created_at IS NULL THEN 'creationTime is missing or not a time' END
    ), '') AS problem
FROM typed AS t;
