-- new_rows: refund requests of a Taobao shop.
-- Grain: one row per version of a refund request. Amount in CNY, what goes back to the buyer.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/refunds.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('WAIT_SELLER_AGREE', 'requested'), ('EXCHANGE_TRANSFORM_TO_REFUND', 'requested'),
    ('WAIT_SELLER_CONSIGN_GOODS', 'returning'), ('WAIT_BUYER_RETURN_GOODS', 'returning'),
    ('WAIT_SELLER_CONFIRM_GOODS', 'returning'), ('WAIT_BUYER_CONFIRM_EXCHANGE_SELLER_SEND_GOODS', 'returning'),
    ('SELLER_REFUSE_BUYER', 'refused'), ('CLOSED', 'closed'), ('SUCCESS', 'settled')
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        p.tid, p.oid, p.dispute_type, p.reason, p.num, p.end_time, p.buyer_open_uid,
        t.status, p.status AS status_original,
        raw.to_amount(p.refund_fee) AS refund_amount,
        raw.to_amount(p.num) AS quantity,
        raw.to_instant(p.created, '+08') AS created_at,
        raw.to_instant(p.modified, '+08') AS modified_at,
        raw.to_instant(p.end_time, '+08') AS ended_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        tid text, oid text, status text, dispute_type text, reason text, num text, refund_fee text, created text, modified text,
        end_time text, buyer_open_uid text
    )
    LEFT JOIN statuses AS t ON p.status = t.status_original
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(jsonb_build_object('kind', 'taobao_open_uid', 'value', t.buyer_open_uid)) AS identities,
    NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS refund_id, t.tid AS order_id, t.oid AS line_id, t.status, t.status_original,
    -- an exchange ends in SUCCESS too, but no money goes back
    t.status = 'settled' AND coalesce(t.dispute_type, 'REFUND') IN ('REFUND', 'REFUND_AND_RETURN') AS is_money,
    t.refund_amount, t.quantity, t.reason, t.created_at,
    CASE WHEN t.status = 'settled' THEN coalesce(t.ended_at, t.modified_at) END AS settled_at,
    t.modified_at,
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
