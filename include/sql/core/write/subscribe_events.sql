-- core.subscribe_events: who accepted or refused subscription notices of which WeChat template.
-- Grain: one row per push and template; a push that arrives twice, or by two ways, is one (WeChat names it by person and second).
-- Params: none.
-- Reads: core.subscribe_events
-- Rerun: safe. The first copy counts.
INSERT INTO core.subscribe_events (source_id, event_id, openid, template_id, kind, occurred_at)
SELECT DISTINCT ON (n.fact_source_id, e.event_id)
    n.fact_source_id, e.event_id, n.openid, l.notice ->> 'TemplateId', l.notice ->> 'SubscribeStatusString', n.occurred_at
FROM new_rows AS n
CROSS JOIN LATERAL jsonb_array_elements(n.notices) AS l (notice)
CROSS JOIN LATERAL (
    SELECT concat_ws('/', n.openid, extract(EPOCH FROM n.occurred_at)::bigint, n.event, l.notice ->> 'TemplateId') AS event_id
) AS e
WHERE n.problem IS NULL AND n.event IN ('subscribe_msg_popup_event', 'subscribe_msg_change_event')
  AND l.notice ->> 'TemplateId' <> '' AND l.notice ->> 'SubscribeStatusString' IN ('accept', 'reject')
ORDER BY n.fact_source_id, e.event_id, n.record_id
ON CONFLICT (source_id, event_id) DO NOTHING;
