-- push.attempts: write down that these calls are about to be made, for the messages this worker still holds.
-- Grain: one row per message and attempt; returns the messages that may be called now, and the number of the last attempt so far for
-- the log book. The lease starts anew.
-- Params: message_ids, worker, config_hash (of what they were rendered from), now_at, lease_until, opens, closes (the send
--   window), house_zone.
-- Rerun: no; a repeated call would be a second attempt.
WITH
held AS (
    UPDATE push.messages AS m
    SET attempt_count = m.attempt_count + 1, lease_until = %(lease_until)s::timestamptz, updated_at = %(now_at)s::timestamptz
    WHERE m.message_id = any(%(message_ids)s::bigint[])
      -- still ours; in a CASE, or the planner walks through the index of everybody's leases instead of fetching these few
      AND CASE m.state WHEN 'sending' THEN m.lease_owner END = %(worker)s::text
      AND m.lease_until > %(now_at)s::timestamptz AND m.expires_at > %(now_at)s::timestamptz
      AND EXISTS (   -- nobody has paused, cancelled or changed the run since
          SELECT 1
          FROM push.campaign_runs AS r
          WHERE r.run_id = m.run_id AND r.state = 'sending' AND r.paused_at IS NULL AND r.config_hash = %(config_hash)s::text
      )
      AND CASE
          WHEN m.time_zone IS NULL   -- asked once, not of every row
              THEN (SELECT push.next_opening(%(now_at)s::timestamptz, %(opens)s::time, %(closes)s::time, %(house_zone)s::text))
          ELSE push.next_opening(%(now_at)s::timestamptz, %(opens)s::time, %(closes)s::time, m.time_zone)
      END <= %(now_at)s::timestamptz
    RETURNING m.message_id, m.attempt_count, m.channel
)
INSERT INTO push.attempts (message_id, attempt_number, worker, started_at, channel)
SELECT h.message_id, h.attempt_count, %(worker)s::text, %(now_at)s::timestamptz, h.channel
FROM held AS h
RETURNING message_id, attempt_number, pg_sequence_last_value('push.attempts_attempt_id_seq') AS last_number;
