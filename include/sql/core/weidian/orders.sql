-- new_rows, new_lines: Weidian orders.
-- Grain: one row per version of an order; one line per item and sku. Amounts in yuan, before refunds.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes temporary tables only. core/write/orders.sql takes them into core.
-- Field names beyond order_id are not confirmed; where old and new descriptions differ, both are taken (docs/connections/weidian.md).
CREATE TEMPORARY TABLE new_lines ON COMMIT DROP AS
SELECT
    i.record_id,
    -- an order may hold one item twice; Weidian numbers no lines, so the second one is told apart by its place
    i.item_id || ':' || i.sku_id || CASE WHEN i.occurrence > 1 THEN '#' || i.occurrence ELSE '' END AS line_id,
    i.item_id AS product_id,
    coalesce(nullif(i.item ->> 'sku_merchant_code', ''), i.item ->> 'merchant_code') AS outer_id,
    i.item ->> 'item_name' AS title,
    raw.to_amount(i.item ->> 'price') AS unit_price,
    raw.to_amount(i.item ->> 'quantity') AS quantity,
    raw.to_amount(i.item ->> 'total_price') AS paid_amount,
    NULL::text AS status,                       -- the order's
    i.payload #>> '{detail,express_no}' AS shipment_id,
    i.payload #>> '{detail,express}' AS carrier,
    raw.to_instant(i.payload #>> '{detail,send_time}', '+08') AS shipped_at
FROM (
    SELECT
        r.record_id, r.payload, e.item, e.item ->> 'item_id' AS item_id, coalesce(nullif(e.item ->> 'sku_id', ''), '0') AS sku_id,
        row_number() OVER (
            PARTITION BY r.record_id, e.item ->> 'item_id', coalesce(nullif(e.item ->> 'sku_id', ''), '0') ORDER BY e.place
        ) AS occurrence
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN jsonb_typeof(r.payload #> '{detail,items}') = 'array' THEN r.payload #> '{detail,items}' ELSE '[]' END
    ) WITH ORDINALITY AS e (item, place)
) AS i;

CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('unpay', 'unpaid'), ('pay', 'paid'), ('unship', 'paid'), ('unship_refunding', 'paid'), ('ship', 'shipped'),
    ('shiped', 'shipped'), ('shipped', 'shipped'), ('shiped_refunding', 'shipped'), ('shipped_refunding', 'shipped'),
    ('refunding', 'paid'),                      -- or shipped, when it was sent
    ('accept', 'signed'), ('accept_refunding', 'signed'), ('finish', 'finished'),
    ('close', 'cancelled')                      -- or refunded, when it had been paid
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        t.status, p.status AS status_original, p.pay_time, p.send_time, p.express_fee, b.buyer_id, b.phone, b.name, b.city,
        raw.to_instant(p.time, '+08') AS created_at,
        raw.to_instant(p.pay_time, '+08') AS paid_at,
        raw.to_instant(p.send_time, '+08') AS shipped_at,
        raw.to_instant(p.confirm_time, '+08') AS signed_at,
        -- without a time of change the latest of the others; a closed order then keeps it, and the newer record counts
        coalesce(
            raw.to_instant(p.update_time, '+08'),
            greatest(
                raw.to_instant(p.time, '+08'), raw.to_instant(p.pay_time, '+08'), raw.to_instant(p.send_time, '+08'),
                raw.to_instant(p.confirm_time, '+08')
            )
        ) AS modified_at,
        raw.to_amount(p.total) AS paid_amount,
        raw.to_amount(p.express_fee) AS postage_amount
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(
        CASE WHEN jsonb_typeof(r.payload -> 'detail') = 'object' THEN r.payload -> 'detail' ELSE '{}' END
    ) AS p (
        status text, time text, update_time text, pay_time text, send_time text, confirm_time text, total text, express_fee text
    )
    CROSS JOIN LATERAL jsonb_to_record(
        CASE WHEN jsonb_typeof(r.payload #> '{detail,buyer_info}') = 'object' THEN r.payload #> '{detail,buyer_info}' ELSE '{}' END
    ) AS b (buyer_id text, phone text, name text, city text)
    LEFT JOIN statuses AS t ON p.status = t.status_original
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'weidian_buyer_id', 'value', t.buyer_id),
        jsonb_build_object('kind', 'phone', 'value', t.phone)
    ) AS identities,
    t.name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS order_id,
    CASE
        WHEN t.status = 'cancelled' AND t.paid_at IS NOT NULL THEN 'refunded'
        WHEN t.status_original = 'refunding' AND t.shipped_at IS NOT NULL THEN 'shipped'
        ELSE t.status
    END AS status,
    t.status_original, t.paid_at IS NOT NULL AS is_paid, t.paid_amount, t.postage_amount, t.city, t.created_at, t.paid_at, t.shipped_at,
    CASE WHEN t.status IN ('signed', 'finished') THEN t.signed_at END AS signed_at,
    t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.status IS NULL THEN 'detail: status is missing or unknown' END,
        CASE WHEN t.created_at IS NULL THEN 'detail: time is missing or not a time' END,
        CASE WHEN t.paid_amount IS NULL THEN 'detail: total is missing or not a number' END,
        CASE WHEN t.postage_amount IS NULL AND t.express_fee <> '' THEN 'detail: express_fee is not a number' END,
        CASE WHEN t.paid_at IS NULL AND t.pay_time <> '' THEN 'detail: pay_time is not a time' END,
        CASE WHEN t.shipped_at IS NULL AND t.send_time <> '' THEN 'detail: send_time is not a time' END
    ), '') AS problem
FROM typed AS t;
