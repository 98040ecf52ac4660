-- new_rows, new_lines, new_codes: orders of a Shopify shop.
-- Grain: one row per version of an order; one line per line item. Amounts in the shop's currency, before refunds.
-- Params: source_id (text).
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes temporary tables only. core/write/{orders,coupon_uses}.sql take them into core.
CREATE TEMPORARY TABLE new_lines ON COMMIT DROP AS
WITH
parcels AS (  -- the last one an item went into: an order in several parcels has a line in each
    SELECT DISTINCT ON (r.record_id, i.item ->> 'id')
        r.record_id, i.item ->> 'id' AS line_id, f.parcel ->> 'tracking_number' AS shipment_id,
        f.parcel ->> 'tracking_company' AS carrier, raw.to_instant(f.parcel ->> 'created_at') AS shipped_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN jsonb_typeof(r.payload -> 'fulfillments') = 'array' THEN r.payload -> 'fulfillments' ELSE '[]' END
    ) AS f (parcel)
    CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN jsonb_typeof(f.parcel -> 'line_items') = 'array' THEN f.parcel -> 'line_items' ELSE '[]' END
    ) AS i (item)
    WHERE coalesce(f.parcel ->> 'status', '') NOT IN ('cancelled', 'error', 'failure')
    ORDER BY r.record_id, i.item ->> 'id', f.parcel ->> 'created_at' DESC
)
SELECT
    r.record_id,
    p.id AS line_id,
    coalesce(nullif(p.product_id, ''), 'line:' || p.id) AS product_id,     -- an item that is typed in by hand belongs to no product
    nullif(p.sku, '') AS outer_id,
    p.title,
    raw.to_amount(p.price) AS unit_price,
    raw.to_amount(p.quantity) AS quantity,
    raw.to_amount(p.price) * raw.to_amount(p.quantity) - coalesce(d.discount, 0) AS paid_amount,
    NULL::text AS status,
    k.shipment_id, k.carrier, k.shipped_at
FROM new_records AS r
CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(r.payload -> 'line_items') = 'array' THEN r.payload -> 'line_items' ELSE '[]' END
) AS e (line)
CROSS JOIN LATERAL jsonb_to_record(e.line) AS p (
    id text, product_id text, sku text, title text, price text, quantity text, discount_allocations jsonb
)
CROSS JOIN LATERAL (  -- discounts of the line and its share of the order's; `total_discount` holds the first kind only
    SELECT sum(raw.to_amount(a.part ->> 'amount')) AS discount
    FROM jsonb_array_elements(
        CASE WHEN jsonb_typeof(p.discount_allocations) = 'array' THEN p.discount_allocations ELSE '[]' END
    ) AS a (part)
) AS d
LEFT JOIN parcels AS k ON k.record_id = r.record_id AND k.line_id = p.id
WHERE jsonb_typeof(e.line) = 'object';

CREATE TEMPORARY TABLE new_codes ON COMMIT DROP AS
SELECT r.record_id, p.code AS code_token, raw.to_amount(p.amount) AS discount_amount
FROM new_records AS r
CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(r.payload -> 'discount_codes') = 'array' THEN r.payload -> 'discount_codes' ELSE '[]' END
) AS e (line)
CROSS JOIN LATERAL jsonb_to_record(e.line) AS p (code text, amount text)
WHERE jsonb_typeof(e.line) = 'object' AND p.code LIKE 'coupon:%%';

CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, p.financial_status, p.fulfillment_status, p.full_name, p.email, p.phone,
        p.closed_at, p.cancelled_at, p.customer_locale, f.is_sent, f.shipped_at, f.signed_at,
        r.payload #>> '{customer,id}' AS customer_id, r.payload #>> '{customer,phone}' AS customer_phone,
        r.payload #>> '{customer,email}' AS customer_email,
        coalesce(r.payload #>> '{shipping_address,phone}', r.payload #>> '{billing_address,phone}') AS address_phone,
        coalesce(r.payload #>> '{shipping_address,city}', r.payload #>> '{billing_address,city}') AS city,
        raw.to_amount(p.total_price) AS paid_amount,
        r.payload #>> '{total_shipping_price_set,shop_money,amount}' AS postage,
        raw.to_instant(p.created_at) AS created_at,
        raw.to_instant(p.updated_at) AS modified_at,
        raw.to_instant(p.processed_at) AS processed_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        financial_status text, fulfillment_status text, full_name text, email text, phone text, closed_at text, cancelled_at text,
        customer_locale text, total_price text, created_at text, updated_at text, processed_at text
    )
    CROSS JOIN LATERAL (
        SELECT
            count(*) > 0 AS is_sent, min(raw.to_instant(x.parcel ->> 'created_at')) AS shipped_at,
            CASE WHEN bool_and(coalesce(x.parcel ->> 'shipment_status', '') = 'delivered')
                 THEN max(raw.to_instant(x.parcel ->> 'updated_at')) END AS signed_at
        FROM jsonb_array_elements(
            CASE WHEN jsonb_typeof(r.payload -> 'fulfillments') = 'array' THEN r.payload -> 'fulfillments' ELSE '[]' END
        ) AS x (parcel)
        WHERE coalesce(x.parcel ->> 'status', '') NOT IN ('cancelled', 'error', 'failure')
    ) AS f
),
judged AS (
    SELECT
        t.*,
        CASE
            WHEN t.financial_status = 'refunded' THEN 'refunded'
            WHEN t.financial_status IN ('voided', 'expired') THEN 'cancelled'
            WHEN t.financial_status IN ('pending', 'authorized', 'partially_paid', 'unpaid') THEN
                CASE WHEN t.cancelled_at <> '' THEN 'cancelled' ELSE 'unpaid' END
            WHEN t.financial_status IN ('paid', 'partially_refunded') THEN
                CASE
                    WHEN t.cancelled_at <> '' THEN 'refunded'   -- closed although it was paid: not an order that was never paid
                    WHEN t.fulfillment_status = 'fulfilled' AND t.closed_at <> '' THEN 'finished'
                    WHEN t.fulfillment_status = 'fulfilled' AND t.signed_at IS NOT NULL THEN 'signed'
                    WHEN t.fulfillment_status = 'fulfilled' THEN 'shipped'
                    ELSE 'paid'                                 -- shipped only when everything is
                END
        END AS status,
        t.financial_status IN ('paid', 'partially_refunded', 'refunded') AS is_paid
    FROM typed AS t
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'shop_customer_id', 'value', %(source_id)s::text || ':' || nullif(t.customer_id, '')),
        jsonb_build_object('kind', 'phone', 'value', coalesce(nullif(t.customer_phone, ''), nullif(t.phone, ''), t.address_phone)),
        jsonb_build_object('kind', 'email', 'value', coalesce(nullif(t.customer_email, ''), t.email))
    ) AS identities,
    t.full_name AS name, CASE WHEN left(t.customer_locale, 2) IN ('zh', 'en') THEN left(t.customer_locale, 2) END AS language,
    'trade' AS evidence, t.created_at AS seen_at, t.record_key AS order_id, t.status,
    concat_ws('/', t.financial_status, coalesce(t.fulfillment_status, 'unfulfilled'), CASE WHEN t.cancelled_at <> '' THEN 'cancelled' END)
        AS status_original,
    t.is_paid, t.paid_amount, raw.to_amount(t.postage) AS postage_amount, t.city, t.created_at,
    -- an order has no time of payment of its own: it is processed when its payment is
    CASE WHEN t.is_paid THEN coalesce(t.processed_at, t.created_at) END AS paid_at,
    CASE WHEN t.is_sent THEN t.shipped_at END AS shipped_at,
    CASE WHEN t.status IN ('signed', 'finished') THEN coalesce(t.signed_at, raw.to_instant(t.closed_at)) END AS signed_at,
    t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.status IS NULL THEN 'financial_status is missing or unknown' END,
        CASE WHEN t.created_at IS NULL THEN 'created_at is missing or not a time' END,
        CASE WHEN t.modified_at IS NULL THEN 'updated_at is missing or not a time' END,
        CASE WHEN t.paid_amount IS NULL THEN 'total_price is missing or not a number' END,
        CASE WHEN raw.to_amount(t.postage) IS NULL AND t.postage <> '' THEN 'total_shipping_price_set is not a number' END
    ), '') AS problem
FROM judged AS t;
