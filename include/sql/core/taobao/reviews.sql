-- core.reviews: what buyers said about what they bought.
-- Grain: one row per review of an order line. Rating 5 (good), 3 (neutral), 1 (bad).
-- Params: source_id (text), run_id (text), as_of_at (timestamptz).
-- Reads: raw.records, raw.batches, raw.mappings, core.orders
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it. The newest version counts.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'rates', 'core.reviews')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'rates' AND m.target = 'core.reviews'
FOR UPDATE OF m;

DROP TABLE IF EXISTS pg_temp.new_reviews;
CREATE TEMPORARY TABLE new_reviews ON COMMIT DROP AS
WITH
records AS MATERIALIZED (  -- the range first, then the costly look into the payload
    SELECT r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload
    FROM mapping_range AS g
    JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
    WHERE r.source_id = %(source_id)s::text AND r.stream = 'rates'
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key AS review_id, r.payload,
        p.tid, p.oid, p.num_iid, p.result, nullif(p.content, '') AS content, nullif(p.reply, '') AS reply,
        CASE p.result WHEN 'good' THEN 5 WHEN 'neutral' THEN 3 WHEN 'bad' THEN 1 END AS rating,
        raw.to_instant(p.created, '+08') AS created_at
    FROM records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        tid text, oid text, num_iid text, result text, content text, reply text, created text
    )
)
SELECT
    t.*,
    nullif(concat_ws('; ',
        CASE WHEN t.tid IS NULL OR t.tid = '' THEN 'tid is missing' END,
        CASE WHEN t.rating IS NULL THEN 'result is missing or unknown' END,
        CASE WHEN t.created_at IS NULL THEN 'created is missing or not a time' END
    ), '') AS problem
FROM typed AS t;

INSERT INTO core.reviews AS v (
    source_id, review_id, order_id, line_id, product_id, identity_id, rating, rating_original, content, reply, created_at, replied_at,
    batch_id
)
SELECT DISTINCT ON (n.review_id)
    %(source_id)s::text, n.review_id, n.tid, nullif(n.oid, ''), nullif(n.num_iid, ''),
    o.identity_id,                                          -- the platform masks the reviewer: the order knows the buyer
    n.rating, n.result, n.content, n.reply, n.created_at, a.replied_at, n.batch_id
FROM new_reviews AS n
LEFT JOIN core.orders AS o ON o.source_id = %(source_id)s::text AND n.tid = o.order_id
CROSS JOIN LATERAL (
    -- TOP does not say when we replied: it is when a reply was first seen, if the review had been seen without one
    SELECT CASE WHEN bool_or(coalesce(r.payload ->> 'reply', '') = '')
                THEN min(r.observed_at) FILTER (WHERE r.payload ->> 'reply' <> '') END AS replied_at
    FROM raw.records AS r
    WHERE n.reply IS NOT NULL AND r.source_id = %(source_id)s::text AND r.stream = 'rates' AND r.record_key = n.review_id
) AS a
WHERE n.problem IS NULL
ORDER BY n.review_id ASC, n.record_id DESC
ON CONFLICT (source_id, review_id) DO UPDATE SET
    order_id = excluded.order_id, line_id = excluded.line_id, product_id = excluded.product_id, identity_id = excluded.identity_id,
    rating = excluded.rating, rating_original = excluded.rating_original, content = excluded.content, reply = excluded.reply,
    created_at = excluded.created_at, replied_at = excluded.replied_at, batch_id = excluded.batch_id
WHERE excluded.batch_id >= v.batch_id
  AND (v.batch_id, v.identity_id, v.reply) IS DISTINCT FROM (excluded.batch_id, excluded.identity_id, excluded.reply);

-- A review may arrive before its order, and then without a buyer.
UPDATE core.reviews AS v SET identity_id = o.identity_id
FROM core.orders AS o
WHERE v.source_id = %(source_id)s::text AND v.identity_id IS NULL AND o.identity_id IS NOT NULL
  AND o.source_id = v.source_id AND o.order_id = v.order_id;

INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT DISTINCT ON (n.review_id, n.problem, n.payload)
    %(source_id)s::text, 'rates', 'mapping', n.review_id, 'core.reviews: ' || n.problem, n.payload, n.batch_id, %(run_id)s::text,
    %(as_of_at)s::timestamptz
FROM new_reviews AS n
WHERE n.problem IS NOT NULL
ORDER BY n.review_id ASC, n.problem ASC, n.payload ASC, n.batch_id DESC
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')))
DO UPDATE SET batch_id = excluded.batch_id, resolved_at = NULL
WHERE excluded.batch_id > j.batch_id;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
FROM core.reviews AS v
WHERE j.source_id = %(source_id)s::text AND j.stream = 'rates' AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND j.reason LIKE 'core.reviews: %%' AND v.source_id = j.source_id AND v.review_id = j.record_key AND v.batch_id > j.batch_id;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'rates' AND m.target = 'core.reviews' AND m.last_batch_id < g.upto_batch_id;
