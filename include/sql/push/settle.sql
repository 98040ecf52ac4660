-- push.messages and push.attempts: what the platforms said when they were asked about open messages.
-- Params: now_at, message_ids, attempt_numbers, outcomes (accepted, refused, retry), platform_ids, texts (arrays of equal length).
-- Rerun: safe; a message that is not open any more is left alone.
-- "retry" is a platform's word that a call certainly did not arrive: only then is it made again, unless it is too late. A refusal goes
-- on over the next channel of the message's routes, as in answers.sql.
WITH
word AS (
    SELECT
        w.message_id, w.attempt_number, w.outcome, w.platform_id, w.text,
        w.outcome = 'refused' AND jsonb_array_length(c.routes) > 0 AND c.expires_at > %(now_at)s::timestamptz AND NOT EXISTS (
            SELECT 1 FROM push.attempts AS e
            WHERE e.message_id = w.message_id AND e.attempt_number <> w.attempt_number AND e.outcome IN ('accepted', 'unknown')
        ) AS goes_on
    FROM unnest(%(message_ids)s::bigint[], %(attempt_numbers)s::integer[], %(outcomes)s::text[], %(platform_ids)s::text[],
                %(texts)s::text[]) AS w (message_id, attempt_number, outcome, platform_id, text)
    JOIN push.messages AS c ON c.message_id = w.message_id
),
settled AS (
    UPDATE push.messages AS m
    SET state = CASE
            WHEN w.outcome = 'accepted' THEN 'accepted'
            WHEN w.goes_on THEN 'queued'
            WHEN w.outcome = 'retry' THEN CASE WHEN m.expires_at > %(now_at)s::timestamptz THEN 'queued' ELSE 'expired' END
            ELSE 'failed'
        END,
        channel = CASE WHEN w.goes_on THEN m.routes -> 0 ->> 'channel' ELSE m.channel END,
        account = CASE WHEN w.goes_on THEN m.routes -> 0 ->> 'account' ELSE m.account END,
        address = CASE WHEN w.goes_on THEN m.routes -> 0 ->> 'address' ELSE m.address END,
        routes = CASE WHEN w.goes_on THEN m.routes - 0 ELSE m.routes END,
        group_key = CASE WHEN w.goes_on THEN NULL ELSE m.group_key END,
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
