-- core.interactions: what people did with us outside orders: wrote to the account, tapped its menu, scanned, clicked a link.
-- Grain: one row per event. message_key: the message it answers, when it names one (see core.message_events).
-- Params: source_id (text), as_of_at (timestamptz).
-- Reads: raw.records, raw.batches, raw.mappings, core.identities, core.member_identities, core.members, core.exposures,
--   core.message_events
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it; clicks are completed from core.message_events
-- as soon as their message is known.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'events', 'core.interactions')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.interactions'
FOR UPDATE OF m;

INSERT INTO core.interactions (source_id, event_id, identity_id, kind, occurred_at)
SELECT DISTINCT ON (x.event_id) %(source_id)s::text, x.event_id, i.identity_id, x.kind, x.occurred_at
FROM mapping_range AS g
JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
CROSS JOIN LATERAL (
    SELECT
        f.openid,
        CASE
            WHEN r.payload ->> 'kind' = 'click' THEN 'click'
            WHEN r.payload ->> 'kind' <> 'wechat.event' THEN NULL
            WHEN f.type <> 'event' THEN 'message'           -- text, image, voice ...: the person wrote to us
            WHEN f.event IN ('CLICK', 'VIEW') THEN 'menu'
            WHEN f.event = 'SCAN' OR (f.event = 'subscribe' AND f.event_key LIKE 'qrscene\_%%') THEN 'scan'
        END AS kind,
        -- WeChat may push twice: it names messages by MsgId, events by person and second
        CASE WHEN r.payload ->> 'kind' = 'click' THEN r.record_key
             ELSE concat_ws('/', f.openid, f.created, coalesce(f.message_id, f.event)) END AS event_id,
        coalesce(raw.from_epoch(f.created), raw.to_instant(r.payload ->> 'received_at')) AS occurred_at
    FROM (
        SELECT
            coalesce(r.payload #>> '{data,fields,FromUserName}', r.payload #>> '{data,openid}') AS openid,
            coalesce(r.payload #>> '{data,fields,MsgType}', 'event') AS type,
            r.payload #>> '{data,fields,Event}' AS event,
            r.payload #>> '{data,fields,EventKey}' AS event_key,
            r.payload #>> '{data,fields,CreateTime}' AS created,
            coalesce(r.payload #>> '{data,fields,MsgId}', r.payload #>> '{data,fields,MsgID}') AS message_id
    ) AS f
) AS x
JOIN core.identities AS i ON i.kind = 'wechat_openid' AND i.value = x.openid
WHERE r.source_id = %(source_id)s::text AND r.stream = 'events' AND x.kind IS NOT NULL AND x.occurred_at IS NOT NULL
ORDER BY x.event_id, x.occurred_at
ON CONFLICT (source_id, event_id) DO NOTHING;

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

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.interactions' AND m.last_batch_id < g.upto_batch_id;
