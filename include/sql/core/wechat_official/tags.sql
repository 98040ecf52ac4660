-- new_rows: how many followers carried each tag at the end of a day.
-- Grain: one row per tag and day.
-- Params: none.
-- Reads: new_records.
-- Rerun: safe; writes a temporary table only. core/write/{social_stats,tags}.sql take it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    NULL::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'profile' AS evidence, NULL::timestamptz AS seen_at,
    (p.stat_date)::date AS stat_date, 'tags' AS report, 'tag=' || (p.id) AS dimension, 'follower_count' AS metric,
    p.id AS tag_id, p.name AS tag_name,
    CASE WHEN p.count ~ '^[0-9]{1,18}$' THEN (p.count)::bigint END AS value,
    nullif(concat_ws('; ',
        CASE WHEN p.count IS NULL OR p.count !~ '^[0-9]{1,18}$' THEN 'count is missing or not a whole number' END,
        CASE WHEN coalesce(p.name, '') = '' THEN 'name is missing' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (stat_date text, id text, name text, count text);
