-- new_rows: what buyers of a Taobao shop said about what they bought.
-- Grain: one row per version of a review of an order line. Rating 5 (good), 3 (neutral), 1 (bad).
-- Params: source_id (text).
-- Reads: raw.records
-- Rerun: safe; writes a temporary table only. core/write/reviews.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        p.tid, p.oid, p.num_iid, p.result, nullif(p.content, '') AS content, nullif(p.reply, '') AS reply,
        CASE p.result WHEN 'good' THEN 5 WHEN 'neutral' THEN 3 WHEN 'bad' THEN 1 END AS rating,
        raw.to_instant(p.created, '+08') AS created_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        tid text, oid text, num_iid text, result text, content text, reply text, created text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    NULL::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS review_id, t.tid AS order_id, t.oid AS line_id, t.num_iid AS product_id, t.rating, t.result AS rating_original,
    t.content, t.reply, t.created_at, a.replied_at,
    nullif(concat_ws('; ',
        CASE WHEN t.tid IS NULL OR t.tid = '' THEN 'tid is missing' END,
        CASE WHEN t.rating IS NULL THEN 'result is missing or unknown' END,
        CASE WHEN t.created_at IS NULL THEN 'created is missing or not a time' END
    ), '') AS problem
FROM typed AS t
CROSS JOIN LATERAL (
    -- TOP does not say when we replied: it is when a reply was first seen, if the review had been seen without one
    SELECT CASE WHEN bool_or(coalesce(r.payload ->> 'reply', '') = '')
                THEN min(r.observed_at) FILTER (WHERE r.payload ->> 'reply' <> '') END AS replied_at
    FROM raw.records AS r
    WHERE t.reply IS NOT NULL AND r.source_id = %(source_id)s::text AND r.stream = 'rates' AND r.record_key = t.record_key
) AS a;
