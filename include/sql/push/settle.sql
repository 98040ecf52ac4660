-- push.messages and push.attempts: what the platforms said when they were asked about open messages.
-- Params: now_at, message_ids, attempt_numbers, outcomes (accepted, refused, retry), platform_ids, texts (arrays of equal length).
-- Rerun: safe; a message that is not open any more is left alone.
-- "retry" is a platform's word that a call certainly did not arrive: only then is it made again, unless it is too late.
WITH
word AS (
    SELECT w.*
    FROM unnest(%(message_ids)s::bigint[], %(attempt_numbers)s::integer[], %(outcomes)s::text[], %(platform_ids)s::text[],
                %(texts)s::text[]) AS w (message_id, attempt_number, outcome, platform_id, text)
),
settled AS (
    UPDATE push.messages AS m
    SET state = CASE w.outcome
            WHEN 'accepted' THEN 'accepted'
            WHEN 'retry' THEN CASE WHEN m.expires_at > %(now_at)s::timestamptz THEN 'queued' ELSE 'expired' END
            ELSE 'failed'
        END,
        -- a doubted call went out when it was made; when the employee let a waiting one go is not told, only that it is done
        accepted_at = CASE
            WHEN w.outcome <> 'accepted' THEN NULL
            WHEN m.state = 'unknown' THEN a.started_at
            ELSE least(%(now_at)s::timestamptz, m.expires_at)
        END,
        platform_message_id = coalesce(nullif(w.platform_id, ''), m.platform_message_id),
        last_error = CASE WHEN w.outcome = 'accepted' THEN NULL ELSE w.text END,
        lease_owner = NULL, lease_until = NULL, updated_at = %(now_at)s::timestamptz
    FROM word AS w
    JOIN push.attempts AS a ON a.message_id = w.message_id AND a.attempt_number = w.attempt_number
    WHERE m.message_id = w.message_id AND m.state IN ('unknown', 'waiting_staff')
    RETURNING m.message_id, m.run_id, m.state
),
told AS (
    UPDATE push.attempts AS a
    SET outcome = w.outcome, platform_message = w.text, finished_at = coalesce(a.finished_at, %(now_at)s::timestamptz)
    FROM word AS w
    JOIN settled AS s ON s.message_id = w.message_id
    WHERE a.message_id = w.message_id AND a.attempt_number = w.attempt_number
),
reopened AS (
    UPDATE push.campaign_runs AS r SET state = 'sending'
    WHERE r.state = 'sent' AND r.run_id IN (SELECT s.run_id FROM settled AS s WHERE s.state = 'queued')
)
SELECT s.state, count(*) AS message_count FROM settled AS s GROUP BY s.state ORDER BY s.state;
