-- The frame of every mapping, first part: which records of a stream a core table has not seen yet, as temporary views.
-- Grain: one row of mapping_range; new_records and new_and_waiting_records have one row per record version, with its payload.
-- Params: source_id (text), stream (text), target (text; the table whose mark is meant).
-- Reads: raw.mappings, raw.batches, raw.records, raw.rejects
-- Rerun: safe; the mark moves in close.sql, in the same transaction. Deleting the mark maps everything again.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, %(stream)s::text, %(target)s::text)
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range CASCADE;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.source_id, m.stream, m.target, m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = %(stream)s::text AND m.target = %(target)s::text
FOR UPDATE OF m;

-- Counted, so that the planner knows whether the night brought ten batches or a first load ten thousand: for a range whose
-- ends it cannot see it would read all of raw, every night, for every stream.
DROP TABLE IF EXISTS pg_temp.new_batches CASCADE;
CREATE TEMPORARY TABLE new_batches ON COMMIT DROP AS
SELECT b.batch_id
FROM mapping_range AS g
JOIN raw.batches AS b ON b.source_id = g.source_id AND b.stream = g.stream AND b.batch_id > g.after_batch_id
WHERE b.batch_id <= g.upto_batch_id AND b.changed_count > 0;
ANALYZE new_batches;

-- A view and not a table: payloads are the heaviest thing there is, and each is written once.
CREATE TEMPORARY VIEW new_records AS
SELECT r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload
FROM new_batches AS b
JOIN raw.records AS r ON r.batch_id = b.batch_id;

-- The same, and those that wait in raw.rejects for a row they are about: an event that came before its message.
CREATE TEMPORARY VIEW new_and_waiting_records AS
SELECT r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload FROM new_records AS r
UNION ALL
SELECT r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload
FROM raw.records AS r
WHERE r.record_id IN (
    SELECT w.record_id
    FROM mapping_range AS g
    JOIN raw.rejects AS j
        ON j.source_id = g.source_id AND j.stream = g.stream AND j.stage = 'mapping' AND j.resolved_at IS NULL
        AND j.reason LIKE 'core.%%: waiting for %%' AND j.batch_id <= g.after_batch_id
    JOIN raw.records AS w
        ON w.source_id = j.source_id AND w.stream = j.stream AND w.record_key = j.record_key AND w.batch_id = j.batch_id
);

DROP TABLE IF EXISTS pg_temp.new_rows;
DROP TABLE IF EXISTS pg_temp.new_lines;
DROP TABLE IF EXISTS pg_temp.new_codes;
DROP TABLE IF EXISTS pg_temp.row_people;
