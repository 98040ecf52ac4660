-- The orders and refunds behind a member's measures: what counted inside a window that ends with a date, newest first.
-- Grain: one row per order or refund.   Params: member_id (bigint), as_of (date), window_days (integer; NULL: everything).
-- Reads: core.orders, core.refunds, core.member_identities
WITH
people AS (SELECT mi.identity_id FROM core.member_identities AS mi WHERE mi.member_id = %(member_id)s::bigint),
facts AS (
    SELECT o.source_id, 'order' AS kind, o.order_id, o.paid_at AS happened_at, o.goods_amount AS amount, o.status
    FROM people AS p
    JOIN core.orders AS o ON o.identity_id = p.identity_id
    WHERE o.is_paid
    UNION ALL
    SELECT r.source_id, 'refund', r.order_id, r.settled_at, -r.refund_amount, r.status
    FROM core.refunds AS r
    LEFT JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
    WHERE
        r.is_money AND r.settled_at IS NOT NULL
        AND (
            r.identity_id IN (SELECT p.identity_id FROM people AS p)
            OR (r.identity_id IS NULL AND o.identity_id IN (SELECT p.identity_id FROM people AS p))
        )
)
SELECT f.source_id, f.kind, f.order_id, f.happened_at, f.amount, f.status
FROM facts AS f
WHERE
    f.happened_at < (%(as_of)s::date + 1)::timestamptz
    AND (%(window_days)s::integer IS NULL OR f.happened_at >= (%(as_of)s::date + 1 - %(window_days)s::integer)::timestamptz)
ORDER BY f.happened_at DESC, f.source_id ASC, f.order_id ASC, f.kind ASC;
