-- What the shops have sold from the beginning to the end of a business date.
-- Grain: one row per currency.   Params: business_date (date).
-- Reads: core.orders, core.refunds, core.member_identities
-- gross_amount is the line value of paid orders before refunds; refunds count on the day they settled.
WITH
paid AS (
    SELECT
        o.currency_code,
        count(*) AS paid_order_count,
        count(DISTINCT coalesce(mi.member_id, -o.identity_id)) AS buyer_count,
        sum(o.goods_amount) AS gross_amount,
        min(o.paid_at) AS first_paid_at
    FROM core.orders AS o
    LEFT JOIN core.member_identities AS mi ON o.identity_id = mi.identity_id
    WHERE o.is_paid AND o.paid_at < (%(business_date)s::date + 1)::timestamptz
    GROUP BY o.currency_code
),
refunded AS (
    SELECT r.currency_code, count(*) AS refund_count, sum(r.refund_amount) AS refund_amount
    FROM core.refunds AS r
    WHERE r.is_money AND r.settled_at < (%(business_date)s::date + 1)::timestamptz
    GROUP BY r.currency_code
)
SELECT
    p.currency_code, p.buyer_count, p.paid_order_count, p.gross_amount, p.first_paid_at,
    coalesce(r.refund_count, 0) AS refund_count,
    coalesce(r.refund_amount, 0) AS refund_amount
FROM paid AS p
LEFT JOIN refunded AS r ON p.currency_code = r.currency_code
ORDER BY p.gross_amount DESC;
