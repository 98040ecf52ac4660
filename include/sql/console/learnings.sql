-- What people learned from a run, in their words, oldest first.
-- Grain: one row per entry.   Params: run_id (text).   Reads: push.learnings
SELECT l.learning, l.said_by, l.said_at
FROM push.learnings AS l
WHERE l.run_id = %(run_id)s::text
ORDER BY l.learning_id ASC;
