-- core.follow_events: who began and who stopped to follow the WeChat account, when, as WeChat pushed it to us.
-- Grain: one row per push; a push that arrives twice is one (WeChat names it by person and second).
-- Params: source_id (text), account_source_id (text; the WeChat account whose pushes this archive keeps), as_of_at (timestamptz).
-- Reads: raw.records, raw.batches, raw.mappings, core.identities
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'events', 'core.follow_events')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.follow_events'
FOR UPDATE OF m;

INSERT INTO core.follow_events (source_id, event_id, identity_id, kind, occurred_at)
SELECT
    %(account_source_id)s::text,
    concat_ws('/', x.openid, extract(EPOCH FROM x.occurred_at)::bigint, x.event),
    i.identity_id, CASE x.event WHEN 'subscribe' THEN 'follow' ELSE 'unfollow' END, x.occurred_at
FROM mapping_range AS g
JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
CROSS JOIN LATERAL (
    SELECT r.payload #>> '{data,fields,FromUserName}' AS openid, r.payload #>> '{data,fields,Event}' AS event,
           coalesce(raw.from_epoch(r.payload #>> '{data,fields,CreateTime}'), raw.to_instant(r.payload ->> 'received_at')) AS occurred_at
) AS x
JOIN core.identities AS i ON i.kind = 'wechat_openid' AND i.value = x.openid
WHERE r.source_id = %(source_id)s::text AND r.stream = 'events' AND r.payload ->> 'kind' = 'wechat.event'
  AND x.event IN ('subscribe', 'unsubscribe') AND x.occurred_at IS NOT NULL
ON CONFLICT (source_id, event_id) DO NOTHING;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.follow_events' AND m.last_batch_id < g.upto_batch_id;
