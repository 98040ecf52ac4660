-- core.social_stats_daily: a platform's own daily figures.
-- Grain: one row per day, report, dimension and metric.
-- Params: source_id (text).
-- Reads: core.social_stats_daily
-- Rerun: safe. The newest version counts: platforms correct their figures for some days.
INSERT INTO core.social_stats_daily AS d (source_id, stat_date, report, dimension, metric, value, batch_id)
SELECT DISTINCT ON (n.stat_date, n.report, n.dimension, n.metric)
    %(source_id)s::text, n.stat_date, n.report, n.dimension, n.metric, n.value, n.batch_id
FROM new_rows AS n
WHERE n.problem IS NULL
ORDER BY n.stat_date ASC, n.report ASC, n.dimension ASC, n.metric ASC, n.record_id DESC
ON CONFLICT (source_id, stat_date, report, dimension, metric) DO UPDATE SET value = excluded.value, batch_id = excluded.batch_id
WHERE excluded.batch_id > d.batch_id;
