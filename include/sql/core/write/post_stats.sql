-- core.social_post_stats: what the posts of a social account had gathered by the end of a day.
-- Grain: one row per post, day and metric; the value is cumulative.
-- Params: source_id (text).
-- Reads: core.social_post_stats
-- Rerun: safe. Of several looks at one day the last one counts.
INSERT INTO core.social_post_stats AS s (source_id, post_id, stat_date, metric, value, batch_id)
SELECT DISTINCT ON (n.post_id, n.stat_date, n.metric)
    %(source_id)s::text, n.post_id, n.stat_date, n.metric, n.value, n.batch_id
FROM new_rows AS n
WHERE n.problem IS NULL
ORDER BY n.post_id ASC, n.stat_date ASC, n.metric ASC, n.record_id DESC
ON CONFLICT (source_id, post_id, stat_date, metric) DO UPDATE SET value = excluded.value, batch_id = excluded.batch_id
WHERE excluded.batch_id > s.batch_id AND s.value <> excluded.value;
