-- core.follow_events: who began and who stopped to follow the WeChat account, when, and by which QR code.
-- Grain: one row per push; a push that arrives twice, or by two ways, is one (WeChat names it by person and second).
-- Params: none.
-- Reads: core.follow_events
-- Rerun: safe. The first copy counts.
INSERT INTO core.follow_events AS f (source_id, event_id, identity_id, kind, occurred_at, scene)
SELECT DISTINCT ON (e.event_id)
    n.fact_source_id, e.event_id, p.identity_id, CASE n.event WHEN 'subscribe' THEN 'follow' ELSE 'unfollow' END, n.occurred_at,
    CASE WHEN n.event = 'subscribe' AND n.event_key LIKE 'qrscene\_%%' THEN nullif(substr(n.event_key, 9), '') END
FROM new_rows AS n
JOIN row_people AS p ON p.record_id = n.record_id
CROSS JOIN LATERAL (SELECT concat_ws('/', n.openid, extract(EPOCH FROM n.occurred_at)::bigint, n.event) AS event_id) AS e
WHERE n.problem IS NULL AND n.is_push AND n.event IN ('subscribe', 'unsubscribe')
ORDER BY e.event_id, n.record_id
ON CONFLICT (source_id, event_id) DO UPDATE SET scene = excluded.scene
WHERE f.scene IS NULL AND excluded.scene IS NOT NULL;
