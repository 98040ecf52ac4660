-- core.consents: what people allowed or withdrew on our pages, and by following or leaving the WeChat account.
-- Grain: one row per event, channel and purpose. Latest per identity, channel and purpose counts.
-- Params: source_id (text), as_of_at (timestamptz).
-- Reads: raw.records, raw.batches, raw.mappings, raw.rejects, core.identities, core.exposures, core.members, core.member_identities
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it; a withdrawal that only names a message is looked
-- at again until the message is known.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'events', 'core.consents')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.consents'
FOR UPDATE OF m;

DROP TABLE IF EXISTS pg_temp.new_words;
CREATE TEMPORARY TABLE new_words ON COMMIT DROP AS
WITH records AS (
    SELECT r.batch_id, r.record_key, r.payload, r.payload ->> 'kind' AS kind, raw.to_instant(r.payload ->> 'received_at') AS received_at
    FROM mapping_range AS g
    JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
    WHERE r.source_id = %(source_id)s::text AND r.stream = 'events'
    UNION
    SELECT r.batch_id, r.record_key, r.payload, r.payload ->> 'kind', raw.to_instant(r.payload ->> 'received_at')
    FROM raw.rejects AS j
    JOIN raw.records AS r ON r.source_id = j.source_id AND r.stream = j.stream AND r.record_key = j.record_key AND r.batch_id = j.batch_id
    WHERE j.source_id = %(source_id)s::text AND j.stream = 'events' AND j.stage = 'mapping' AND j.resolved_at IS NULL
      AND j.reason LIKE 'core.consents: waiting for %%'
)
-- following is consent, leaving its withdrawal, for everything the account sends
SELECT
    r.batch_id, r.record_key, r.payload,
    concat_ws('/', f.openid, f.created, f.event) AS event_id, 'wechat' AS channel, p.purpose, f.event = 'subscribe' AS is_granted,
    CASE f.event WHEN 'subscribe' THEN 'followed the account' ELSE 'left the account' END AS evidence,
    coalesce(raw.from_epoch(f.created), r.received_at) AS occurred_at,
    'wechat_openid' AS kind, f.openid AS value, NULL AS message_key
FROM records AS r
CROSS JOIN LATERAL (
    SELECT r.payload #>> '{data,fields,FromUserName}' AS openid, r.payload #>> '{data,fields,Event}' AS event,
           r.payload #>> '{data,fields,CreateTime}' AS created
) AS f
CROSS JOIN (VALUES ('marketing'), ('service')) AS p (purpose)
WHERE r.kind = 'wechat.event' AND f.event IN ('subscribe', 'unsubscribe') AND f.openid <> ''
UNION ALL
-- what was ticked on a form: for the address of that channel, or for who filled it in when there is none yet
SELECT
    r.batch_id, r.record_key, r.payload,
    r.record_key AS event_id, c.word ->> 'channel', c.word ->> 'purpose', (c.word ->> 'granted') = 'true',
    concat_ws(', ', 'form on our page', 'text ' || (c.word ->> 'text_version')), r.received_at,
    a.kind, a.value, NULL
FROM records AS r
CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(r.payload #> '{data,consents}') = 'array' THEN r.payload #> '{data,consents}' ELSE '[]' END
) AS c (word)
JOIN LATERAL (
    SELECT v.kind, v.value
    FROM (VALUES ('wechat_openid', r.payload #>> '{data,openid}'), ('email', r.payload #>> '{data,email}'),
                 ('phone', r.payload #>> '{data,phone}')) AS v (kind, value)
    WHERE v.value <> ''
    ORDER BY v.kind = CASE c.word ->> 'channel' WHEN 'wechat' THEN 'wechat_openid' WHEN 'email' THEN 'email' ELSE 'phone' END DESC, v.kind
    LIMIT 1
) AS a ON TRUE
WHERE r.kind = 'binding' AND c.word ->> 'channel' IN ('wechat', 'email', 'sms', 'push')
  AND c.word ->> 'purpose' IN ('marketing', 'service') AND c.word ->> 'granted' IN ('true', 'false')
UNION ALL
-- an unsubscribe link, or a reply: no more marketing on that channel
SELECT
    r.batch_id, r.record_key, r.payload,
    r.record_key AS event_id, u.channel, 'marketing', FALSE, 'unsubscribed by the link in ' || coalesce(u.key, 'a message'), r.received_at,
    CASE WHEN u.email LIKE 'email:%%' THEN 'email' ELSE 'wechat_openid' END,
    CASE WHEN u.email LIKE 'email:%%' THEN u.email ELSE u.openid END, u.key
FROM records AS r
CROSS JOIN LATERAL (
    SELECT r.payload #>> '{data,key}' AS key, r.payload #>> '{data,openid}' AS openid, r.payload #>> '{data,email}' AS email,
           CASE WHEN r.payload #>> '{data,channel}' LIKE 'wechat%%' THEN 'wechat' ELSE r.payload #>> '{data,channel}' END AS channel
) AS u
WHERE r.kind = 'unsubscribe' AND u.channel IN ('wechat', 'email', 'sms', 'push');

DROP TABLE IF EXISTS pg_temp.spoken_words;
CREATE TEMPORARY TABLE spoken_words ON COMMIT DROP AS
SELECT w.record_key, w.event_id, coalesce(i.identity_id, own.identity_id) AS identity_id, w.channel, w.purpose, w.is_granted,
       w.evidence, w.occurred_at
FROM new_words AS w
LEFT JOIN core.identities AS i ON i.kind = w.kind AND i.value = w.value
LEFT JOIN LATERAL (   -- a withdrawal that names nobody: the message knows whom it was sent to
    SELECT mi.identity_id
    FROM core.exposures AS x
    JOIN core.members AS m ON m.member_id = x.member_id
    JOIN core.member_identities AS mi ON mi.member_id = coalesce(m.absorbed_by, m.member_id)
    JOIN core.identities AS k ON k.identity_id = mi.identity_id
    WHERE i.identity_id IS NULL AND x.message_key = w.message_key
    ORDER BY k.kind = CASE w.channel WHEN 'wechat' THEN 'wechat_openid' WHEN 'email' THEN 'email' ELSE 'phone' END DESC, mi.identity_id
    LIMIT 1
) AS own ON TRUE
WHERE w.occurred_at IS NOT NULL;

INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at)
SELECT DISTINCT ON (s.event_id, s.channel, s.purpose)
    %(source_id)s::text, s.event_id, s.identity_id, s.channel, s.purpose, s.is_granted, s.evidence, s.occurred_at
FROM spoken_words AS s
WHERE s.identity_id IS NOT NULL
ORDER BY s.event_id, s.channel, s.purpose, s.is_granted    -- said twice in one form: the refusal counts
ON CONFLICT (source_id, event_id, channel, purpose) DO NOTHING;

INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT DISTINCT ON (w.record_key)
    %(source_id)s::text, 'events', 'mapping', w.record_key, 'core.consents: waiting for the person it is about', w.payload, w.batch_id,
    %(run_id)s::text, %(as_of_at)s::timestamptz
FROM new_words AS w
JOIN spoken_words AS s ON s.record_key = w.record_key
WHERE s.identity_id IS NULL
ORDER BY w.record_key, w.batch_id
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, ''))) DO NOTHING;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
WHERE j.source_id = %(source_id)s::text AND j.stream = 'events' AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND j.reason LIKE 'core.consents: waiting for %%'
  AND EXISTS (SELECT FROM core.consents AS c WHERE c.source_id = j.source_id AND c.event_id = j.record_key);

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.consents' AND m.last_batch_id < g.upto_batch_id;
