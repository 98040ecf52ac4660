-- The frame of every mapping, last part: what could not be used is kept with its reason, and the mark moves.
-- Grain: one reject per record, reason and content.
-- Params: source_id (text), stream (text), target (text), run_id (text), as_of_at (timestamptz).
-- Reads: raw.mappings, raw.rejects, raw.records
-- Rerun: safe. A reject is resolved by a later usable version of the same record.
INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT DISTINCT ON (n.record_key, n.problem, r.payload)
    %(source_id)s::text, %(stream)s::text, 'mapping', n.record_key, %(target)s::text || ': ' || n.problem, r.payload, n.batch_id,
    %(run_id)s::text, %(as_of_at)s::timestamptz
FROM new_rows AS n
JOIN raw.records AS r ON r.record_id = n.record_id
WHERE n.problem IS NOT NULL
ORDER BY n.record_key ASC, n.problem ASC, r.payload ASC, n.batch_id DESC
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')))
DO UPDATE SET batch_id = excluded.batch_id, resolved_at = NULL
WHERE excluded.batch_id > j.batch_id;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
FROM new_rows AS n
WHERE j.source_id = %(source_id)s::text AND j.stream = %(stream)s::text AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND starts_with(j.reason, %(target)s::text || ': ') AND n.record_key = j.record_key AND n.problem IS NULL AND n.batch_id > j.batch_id;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = g.source_id AND m.stream = g.stream AND m.target = g.target AND m.last_batch_id < g.upto_batch_id;
