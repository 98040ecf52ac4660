-- Messages whose platform can be asked what became of them: in doubt, or waiting for an employee. Marks them as asked.
-- Grain: one row per message, longest unasked first.   Params: now_at, channels, intervals (arrays, same order; seconds between two
--   questions about one message), settled_before (calls begun later may still be answered by themselves), how_many.
-- Reads: push.messages, push.attempts.   Rerun: safe; the same message is not asked about again within its interval.
WITH
channel AS (
    SELECT c.name, make_interval(secs => c.seconds) AS pause
    FROM unnest(%(channels)s::text[], %(intervals)s::integer[]) AS c (name, seconds)
),
open_message AS (
    SELECT m.message_id
    FROM push.messages AS m
    JOIN channel AS c ON c.name = m.channel
    WHERE m.state IN ('unknown', 'waiting_staff') AND (m.asked_at IS NULL OR m.asked_at + c.pause <= %(now_at)s::timestamptz)
    ORDER BY m.asked_at ASC NULLS FIRST, m.message_id ASC
    LIMIT %(how_many)s::integer
    FOR UPDATE OF m SKIP LOCKED
),
last_call AS (
    SELECT DISTINCT ON (a.message_id) a.message_id, a.attempt_number, a.started_at
    FROM push.attempts AS a
    JOIN open_message AS o ON o.message_id = a.message_id
    WHERE a.outcome IN ('unknown', 'accepted')
    ORDER BY a.message_id ASC, a.attempt_number DESC
)
UPDATE push.messages AS m
SET asked_at = %(now_at)s::timestamptz
FROM last_call AS l
WHERE m.message_id = l.message_id AND l.started_at <= %(settled_before)s::timestamptz
RETURNING m.message_id, m.message_key, m.run_id, m.channel, m.account, m.address, m.platform_message_id, l.attempt_number, l.started_at;
