-- new_rows, new_lines: orders of a WeChat store.
-- Grain: one row per version of an order; one line per product and SKU. Fen on the wire, yuan here; before refunds.
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes temporary tables only. core/write/orders.sql takes them into core.
CREATE TEMPORARY TABLE new_lines ON COMMIT DROP AS
WITH
lines AS (
    SELECT
        r.record_id, e.line, e.position, r.payload #> '{order_detail,delivery_info,delivery_product_info}' AS parcels,
        -- lines have no id of their own: product and SKU name them, a number follows when both stand twice
        row_number() OVER (PARTITION BY r.record_id, e.line ->> 'product_id', e.line ->> 'sku_id' ORDER BY e.position) AS repetition
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN jsonb_typeof(r.payload #> '{order_detail,product_infos}') = 'array'
             THEN r.payload #> '{order_detail,product_infos}' ELSE '[]' END
    ) WITH ORDINALITY AS e (line, position)
)
SELECT
    l.record_id,
    nullif(l.line ->> 'product_id', '') || coalesce('-' || nullif(l.line ->> 'sku_id', ''), '')
    || CASE WHEN l.repetition > 1 THEN '#' || l.repetition ELSE '' END AS line_id,
    l.line ->> 'product_id' AS product_id,
    coalesce(nullif(l.line ->> 'out_sku_id', ''), nullif(l.line ->> 'sku_code', ''), l.line ->> 'out_product_id') AS outer_id,
    l.line ->> 'title' AS title,
    raw.to_amount(l.line ->> 'sale_price') / 100 AS unit_price,
    raw.to_amount(l.line ->> 'sku_cnt') AS quantity,
    raw.to_amount(l.line ->> 'real_price') / 100 AS paid_amount,    -- of the whole line
    NULL::text AS status,
    p.parcel ->> 'waybill_id' AS shipment_id,
    coalesce(nullif(p.parcel ->> 'delivery_name', ''), p.parcel ->> 'delivery_id') AS carrier,
    raw.from_epoch(p.parcel ->> 'delivery_time') AS shipped_at
FROM lines AS l
LEFT JOIN LATERAL (  -- the first parcel that holds the product
    SELECT d.parcel
    FROM jsonb_array_elements(
        CASE WHEN jsonb_typeof(l.parcels) = 'array' THEN l.parcels ELSE '[]' END
    ) WITH ORDINALITY AS d (parcel, position)
    WHERE EXISTS (
        SELECT FROM jsonb_array_elements(
            CASE WHEN jsonb_typeof(d.parcel -> 'product_infos') = 'array' THEN d.parcel -> 'product_infos' ELSE '[]' END
        ) AS i (item)
        WHERE i.item ->> 'product_id' = l.line ->> 'product_id'
    )
    ORDER BY d.position
    LIMIT 1
) AS p ON TRUE;

CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('10', 'unpaid'),
    ('12', 'paid'), ('13', 'paid'),             -- a gift to accept, a group that is not complete: the buyer has paid
    ('20', 'paid'), ('21', 'paid'),             -- partly shipped: shipped only when everything is
    ('30', 'shipped'), ('100', 'finished'),
    ('190', 'cancelled'), ('200', 'cancelled'), ('250', 'cancelled')  -- refunded when it was paid: see below
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        t.status, p.status AS status_original, p.openid, coalesce(nullif(p.unionid, ''), p.union_id) AS unionid,
        d.pay_info ->> 'pay_time' AS pay_time, d.pay_info ->> 'payment_method' AS payment_method,
        d.price_info ->> 'freight' AS freight,
        d.delivery_info #>> '{address_info,user_name}' AS user_name,
        d.delivery_info #>> '{address_info,tel_number}' AS tel_number,
        d.delivery_info #>> '{address_info,city_name}' AS city,
        raw.from_epoch(p.create_time) AS created_at,
        raw.from_epoch(p.update_time) AS modified_at,
        raw.from_epoch(d.pay_info ->> 'pay_time') AS pay_time_at,
        raw.from_epoch(d.ext_info ->> 'confirm_receipt_time') AS confirmed_at,
        raw.to_amount(d.price_info ->> 'order_price') / 100 AS paid_amount,
        raw.to_amount(d.price_info ->> 'freight') / 100 AS postage_amount
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        status text, openid text, unionid text, union_id text, create_time text, update_time text, order_detail jsonb
    )
    CROSS JOIN LATERAL jsonb_to_record(CASE WHEN jsonb_typeof(p.order_detail) = 'object' THEN p.order_detail ELSE '{}' END) AS d (
        pay_info jsonb, price_info jsonb, delivery_info jsonb, ext_info jsonb
    )
    LEFT JOIN statuses AS t ON p.status = t.status_original
),
judged AS (
    SELECT
        t.*,
        -- 1 is WeChat Pay. Who pays later (2) has a pay_time from the start: the money comes when the order is done.
        -- What was won (3) or bought with points (4) was never paid with money.
        CASE
            WHEN t.pay_time_at IS NULL THEN FALSE
            WHEN coalesce(nullif(t.payment_method, '0'), '1') = '1' THEN TRUE
            ELSE t.payment_method = '2' AND t.status_original = '100'
        END AS is_paid
    FROM typed AS t
),
shipped AS (
    SELECT l.record_id, min(l.shipped_at) AS shipped_at FROM new_lines AS l GROUP BY l.record_id
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'wechat_store_openid', 'value', t.openid),
        jsonb_build_object('kind', 'wechat_unionid', 'value', t.unionid),       -- the same person in the official account
        jsonb_build_object('kind', 'phone', 'value', t.tel_number)              -- masked for most applications: then no evidence
    ) AS identities,
    t.user_name AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS order_id,
    CASE WHEN t.status = 'cancelled' AND t.is_paid THEN 'refunded' ELSE t.status END AS status,
    t.status_original, t.is_paid, t.paid_amount, t.postage_amount, t.city, t.created_at,
    CASE
        WHEN t.is_paid AND t.payment_method = '2' THEN coalesce(t.confirmed_at, t.modified_at)
        WHEN t.is_paid THEN t.pay_time_at
    END AS paid_at,
    s.shipped_at,
    CASE WHEN t.status = 'finished' THEN coalesce(t.confirmed_at, t.modified_at) END AS signed_at,
    t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.status IS NULL THEN 'status is missing or unknown' END,
        CASE WHEN t.created_at IS NULL THEN 'create_time is missing or not a time' END,
        CASE WHEN t.modified_at IS NULL THEN 'update_time is missing or not a time' END,
        CASE WHEN t.paid_amount IS NULL THEN 'price_info.order_price is missing or not a number' END,
        CASE WHEN t.postage_amount IS NULL AND t.freight <> '' THEN 'price_info.freight is not a number' END,
        CASE WHEN t.pay_time_at IS NULL AND t.pay_time NOT IN ('', '0') THEN 'pay_info.pay_time is not a time' END,
        CASE WHEN t.payment_method NOT IN ('0', '1', '2', '3', '4') THEN 'pay_info.payment_method is unknown' END
    ), '') AS problem
FROM judged AS t
LEFT JOIN shipped AS s ON s.record_id = t.record_id;
