-- Everything that was loaded has been mapped: no batch is newer than the mark of a table that reads its stream.
-- Table: raw.mappings. Severity: warn.
-- Params: none.
-- Reads: raw.batches, raw.mappings
-- A warning, not a stop: an extraction that runs beside the night is between the two for some seconds.
WITH
newest AS (
    SELECT b.source_id, b.stream, max(b.batch_id) AS batch_id
    FROM raw.batches AS b
    WHERE b.changed_count > 0
    GROUP BY b.source_id, b.stream
)
SELECT
    count(*) = 0 AS is_passed,
    coalesce(string_agg(n.source_id || ' ' || n.stream || ' waits for ' || m.target, ', ' ORDER BY m.target), 'nothing waits') AS observed
FROM newest AS n
JOIN raw.mappings AS m ON m.source_id = n.source_id AND m.stream = n.stream AND m.last_batch_id < n.batch_id;
