-- new_rows: refunds of a WooCommerce shop, out of its orders' refund_details. A refund is made when it is entered: there is no request.
-- Grain: one row per version of an order and refund. Amount in the shop's currency, what goes back to the buyer.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/refunds.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, p.id, p.reason,
        raw.to_amount(p.amount) AS refund_amount,
        raw.to_instant(p.date_created_gmt, 'Z') AS created_at,
        raw.to_instant(r.payload ->> 'date_modified_gmt', 'Z') AS modified_at,
        l.line_id, l.quantity
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN jsonb_typeof(r.payload -> 'refund_details') = 'array' THEN r.payload -> 'refund_details' ELSE '[]' END
    ) AS e (refund)
    CROSS JOIN LATERAL jsonb_to_record(e.refund) AS p (id text, reason text, amount text, date_created_gmt text, line_items jsonb)
    CROSS JOIN LATERAL (
        -- the line it is for, when it is for one line
        SELECT CASE WHEN count(DISTINCT m.meta ->> 'value') = 1 THEN min(m.meta ->> 'value') END AS line_id,
               -sum(raw.to_amount(i.item ->> 'quantity')) AS quantity
        FROM jsonb_array_elements(CASE WHEN jsonb_typeof(p.line_items) = 'array' THEN p.line_items ELSE '[]' END) AS i (item)
        LEFT JOIN LATERAL jsonb_array_elements(
            CASE WHEN jsonb_typeof(i.item -> 'meta_data') = 'array' THEN i.item -> 'meta_data' ELSE '[]' END
        ) AS m (meta) ON m.meta ->> 'key' = '_refunded_item_id'
    ) AS l
    WHERE jsonb_typeof(e.refund) = 'object'
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    NULL::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.id AS refund_id, t.record_key AS order_id, t.line_id, 'settled' AS status, 'refunded' AS status_original, TRUE AS is_money,
    t.refund_amount, t.quantity, nullif(t.reason, '') AS reason, t.created_at, t.created_at AS settled_at,
    coalesce(t.modified_at, t.created_at) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(t.id, '') = '' THEN 'refund_details[].id is missing' END,
        CASE WHEN t.refund_amount IS NULL THEN 'refund_details[].amount is missing or not a number' END,
        CASE WHEN t.created_at IS NULL THEN 'refund_details[].date_created_gmt is missing or not a time' END
    ), '') AS problem
FROM typed AS t;
