-- What arrived in the night of a business date, per stream: records seen, changed, rejected.
-- Grain: one row per source and stream that was ever read.   Params: business_date (date).
-- Reads: raw.batches, raw.cursors, raw.rejects, core.accounts
-- The night is the 24 hours after the end of the business date. is_read is false when a known stream was not asked then
-- or later; nothing new is not the same as not asked.
WITH
night AS (
    SELECT
        (%(business_date)s::date + 1)::timestamptz AS begins_at,
        (%(business_date)s::date + 2)::timestamptz AS ends_at
),
batches AS (
    SELECT
        b.source_id, b.stream, count(*) AS batch_count, sum(b.seen_count) AS seen_count,
        sum(b.changed_count) AS changed_count, sum(b.rejected_count) AS landing_reject_count,
        min(b.window_start) AS first_window_at, max(b.window_end) AS last_window_at, max(b.loaded_at) AS loaded_at
    FROM raw.batches AS b
    INNER JOIN night AS n ON b.loaded_at >= n.begins_at AND b.loaded_at < n.ends_at
    GROUP BY b.source_id, b.stream
),
mapping_rejects AS (
    SELECT r.source_id, r.stream, count(*) AS mapping_reject_count
    FROM raw.rejects AS r
    INNER JOIN night AS n ON r.rejected_at >= n.begins_at AND r.rejected_at < n.ends_at
    WHERE r.stage = 'mapping'
    GROUP BY r.source_id, r.stream
),
streams AS (
    SELECT c.source_id, split_part(c.stream, ':', 1) AS stream FROM raw.cursors AS c  -- a first load has marks beside its stream
    UNION
    SELECT b.source_id, b.stream FROM batches AS b
)
SELECT
    s.source_id,
    s.stream,
    coalesce(a.name, s.source_id) AS source_name,
    a.platform,
    coalesce(b.batch_count, 0) AS batch_count,
    coalesce(b.seen_count, 0) AS seen_count,
    coalesce(b.changed_count, 0) AS changed_count,
    coalesce(b.landing_reject_count, 0) + coalesce(m.mapping_reject_count, 0) AS rejected_count,
    b.first_window_at,
    b.last_window_at,
    coalesce(b.batch_count > 0 OR c.updated_at >= n.begins_at, FALSE) AS is_read
FROM streams AS s
CROSS JOIN night AS n
LEFT JOIN batches AS b ON s.source_id = b.source_id AND s.stream = b.stream
LEFT JOIN mapping_rejects AS m ON s.source_id = m.source_id AND s.stream = m.stream
LEFT JOIN raw.cursors AS c ON s.source_id = c.source_id AND s.stream = c.stream
LEFT JOIN core.accounts AS a ON s.source_id = a.source_id
ORDER BY s.source_id ASC, s.stream ASC;
