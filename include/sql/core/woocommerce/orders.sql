-- new_rows, new_lines, new_codes: orders of a WooCommerce shop.
-- Grain: one row per version of an order; one line per line item; one code per coupon line.
-- Amounts in the shop's currency, taxes included, before refunds.
-- Params: source_id (text).
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes temporary tables only. core/write/{orders,coupon_uses}.sql take them into core.
CREATE TEMPORARY TABLE new_lines ON COMMIT DROP AS
SELECT
    r.record_id,
    p.id AS line_id,
    p.product_id,
    nullif(p.sku, '') AS outer_id,
    p.name AS title,
    -- `price` is a float after discounts; before them the line has only its subtotal
    trim_scale(round(
        (raw.to_amount(p.subtotal) + coalesce(raw.to_amount(p.subtotal_tax), 0)) / nullif(raw.to_amount(p.quantity), 0), 6
    )) AS unit_price,
    raw.to_amount(p.quantity) AS quantity,
    raw.to_amount(p.total) + coalesce(raw.to_amount(p.total_tax), 0) AS paid_amount,
    NULL::text AS status,
    NULL::text AS shipment_id,                  -- parcels are a matter of plug-ins: the order itself is the parcel
    NULL::text AS carrier,
    NULL::timestamptz AS shipped_at
FROM new_records AS r
CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(r.payload -> 'line_items') = 'array' THEN r.payload -> 'line_items' ELSE '[]' END
) AS e (line)
CROSS JOIN LATERAL jsonb_to_record(e.line) AS p (
    id text, product_id text, sku text, name text, quantity text, subtotal text, subtotal_tax text, total text, total_tax text
)
WHERE jsonb_typeof(e.line) = 'object';

CREATE TEMPORARY TABLE new_codes ON COMMIT DROP AS
SELECT
    r.record_id, p.code AS code_token,
    raw.to_amount(p.discount) + coalesce(raw.to_amount(p.discount_tax), 0) AS discount_amount
FROM new_records AS r
CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(r.payload -> 'coupon_lines') = 'array' THEN r.payload -> 'coupon_lines' ELSE '[]' END
) AS e (line)
CROSS JOIN LATERAL jsonb_to_record(e.line) AS p (code text, discount text, discount_tax text)
WHERE jsonb_typeof(e.line) = 'object' AND p.code LIKE 'coupon:%%';

CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('auto-draft', 'unpaid'), ('checkout-draft', 'unpaid'), ('pending', 'unpaid'),
    ('on-hold', 'unpaid'),                      -- ordered, the transfer has not arrived yet
    ('processing', 'paid'), ('completed', 'finished'), ('refunded', 'refunded'), ('cancelled', 'cancelled'),
    ('failed', 'cancelled'),                    -- the payment failed; a second try makes it `processing`
    ('trash', 'cancelled')
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        t.status, p.status AS status_original, nullif(p.customer_id, '0') AS customer_id, p.full_name,
        r.payload #>> '{billing,phone}' AS phone, r.payload #>> '{billing,email}' AS email,
        coalesce(nullif(r.payload #>> '{shipping,city}', ''), r.payload #>> '{billing,city}') AS city,
        p.date_paid_gmt, p.date_completed_gmt, p.shipping_total, p.shipping_tax,
        raw.to_amount(p.total) AS paid_amount,
        raw.to_amount(p.shipping_total) + coalesce(raw.to_amount(p.shipping_tax), 0) AS postage_amount,
        raw.to_instant(p.date_created_gmt, 'Z') AS created_at,
        raw.to_instant(p.date_modified_gmt, 'Z') AS modified_at,
        raw.to_instant(p.date_paid_gmt, 'Z') AS paid_at,
        raw.to_instant(p.date_completed_gmt, 'Z') AS completed_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        status text, customer_id text, full_name text, total text, shipping_total text, shipping_tax text, date_created_gmt text,
        date_modified_gmt text, date_paid_gmt text, date_completed_gmt text
    )
    LEFT JOIN statuses AS t ON p.status = t.status_original
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'shop_customer_id', 'value', %(source_id)s::text || ':' || nullif(t.customer_id, '')),
        jsonb_build_object('kind', 'phone', 'value', t.phone),
        jsonb_build_object('kind', 'email', 'value', t.email)
    ) AS identities,
    t.full_name AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS order_id,
    CASE
        -- closed without a refund although it was paid: the money was there, so it is not an order that was never paid
        WHEN t.status = 'cancelled' AND t.paid_at IS NOT NULL THEN 'refunded'
        WHEN t.status = 'paid' AND t.paid_at IS NULL THEN 'unpaid'      -- cash on delivery is `processing` before it is paid
        ELSE t.status
    END AS status,
    t.status_original, t.paid_at IS NOT NULL AS is_paid, t.paid_amount, t.postage_amount, t.city, t.created_at, t.paid_at,
    -- a shop completes an order when it has sent it; there is no word for arrival
    t.completed_at AS shipped_at, NULL::timestamptz AS signed_at, t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.status IS NULL THEN 'status is missing or unknown' END,
        CASE WHEN t.created_at IS NULL THEN 'date_created_gmt is missing or not a time' END,
        CASE WHEN t.modified_at IS NULL THEN 'date_modified_gmt is missing or not a time' END,
        CASE WHEN t.paid_amount IS NULL THEN 'total is missing or not a number' END,
        CASE WHEN t.postage_amount IS NULL AND t.shipping_total <> '' THEN 'shipping_total is not a number' END,
        CASE WHEN t.paid_at IS NULL AND t.date_paid_gmt <> '' THEN 'date_paid_gmt is not a time' END,
        CASE WHEN t.completed_at IS NULL AND t.date_completed_gmt <> '' THEN 'date_completed_gmt is not a time' END
    ), '') AS problem
FROM typed AS t;
