-- core.message_events: what became of our messages: delivered or failed (WeChat's pushes), clicked, unsubscribed (our pages).
-- Grain: one row per event and message. message_key is our own key; an event that belongs to a mass send as a whole carries
-- the key of the send (group_key).
-- Params: source_id (text), account_source_id (text; the WeChat account whose pushes this archive keeps), run_id (text),
--   as_of_at (timestamptz).
-- Reads: raw.records, raw.batches, raw.mappings, raw.rejects, core.exposures, core.message_events, core.identities,
--   core.members, core.member_identities
-- Rerun: safe. An event may come in before its message was exported to core: it waits in raw.rejects ("waiting for ...") and
-- every run looks at those again.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'events', 'core.message_events')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.message_events'
FOR UPDATE OF m;

DROP TABLE IF EXISTS pg_temp.new_answers;
CREATE TEMPORARY TABLE new_answers ON COMMIT DROP AS
WITH records AS (
    SELECT r.batch_id, r.record_key, r.payload
    FROM mapping_range AS g
    JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
    WHERE r.source_id = %(source_id)s::text AND r.stream = 'events'
    UNION ALL
    SELECT r.batch_id, r.record_key, r.payload
    FROM mapping_range AS g
    JOIN raw.rejects AS j
        ON j.source_id = %(source_id)s::text AND j.stream = 'events' AND j.stage = 'mapping' AND j.resolved_at IS NULL
        AND j.reason LIKE 'core.message_events: waiting for %%' AND j.batch_id <= g.after_batch_id
    JOIN raw.records AS r ON r.source_id = j.source_id AND r.stream = j.stream AND r.record_key = j.record_key AND r.batch_id = j.batch_id
),
typed AS (
    SELECT
        r.batch_id, r.record_key AS event_id, r.payload,
        CASE
            WHEN r.payload ->> 'kind' = 'click' THEN 'clicked'
            WHEN r.payload ->> 'kind' = 'unsubscribe' THEN 'unsubscribed'
            WHEN f.event IN ('TEMPLATESENDJOBFINISH', 'MASSSENDJOBFINISH')
                THEN CASE WHEN f.status IN ('success', 'send success') THEN 'delivered' ELSE 'failed' END
        END AS kind,
        r.payload #>> '{data,key}' AS key,
        r.payload #>> '{data,openid}' AS openid,
        f.message_id, f.event,
        CASE WHEN f.event IS NOT NULL THEN f.status END AS detail,
        -- of a mass send WeChat tells only how many got it: when not all did, nobody knows who
        (f.event = 'MASSSENDJOBFINISH' AND f.status = 'send success' AND f.sent_count IS DISTINCT FROM f.total_count) AS is_partly,
        coalesce(f.created_at, raw.to_instant(r.payload ->> 'received_at')) AS occurred_at
    FROM records AS r
    CROSS JOIN LATERAL (
        SELECT
            CASE WHEN r.payload ->> 'kind' = 'wechat.event' THEN r.payload #>> '{data,fields,Event}' END AS event,
            r.payload #>> '{data,fields,Status}' AS status,
            coalesce(r.payload #>> '{data,fields,MsgID}', r.payload #>> '{data,fields,MsgId}') AS message_id,
            r.payload #>> '{data,fields,SentCount}' AS sent_count,
            r.payload #>> '{data,fields,TotalCount}' AS total_count,
            raw.from_epoch(r.payload #>> '{data,fields,CreateTime}') AS created_at
    ) AS f
)
SELECT t.*
FROM typed AS t
WHERE t.kind IS NOT NULL AND NOT t.is_partly AND t.occurred_at IS NOT NULL AND coalesce(t.key, t.message_id) IS NOT NULL;

DROP TABLE IF EXISTS pg_temp.answered_messages;
CREATE TEMPORARY TABLE answered_messages ON COMMIT DROP AS
-- WeChat names the message by the id it gave us when it took it
SELECT n.event_id, a.message_key, concat_ws('/', n.message_id, n.event, a.message_key) AS row_id
FROM new_answers AS n
JOIN core.message_events AS a ON a.source_id = %(account_source_id)s::text AND a.event_id = n.message_id AND a.kind = 'accepted'
WHERE n.message_id IS NOT NULL AND n.key IS NULL
UNION
-- our links name it by its key
SELECT n.event_id, n.key, n.event_id AS row_id
FROM new_answers AS n
WHERE n.key IS NOT NULL AND (
    EXISTS (SELECT FROM core.exposures AS x WHERE x.message_key = n.key)
    OR EXISTS (SELECT FROM core.message_events AS a WHERE a.message_key = n.key AND a.kind = 'accepted')
) AND NOT EXISTS (SELECT FROM core.exposures AS x WHERE x.group_key = n.key)
UNION
-- all links of a mass send are the same: the openid tells whose message it was; a friend's click stays with the send
SELECT n.event_id, coalesce(own.message_key, n.key), n.event_id AS row_id
FROM new_answers AS n
LEFT JOIN LATERAL (
    SELECT x.message_key
    FROM core.identities AS i
    JOIN core.member_identities AS mi ON mi.identity_id = i.identity_id
    JOIN core.members AS m ON m.member_id = mi.member_id OR m.absorbed_by = mi.member_id
    JOIN core.exposures AS x ON x.member_id = m.member_id AND x.group_key = n.key
    WHERE i.kind = 'wechat_openid' AND i.value = n.openid
    ORDER BY x.exposed_at, x.message_key LIMIT 1
) AS own ON TRUE
WHERE n.key IS NOT NULL AND EXISTS (SELECT FROM core.exposures AS x WHERE x.group_key = n.key);

INSERT INTO core.message_events (source_id, event_id, message_key, kind, detail, occurred_at)
SELECT DISTINCT ON (a.row_id) %(source_id)s::text, a.row_id, a.message_key, n.kind, n.detail, n.occurred_at
FROM answered_messages AS a
JOIN new_answers AS n ON n.event_id = a.event_id
ORDER BY a.row_id, n.occurred_at, n.event_id
ON CONFLICT (source_id, event_id) DO NOTHING;

INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT %(source_id)s::text, 'events', 'mapping', n.event_id, 'core.message_events: waiting for the message it belongs to',
       n.payload, n.batch_id, %(run_id)s::text, %(as_of_at)s::timestamptz
FROM new_answers AS n
WHERE NOT EXISTS (SELECT FROM answered_messages AS a WHERE a.event_id = n.event_id)
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, ''))) DO NOTHING;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
FROM answered_messages AS a
WHERE j.source_id = %(source_id)s::text AND j.stream = 'events' AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND j.reason LIKE 'core.message_events: waiting for %%' AND j.record_key = a.event_id;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.message_events' AND m.last_batch_id < g.upto_batch_id;
