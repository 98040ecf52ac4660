-- new_rows: how many follow our Weibo account, day by day.
-- Grain: one row per day and metric.
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes a temporary table only. core/write/social_stats.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    (r.payload ->> 'observed_on')::date AS stat_date, 'account' AS report, '' AS dimension, m.metric,
    CASE WHEN m.value ~ '^[0-9]{1,18}$' THEN m.value::bigint END AS value,
    CASE WHEN m.value IS NULL OR m.value !~ '^[0-9]{1,18}$' THEN m.metric || ' is missing or not a whole number' END AS problem
FROM new_records AS r
CROSS JOIN LATERAL (
    VALUES ('followers_count', r.payload ->> 'followers_count'), ('friends_count', r.payload ->> 'friends_count'),
    ('statuses_count', r.payload ->> 'statuses_count')
) AS m (metric, value)
WHERE m.value IS NOT NULL OR m.metric = 'followers_count';
