-- new_rows, new_lines: Taobao and Tmall trades as orders.
-- Grain: one row per version of a trade; one line per sub-order (oid). Amounts in CNY, before refunds.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes temporary tables only. core/write/orders.sql takes them into core.
CREATE TEMPORARY TABLE new_lines ON COMMIT DROP AS
SELECT
    r.record_id,
    e.line ->> 'oid' AS line_id,
    e.line ->> 'num_iid' AS product_id,
    coalesce(nullif(e.line ->> 'outer_sku_id', ''), e.line ->> 'outer_iid') AS outer_id,
    e.line ->> 'title' AS title,
    raw.to_amount(e.line ->> 'price') AS unit_price,
    raw.to_amount(e.line ->> 'num') AS quantity,
    coalesce(raw.to_amount(e.line ->> 'divide_order_fee'), raw.to_amount(e.line ->> 'payment')) AS paid_amount,
    CASE e.line ->> 'status'
        WHEN 'TRADE_NO_CREATE_PAY' THEN 'unpaid' WHEN 'WAIT_BUYER_PAY' THEN 'unpaid' WHEN 'PAY_PENDING' THEN 'unpaid'
        WHEN 'WAIT_PRE_AUTH_CONFIRM' THEN 'unpaid' WHEN 'PAID_FORBID_CONSIGN' THEN 'paid' WHEN 'WAIT_SELLER_SEND_GOODS' THEN 'paid'
        WHEN 'SELLER_CONSIGNED_PART' THEN 'paid' WHEN 'WAIT_BUYER_CONFIRM_GOODS' THEN 'shipped'
        WHEN 'TRADE_BUYER_SIGNED' THEN 'signed' WHEN 'TRADE_FINISHED' THEN 'finished' WHEN 'TRADE_CLOSED' THEN 'refunded'
        WHEN 'TRADE_CLOSED_BY_TAOBAO' THEN 'cancelled'
    END AS status,                              -- NULL: the order's
    coalesce(nullif(e.line ->> 'invoice_no', ''), r.payload ->> 'invoice_no') AS shipment_id,
    coalesce(nullif(e.line ->> 'logistics_company', ''), r.payload ->> 'logistics_company') AS carrier,
    raw.to_instant(e.line ->> 'consign_time', '+08') AS shipped_at
FROM new_records AS r
CROSS JOIN LATERAL jsonb_array_elements(
    CASE
        WHEN jsonb_typeof(r.payload #> '{orders,order}') = 'array' THEN r.payload #> '{orders,order}'
        WHEN jsonb_typeof(r.payload -> 'orders') = 'array' THEN r.payload -> 'orders'  -- TOP's compact form
        ELSE '[]'
    END
) AS e (line);

CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('TRADE_NO_CREATE_PAY', 'unpaid'), ('WAIT_BUYER_PAY', 'unpaid'), ('PAY_PENDING', 'unpaid'),
    ('WAIT_PRE_AUTH_CONFIRM', 'unpaid'), ('PAID_FORBID_CONSIGN', 'paid'), ('WAIT_SELLER_SEND_GOODS', 'paid'),
    ('SELLER_CONSIGNED_PART', 'paid'),          -- shipped only when everything is
    ('WAIT_BUYER_CONFIRM_GOODS', 'shipped'), ('TRADE_BUYER_SIGNED', 'signed'), ('TRADE_FINISHED', 'finished'),
    ('TRADE_CLOSED', 'refunded'),               -- paid, then refunded in full
    ('TRADE_CLOSED_BY_TAOBAO', 'cancelled')     -- closed before it was paid
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        t.status, p.status AS status_original, p.post_fee, p.pay_time, p.consign_time, p.end_time, p.receiver_city AS city,
        p.buyer_open_uid, p.ouid, p.receiver_mobile, p.receiver_name,
        raw.to_instant(p.created, '+08') AS created_at,
        raw.to_instant(p.modified, '+08') AS modified_at,
        raw.to_instant(p.pay_time, '+08') AS paid_at,
        raw.to_instant(p.consign_time, '+08') AS shipped_at,
        raw.to_instant(p.end_time, '+08') AS ended_at,
        raw.to_amount(p.payment) AS paid_amount,
        raw.to_amount(p.post_fee) AS postage_amount
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        status text, created text, modified text, pay_time text, consign_time text, end_time text, payment text, post_fee text,
        receiver_city text, buyer_open_uid text, ouid text, receiver_mobile text, receiver_name text
    )
    LEFT JOIN statuses AS t ON p.status = t.status_original
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'taobao_open_uid', 'value', t.buyer_open_uid),
        jsonb_build_object('kind', 'taobao_ouid', 'value', t.ouid),      -- applications with the simple order methods get it
        jsonb_build_object('kind', 'phone', 'value', t.receiver_mobile)  -- a parcel to this phone for this buyer: one person
    ) AS identities,
    t.receiver_name AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS order_id, t.status, t.status_original,
    -- TRADE_CLOSED was paid once and counts; what was closed before payment never does
    t.paid_at IS NOT NULL AND t.status <> 'cancelled' AS is_paid,
    t.paid_amount, t.postage_amount, t.city, t.created_at, t.paid_at, t.shipped_at,
    CASE WHEN t.status IN ('signed', 'finished') THEN t.ended_at END AS signed_at,
    t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.status IS NULL THEN 'status is missing or unknown' END,
        CASE WHEN t.created_at IS NULL THEN 'created is missing or not a time' END,
        CASE WHEN t.modified_at IS NULL THEN 'modified is missing or not a time' END,
        CASE WHEN t.paid_amount IS NULL THEN 'payment is missing or not a number' END,
        CASE WHEN t.postage_amount IS NULL AND t.post_fee <> '' THEN 'post_fee is not a number' END,
        CASE WHEN t.paid_at IS NULL AND t.pay_time <> '' THEN 'pay_time is not a time' END,
        CASE WHEN t.shipped_at IS NULL AND t.consign_time <> '' THEN 'consign_time is not a time' END,
        CASE WHEN t.ended_at IS NULL AND t.end_time <> '' THEN 'end_time is not a time' END
    ), '') AS problem
FROM typed AS t;
