-- core.refunds: the refund requests of the new rows.
-- Grain: one row per refund request. Amount in the source's currency, what goes back to the buyer.
-- Params: source_id (text), currency_code (text).
-- Reads: core.orders
-- Rerun: safe. Of several versions the newest modified_at counts.
INSERT INTO core.refunds AS f (
    source_id, refund_id, order_id, line_id, identity_id, status, status_original, is_money, currency_code, refund_amount, quantity,
    reason, created_at, settled_at, modified_at, batch_id
)
SELECT DISTINCT ON (n.refund_id)
    %(source_id)s::text, n.refund_id, n.order_id, nullif(n.line_id, ''), coalesce(p.identity_id, o.identity_id), n.status,
    n.status_original, n.is_money, %(currency_code)s::text, n.refund_amount, n.quantity, n.reason, n.created_at, n.settled_at,
    n.modified_at, n.batch_id
FROM new_rows AS n
LEFT JOIN row_people AS p ON p.record_id = n.record_id
LEFT JOIN core.orders AS o ON o.source_id = %(source_id)s::text AND o.order_id = n.order_id
WHERE n.problem IS NULL
ORDER BY n.refund_id ASC, n.modified_at DESC, n.record_id DESC
ON CONFLICT (source_id, refund_id) DO UPDATE SET
    order_id = excluded.order_id, line_id = excluded.line_id, identity_id = excluded.identity_id, status = excluded.status,
    status_original = excluded.status_original, is_money = excluded.is_money, currency_code = excluded.currency_code,
    refund_amount = excluded.refund_amount, quantity = excluded.quantity, reason = excluded.reason, created_at = excluded.created_at,
    settled_at = excluded.settled_at, modified_at = excluded.modified_at, batch_id = excluded.batch_id
WHERE excluded.modified_at >= f.modified_at
  AND (f.batch_id, f.identity_id) IS DISTINCT FROM (excluded.batch_id, excluded.identity_id);

-- A refund may arrive before its order, and then without a buyer.
UPDATE core.refunds AS f SET identity_id = o.identity_id
FROM core.orders AS o
WHERE f.source_id = %(source_id)s::text AND f.identity_id IS NULL AND o.identity_id IS NOT NULL
  AND o.source_id = f.source_id AND o.order_id = f.order_id;
