-- core.consents, core.suppression_events, core.message_events ('unsubscribed'): people who answered an SMS with a word that refuses more.
-- Grain: one row per reply and table. The number is the identity; whoever it belongs to gets no more marketing by SMS, under any number.
-- A reply names no message: it answers the last SMS of a campaign that the person got, if that was in the last three days.
-- Params: none.
-- Reads: core.member_identities, core.members, core.exposures, core.message_events
-- Rerun: safe. A later yes on a form gives consent again; the suppression stands until `nightmarket lift`.
INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at, origin)
SELECT n.fact_source_id, n.record_key, p.identity_id, 'sms', 'marketing', FALSE,
       concat_ws(' ', 'replied with a refusal to', '【' || n.sign || '】'), n.occurred_at, 'person'
FROM new_rows AS n
JOIN row_people AS p ON p.record_id = n.record_id
WHERE n.problem IS NULL AND n.kind = 'sms.reply' AND n.is_refusal
ON CONFLICT (source_id, event_id, channel, purpose) DO NOTHING;

INSERT INTO core.suppression_events (
    source_id, event_id, channel, kind, address, is_person, is_suppressed, reason, origin, evidence, occurred_at
)
SELECT n.fact_source_id, n.record_key, 'sms', 'phone', n.phone, TRUE, TRUE, 'refused by reply', 'person',
       concat_ws(' ', 'reply to', '【' || n.sign || '】'), n.occurred_at
FROM new_rows AS n
WHERE n.problem IS NULL AND n.kind = 'sms.reply' AND n.is_refusal
ON CONFLICT (source_id, event_id, channel) DO NOTHING;

INSERT INTO core.message_events (source_id, event_id, message_key, kind, detail, occurred_at)
SELECT n.fact_source_id, n.record_key, last_sms.message_key, 'unsubscribed', 'reply', n.occurred_at
FROM new_rows AS n
JOIN row_people AS p ON p.record_id = n.record_id
JOIN LATERAL (
    SELECT x.message_key
    FROM core.member_identities AS mi
    JOIN core.members AS m ON m.member_id = mi.member_id OR m.absorbed_by = mi.member_id
    JOIN core.exposures AS x ON x.member_id = m.member_id AND x.channel LIKE 'sms%%'
    JOIN core.message_events AS e ON e.message_key = x.message_key AND e.kind = 'accepted'
    WHERE mi.identity_id = p.identity_id AND e.occurred_at <= n.occurred_at AND e.occurred_at > n.occurred_at - interval '3 days'
    ORDER BY e.occurred_at DESC, x.message_key ASC
    LIMIT 1
) AS last_sms ON TRUE
WHERE n.problem IS NULL AND n.kind = 'sms.reply' AND n.is_refusal
ON CONFLICT (source_id, event_id) DO NOTHING;
