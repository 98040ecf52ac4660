-- What every source has brought to date: the counts and sums to compare with the platform's own console.
-- Grain: one row per source.   Params: as_of_at (timestamptz; what happened later is left out).
-- Reads: core.accounts, core.orders, core.order_lines, core.refunds, core.reviews, core.customers, core.followers, core.social_posts,
-- core.social_comments, raw.rejects, raw.batches
-- Amounts in the source's currency. goods_amount: of all orders; paid_amount: of those ever paid, refunded ones included.
WITH
orders AS (
    SELECT
        o.source_id, count(*) AS order_count, count(*) FILTER (WHERE o.is_paid_then) AS paid_order_count,
        sum(o.goods_amount) AS goods_amount,
        coalesce(sum(o.goods_amount) FILTER (WHERE o.is_paid_then), 0) AS paid_goods_amount,
        coalesce(sum(o.paid_amount) FILTER (WHERE o.is_paid_then), 0) AS paid_amount,
        count(DISTINCT o.identity_id) FILTER (WHERE o.is_paid_then) AS buyer_count
    FROM (
        SELECT o.source_id, o.identity_id, o.goods_amount, o.paid_amount,
               o.is_paid AND o.paid_at <= %(as_of_at)s::timestamptz AS is_paid_then
        FROM core.orders AS o
        WHERE o.created_at <= %(as_of_at)s::timestamptz
    ) AS o
    GROUP BY o.source_id
),
lines AS (
    SELECT l.source_id, count(*) AS line_count, sum(l.quantity) AS unit_count
    FROM core.order_lines AS l
    JOIN core.orders AS o ON o.source_id = l.source_id AND o.order_id = l.order_id
    WHERE o.created_at <= %(as_of_at)s::timestamptz
    GROUP BY l.source_id
),
refunds AS (
    SELECT
        r.source_id, count(*) AS refund_count,
        count(*) FILTER (WHERE r.is_money AND r.settled_at <= %(as_of_at)s::timestamptz) AS settled_refund_count,
        coalesce(sum(r.refund_amount) FILTER (WHERE r.is_money AND r.settled_at <= %(as_of_at)s::timestamptz), 0) AS refund_amount
    FROM core.refunds AS r
    WHERE r.created_at <= %(as_of_at)s::timestamptz
    GROUP BY r.source_id
),
reviews AS (
    SELECT v.source_id, count(*) AS review_count
    FROM core.reviews AS v
    WHERE v.created_at <= %(as_of_at)s::timestamptz
    GROUP BY v.source_id
),
customers AS (
    SELECT c.source_id, count(*) AS customer_count
    FROM core.customers AS c
    WHERE coalesce(c.joined_at <= %(as_of_at)s::timestamptz, TRUE)
    GROUP BY c.source_id
),
followers AS (
    SELECT f.source_id, count(*) FILTER (WHERE f.is_following) AS follower_count FROM core.followers AS f GROUP BY f.source_id
),
posts AS (
    SELECT p.source_id, count(*) AS post_count
    FROM core.social_posts AS p
    WHERE p.published_at <= %(as_of_at)s::timestamptz
    GROUP BY p.source_id
),
comments AS (
    SELECT
        c.source_id, count(*) FILTER (WHERE c.kind = 'comment') AS comment_count,
        count(*) FILTER (WHERE c.kind = 'mention') AS mention_count
    FROM core.social_comments AS c
    WHERE c.created_at <= %(as_of_at)s::timestamptz
    GROUP BY c.source_id
),
rejects AS (
    SELECT j.source_id, count(*) AS open_reject_count
    FROM raw.rejects AS j
    WHERE j.resolved_at IS NULL AND j.reason NOT LIKE '%%: waiting for %%'
    GROUP BY j.source_id
),
arrivals AS (
    SELECT b.source_id, sum(b.seen_count) AS seen_count, sum(b.changed_count) AS changed_count FROM raw.batches AS b GROUP BY b.source_id
)
SELECT
    a.source_id, a.name AS source_name, a.platform, a.kind,
    coalesce(n.seen_count, 0) AS seen_count, coalesce(n.changed_count, 0) AS changed_count,
    coalesce(j.open_reject_count, 0) AS open_reject_count,
    o.order_count, o.paid_order_count, o.buyer_count, l.line_count, l.unit_count, o.goods_amount, o.paid_goods_amount, o.paid_amount,
    r.refund_count, r.settled_refund_count, r.refund_amount, v.review_count, c.customer_count, f.follower_count, p.post_count,
    m.comment_count, m.mention_count
FROM core.accounts AS a
LEFT JOIN arrivals AS n ON n.source_id = a.source_id
LEFT JOIN rejects AS j ON j.source_id = a.source_id
LEFT JOIN orders AS o ON o.source_id = a.source_id
LEFT JOIN lines AS l ON l.source_id = a.source_id
LEFT JOIN refunds AS r ON r.source_id = a.source_id
LEFT JOIN reviews AS v ON v.source_id = a.source_id
LEFT JOIN customers AS c ON c.source_id = a.source_id
LEFT JOIN followers AS f ON f.source_id = a.source_id
LEFT JOIN posts AS p ON p.source_id = a.source_id
LEFT JOIN comments AS m ON m.source_id = a.source_id
WHERE a.is_active
ORDER BY a.kind ASC, a.source_id ASC;
