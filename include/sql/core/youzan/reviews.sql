-- new_rows: reviews of a Youzan shop. Neither the method nor its fields are confirmed: docs/connections/youzan.md.
-- Grain: one row per version of a review. Youzan does not say when a review was answered.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/reviews.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    '[]'::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    r.record_key AS review_id, p.tid AS order_id, NULL::text AS line_id, p.item_id AS product_id,
    CASE WHEN p.rate IN ('1', '2', '3', '4', '5') THEN p.rate::smallint END AS rating, p.rate AS rating_original,
    nullif(p.content, '') AS content, nullif(p.reply, '') AS reply, t.created_at, NULL::timestamptz AS replied_at,
    nullif(concat_ws('; ',
        CASE WHEN p.tid IS NULL OR p.tid = '' THEN 'tid is missing' END,
        CASE WHEN p.rate IS NULL OR p.rate NOT IN ('1', '2', '3', '4', '5') THEN 'rate is missing or not 1 to 5' END,
        CASE WHEN t.created_at IS NULL THEN 'created is missing or not a time' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
    tid text, item_id text, rate text, content text, reply text, created text
)
CROSS JOIN LATERAL (SELECT coalesce(raw.from_epoch(p.created), raw.to_instant(p.created, '+08')) AS created_at) AS t;
