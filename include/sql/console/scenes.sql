-- Which store or poster brought whom: people who followed by a parametric QR code, and what they bought since.
-- Grain: one row per source and scene.   Params: names (text; JSON {source: {scene: name}} from sources.yaml).
-- Reads: core.follow_events, core.followers, core.member_identities, core.orders
-- A person counts for the code of their first follow; pushes tell it, for older ones the profile does. Orders are those paid
-- after that follow, in any shop; amounts are what was paid, before refunds.
WITH
told AS (
    SELECT e.source_id, e.identity_id, e.scene, e.occurred_at
    FROM core.follow_events AS e
    WHERE e.kind = 'follow' AND e.scene IS NOT NULL
    UNION ALL
    SELECT f.source_id, f.identity_id, f.qr_scene, f.followed_at
    FROM core.followers AS f
    WHERE f.qr_scene IS NOT NULL AND f.followed_at IS NOT NULL
),
brought AS (
    SELECT DISTINCT ON (t.source_id, t.identity_id) t.source_id, t.identity_id, t.scene, t.occurred_at
    FROM told AS t
    ORDER BY t.source_id, t.identity_id, t.occurred_at, t.scene
),
bought AS (
    SELECT b.source_id, b.identity_id, count(*) AS order_count, sum(o.paid_amount) AS paid_amount
    FROM brought AS b
    INNER JOIN core.member_identities AS own ON own.identity_id = b.identity_id
    INNER JOIN core.member_identities AS other ON other.member_id = own.member_id
    INNER JOIN core.orders AS o ON o.identity_id = other.identity_id AND o.is_paid AND o.paid_at >= b.occurred_at
    GROUP BY b.source_id, b.identity_id
)
SELECT
    b.source_id,
    b.scene,
    coalesce(%(names)s::jsonb -> b.source_id ->> b.scene, b.scene) AS scene_name,
    count(*) AS brought_count,
    count(*) FILTER (WHERE f.is_following) AS following_count,
    count(o.identity_id) AS buyer_count,
    coalesce(sum(o.order_count), 0) AS order_count,
    coalesce(sum(o.paid_amount), 0) AS paid_amount,
    min(b.occurred_at) AS first_at,
    max(b.occurred_at) AS last_at
FROM brought AS b
LEFT JOIN core.followers AS f ON f.source_id = b.source_id AND f.identity_id = b.identity_id
LEFT JOIN bought AS o ON o.source_id = b.source_id AND o.identity_id = b.identity_id
GROUP BY b.source_id, b.scene
ORDER BY b.source_id ASC, brought_count DESC, b.scene ASC;
