-- At most one in a hundred records of a stream is waiting in raw.rejects.
-- Table: raw.rejects. Severity: fail.
-- Params: none.
-- Reads: raw.rejects, raw.heads
-- Single records that cannot be read must not stop a night; a platform that has changed its format must.
WITH
waiting AS (
    -- events that came in before the message they belong to are not broken
    SELECT j.source_id, j.stream, count(DISTINCT coalesce(j.record_key, j.reject_id::text)) AS reject_count
    FROM raw.rejects AS j
    WHERE j.resolved_at IS NULL AND j.reason NOT LIKE '%%: waiting for %%'
    GROUP BY j.source_id, j.stream
),
share AS (
    SELECT
        w.source_id,
        w.stream,
        w.reject_count,
        -- counted only where something waits
        (SELECT count(*) FROM raw.heads AS h WHERE h.source_id = w.source_id AND h.stream = w.stream) AS record_count
    FROM waiting AS w
)
SELECT
    coalesce(bool_and(s.reject_count <= 0.01 * s.record_count), TRUE) AS is_passed,
    coalesce(
        string_agg(
            s.source_id || ' ' || s.stream || ' ' || s.reject_count || ' of ' || s.record_count,
            ', ' ORDER BY s.source_id, s.stream
        ),
        'none'
    ) AS observed
FROM share AS s;
