-- new_rows: refunds of a Shopify shop, out of its orders. A refund is made when it is entered: there is no request.
-- Grain: one row per version of an order and refund. Amount in the shop's currency, what goes back to the buyer.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/refunds.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, p.id, p.note, m.is_broken, m.pending_count, m.amount, l.line_id, l.quantity,
        raw.to_instant(p.created_at) AS created_at,
        raw.to_instant(p.processed_at) AS processed_at,
        raw.to_instant(r.payload ->> 'updated_at') AS modified_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_array_elements(
        CASE WHEN jsonb_typeof(r.payload -> 'refunds') = 'array' THEN r.payload -> 'refunds' ELSE '[]' END
    ) AS e (refund)
    CROSS JOIN LATERAL jsonb_to_record(e.refund) AS p (
        id text, note text, created_at text, processed_at text, transactions jsonb, refund_line_items jsonb
    )
    CROSS JOIN LATERAL (  -- what was really paid back: a failed attempt stands beside the one that worked
        SELECT
            coalesce(sum(raw.to_amount(x.part ->> 'amount')) FILTER (WHERE x.part ->> 'status' = 'success'), 0) AS amount,
            count(*) FILTER (WHERE x.part ->> 'status' = 'pending') AS pending_count,
            coalesce(bool_or(raw.to_amount(x.part ->> 'amount') IS NULL), FALSE) AS is_broken
        FROM jsonb_array_elements(CASE WHEN jsonb_typeof(p.transactions) = 'array' THEN p.transactions ELSE '[]' END) AS x (part)
        WHERE x.part ->> 'kind' = 'refund'
    ) AS m
    CROSS JOIN LATERAL (  -- the line it is for, when it is for one line
        SELECT CASE WHEN count(DISTINCT x.item ->> 'line_item_id') = 1 THEN min(x.item ->> 'line_item_id') END AS line_id,
               sum(raw.to_amount(x.item ->> 'quantity')) AS quantity
        FROM jsonb_array_elements(CASE WHEN jsonb_typeof(p.refund_line_items) = 'array' THEN p.refund_line_items ELSE '[]' END) AS x (item)
    ) AS l
    WHERE jsonb_typeof(e.refund) = 'object'
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    NULL::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.id AS refund_id, t.record_key AS order_id, t.line_id,
    CASE WHEN t.pending_count > 0 THEN 'returning' ELSE 'settled' END AS status,
    CASE WHEN t.pending_count > 0 THEN 'pending' ELSE 'success' END AS status_original,
    t.pending_count = 0 AND t.amount > 0 AS is_money,       -- goods may come back without money, e.g. for an exchange
    t.amount AS refund_amount, t.quantity, nullif(t.note, '') AS reason, t.created_at,
    CASE WHEN t.pending_count = 0 THEN coalesce(t.processed_at, t.created_at) END AS settled_at,
    coalesce(t.modified_at, t.created_at) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(t.id, '') = '' THEN 'refunds[].id is missing' END,
        CASE WHEN t.is_broken THEN 'refunds[].transactions[].amount is missing or not a number' END,
        CASE WHEN t.created_at IS NULL THEN 'refunds[].created_at is missing or not a time' END
    ), '') AS problem
FROM typed AS t;
