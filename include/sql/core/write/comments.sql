-- core.social_comments: what people wrote under our posts, or about us.
-- Grain: one row per comment or mention.
-- Params: source_id (text).
-- Reads: core.social_comments
-- Rerun: safe. The newest version counts.
INSERT INTO core.social_comments AS c (source_id, comment_id, kind, post_id, identity_id, content, created_at, batch_id)
SELECT DISTINCT ON (n.comment_id)
    %(source_id)s::text, n.comment_id, n.kind, n.post_id, p.identity_id, n.content, n.created_at, n.batch_id
FROM new_rows AS n
LEFT JOIN row_people AS p ON p.record_id = n.record_id
WHERE n.problem IS NULL
ORDER BY n.comment_id ASC, n.record_id DESC
ON CONFLICT (source_id, comment_id) DO UPDATE SET
    kind = excluded.kind, post_id = excluded.post_id, identity_id = excluded.identity_id, content = excluded.content,
    created_at = excluded.created_at, batch_id = excluded.batch_id
WHERE excluded.batch_id > c.batch_id
  AND (c.kind, c.post_id, c.identity_id, c.content, c.created_at)
      IS DISTINCT FROM (excluded.kind, excluded.post_id, excluded.identity_id, excluded.content, excluded.created_at);
