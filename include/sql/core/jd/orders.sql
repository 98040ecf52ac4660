-- new_rows, new_lines: orders of a JD shop.
-- Grain: one row per version of an order; one line per entry of itemInfoList. Amounts in CNY (JD writes yuan), before refunds.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes temporary tables only. core/write/orders.sql takes them into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES
    ('NOT_PAY', 'unpaid'),
    ('WAIT_SELLER_STOCK_OUT', 'paid'),          -- also what is paid on delivery or later: the time of payment decides
    ('WAIT_SELLER_DELIVERY', 'paid'), ('PAUSE', 'paid'), ('LOCKED', 'paid'), ('POP_ORDER_PAUSE', 'paid'),
    ('WAIT_GOODS_RECEIVE_CONFIRM', 'shipped'), ('FINISHED_L', 'finished'),
    ('TRADE_CANCELED', 'cancelled'), ('DELIVERY_RETURN', 'cancelled')
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload ? 'paymentConfirmTime' AS tells_payment,
        r.payload #>> '{consigneeInfo,city}' AS city, r.payload #>> '{consigneeInfo,mobile}' AS mobile,
        r.payload #>> '{consigneeInfo,fullname}' AS full_name,
        p.open_id_buyer, p."actualPay", p."freightPrice", p."paymentConfirmTime", p."orderEndTime",
        t.status, p."orderState" AS status_original,
        raw.to_amount(p."actualPay") AS actual_amount,
        raw.to_amount(p."shouldPay") AS due_amount,
        raw.to_amount(p."orderPayment") AS old_amount,
        raw.to_amount(p."freightPrice") AS postage_amount,
        raw.to_instant(p."orderStartTime", '+08') AS created_at,
        raw.to_instant(p.modified, '+08') AS modified_at,
        -- the year 1 is JD's word for "never"
        raw.to_instant(nullif(p."paymentConfirmTime", '0001-01-01 00:00:00'), '+08') AS paid_at,
        raw.to_instant(nullif(p."outBoundDate", '0001-01-01 00:00:00'), '+08') AS shipped_at,
        raw.to_instant(nullif(p."orderEndTime", '0001-01-01 00:00:00'), '+08') AS ended_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        "orderState" text, open_id_buyer text, "actualPay" text, "shouldPay" text, "orderPayment" text, "freightPrice" text,
        "orderStartTime" text, modified text, "paymentConfirmTime" text, "outBoundDate" text, "orderEndTime" text
    )
    LEFT JOIN statuses AS t ON p."orderState" = t.status_original
),
judged AS (
    SELECT
        t.*,
        -- paid to the courier: JD has no time of payment, the order is over
        coalesce(t.paid_at, CASE WHEN t.status = 'finished' THEN t.ended_at END) AS settled_at,
        -- actualPay may lag behind the payment; orderPayment is not kept up for orders since October 2024
        coalesce(
            t.actual_amount, CASE WHEN t.created_at < '2024-10-01 00:00:00+08' THEN t.old_amount END, t.due_amount
        ) AS known_amount
    FROM typed AS t
)
SELECT
    j.record_id, j.batch_id, j.record_key, j.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'jd_open_id', 'value', j.open_id_buyer),
        jsonb_build_object('kind', 'phone', 'value', j.mobile)
    ) AS identities,
    j.full_name AS name, NULL::text AS language, 'trade' AS evidence, j.created_at AS seen_at,
    j.record_key AS order_id,
    CASE
        WHEN j.status = 'cancelled' AND j.paid_at IS NOT NULL THEN 'refunded'
        WHEN j.status = 'paid' AND j.shipped_at IS NOT NULL THEN 'shipped'      -- halted on its way
        WHEN j.status = 'paid' AND j.paid_at IS NULL THEN 'unpaid'
        ELSE j.status
    END AS status,
    j.status_original, j.settled_at IS NOT NULL AS is_paid,
    CASE WHEN j.settled_at IS NULL THEN coalesce(j.due_amount, j.known_amount) ELSE j.known_amount END AS paid_amount,
    j.postage_amount, j.city, j.created_at, j.settled_at AS paid_at, j.shipped_at,
    CASE WHEN j.status = 'finished' THEN j.ended_at END AS signed_at,
    j.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN j.status IS NULL THEN 'orderState is missing or unknown' END,
        CASE WHEN j.created_at IS NULL THEN 'orderStartTime is missing or not a time' END,
        CASE WHEN j.modified_at IS NULL THEN 'modified is missing or not a time' END,
        CASE WHEN NOT j.tells_payment THEN 'paymentConfirmTime is missing' END,
        CASE
            WHEN j.paid_at IS NULL AND j."paymentConfirmTime" NOT IN ('', '0001-01-01 00:00:00') THEN 'paymentConfirmTime is not a time'
        END,
        CASE WHEN j.ended_at IS NULL AND j."orderEndTime" NOT IN ('', '0001-01-01 00:00:00') THEN 'orderEndTime is not a time' END,
        CASE WHEN j.actual_amount IS NULL AND j."actualPay" <> '' THEN 'actualPay is not a number' END,
        CASE WHEN coalesce(j.known_amount, j.due_amount) IS NULL THEN 'actualPay and shouldPay are missing or not a number' END,
        CASE WHEN j.postage_amount IS NULL AND j."freightPrice" <> '' THEN 'freightPrice is not a number' END
    ), '') AS problem
FROM judged AS j;

CREATE TEMPORARY TABLE new_lines ON COMMIT DROP AS
WITH
items AS (
    SELECT
        r.record_id, e.position, p."skuId" AS sku_id, p."outerSkuId" AS outer_id, p."skuName" AS title,
        raw.to_amount(p."jdPrice") AS unit_price,
        raw.to_amount(p."itemTotal") AS quantity,
        r.payload ->> 'waybill' AS shipment_id, r.payload ->> 'logisticsId' AS carrier
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN jsonb_typeof(r.payload -> 'itemInfoList') = 'array' THEN r.payload -> 'itemInfoList' ELSE '[]' END
    ) WITH ORDINALITY AS e (item, position)
    CROSS JOIN LATERAL jsonb_to_record(e.item) AS p (
        "skuId" text, "outerSkuId" text, "skuName" text, "jdPrice" text, "itemTotal" text
    )
    WHERE jsonb_typeof(e.item) = 'object'
),
summed AS (
    SELECT
        i.*,
        row_number() OVER (PARTITION BY i.record_id, i.sku_id ORDER BY i.position) AS occurrence,
        sum(i.unit_price * i.quantity) OVER (PARTITION BY i.record_id ORDER BY i.position) AS goods_so_far,
        sum(i.unit_price * i.quantity) OVER (PARTITION BY i.record_id) AS goods_amount
    FROM items AS i
)
SELECT
    s.record_id,
    -- JD's lines have no id of their own: the SKU, and its number when it stands there again (a gift of the same thing)
    s.sku_id || CASE WHEN s.occurrence > 1 THEN '-' || s.occurrence ELSE '' END AS line_id,
    s.sku_id AS product_id, s.outer_id, s.title, s.unit_price, s.quantity,
    -- JD says what was paid for the order only: shared out by price, to the fen, so that the lines add up to the order
    round(n.goods_paid * s.goods_so_far / nullif(s.goods_amount, 0), 2)
    - round(n.goods_paid * (s.goods_so_far - s.unit_price * s.quantity) / nullif(s.goods_amount, 0), 2) AS paid_amount,
    NULL::text AS status,                       -- the order's
    s.shipment_id, s.carrier, NULL::timestamptz AS shipped_at
FROM summed AS s
JOIN (
    SELECT x.record_id, x.paid_amount - coalesce(x.postage_amount, 0) AS goods_paid FROM new_rows AS x
) AS n ON n.record_id = s.record_id;
