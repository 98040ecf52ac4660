-- push.messages: what is never sent any more, because its run was cancelled. Open calls are waited for; what may have gone out is unknown.
-- Params: run_id (NULL = every cancelled run), now_at.   Rerun: safe; a retry that came back later is ended too.
-- Grain of the answer: one row per new state.   Reads: push.campaign_runs, push.attempts
WITH
ended AS (
    UPDATE push.messages AS m
    SET state = CASE
            WHEN EXISTS (SELECT 1 FROM push.attempts AS a WHERE a.message_id = m.message_id AND a.outcome = 'unknown') THEN 'unknown'
            ELSE 'cancelled'
        END,
        lease_owner = NULL, lease_until = NULL, updated_at = %(now_at)s::timestamptz
    FROM push.campaign_runs AS r
    WHERE r.run_id = m.run_id AND r.state = 'cancelled' AND (%(run_id)s::text IS NULL OR r.run_id = %(run_id)s::text)
      AND (
          m.state = 'queued'
          OR (
              m.state = 'sending'
              AND NOT EXISTS (SELECT 1 FROM push.attempts AS a WHERE a.message_id = m.message_id AND a.finished_at IS NULL)
          )
      )
    RETURNING m.state
)
SELECT e.state, count(*) AS message_count
FROM ended AS e
GROUP BY e.state
ORDER BY e.state;
