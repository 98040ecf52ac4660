-- push.messages: give back what a dead worker held, and end what is past its time.
-- No call was recorded: back to the queue. A call was recorded without an answer: repeatable channels are called again
-- with the identical key, for all others nobody can know, so the message is unknown and a person decides.
-- Params: now_at, repeatable (channels).   Rerun: safe.   Grain of the answer: one row per new state.
WITH
dead AS (
    SELECT m.message_id, m.channel, m.expires_at
    FROM push.messages AS m
    WHERE m.state = 'sending' AND m.lease_until <= %(now_at)s::timestamptz
    FOR UPDATE SKIP LOCKED
),
doubted AS (
    UPDATE push.attempts AS a
    SET finished_at = %(now_at)s::timestamptz, outcome = 'unknown', platform_message = 'the worker died before it recorded an answer'
    FROM dead AS d
    WHERE a.message_id = d.message_id AND a.finished_at IS NULL
    RETURNING a.message_id
),
late AS (
    SELECT m.message_id
    FROM push.messages AS m
    WHERE m.state = 'queued' AND m.expires_at <= %(now_at)s::timestamptz
    FOR UPDATE SKIP LOCKED
),
unconfirmed AS (   -- no employee has let it go; a day more for the platform's own reports
    SELECT m.message_id
    FROM push.messages AS m
    WHERE m.state = 'waiting_staff' AND m.expires_at + interval '1 day' <= %(now_at)s::timestamptz
    FOR UPDATE SKIP LOCKED
),
decided AS (
    SELECT d.message_id,
        CASE
            WHEN q.message_id IS NULL AND d.expires_at <= %(now_at)s::timestamptz THEN 'expired'
            WHEN q.message_id IS NULL THEN 'queued'
            WHEN d.channel = any(%(repeatable)s::text[]) AND d.expires_at > %(now_at)s::timestamptz THEN 'queued'
            ELSE 'unknown'
        END AS state
    FROM dead AS d
    LEFT JOIN doubted AS q ON q.message_id = d.message_id
    UNION ALL
    SELECT l.message_id,
        CASE WHEN EXISTS (SELECT 1 FROM push.attempts AS a WHERE a.message_id = l.message_id AND a.outcome = 'unknown')
            THEN 'unknown' ELSE 'expired' END
    FROM late AS l
    UNION ALL
    SELECT u.message_id, 'expired' FROM unconfirmed AS u
),
changed AS (
    UPDATE push.messages AS m
    SET state = d.state,
        lease_owner = CASE WHEN d.state = 'unknown' THEN m.lease_owner END,   -- its worker may still come with the answer
        lease_until = NULL,
        last_error = CASE d.state
            WHEN 'unknown' THEN 'the worker died between the call and its answer'
            WHEN 'expired' THEN 'expired'
            ELSE m.last_error
        END,
        updated_at = %(now_at)s::timestamptz
    FROM decided AS d
    WHERE m.message_id = d.message_id
    RETURNING m.state
)
SELECT c.state, count(*) AS message_count
FROM changed AS c
GROUP BY c.state
ORDER BY c.state;
