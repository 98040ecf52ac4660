-- core.consents, core.suppression_events: people who answered an SMS with a word that refuses more of them.
-- Grain: one row per reply and table. The number is the identity; whoever it belongs to gets no more marketing by SMS, under any number.
-- Params: none.
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
