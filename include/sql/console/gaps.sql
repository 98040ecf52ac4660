-- Stretches of a stream that were never read to their end: between the beginning of its history and how far it was read.
-- Grain: one row per stretch.   Params: source_id (text; '' = all).   Reads: raw.batches, raw.cursors
-- A window counts when its last batch was written. Snapshots cover no time; what lies after the last complete window is the
-- next run's, not a gap.
WITH
streams AS (
    SELECT
        b.source_id,
        b.stream,
        min(b.window_start) AS begins_at,
        max(b.window_end) FILTER (WHERE b.is_complete) AS read_to,
        range_agg(tstzrange(b.window_start, b.window_end)) FILTER (WHERE b.is_complete) AS covered
    FROM raw.batches AS b
    WHERE b.part <> 'snapshot' AND b.window_start < b.window_end AND (%(source_id)s::text = '' OR b.source_id = %(source_id)s::text)
    GROUP BY b.source_id, b.stream
),
bounds AS (
    SELECT s.source_id, s.stream, s.begins_at, s.covered, least(s.read_to, c.watermark) AS ends_at
    FROM streams AS s
    LEFT JOIN raw.cursors AS c ON c.source_id = s.source_id AND c.stream = s.stream
)
SELECT
    b.source_id, b.stream, lower(g.stretch) AS starts_at, upper(g.stretch) AS ends_at
FROM bounds AS b
CROSS JOIN LATERAL unnest(tstzmultirange(tstzrange(b.begins_at, b.ends_at)) - b.covered) AS g (stretch)
WHERE b.begins_at < b.ends_at
ORDER BY b.source_id, b.stream, lower(g.stretch);
