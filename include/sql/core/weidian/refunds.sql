-- new_rows: what was paid back of Weidian orders, as far as an order's status tells.
-- Grain: one row per version of an order that was paid and then closed: one refund of all that was paid, named after the order.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/refunds.sql takes it into core.
-- Weidian documents no refund API: refunds of a part of an order, and requests, are not seen.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    '[]'::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.closed_at AS seen_at,
    r.record_key AS refund_id, r.record_key AS order_id, NULL::text AS line_id, 'settled' AS status, p.status AS status_original,
    TRUE AS is_money, raw.to_amount(p.total) AS refund_amount, NULL::numeric AS quantity, NULL::text AS reason,
    t.closed_at AS created_at, t.closed_at AS settled_at, t.closed_at AS modified_at,
    CASE WHEN raw.to_amount(p.total) IS NULL THEN 'detail: total is missing or not a number' END AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(
    CASE WHEN jsonb_typeof(r.payload -> 'detail') = 'object' THEN r.payload -> 'detail' ELSE '{}' END
) AS p (status text, total text, pay_time text, update_time text)
CROSS JOIN LATERAL (SELECT coalesce(raw.to_instant(p.update_time, '+08'), r.observed_at) AS closed_at) AS t
WHERE p.status = 'close' AND raw.to_instant(p.pay_time, '+08') IS NOT NULL;
