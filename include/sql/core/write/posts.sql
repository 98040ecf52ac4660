-- core.social_posts: what we published on a social account.
-- Grain: one row per post.
-- Params: source_id (text).
-- Reads: core.social_posts
-- Rerun: safe. The newest version counts; a version that says the same changes nothing.
INSERT INTO core.social_posts AS p (source_id, post_id, kind, content, url, published_at, modified_at, batch_id)
SELECT DISTINCT ON (n.post_id)
    %(source_id)s::text, n.post_id, n.kind, n.content, n.url, n.published_at, n.modified_at, n.batch_id
FROM new_rows AS n
WHERE n.problem IS NULL
ORDER BY n.post_id ASC, n.record_id DESC
ON CONFLICT (source_id, post_id) DO UPDATE SET
    kind = excluded.kind, content = excluded.content, url = coalesce(excluded.url, p.url), published_at = excluded.published_at,
    modified_at = excluded.modified_at, batch_id = excluded.batch_id
WHERE excluded.batch_id > p.batch_id
  AND (p.kind, p.content, p.url, p.published_at)
      IS DISTINCT FROM (excluded.kind, excluded.content, coalesce(excluded.url, p.url), excluded.published_at);
