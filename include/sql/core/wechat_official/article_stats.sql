-- new_rows: what each article had gathered by the end of each day after it was sent.
-- Grain: one row per version of an article's figures, day and measure. The platform cumulates: never add rows up.
-- Params: none.
-- Reads: new_records.
-- Rerun: safe; writes a temporary table only. core/write/post_stats.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    NULL::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'profile' AS evidence, NULL::timestamptz AS seen_at,
    r.payload ->> 'msgid' AS post_id,
    CASE WHEN e.day ~ '^[0-9]{4}-' AND pg_input_is_valid(e.day, 'date') THEN e.day::date END AS stat_date,
    m.key AS metric,
    CASE WHEN m.figure ~ '^[0-9]{1,18}$' THEN m.figure::bigint END AS value,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(r.payload ->> 'msgid', '') = '' THEN 'msgid is missing' END,
        CASE WHEN e.day IS NULL OR NOT (e.day ~ '^[0-9]{4}-' AND pg_input_is_valid(e.day, 'date')) THEN 'stat_date is not a date' END,
        CASE WHEN m.figure IS NULL OR m.figure !~ '^[0-9]{1,18}$' THEN m.key || ' is missing or not a whole number' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(r.payload -> 'details') = 'array' THEN r.payload -> 'details' ELSE '[]' END
) AS x (detail)
CROSS JOIN LATERAL jsonb_each_text(CASE WHEN jsonb_typeof(x.detail) = 'object' THEN x.detail ELSE '{}' END) AS m (key, figure)
CROSS JOIN LATERAL (SELECT x.detail ->> 'stat_date' AS day) AS e
WHERE m.key ~ '_(user|count|cnt)$';
