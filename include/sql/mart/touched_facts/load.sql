-- mart.touched_facts: the days of social accounts and of messages that the marts have to look at again.
-- Grain: one row per taking, about (message, social), source and day; of messages the source is ''.
-- Params: none.
-- Reads: core.fact_touches, mart.marks, mart.touched_facts
-- Rerun: safe; nothing new, nothing written. Rows that every mart knows are dropped. Before the first marts there is nothing to
-- remember: they compute everything (docs/decisions/0060-nights-touch-what-moved.md). Batches are numbered as in mart.touched_days.
SELECT pg_advisory_xact_lock(hashtextextended('mart.touched', 0));

DROP TABLE IF EXISTS pg_temp.taken_facts;
CREATE TEMPORARY TABLE taken_facts (about text, source_id text, day date) ON COMMIT DROP;
WITH gone AS (DELETE FROM core.fact_touches RETURNING about, source_id, day)
INSERT INTO taken_facts (about, source_id, day)
SELECT DISTINCT g.about, g.source_id, g.day
FROM gone AS g
WHERE EXISTS (SELECT FROM mart.marks);

INSERT INTO mart.touched_facts (batch_id, about, source_id, day)
SELECT b.batch_id, t.about, t.source_id, t.day
FROM (SELECT CASE WHEN EXISTS (SELECT FROM taken_facts) THEN nextval('mart.touch_batches') END AS batch_id) AS b
CROSS JOIN taken_facts AS t;

DELETE FROM mart.touched_facts AS t WHERE t.batch_id <= (SELECT min(m.batch_id) FROM mart.marks AS m);
