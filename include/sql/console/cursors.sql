-- How far every stream was read.
-- Grain: one row per source and stream.   Params: none.   Reads: raw.cursors, core.accounts, raw.rejects
-- While a first load is under way its stream has marks of its own (trades:created) and no watermark yet: watermark is NULL and
-- first_load_to says how far it got.
WITH
marks AS (
    SELECT
        c.source_id, split_part(c.stream, ':', 1) AS stream,
        max(c.watermark) FILTER (WHERE strpos(c.stream, ':') = 0) AS watermark,
        max(c.watermark) FILTER (WHERE c.stream LIKE '%%:created') AS first_load_to,
        max(c.updated_at) AS updated_at
    FROM raw.cursors AS c
    GROUP BY c.source_id, split_part(c.stream, ':', 1)
)
SELECT
    c.source_id,
    c.stream,
    coalesce(a.name, c.source_id) AS source_name,
    a.platform,
    c.watermark,
    CASE WHEN c.watermark IS NULL THEN c.first_load_to END AS first_load_to,
    c.updated_at,
    (
        SELECT count(*) FROM raw.rejects AS r
        WHERE r.source_id = c.source_id AND r.stream = c.stream AND r.resolved_at IS NULL
    ) AS open_reject_count
FROM marks AS c
LEFT JOIN core.accounts AS a ON c.source_id = a.source_id
ORDER BY c.source_id ASC, c.stream ASC;
