-- push.attempts and push.messages: what came of calls. A message that another worker has taken over is left alone.
-- A message that its channel refused goes on over the next channel of its routes: it certainly was not sent.
-- Params: worker, now_at, answers (a JSON array of objects: message_id, attempt_number, outcome, http_status, code, text, platform_id,
--   state, not_before, billed_parts).   Rerun: safe; the same answers give the same rows.
UPDATE push.attempts AS a
SET finished_at = %(now_at)s::timestamptz, outcome = u.outcome, http_status = u.http_status, platform_code = u.code,
    platform_message = u.text
FROM json_to_recordset(%(answers)s::json)
    AS u (message_id bigint, attempt_number integer, outcome text, http_status integer, code text, text text)
WHERE a.message_id = u.message_id AND a.attempt_number = u.attempt_number AND a.worker = %(worker)s::text;

UPDATE push.messages AS m
SET state = CASE WHEN u.goes_on THEN 'queued' ELSE u.state END,
    channel = CASE WHEN u.goes_on THEN m.routes -> 0 ->> 'channel' ELSE m.channel END,
    account = CASE WHEN u.goes_on THEN m.routes -> 0 ->> 'account' ELSE m.account END,
    address = CASE WHEN u.goes_on THEN m.routes -> 0 ->> 'address' ELSE m.address END,
    routes = CASE WHEN u.goes_on THEN m.routes - 0 ELSE m.routes END,
    group_key = CASE WHEN u.goes_on THEN NULL ELSE m.group_key END,
    platform_message_id = coalesce(nullif(u.platform_id, ''), m.platform_message_id),
    last_error = CASE
        WHEN u.state NOT IN ('accepted', 'waiting_staff')
            THEN nullif(concat_ws(': ', nullif(u.code, ''), nullif(u.text, '')), '')
    END,
    not_before = CASE WHEN u.state = 'queued' THEN u.not_before ELSE m.not_before END,
    accepted_at = CASE WHEN u.state = 'accepted' THEN %(now_at)s::timestamptz END,
    billed_parts = u.billed_parts,
    lease_owner = CASE WHEN u.state = 'unknown' THEN m.lease_owner END,
    lease_until = NULL,
    updated_at = %(now_at)s::timestamptz
FROM (
    SELECT
        n.message_id, n.code, n.text, n.platform_id, n.state, n.not_before, n.billed_parts,
        n.state = 'failed' AND jsonb_array_length(c.routes) > 0 AND NOT EXISTS (   -- unless an earlier call may have gone out
            SELECT 1 FROM push.attempts AS a WHERE a.message_id = n.message_id AND a.outcome IN ('accepted', 'unknown')
        ) AS goes_on
    FROM json_to_recordset(%(answers)s::json)
        AS n (message_id bigint, code text, text text, platform_id text, state text, not_before timestamptz, billed_parts integer)
    JOIN push.messages AS c ON c.message_id = n.message_id
) AS u
WHERE m.message_id = u.message_id AND m.lease_owner = %(worker)s::text AND m.state IN ('sending', 'unknown');
