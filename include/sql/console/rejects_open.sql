-- The newest records that could not be read or mapped and are not repaired; the payload stays in raw.rejects.
-- Grain: one row per reject.   Params: source_id (text; '' = all), limit_rows (int).   Reads: raw.rejects
SELECT r.source_id, r.stream, r.stage, r.record_key, r.reason, r.run_id, r.rejected_at
FROM raw.rejects AS r
WHERE r.resolved_at IS NULL AND (%(source_id)s::text = '' OR r.source_id = %(source_id)s::text)
ORDER BY r.rejected_at DESC, r.source_id ASC, r.stream ASC, r.record_key ASC
LIMIT %(limit_rows)s::int;
