-- How far every stream was read.
-- Grain: one row per source and stream.   Params: none.   Reads: raw.cursors, core.accounts, raw.rejects
SELECT
    c.source_id,
    c.stream,
    coalesce(a.name, c.source_id) AS source_name,
    a.platform,
    c.watermark,
    c.updated_at,
    (
        SELECT count(*) FROM raw.rejects AS r
        WHERE r.source_id = c.source_id AND r.stream = c.stream AND r.resolved_at IS NULL
    ) AS open_reject_count
FROM raw.cursors AS c
LEFT JOIN core.accounts AS a ON c.source_id = a.source_id
ORDER BY c.source_id ASC, c.stream ASC;
