-- core.customers: people as a shop's own member program knows them.
-- Grain: one row per customer of a source. Amounts in the source's currency, as the platform counts them.
-- Params: source_id (text).
-- Reads: core.customers
-- Rerun: safe. The newest modified_at counts, then the newest record.
INSERT INTO core.customers AS c (
    source_id, customer_id, identity_id, is_member, level, points, order_count, spent_amount, joined_at, last_order_at, modified_at,
    batch_id
)
SELECT DISTINCT ON (n.customer_id)
    %(source_id)s::text, n.customer_id, p.identity_id, n.is_member, n.level, n.points, n.order_count, n.spent_amount, n.joined_at,
    n.last_order_at, n.modified_at, n.batch_id
FROM new_rows AS n
LEFT JOIN row_people AS p ON p.record_id = n.record_id
WHERE n.problem IS NULL
ORDER BY n.customer_id ASC, n.modified_at DESC, n.record_id DESC
ON CONFLICT (source_id, customer_id) DO UPDATE SET
    identity_id = excluded.identity_id, is_member = excluded.is_member, level = excluded.level, points = excluded.points,
    order_count = excluded.order_count, spent_amount = excluded.spent_amount, joined_at = excluded.joined_at,
    last_order_at = excluded.last_order_at, modified_at = excluded.modified_at, batch_id = excluded.batch_id
WHERE excluded.modified_at >= c.modified_at
  AND (c.batch_id, c.identity_id) IS DISTINCT FROM (excluded.batch_id, excluded.identity_id);
