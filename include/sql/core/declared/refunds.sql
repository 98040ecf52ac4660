-- new_rows: refunds of a source that is declared in YAML (files, plain REST), already in our fields.
-- Grain: one row per version of a refund. Amount in the source's currency, what goes back to the buyer.
-- Params: source_id (text).
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/refunds.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload #>> '{at,file_of}' AS file_of,
        p.order_id, p.line_id, p.status, p.status_original, p.is_money, p.reason, p.customer_id, p.card, p.phone, p.email, p.name,
        p.language,
        raw.to_amount(p.refund_amount) AS refund_amount,
        raw.to_amount(p.quantity) AS quantity,
        raw.to_instant(p.created_at) AS created_at,
        raw.to_instant(p.settled_at) AS settled_at,
        raw.to_instant(p.modified_at) AS modified_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        order_id text, line_id text, status text, status_original text, is_money text, reason text, customer_id text, card text,
        phone text, email text, name text, language text, refund_amount text, quantity text, created_at text, settled_at text,
        modified_at text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'shop_customer_id', 'value', %(source_id)s::text || ':' || nullif(t.customer_id, '')),
        jsonb_build_object('kind', 'pos_card', 'value', %(source_id)s::text || ':' || nullif(t.card, '')),
        jsonb_build_object('kind', 'phone', 'value', t.phone),
        jsonb_build_object('kind', 'email', 'value', t.email)
    ) AS identities,
    t.name, CASE WHEN t.language IN ('zh', 'en') THEN t.language END AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS refund_id, t.order_id, t.line_id, t.status, coalesce(t.status_original, t.status) AS status_original,
    t.status = 'settled' AND coalesce(t.is_money, 'true') = 'true' AS is_money,  -- an exchange is settled without money
    t.refund_amount, t.quantity, t.reason, t.created_at,
    CASE WHEN t.status = 'settled' THEN coalesce(t.settled_at, t.modified_at, t.created_at) END AS settled_at,
    coalesce(t.modified_at, raw.to_instant(t.file_of), greatest(t.created_at, t.settled_at)) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(t.order_id, '') = '' THEN 'order_id is missing' END,
        CASE WHEN t.status IS NULL THEN 'status is missing' END,
        CASE WHEN t.refund_amount IS NULL THEN 'refund_amount is missing or not a number' END,
        CASE WHEN t.created_at IS NULL THEN 'created_at is missing or not a time' END
    ), '') AS problem
FROM typed AS t;
