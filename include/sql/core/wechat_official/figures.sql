-- new_rows: the daily figures of a WeChat official account (datacube): every stream of them, each row one row per measure.
-- Grain: one row per version of a row of the platform and measure. Dates are days in China; all figures are counts or milliseconds.
-- Params: stream (text; it is the report).
-- Reads: new_records.
-- Rerun: safe; writes a temporary table only. core/write/social_stats.sql takes it into core.
-- A row that the platform leaves out is zero. New measures come in by themselves: a measure is a field that ends like one.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
measured AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload ->> 'ref_date' AS day, m.key AS metric, m.value #>> '{}' AS figure,
        (
            SELECT string_agg(k.name || '=' || (r.payload ->> k.name), ' ' ORDER BY k.position)
            FROM (VALUES ('user_source', 1), ('share_scene', 2), ('msg_type', 3), ('msgid', 4)) AS k (name, position)
            -- an older form of the cumulated figure has a source too, which says nothing
            WHERE r.payload ->> k.name <> '' AND NOT (%(stream)s::text = 'user_cumulate' AND k.name = 'user_source')
        ) AS dimension
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_each(CASE WHEN jsonb_typeof(r.payload) = 'object' THEN r.payload ELSE '{}' END) AS m (key, value)
    WHERE m.key ~ '_(user|count|cnt|cost)$'
)
SELECT
    m.record_id, m.batch_id, m.record_key, m.observed_at,
    NULL::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'profile' AS evidence, NULL::timestamptz AS seen_at,
    CASE WHEN pg_input_is_valid(m.day, 'date') AND m.day ~ '^[0-9]{4}-' THEN m.day::date END AS stat_date,
    %(stream)s::text AS report, coalesce(m.dimension, '') AS dimension, m.metric,
    CASE WHEN m.figure ~ '^-?[0-9]{1,18}$' THEN m.figure::bigint END AS value,
    nullif(concat_ws('; ',
        CASE WHEN m.day IS NULL OR NOT (pg_input_is_valid(m.day, 'date') AND m.day ~ '^[0-9]{4}-') THEN 'ref_date is not a date' END,
        CASE WHEN m.figure IS NULL OR m.figure !~ '^-?[0-9]{1,18}$' THEN m.metric || ' is missing or not a whole number' END
    ), '') AS problem
FROM measured AS m;
