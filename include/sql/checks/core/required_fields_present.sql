-- No field that every record of a stream must have is missing from all records of the newest load that brought any.
-- Table: raw.fields. Severity: fail.
-- Params: none.
-- Reads: raw.fields, core.accounts
-- A platform that renames or stops a field we map makes wrong numbers, not only missing ones.
WITH
newest AS (SELECT f.source_id, f.stream, max(f.last_seen_at) AS loaded_at FROM raw.fields AS f GROUP BY f.source_id, f.stream),
gone AS (
    SELECT f.source_id, f.stream, f.path, f.last_seen_at
    FROM raw.fields AS f
    JOIN newest AS n ON n.source_id = f.source_id AND n.stream = f.stream
    LEFT JOIN core.accounts AS a ON a.source_id = f.source_id
    WHERE f.is_required AND f.last_seen_at < n.loaded_at AND coalesce(a.is_active, TRUE)
)
SELECT
    count(*) = 0 AS is_passed,
    coalesce(
        string_agg(
            g.source_id || ' ' || g.stream || ': field ' || g.path || ' is gone, last seen '
            || to_char(g.last_seen_at, 'YYYY-MM-DD HH24:MI'),
            ', ' ORDER BY g.source_id, g.stream, g.path
        ),
        'all there'
    ) AS observed
FROM gone AS g;
