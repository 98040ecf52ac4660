-- push.messages and push.attempts: what a restored database does not know of, from the senders' log book.
-- Grain: one row of counts.   Decision: docs/decisions/0081-log-book.md
-- Params: now_at, repeatable (channels).
-- Reads: called (temporary: message_key, channel, called_at), push.messages, push.attempts
-- Rerun: safe with the same log book: what is unknown or sent is left alone.
-- A message that stands as not sent was called: where the platform recognises the identical call it is made again, else nobody knows.
WITH
call AS (
    SELECT c.message_key, max(c.called_at) AS called_at, min(c.channel) AS first_channel, max(c.channel) AS channel
    FROM called AS c
    GROUP BY c.message_key
),
doubted AS (   -- attempts that the backup holds without an answer
    UPDATE push.attempts AS a
    SET finished_at = %(now_at)s::timestamptz, outcome = 'unknown', platform_message = 'no answer before the backup was taken'
    FROM push.messages AS m
    JOIN call AS c ON c.message_key = m.message_key
    WHERE a.message_id = m.message_id AND a.finished_at IS NULL AND m.state IN ('queued', 'sending')
),
settled AS (
    UPDATE push.messages AS m
    SET state = CASE
            WHEN m.channel = any(%(repeatable)s::text[]) AND m.channel = c.channel AND c.channel = c.first_channel
                AND m.expires_at > %(now_at)s::timestamptz THEN 'queued'
            ELSE 'unknown'
        END,
        attempt_count = m.attempt_count + 1, lease_owner = NULL, lease_until = NULL,
        last_error = 'called after the backup was taken', updated_at = %(now_at)s::timestamptz
    FROM call AS c
    WHERE m.message_key = c.message_key AND m.state IN ('queued', 'sending')
    RETURNING m.message_id, m.message_key, m.attempt_count, m.state, c.channel, c.called_at
),
told AS (
    INSERT INTO push.attempts (message_id, attempt_number, worker, started_at, channel, finished_at, outcome, platform_message)
    SELECT s.message_id, s.attempt_count, 'log book', s.called_at, s.channel, %(now_at)s::timestamptz, 'unknown',
        'called after the backup was taken'
    FROM settled AS s
),
remembered AS (
    INSERT INTO push.calls_before_restore AS k (message_key, channel, called_at)
    SELECT c.message_key, c.channel, c.called_at
    FROM call AS c
    WHERE NOT EXISTS (SELECT 1 FROM push.messages AS m WHERE m.message_key = c.message_key)
    ON CONFLICT (message_key) DO NOTHING
    RETURNING k.message_key
)
SELECT
    (SELECT count(*) FROM settled AS s WHERE s.state = 'unknown') AS unknown,
    (SELECT count(*) FROM settled AS s WHERE s.state = 'queued') AS repeated,
    (SELECT count(*) FROM remembered) AS remembered;
