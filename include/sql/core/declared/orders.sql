-- new_rows, new_lines, new_codes: orders of a source that is declared in YAML (files, plain REST), already in our fields.
-- Grain: one row per version of an order; one line per line of the export. Amounts in the source's currency, before refunds.
-- Params: source_id (text).
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes temporary tables only. core/write/{orders,coupon_uses}.sql take them into core.
CREATE TEMPORARY TABLE new_lines ON COMMIT DROP AS
SELECT
    r.record_id,
    e.line ->> 'line_id' AS line_id,
    e.line ->> 'product_id' AS product_id,
    e.line ->> 'outer_id' AS outer_id,
    e.line ->> 'title' AS title,
    raw.to_amount(e.line ->> 'unit_price') AS unit_price,
    raw.to_amount(e.line ->> 'quantity') AS quantity,
    raw.to_amount(e.line ->> 'paid_amount') AS paid_amount,
    NULL::text AS status,                       -- the order's; a line's own word stays in raw
    r.payload ->> 'shipment_id' AS shipment_id,
    r.payload ->> 'carrier' AS carrier,
    raw.to_instant(r.payload ->> 'shipped_at') AS shipped_at
FROM new_records AS r
CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(r.payload -> 'lines') = 'array' THEN r.payload -> 'lines' ELSE '[]' END
) AS e (line);

CREATE TEMPORARY TABLE new_codes ON COMMIT DROP AS
SELECT r.record_id, r.payload ->> 'coupon_code' AS code_token, NULL::numeric AS discount_amount
FROM new_records AS r
WHERE r.payload ->> 'coupon_code' LIKE 'coupon:%%';

CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload #>> '{at,file_of}' AS file_of,
        p.status, p.status_original, p.is_paid, p.city, p.customer_id, p.card, p.phone, p.email, p.name, p.language,
        raw.to_amount(p.paid_amount) AS paid_amount,
        raw.to_amount(p.postage_amount) AS postage_amount,
        raw.to_instant(p.created_at) AS created_at,
        raw.to_instant(p.paid_at) AS paid_at,
        raw.to_instant(p.shipped_at) AS shipped_at,
        raw.to_instant(p.signed_at) AS signed_at,
        raw.to_instant(p.modified_at) AS modified_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        status text, status_original text, is_paid text, city text, customer_id text, card text, phone text, email text, name text,
        language text, paid_amount text, postage_amount text, created_at text, paid_at text, shipped_at text, signed_at text,
        modified_at text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        -- numbers of customers and cards mean something within their source only
        jsonb_build_object('kind', 'shop_customer_id', 'value', %(source_id)s::text || ':' || nullif(t.customer_id, '')),
        jsonb_build_object('kind', 'pos_card', 'value', %(source_id)s::text || ':' || nullif(t.card, '')),
        jsonb_build_object('kind', 'phone', 'value', t.phone),
        jsonb_build_object('kind', 'email', 'value', t.email)
    ) AS identities,
    t.name, CASE WHEN t.language IN ('zh', 'en') THEN t.language END AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS order_id, t.status, coalesce(t.status_original, t.status) AS status_original,
    coalesce(t.is_paid = 'true', t.status NOT IN ('unpaid', 'cancelled')) AS is_paid,
    t.paid_amount, t.postage_amount, t.city, t.created_at, t.paid_at, t.shipped_at, t.signed_at,
    -- an export without a time of change is as new as the file it stood in
    coalesce(t.modified_at, raw.to_instant(t.file_of), greatest(t.created_at, t.paid_at, t.shipped_at, t.signed_at)) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.status IS NULL THEN 'status is missing' END,
        CASE WHEN t.created_at IS NULL THEN 'created_at is missing or not a time' END,
        CASE WHEN t.paid_amount IS NULL THEN 'paid_amount is missing or not a number' END
    ), '') AS problem
FROM typed AS t;
