-- Which orders earned the reward of a review: every order with a review, in shops that allow it, once.
-- Grain: one row per order.   Decision: docs/decisions/0078-reviews-in-full.md
-- Params: written_from, as_of_at (reviewed in [from, until)), rewarded_sources.
-- Reads: core.written_reviews, core.orders, core.member_identities, core.point_uses
-- What a review says and how it rates cannot be read here: core.written_reviews does not have it.
WITH
reviewed AS (
    SELECT DISTINCT v.source_id, v.order_id, 'review/' || v.source_id || '/' || v.order_id || '/reward' AS use_id
    FROM core.written_reviews AS v
    WHERE v.created_at >= %(written_from)s::timestamptz AND v.created_at < %(as_of_at)s::timestamptz
      AND v.source_id = any(%(rewarded_sources)s::text[])
)
SELECT r.use_id, mi.member_id
FROM reviewed AS r
JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
WHERE NOT EXISTS (SELECT FROM core.point_uses AS u WHERE u.use_id = r.use_id)
ORDER BY r.use_id ASC;
