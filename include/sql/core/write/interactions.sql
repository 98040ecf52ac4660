-- core.interactions: what people did with us outside orders: wrote to the account, tapped its menu, scanned, clicked a link.
-- Grain: one row per event. message_key: the message it answers, when it names one (see core.message_events). scene: which QR code.
-- Params: source_id (text).
-- Reads: core.identities, core.member_identities, core.members, core.exposures, core.message_events
-- Rerun: safe. Clicks are completed from core.message_events as soon as their message is known.
INSERT INTO core.interactions AS c (source_id, event_id, identity_id, kind, occurred_at, scene)
SELECT DISTINCT ON (x.source_id, x.event_id) x.source_id, x.event_id, x.identity_id, x.kind, x.occurred_at, nullif(x.scene, '')
FROM (
    SELECT
        n.fact_source_id AS source_id, p.identity_id, n.occurred_at,
        CASE
            WHEN n.event = 'SCAN' THEN n.event_key                          -- a follower scans: the bare scene
            WHEN n.event = 'subscribe' AND n.event_key LIKE 'qrscene\_%%' THEN substr(n.event_key, 9)
        END AS scene,
        CASE
            WHEN n.kind = 'click' THEN 'click'
            WHEN NOT n.is_push THEN NULL
            WHEN n.message_type <> 'event' THEN 'message'           -- text, image, voice ...: the person wrote to us
            WHEN n.event IN ('CLICK', 'VIEW') THEN 'menu'
            WHEN n.event = 'SCAN' OR (n.event = 'subscribe' AND n.event_key LIKE 'qrscene\_%%') THEN 'scan'
        END AS kind,
        -- WeChat may push twice: it names messages by MsgId, events by person and second
        CASE WHEN n.is_push THEN concat_ws('/', n.openid, n.created, coalesce(n.platform_id, n.event)) ELSE n.record_key END AS event_id
    FROM new_rows AS n
    JOIN row_people AS p ON p.record_id = n.record_id
    JOIN core.identities AS i ON i.identity_id = p.identity_id AND i.kind = 'wechat_openid'
    WHERE n.problem IS NULL
) AS x
WHERE x.kind IS NOT NULL
ORDER BY x.source_id, x.event_id, x.occurred_at
ON CONFLICT (source_id, event_id) DO UPDATE SET scene = excluded.scene
WHERE c.scene IS NULL AND excluded.scene IS NOT NULL;

-- Clicks whose message is known: name it; and where the click named nobody, the message knows whose it was.
INSERT INTO core.interactions AS c (source_id, event_id, identity_id, kind, message_key, occurred_at)
SELECT DISTINCT ON (e.source_id, e.event_id)
    e.source_id, e.event_id, coalesce(c.identity_id, i.identity_id), 'click', e.message_key, e.occurred_at
FROM core.message_events AS e
LEFT JOIN core.interactions AS c ON c.source_id = e.source_id AND c.event_id = e.event_id
LEFT JOIN core.exposures AS x ON x.message_key = e.message_key
LEFT JOIN core.members AS m ON m.member_id = x.member_id
LEFT JOIN core.member_identities AS mi ON mi.member_id = coalesce(m.absorbed_by, m.member_id)
LEFT JOIN core.identities AS i ON i.identity_id = mi.identity_id
WHERE e.source_id = %(source_id)s::text AND e.kind = 'clicked'
  AND (c.event_id IS NULL OR c.message_key IS NULL) AND coalesce(c.identity_id, i.identity_id) IS NOT NULL
ORDER BY
    e.source_id ASC, e.event_id ASC,
    i.kind = CASE WHEN x.channel = 'email' THEN 'email' ELSE 'wechat_openid' END DESC, i.identity_id ASC
ON CONFLICT (source_id, event_id) DO UPDATE SET message_key = excluded.message_key
WHERE c.message_key IS NULL;
