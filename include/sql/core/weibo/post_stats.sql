-- new_rows: what our posts on Weibo had gathered on a day.
-- Grain: one row per post, day and metric: reposts, comments, likes (attitudes on the wire).
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes a temporary table only. core/write/post_stats.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    r.payload ->> 'id' AS post_id, (r.payload ->> 'observed_on')::date AS stat_date, m.metric,
    CASE WHEN m.value ~ '^[0-9]{1,18}$' THEN m.value::bigint END AS value,
    CASE WHEN m.value IS NULL OR m.value !~ '^[0-9]{1,18}$' THEN m.word || ' is missing or not a whole number' END AS problem
FROM new_records AS r
CROSS JOIN LATERAL (
    VALUES ('reposts', 'reposts', r.payload ->> 'reposts'), ('comments', 'comments', r.payload ->> 'comments'),
    ('likes', 'attitudes', r.payload ->> 'attitudes')
) AS m (metric, word, value);
