-- core.message_events: what became of our messages: delivered or failed (WeChat's pushes), clicked, unsubscribed (our pages).
-- Grain: one row per event and message. message_key is our own key; an event that belongs to a mass send as a whole carries
-- the key of the send (group_key).
-- Params: source_id (text), account_source_id (text), stream (text), run_id (text), as_of_at (timestamptz).
-- Reads: raw.records, raw.rejects, core.exposures, core.message_events, core.identities, core.members, core.member_identities
-- Rerun: safe. An event may come in before its message was exported to core: it waits in raw.rejects ("waiting for ...") and
-- every run looks at those again.
DROP TABLE IF EXISTS pg_temp.new_answers;
CREATE TEMPORARY TABLE new_answers ON COMMIT DROP AS
SELECT t.*
FROM (
    SELECT
        n.record_id, n.batch_id, n.record_key, n.fact_source_id, n.message_key AS key, n.openid, n.platform_id, n.event, n.occurred_at,
        CASE
            WHEN n.kind = 'click' THEN 'clicked'
            WHEN n.kind = 'unsubscribe' THEN 'unsubscribed'
            WHEN n.event = 'sms_report' AND n.status LIKE 'dead number%%' THEN 'bounced'
            WHEN n.event IN ('TEMPLATESENDJOBFINISH', 'MASSSENDJOBFINISH', 'subscribe_msg_sent_event', 'sms_report')
                THEN CASE WHEN n.status IN ('success', 'send success') THEN 'delivered' ELSE 'failed' END
        END AS kind,
        CASE WHEN n.event IS NOT NULL THEN n.status END AS detail,
        -- of a mass send WeChat tells only how many got it: when not all did, nobody knows who
        (n.event = 'MASSSENDJOBFINISH' AND n.status = 'send success' AND n.sent_count IS DISTINCT FROM n.total_count) AS is_partly
    FROM new_rows AS n
    WHERE n.problem IS NULL
) AS t
WHERE t.kind IS NOT NULL AND t.is_partly IS NOT TRUE AND coalesce(t.key, t.platform_id) IS NOT NULL;

DROP TABLE IF EXISTS pg_temp.answered_messages;
CREATE TEMPORARY TABLE answered_messages ON COMMIT DROP AS
-- WeChat names the message by the id it gave us when it took it
SELECT n.record_id, a.message_key, concat_ws('/', n.platform_id, n.event, a.message_key) AS row_id
FROM new_answers AS n
JOIN core.message_events AS a ON a.source_id = %(account_source_id)s::text AND a.event_id = n.platform_id AND a.kind = 'accepted'
WHERE n.platform_id IS NOT NULL AND n.key IS NULL
UNION
-- our links name it by its key
SELECT n.record_id, n.key, n.record_key AS row_id
FROM new_answers AS n
WHERE n.key IS NOT NULL AND (
    EXISTS (SELECT FROM core.exposures AS x WHERE x.message_key = n.key)
    OR EXISTS (SELECT FROM core.message_events AS a WHERE a.message_key = n.key AND a.kind = 'accepted')
) AND NOT EXISTS (SELECT FROM core.exposures AS x WHERE x.group_key = n.key)
UNION
-- all links of a mass send are the same: the openid tells whose message it was; a friend's click stays with the send
SELECT n.record_id, coalesce(own.message_key, n.key), n.record_key AS row_id
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
SELECT DISTINCT ON (n.fact_source_id, a.row_id) n.fact_source_id, a.row_id, a.message_key, n.kind, n.detail, n.occurred_at
FROM answered_messages AS a
JOIN new_answers AS n ON n.record_id = a.record_id
ORDER BY n.fact_source_id, a.row_id, n.occurred_at, n.record_key
ON CONFLICT (source_id, event_id) DO NOTHING;

INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT %(source_id)s::text, %(stream)s::text, 'mapping', n.record_key, 'core.message_events: waiting for the message it belongs to',
       r.payload, n.batch_id, %(run_id)s::text, %(as_of_at)s::timestamptz
FROM new_answers AS n
JOIN raw.records AS r ON r.record_id = n.record_id
WHERE NOT EXISTS (SELECT FROM answered_messages AS a WHERE a.record_id = n.record_id)
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, ''))) DO NOTHING;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
FROM answered_messages AS a
JOIN new_answers AS n ON n.record_id = a.record_id
WHERE j.source_id = %(source_id)s::text AND j.stream = %(stream)s::text AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND j.reason LIKE 'core.message_events: waiting for %%' AND j.record_key = n.record_key;
