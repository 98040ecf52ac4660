-- core.refunds: refund requests of a Taobao shop, typed.
-- Grain: one row per refund request. Amount in CNY, what goes back to the buyer.
-- Params: source_id (text), run_id (text), as_of_at (timestamptz).
-- Reads: raw.records, raw.batches, raw.mappings, core.identities, core.orders
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it. Of several versions the newest `modified` counts.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'refunds', 'core.refunds')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'refunds' AND m.target = 'core.refunds'
FOR UPDATE OF m;

DROP TABLE IF EXISTS pg_temp.new_refunds;
CREATE TEMPORARY TABLE new_refunds ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('WAIT_SELLER_AGREE', 'requested'), ('EXCHANGE_TRANSFORM_TO_REFUND', 'requested'),
    ('WAIT_SELLER_CONSIGN_GOODS', 'returning'), ('WAIT_BUYER_RETURN_GOODS', 'returning'),
    ('WAIT_SELLER_CONFIRM_GOODS', 'returning'), ('WAIT_BUYER_CONFIRM_EXCHANGE_SELLER_SEND_GOODS', 'returning'),
    ('SELLER_REFUSE_BUYER', 'refused'), ('CLOSED', 'closed'), ('SUCCESS', 'settled')
),
records AS MATERIALIZED (  -- the range first, then the costly look into the payload
    SELECT r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload
    FROM mapping_range AS g
    JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
    WHERE r.source_id = %(source_id)s::text AND r.stream = 'refunds'
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key AS refund_id, r.observed_at, r.payload,
        p.tid, p.oid, p.dispute_type, p.reason, p.num, p.end_time, p.buyer_open_uid AS open_uid,
        t.status, p.status AS status_original,
        raw.to_amount(p.refund_fee) AS refund_amount,
        raw.to_amount(p.num) AS quantity,
        raw.to_instant(p.created, '+08') AS created_at,
        raw.to_instant(p.modified, '+08') AS modified_at,
        raw.to_instant(p.end_time, '+08') AS ended_at
    FROM records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        tid text, oid text, status text, dispute_type text, reason text, num text, refund_fee text, created text, modified text,
        end_time text, buyer_open_uid text
    )
    LEFT JOIN statuses AS t ON p.status = t.status_original
)
SELECT
    t.*,
    nullif(concat_ws('; ',
        CASE WHEN t.tid IS NULL OR t.tid = '' THEN 'tid is missing' END,
        CASE WHEN t.status IS NULL THEN 'status is missing or unknown' END,
        CASE WHEN t.refund_amount IS NULL THEN 'refund_fee is missing or not a number' END,
        CASE WHEN t.created_at IS NULL THEN 'created is missing or not a time' END,
        CASE WHEN t.modified_at IS NULL THEN 'modified is missing or not a time' END,
        CASE WHEN t.ended_at IS NULL AND t.end_time <> '' THEN 'end_time is not a time' END,
        CASE WHEN t.quantity IS NULL AND t.num <> '' THEN 'num is not a number' END
    ), '') AS problem
FROM typed AS t;

INSERT INTO core.refunds AS f (
    source_id, refund_id, order_id, line_id, identity_id, status, status_original, is_money, currency_code, refund_amount, quantity,
    reason, created_at, settled_at, modified_at, batch_id
)
SELECT DISTINCT ON (n.refund_id)
    %(source_id)s::text, n.refund_id, n.tid, nullif(n.oid, ''), coalesce(i.identity_id, o.identity_id), n.status, n.status_original,
    -- an exchange ends in SUCCESS too, but no money goes back
    n.status = 'settled' AND coalesce(n.dispute_type, 'REFUND') IN ('REFUND', 'REFUND_AND_RETURN'),
    'CNY', n.refund_amount, n.quantity, n.reason, n.created_at,
    CASE WHEN n.status = 'settled' THEN coalesce(n.ended_at, n.modified_at) END,
    n.modified_at, n.batch_id
FROM new_refunds AS n
LEFT JOIN core.identities AS i ON i.kind = 'taobao_open_uid' AND n.open_uid = i.value
LEFT JOIN core.orders AS o ON o.source_id = %(source_id)s::text AND n.tid = o.order_id
WHERE n.problem IS NULL
ORDER BY n.refund_id ASC, n.modified_at DESC, n.record_id DESC
ON CONFLICT (source_id, refund_id) DO UPDATE SET
    order_id = excluded.order_id, line_id = excluded.line_id, identity_id = excluded.identity_id, status = excluded.status,
    status_original = excluded.status_original, is_money = excluded.is_money, refund_amount = excluded.refund_amount,
    quantity = excluded.quantity, reason = excluded.reason, created_at = excluded.created_at, settled_at = excluded.settled_at,
    modified_at = excluded.modified_at, batch_id = excluded.batch_id
WHERE excluded.modified_at >= f.modified_at
  AND (f.batch_id, f.identity_id) IS DISTINCT FROM (excluded.batch_id, excluded.identity_id);

-- A refund may arrive before its order, and then without a buyer.
UPDATE core.refunds AS f SET identity_id = o.identity_id
FROM core.orders AS o
WHERE f.source_id = %(source_id)s::text AND f.identity_id IS NULL AND o.identity_id IS NOT NULL
  AND o.source_id = f.source_id AND o.order_id = f.order_id;

INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT DISTINCT ON (n.refund_id, n.problem, n.payload)
    %(source_id)s::text, 'refunds', 'mapping', n.refund_id, 'core.refunds: ' || n.problem, n.payload, n.batch_id, %(run_id)s::text,
    %(as_of_at)s::timestamptz
FROM new_refunds AS n
WHERE n.problem IS NOT NULL
ORDER BY n.refund_id ASC, n.problem ASC, n.payload ASC, n.batch_id DESC
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')))
DO UPDATE SET batch_id = excluded.batch_id, resolved_at = NULL
WHERE excluded.batch_id > j.batch_id;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
FROM core.refunds AS f
WHERE j.source_id = %(source_id)s::text AND j.stream = 'refunds' AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND j.reason LIKE 'core.refunds: %%' AND f.source_id = j.source_id AND f.refund_id = j.record_key AND f.batch_id > j.batch_id;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'refunds' AND m.target = 'core.refunds' AND m.last_batch_id < g.upto_batch_id;
