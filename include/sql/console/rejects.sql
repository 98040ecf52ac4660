-- Records that could not be read or mapped and have not been repaired since, by reason.
-- Grain: one row per source, stream, stage and reason.   Params: business_date (date).   Reads: raw.rejects
-- Counts what stood open at the end of the night; new_count is what that night added.
WITH
night AS (
    SELECT
        (%(business_date)s::date + 1)::timestamptz AS begins_at,
        (%(business_date)s::date + 2)::timestamptz AS ends_at
)
SELECT
    r.source_id,
    r.stream,
    r.stage,
    r.reason,
    count(*) AS open_count,
    count(*) FILTER (WHERE r.rejected_at >= n.begins_at) AS new_count,
    min(r.rejected_at) AS first_rejected_at,
    max(r.rejected_at) AS last_rejected_at,
    min(r.record_key) AS example_key
FROM raw.rejects AS r
INNER JOIN night AS n ON r.rejected_at < n.ends_at AND (r.resolved_at IS NULL OR r.resolved_at >= n.ends_at)
GROUP BY r.source_id, r.stream, r.stage, r.reason
ORDER BY open_count DESC, r.source_id ASC, r.stream ASC, r.reason ASC;
