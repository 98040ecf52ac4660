-- Runs that somebody has to look at again: their messages moved since an instant, or what was sent is not a fact in core yet.
-- Grain: one row per run.   Params: since (timestamptz).   Reads: push.campaign_runs, push.messages, core.exposures
SELECT r.run_id
FROM push.campaign_runs AS r
WHERE r.mode IN ('live', 'test') AND r.state IN ('sending', 'sent', 'cancelled')
  AND EXISTS (
      SELECT FROM push.messages AS m
      WHERE m.run_id = r.run_id
        AND (m.updated_at >= %(since)s::timestamptz
             OR (r.mode = 'live' AND m.accepted_at IS NOT NULL AND NOT EXISTS (
                 SELECT FROM core.exposures AS e
                 WHERE e.run_id = m.run_id AND e.member_id = m.member_id AND e.step = m.step)))
  )
ORDER BY r.created_at ASC, r.run_id ASC;
