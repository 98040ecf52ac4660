-- Who did what to a run, and when: built, reported, approved, paused, extended, cancelled.
-- Grain: one row per entry, oldest first.   Params: run_id (text).   Reads: push.audit_log
SELECT a.audit_id, a.occurred_at, a.actor, a.action, a.detail
FROM push.audit_log AS a
WHERE a.subject = %(run_id)s::text
ORDER BY a.audit_id ASC;
