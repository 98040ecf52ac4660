-- core.consents: what people allowed or withdrew on our pages, and by following or leaving the WeChat account.
-- Grain: one row per event, channel and purpose. Which word counts: docs/decisions/0062-consent-ranks.md.
-- Params: source_id (text), stream (text), run_id (text), as_of_at (timestamptz).
-- Reads: raw.records, raw.rejects, core.identities, core.exposures, core.members, core.member_identities
-- Rerun: safe; a withdrawal that only names a message is looked at again until the message is known.
DROP TABLE IF EXISTS pg_temp.new_words;
CREATE TEMPORARY TABLE new_words ON COMMIT DROP AS
-- following is consent, leaving its withdrawal, for everything the account sends
SELECT
    n.record_id, n.batch_id, n.record_key, n.fact_source_id,
    concat_ws('/', n.openid, n.created, n.event) AS event_id, 'wechat' AS channel, p.purpose, n.event = 'subscribe' AS is_granted,
    CASE n.event WHEN 'subscribe' THEN 'followed the account' ELSE 'left the account' END AS evidence, n.occurred_at,
    'wechat_openid' AS kind, n.openid AS value, NULL AS message_key, 'platform' AS origin
FROM new_rows AS n
CROSS JOIN (VALUES ('marketing'), ('service')) AS p (purpose)
WHERE n.problem IS NULL AND n.is_push AND n.event IN ('subscribe', 'unsubscribe')
UNION ALL
-- what was ticked on a form: for the address of that channel, or for who filled it in when there is none yet
SELECT
    n.record_id, n.batch_id, n.record_key, n.fact_source_id,
    n.record_key AS event_id, c.word ->> 'channel', c.word ->> 'purpose', (c.word ->> 'granted') = 'true',
    concat_ws(', ', 'form on our page', 'text ' || (c.word ->> 'text_version')), n.received_at,
    a.kind, a.value, NULL, 'person'
FROM new_rows AS n
CROSS JOIN LATERAL jsonb_array_elements(n.words) AS c (word)
JOIN LATERAL (
    SELECT v.kind, v.value
    FROM (VALUES ('wechat_openid', n.openid), ('email', n.email), ('phone', n.phone), ('mall_id', n.mall_id),
                 ('wecom_external_id', n.wecom_external_id)) AS v (kind, value)
    WHERE v.value IS NOT NULL
    ORDER BY v.kind = core.address_kind(c.word ->> 'channel') DESC, v.kind
    LIMIT 1
) AS a ON TRUE
WHERE n.problem IS NULL AND n.kind = 'binding' AND c.word ->> 'channel' IN ('wechat', 'email', 'sms', 'push', 'wecom')
  AND c.word ->> 'purpose' IN ('marketing', 'service') AND c.word ->> 'granted' IN ('true', 'false')
UNION ALL
-- an unsubscribe link, or a reply: no more marketing on that channel, and no more service messages when it answers one of those
SELECT
    n.record_id, n.batch_id, n.record_key, n.fact_source_id,
    n.record_key AS event_id, u.channel, p.purpose, FALSE, 'unsubscribed by the link in ' || coalesce(n.message_key, 'a message'),
    n.received_at, CASE WHEN n.email IS NOT NULL THEN 'email' ELSE 'wechat_openid' END, coalesce(n.email, n.openid), n.message_key, 'person'
FROM new_rows AS n
CROSS JOIN LATERAL (SELECT CASE WHEN n.channel LIKE 'wechat%%' THEN 'wechat' ELSE n.channel END AS channel) AS u
JOIN (VALUES ('marketing'), ('service')) AS p (purpose) ON p.purpose = 'marketing' OR n.purpose = 'service'
WHERE n.problem IS NULL AND n.kind = 'unsubscribe' AND u.channel IN ('wechat', 'email', 'sms', 'push', 'wecom');

DROP TABLE IF EXISTS pg_temp.spoken_words;
CREATE TEMPORARY TABLE spoken_words ON COMMIT DROP AS
SELECT w.record_id, w.record_key, w.fact_source_id, w.event_id, coalesce(i.identity_id, own.identity_id) AS identity_id, w.channel,
       w.purpose, w.is_granted, w.evidence, w.occurred_at, w.origin
FROM new_words AS w
LEFT JOIN core.identities AS i ON i.kind = w.kind AND i.value = w.value
LEFT JOIN LATERAL (   -- a withdrawal that names nobody: the message knows whom it was sent to
    SELECT mi.identity_id
    FROM core.exposures AS x
    JOIN core.members AS m ON m.member_id = x.member_id
    JOIN core.member_identities AS mi ON mi.member_id = coalesce(m.absorbed_by, m.member_id)
    JOIN core.identities AS k ON k.identity_id = mi.identity_id
    WHERE i.identity_id IS NULL AND x.message_key = w.message_key
    ORDER BY k.kind = core.address_kind(w.channel) DESC, mi.identity_id
    LIMIT 1
) AS own ON TRUE;

INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at, origin)
SELECT DISTINCT ON (s.fact_source_id, s.event_id, s.channel, s.purpose)
    s.fact_source_id, s.event_id, s.identity_id, s.channel, s.purpose, s.is_granted, s.evidence, s.occurred_at, s.origin
FROM spoken_words AS s
WHERE s.identity_id IS NOT NULL
ORDER BY s.fact_source_id, s.event_id, s.channel, s.purpose, s.is_granted    -- said twice in one form: the refusal counts
ON CONFLICT (source_id, event_id, channel, purpose) DO NOTHING;

INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT DISTINCT ON (w.record_key)
    %(source_id)s::text, %(stream)s::text, 'mapping', w.record_key, 'core.consents: waiting for the person it is about', r.payload,
    w.batch_id, %(run_id)s::text, %(as_of_at)s::timestamptz
FROM new_words AS w
JOIN spoken_words AS s ON s.record_id = w.record_id
JOIN raw.records AS r ON r.record_id = w.record_id
WHERE s.identity_id IS NULL
ORDER BY w.record_key, w.batch_id
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, ''))) DO NOTHING;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
FROM spoken_words AS s
WHERE j.source_id = %(source_id)s::text AND j.stream = %(stream)s::text AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND j.reason LIKE 'core.consents: waiting for %%' AND j.record_key = s.record_key AND s.identity_id IS NOT NULL;
