-- push.attempts and push.messages: what came of calls. A message that another worker has taken over is left alone.
-- Params: worker, now_at, message_ids, attempt_numbers, outcomes, http_statuses, codes, texts, platform_ids, states, not_befores
--   (arrays of equal length).   Rerun: safe; the same answers give the same rows.
UPDATE push.attempts AS a
SET finished_at = %(now_at)s::timestamptz, outcome = u.outcome, http_status = u.http_status, platform_code = u.code,
    platform_message = u.text
FROM unnest(%(message_ids)s::bigint[], %(attempt_numbers)s::integer[], %(outcomes)s::text[], %(http_statuses)s::integer[],
            %(codes)s::text[], %(texts)s::text[]) AS u (message_id, attempt_number, outcome, http_status, code, text)
WHERE a.message_id = u.message_id AND a.attempt_number = u.attempt_number AND a.worker = %(worker)s::text;

UPDATE push.messages AS m
SET state = u.state,
    platform_message_id = coalesce(nullif(u.platform_id, ''), m.platform_message_id),
    last_error = CASE WHEN u.state = 'accepted' THEN NULL ELSE nullif(concat_ws(': ', nullif(u.code, ''), nullif(u.text, '')), '') END,
    not_before = CASE WHEN u.state = 'queued' THEN u.not_before ELSE m.not_before END,
    accepted_at = CASE WHEN u.state = 'accepted' THEN %(now_at)s::timestamptz END,
    lease_owner = CASE WHEN u.state = 'unknown' THEN m.lease_owner END,
    lease_until = NULL,
    updated_at = %(now_at)s::timestamptz
FROM unnest(%(message_ids)s::bigint[], %(codes)s::text[], %(texts)s::text[], %(platform_ids)s::text[], %(states)s::text[],
            %(not_befores)s::timestamptz[]) AS u (message_id, code, text, platform_id, state, not_before)
WHERE m.message_id = u.message_id AND m.lease_owner = %(worker)s::text AND m.state IN ('sending', 'unknown');
