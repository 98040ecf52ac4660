-- The newest loads.
-- Grain: one row per batch.   Params: source_id (text; '' = all), limit_rows (int).   Reads: raw.batches
SELECT
    b.batch_id, b.source_id, b.stream, b.run_id, b.window_start, b.window_end, b.seen_count, b.changed_count,
    b.rejected_count, b.loaded_at
FROM raw.batches AS b
WHERE %(source_id)s::text = '' OR b.source_id = %(source_id)s::text
ORDER BY b.batch_id DESC
LIMIT %(limit_rows)s::int;
