-- core.coupon_uses: the coupon codes of the orders of the new rows, whatever shop they come from.
-- Grain: one row per order and code; the code is a token, as everywhere outside the vault.
-- Params: source_id (text).
-- Reads: new_codes and rows_in_force (core/write/orders.sql), core.orders, core.coupon_uses
-- Rerun: safe. Codes are exactly those of the version in force; what a desk typed in is left alone.
DELETE FROM core.coupon_uses AS u
USING rows_in_force AS f
WHERE u.source_id = %(source_id)s::text AND u.use_id = f.order_id AND u.batch_id IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM new_codes AS n WHERE n.record_id = f.record_id AND n.code_token = u.code_token);

INSERT INTO core.coupon_uses AS u (
    source_id, use_id, code_token, order_source_id, order_id, discount_amount, used_at, batch_id
)
SELECT
    %(source_id)s::text, f.order_id AS use_id, n.code_token, %(source_id)s::text, f.order_id, sum(n.discount_amount),
    coalesce(o.paid_at, o.created_at), f.batch_id
FROM rows_in_force AS f
JOIN new_codes AS n ON n.record_id = f.record_id AND n.code_token LIKE 'coupon:%%'
JOIN core.orders AS o ON o.source_id = %(source_id)s::text AND o.order_id = f.order_id
GROUP BY f.order_id, n.code_token, coalesce(o.paid_at, o.created_at), f.batch_id
ON CONFLICT (source_id, use_id, code_token) DO UPDATE SET
    discount_amount = excluded.discount_amount, used_at = excluded.used_at, batch_id = excluded.batch_id
WHERE (u.discount_amount, u.used_at, u.batch_id) IS DISTINCT FROM (excluded.discount_amount, excluded.used_at, excluded.batch_id);
