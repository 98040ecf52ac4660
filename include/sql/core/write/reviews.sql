-- core.reviews: what buyers said about what they bought.
-- Grain: one row per review. Rating 1 to 5; a platform with three grades gives 1, 3 and 5.
-- Params: source_id (text).
-- Reads: core.orders
-- Rerun: safe. The newest version counts.
INSERT INTO core.reviews AS v (
    source_id, review_id, order_id, line_id, product_id, identity_id, rating, rating_original, content, reply, created_at, replied_at,
    batch_id
)
SELECT DISTINCT ON (n.review_id)
    %(source_id)s::text, n.review_id, n.order_id, nullif(n.line_id, ''), nullif(n.product_id, ''),
    coalesce(p.identity_id, o.identity_id),                 -- where the platform masks the reviewer, the order knows the buyer
    n.rating, n.rating_original, n.content, n.reply, n.created_at, n.replied_at, n.batch_id
FROM new_rows AS n
LEFT JOIN row_people AS p ON p.record_id = n.record_id
LEFT JOIN core.orders AS o ON o.source_id = %(source_id)s::text AND o.order_id = n.order_id
WHERE n.problem IS NULL
ORDER BY n.review_id ASC, n.record_id DESC
ON CONFLICT (source_id, review_id) DO UPDATE SET
    order_id = excluded.order_id, line_id = excluded.line_id, product_id = excluded.product_id, identity_id = excluded.identity_id,
    rating = excluded.rating, rating_original = excluded.rating_original, content = excluded.content, reply = excluded.reply,
    created_at = excluded.created_at, replied_at = excluded.replied_at, batch_id = excluded.batch_id
WHERE excluded.batch_id >= v.batch_id
  AND (v.batch_id, v.identity_id, v.reply) IS DISTINCT FROM (excluded.batch_id, excluded.identity_id, excluded.reply);

-- A review may arrive before its order, and then without a buyer.
UPDATE core.reviews AS v SET identity_id = o.identity_id
FROM core.orders AS o
WHERE v.source_id = %(source_id)s::text AND v.identity_id IS NULL AND o.identity_id IS NOT NULL
  AND o.source_id = v.source_id AND o.order_id = v.order_id;
