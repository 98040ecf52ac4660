-- new_rows, new_lines: Youzan trades as orders.
-- Grain: one row per version of a trade; one line per oid. Amounts in yuan, before refunds.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes temporary tables only. core/write/orders.sql takes them into core.
DROP TABLE IF EXISTS pg_temp.new_trades;
CREATE TEMPORARY TABLE new_trades ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    -- the detail is newer than the list, and only there is what was really paid
    CASE WHEN jsonb_typeof(r.payload #> '{detail,full_order_info,order_info}') = 'object'
         THEN r.payload #> '{detail,full_order_info}' ELSE r.payload -> 'full_order_info' END AS trade,
    jsonb_typeof(r.payload -> 'detail') = 'object' AS has_detail
FROM new_records AS r;

CREATE TEMPORARY TABLE new_lines ON COMMIT DROP AS
SELECT
    r.record_id,
    e.line ->> 'oid' AS line_id,
    e.line ->> 'item_id' AS product_id,
    coalesce(nullif(e.line ->> 'outer_sku_id', ''), e.line ->> 'outer_item_id') AS outer_id,
    e.line ->> 'title' AS title,
    raw.to_amount(e.line ->> 'price') AS unit_price,
    raw.to_amount(e.line ->> 'num') AS quantity,
    raw.to_amount(e.line ->> 'payment') AS paid_amount,
    NULL::text AS status,                       -- the order's
    NULL::text AS shipment_id, NULL::text AS carrier, NULL::timestamptz AS shipped_at
FROM new_trades AS r
CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(r.trade -> 'orders') = 'array' THEN r.trade -> 'orders' ELSE '[]' END
) AS e (line);

CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('WAIT_BUYER_PAY', 'unpaid'), ('TRADE_PAID', 'paid'),
    ('WAIT_CONFIRM', 'paid'),                   -- paid; a group-buy or the shop's acceptance is pending
    ('WAIT_SELLER_SEND_GOODS', 'paid'), ('WAIT_BUYER_CONFIRM_GOODS', 'shipped'), ('TRADE_SUCCESS', 'finished'),
    ('TRADE_CLOSED', 'cancelled')               -- or refunded, when it had been paid
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.has_detail,
        t.status, o.status AS status_original, o.pay_time, o.consign_time, o.success_time, p.post_fee,
        b.yz_open_id, b.buyer_phone, r.trade #>> '{address_info,delivery_city}' AS city,
        raw.to_instant(o.created, '+08') AS created_at,
        raw.to_instant(o.update_time, '+08') AS modified_at,
        raw.to_instant(o.pay_time, '+08') AS paid_at,
        raw.to_instant(o.consign_time, '+08') AS shipped_at,
        coalesce(raw.to_instant(o.confirm_time, '+08'), raw.to_instant(o.success_time, '+08')) AS signed_at,
        raw.to_amount(p.payment) AS payment,
        raw.to_amount(p.real_payment) AS real_payment,
        raw.to_amount(p.post_fee) AS postage_amount
    FROM new_trades AS r
    CROSS JOIN LATERAL jsonb_to_record(
        CASE WHEN jsonb_typeof(r.trade -> 'order_info') = 'object' THEN r.trade -> 'order_info' ELSE '{}' END
    ) AS o (
        status text, created text, update_time text, pay_time text, consign_time text, confirm_time text, success_time text
    )
    CROSS JOIN LATERAL jsonb_to_record(
        CASE WHEN jsonb_typeof(r.trade -> 'pay_info') = 'object' THEN r.trade -> 'pay_info' ELSE '{}' END
    ) AS p (payment text, real_payment text, post_fee text)
    CROSS JOIN LATERAL jsonb_to_record(
        CASE WHEN jsonb_typeof(r.trade -> 'buyer_info') = 'object' THEN r.trade -> 'buyer_info' ELSE '{}' END
    ) AS b (yz_open_id text, buyer_phone text)
    LEFT JOIN statuses AS t ON o.status = t.status_original
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'youzan_open_id', 'value', t.yz_open_id),
        jsonb_build_object('kind', 'phone', 'value', t.buyer_phone)
    ) AS identities,
    -- the recipient's name is a cipher text, and the nickname is not a name to greet with
    NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS order_id,
    CASE WHEN t.status = 'cancelled' AND t.paid_at IS NOT NULL THEN 'refunded' ELSE t.status END AS status, t.status_original,
    t.paid_at IS NOT NULL AS is_paid,
    CASE WHEN t.paid_at IS NOT NULL AND t.has_detail THEN t.real_payment ELSE t.payment END AS paid_amount,
    t.postage_amount, t.city, t.created_at, t.paid_at, t.shipped_at,
    CASE WHEN t.status = 'finished' THEN t.signed_at END AS signed_at,
    t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.status IS NULL THEN 'order_info.status is missing or unknown' END,
        CASE WHEN t.created_at IS NULL THEN 'order_info.created is missing or not a time' END,
        CASE WHEN t.modified_at IS NULL THEN 'order_info.update_time is missing or not a time' END,
        CASE WHEN t.payment IS NULL THEN 'pay_info.payment is missing or not a number' END,
        CASE WHEN t.real_payment IS NULL AND t.paid_at IS NOT NULL AND t.has_detail
             THEN 'detail: pay_info.real_payment is missing or not a number' END,
        CASE WHEN t.postage_amount IS NULL AND t.post_fee <> '' THEN 'pay_info.post_fee is not a number' END,
        CASE WHEN t.paid_at IS NULL AND t.pay_time <> '' THEN 'order_info.pay_time is not a time' END,
        CASE WHEN t.shipped_at IS NULL AND t.consign_time <> '' THEN 'order_info.consign_time is not a time' END,
        CASE WHEN t.signed_at IS NULL AND t.success_time <> '' THEN 'order_info.success_time is not a time' END
    ), '') AS problem
FROM typed AS t;
