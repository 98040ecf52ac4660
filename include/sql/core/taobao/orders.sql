-- core.orders: Taobao and Tmall trades, typed.
-- Grain: one row per trade. Amounts in CNY, before refunds.
-- Params: source_id (text), run_id (text), as_of_at (timestamptz).
-- Reads: raw.records, raw.batches, raw.mappings, core.identities
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it. Of several versions the one with the newest
-- `modified` counts; one that cannot be used goes to raw.rejects and leaves the last good one in place.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'trades', 'core.orders')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'trades' AND m.target = 'core.orders'
FOR UPDATE OF m;

DROP TABLE IF EXISTS pg_temp.new_orders;
CREATE TEMPORARY TABLE new_orders ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('TRADE_NO_CREATE_PAY', 'unpaid'), ('WAIT_BUYER_PAY', 'unpaid'), ('PAY_PENDING', 'unpaid'),
    ('WAIT_PRE_AUTH_CONFIRM', 'unpaid'), ('PAID_FORBID_CONSIGN', 'paid'), ('WAIT_SELLER_SEND_GOODS', 'paid'),
    ('SELLER_CONSIGNED_PART', 'paid'),          -- shipped only when everything is
    ('WAIT_BUYER_CONFIRM_GOODS', 'shipped'), ('TRADE_BUYER_SIGNED', 'signed'), ('TRADE_FINISHED', 'finished'),
    ('TRADE_CLOSED', 'refunded'),               -- paid, then refunded in full
    ('TRADE_CLOSED_BY_TAOBAO', 'cancelled')     -- closed before it was paid
),
records AS MATERIALIZED (  -- the range first, then the costly look into the payload
    SELECT r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload,
           CASE WHEN jsonb_typeof(r.payload #> '{orders,order}') = 'array' THEN r.payload #> '{orders,order}' ELSE '[]' END AS lines
    FROM mapping_range AS g
    JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
    WHERE r.source_id = %(source_id)s::text AND r.stream = 'trades'
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key AS order_id, r.observed_at, r.payload,
        t.status, p.status AS status_original, p.payment, p.post_fee, p.pay_time, p.consign_time, p.end_time,
        r.payload ->> 'buyer_open_uid' AS open_uid,
        r.payload ->> 'receiver_city' AS city,
        raw.to_instant(p.created, '+08') AS created_at,
        raw.to_instant(p.modified, '+08') AS modified_at,
        raw.to_instant(p.pay_time, '+08') AS paid_at,
        raw.to_instant(p.consign_time, '+08') AS shipped_at,
        raw.to_instant(p.end_time, '+08') AS ended_at,
        raw.to_amount(p.payment) AS paid_amount,
        raw.to_amount(p.post_fee) AS postage_amount,
        l.line_count, l.usable_count, l.distinct_count, l.goods_amount, l.unit_count
    FROM records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        status text, created text, modified text, pay_time text, consign_time text, end_time text, payment text, post_fee text
    )
    LEFT JOIN statuses AS t ON p.status = t.status_original
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS line_count,
            count(*) FILTER (WHERE x.oid <> '' AND x.num_iid <> '' AND x.price IS NOT NULL AND x.num IS NOT NULL) AS usable_count,
            count(DISTINCT x.oid) AS distinct_count,
            sum(x.price * x.num) AS goods_amount,
            sum(x.num) AS unit_count
        FROM (
            SELECT e.line ->> 'oid' AS oid, e.line ->> 'num_iid' AS num_iid,
                   raw.to_amount(e.line ->> 'price') AS price, raw.to_amount(e.line ->> 'num') AS num
            FROM jsonb_array_elements(r.lines) AS e (line)
        ) AS x
    ) AS l
)
SELECT
    t.*,
    nullif(concat_ws('; ',
        CASE WHEN t.status IS NULL THEN 'status is missing or unknown' END,
        CASE WHEN t.created_at IS NULL THEN 'created is missing or not a time' END,
        CASE WHEN t.modified_at IS NULL THEN 'modified is missing or not a time' END,
        CASE WHEN t.paid_amount IS NULL THEN 'payment is missing or not a number' END,
        CASE WHEN t.postage_amount IS NULL AND t.post_fee <> '' THEN 'post_fee is not a number' END,
        CASE WHEN t.paid_at IS NULL AND t.pay_time <> '' THEN 'pay_time is not a time' END,
        CASE WHEN t.shipped_at IS NULL AND t.consign_time <> '' THEN 'consign_time is not a time' END,
        CASE WHEN t.ended_at IS NULL AND t.end_time <> '' THEN 'end_time is not a time' END,
        CASE WHEN t.line_count = 0 THEN 'orders.order is missing or empty' END,
        CASE WHEN t.usable_count < t.line_count THEN 'orders.order[]: oid, num_iid, price or num is missing or not a number' END,
        CASE WHEN t.distinct_count < t.usable_count THEN 'orders.order[].oid stands twice' END
    ), '') AS problem
FROM typed AS t;

INSERT INTO core.orders AS o (
    source_id, order_id, identity_id, status, status_original, is_paid, currency_code, goods_amount, paid_amount, postage_amount,
    line_count, unit_count, city, created_at, paid_at, shipped_at, signed_at, modified_at, batch_id, loaded_at
)
SELECT DISTINCT ON (n.order_id)
    %(source_id)s::text, n.order_id, i.identity_id, n.status, n.status_original,
    -- TRADE_CLOSED was paid once and counts; what was closed before payment never does
    n.paid_at IS NOT NULL AND n.status <> 'cancelled',
    'CNY', n.goods_amount, n.paid_amount, coalesce(n.postage_amount, 0), n.line_count, n.unit_count, n.city,
    n.created_at, n.paid_at, n.shipped_at,
    CASE WHEN n.status IN ('signed', 'finished') THEN n.ended_at END,
    n.modified_at, n.batch_id, n.observed_at
FROM new_orders AS n
LEFT JOIN core.identities AS i ON i.kind = 'taobao_open_uid' AND n.open_uid = i.value
WHERE n.problem IS NULL
ORDER BY n.order_id ASC, n.modified_at DESC, n.record_id DESC
ON CONFLICT (source_id, order_id) DO UPDATE SET
    identity_id = excluded.identity_id, status = excluded.status, status_original = excluded.status_original,
    is_paid = excluded.is_paid, goods_amount = excluded.goods_amount, paid_amount = excluded.paid_amount,
    postage_amount = excluded.postage_amount, line_count = excluded.line_count, unit_count = excluded.unit_count,
    city = excluded.city, created_at = excluded.created_at, paid_at = excluded.paid_at, shipped_at = excluded.shipped_at,
    signed_at = excluded.signed_at, modified_at = excluded.modified_at, batch_id = excluded.batch_id, loaded_at = excluded.loaded_at
WHERE excluded.modified_at >= o.modified_at                                     -- a late answer must not bring back an old state
  AND (o.batch_id, o.identity_id) IS DISTINCT FROM (excluded.batch_id, excluded.identity_id);

INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT DISTINCT ON (n.order_id, n.problem, n.payload)
    %(source_id)s::text, 'trades', 'mapping', n.order_id, 'core.orders: ' || n.problem, n.payload, n.batch_id, %(run_id)s::text,
    %(as_of_at)s::timestamptz
FROM new_orders AS n
WHERE n.problem IS NOT NULL
ORDER BY n.order_id ASC, n.problem ASC, n.payload ASC, n.batch_id DESC
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')))
DO UPDATE SET batch_id = excluded.batch_id, resolved_at = NULL
WHERE excluded.batch_id > j.batch_id;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
FROM core.orders AS o
WHERE j.source_id = %(source_id)s::text AND j.stream = 'trades' AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND j.reason LIKE 'core.orders: %%' AND o.source_id = j.source_id AND o.order_id = j.record_key AND o.batch_id > j.batch_id;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'trades' AND m.target = 'core.orders' AND m.last_batch_id < g.upto_batch_id;
