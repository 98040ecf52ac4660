-- The frame of every mapping, first part: which records of a stream a core table has not seen yet, as the temporary view new_records.
-- Grain: one row of mapping_range; new_records has one row per record version, with its payload.
-- Params: source_id (text), stream (text), target (text; the table whose mark is meant).
-- Reads: raw.mappings, raw.batches, raw.records
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

DROP TABLE IF EXISTS pg_temp.new_rows;
DROP TABLE IF EXISTS pg_temp.new_lines;
DROP TABLE IF EXISTS pg_temp.new_codes;
DROP TABLE IF EXISTS pg_temp.row_people;
