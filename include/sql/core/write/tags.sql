-- core.social_tags: the tags an account puts on its followers.
-- Grain: one row per source and tag.
-- Params: source_id (text).
-- Reads: core.social_tags
-- Rerun: safe. The newest version counts. A tag that was deleted keeps its last name: profiles of earlier days still carry it.
INSERT INTO core.social_tags AS t (source_id, tag_id, name, follower_count, stat_date, batch_id)
SELECT DISTINCT ON (n.tag_id) %(source_id)s::text, n.tag_id, n.tag_name, n.value, n.stat_date, n.batch_id
FROM new_rows AS n
WHERE n.problem IS NULL
ORDER BY n.tag_id ASC, n.stat_date DESC, n.record_id DESC
ON CONFLICT (source_id, tag_id) DO UPDATE SET
    name = excluded.name, follower_count = excluded.follower_count, stat_date = excluded.stat_date, batch_id = excluded.batch_id
WHERE excluded.stat_date >= t.stat_date AND excluded.batch_id > t.batch_id;
