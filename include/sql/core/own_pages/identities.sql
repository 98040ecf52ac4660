-- core.identities, core.identity_links, core.profiles: the people whom our own pages and WeChat's pushes name.
-- Grain: one identity per openid, phone token and e-mail token; one link per pair that a form tied together; one profile each.
-- Params: source_id (text), run_id (text), as_of_at (timestamptz).
-- Reads: raw.records, raw.batches, raw.mappings, core.identities
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it. Events that nobody can read go to raw.rejects
-- here, once for all the tables that are made from them.
-- Two sources that meet the same new people at the same time would wait for each other for ever: one after the other.
SELECT pg_advisory_xact_lock(hashtextextended('core.identities', 0));

INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'events', 'core.identities')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.identities'
FOR UPDATE OF m;

DROP TABLE IF EXISTS pg_temp.new_events;
CREATE TEMPORARY TABLE new_events ON COMMIT DROP AS
WITH
records AS MATERIALIZED (
    SELECT r.record_id, r.batch_id, r.record_key, r.payload
    FROM mapping_range AS g
    JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
    WHERE r.source_id = %(source_id)s::text AND r.stream = 'events'
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key AS event_id, r.payload,
        r.payload ->> 'kind' AS kind,
        raw.to_instant(r.payload ->> 'received_at') AS received_at,
        nullif(CASE r.payload ->> 'kind' WHEN 'wechat.event' THEN r.payload #>> '{data,fields,FromUserName}'
                                         ELSE r.payload #>> '{data,openid}' END, '') AS openid,
        CASE WHEN r.payload #>> '{data,phone}' LIKE 'phone:%%' THEN r.payload #>> '{data,phone}' END AS phone,
        CASE WHEN r.payload #>> '{data,email}' LIKE 'email:%%' THEN r.payload #>> '{data,email}' END AS email,
        CASE WHEN r.payload #>> '{data,name}' LIKE 'name:%%' THEN r.payload #>> '{data,name}' END AS name,
        CASE WHEN r.payload #>> '{data,language}' IN ('zh', 'en') THEN r.payload #>> '{data,language}' END AS language
    FROM records AS r
)
SELECT
    t.*,
    nullif(concat_ws('; ',
        CASE WHEN t.received_at IS NULL THEN 'received_at is missing or not a time' END,
        CASE WHEN coalesce(t.kind, '') NOT IN ('wechat.event', 'binding', 'click', 'unsubscribe') THEN 'kind is missing or unknown' END,
        CASE WHEN t.kind = 'binding' AND num_nonnulls(t.openid, t.phone, t.email) = 0
             THEN 'data has neither openid nor phone nor email' END,
        CASE WHEN t.kind IN ('click', 'unsubscribe') AND coalesce(t.payload #>> '{data,key}', t.openid, t.email) IS NULL
             THEN 'data has neither key nor openid nor email' END
    ), '') AS problem
FROM typed AS t;

INSERT INTO core.identities AS i (kind, value, source_id, first_seen_at)
SELECT v.kind, v.value, %(source_id)s::text, min(n.received_at)
FROM new_events AS n
CROSS JOIN LATERAL (VALUES ('wechat_openid', n.openid), ('phone', n.phone), ('email', n.email)) AS v (kind, value)
WHERE n.problem IS NULL AND v.value IS NOT NULL
GROUP BY v.kind, v.value
ORDER BY min(n.received_at), v.kind DESC, v.value ASC
ON CONFLICT (kind, value) DO UPDATE SET first_seen_at = excluded.first_seen_at
WHERE excluded.first_seen_at < i.first_seen_at;

-- One form, one person: openid with phone, phone with e-mail, openid with e-mail when there is no phone.
INSERT INTO core.identity_links AS l (identity_a, identity_b, source_id, evidence, observed_at)
SELECT least(a.identity_id, b.identity_id), greatest(a.identity_id, b.identity_id), %(source_id)s::text, 'binding', min(n.received_at)
FROM new_events AS n
CROSS JOIN LATERAL (
    VALUES ('wechat_openid', n.openid, 'phone', n.phone), ('phone', n.phone, 'email', n.email),
           ('wechat_openid', CASE WHEN n.phone IS NULL THEN n.openid END, 'email', n.email)
) AS p (kind_a, value_a, kind_b, value_b)
JOIN core.identities AS a ON a.kind = p.kind_a AND a.value = p.value_a
JOIN core.identities AS b ON b.kind = p.kind_b AND b.value = p.value_b
WHERE n.problem IS NULL AND n.kind = 'binding'
GROUP BY a.identity_id, b.identity_id
ON CONFLICT (identity_a, identity_b, source_id, evidence) DO UPDATE SET observed_at = excluded.observed_at
WHERE excluded.observed_at < l.observed_at;

-- What people said about themselves stands above what a platform says about them.
INSERT INTO core.profiles AS f (identity_id, source_id, name, language, observed_at)
SELECT DISTINCT ON (i.identity_id) i.identity_id, %(source_id)s::text, n.name, n.language, n.received_at
FROM new_events AS n
CROSS JOIN LATERAL (VALUES ('wechat_openid', n.openid), ('phone', n.phone), ('email', n.email)) AS v (kind, value)
JOIN core.identities AS i ON i.kind = v.kind AND i.value = v.value
WHERE n.problem IS NULL AND n.kind = 'binding' AND num_nonnulls(n.name, n.language) > 0
ORDER BY i.identity_id ASC, n.received_at DESC, n.record_id DESC
ON CONFLICT (identity_id) DO UPDATE SET
    name = excluded.name, language = excluded.language, observed_at = excluded.observed_at, source_id = excluded.source_id
WHERE (f.source_id <> excluded.source_id OR excluded.observed_at >= f.observed_at)
  AND (f.name, f.language, f.observed_at) IS DISTINCT FROM (excluded.name, excluded.language, excluded.observed_at);

INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT DISTINCT ON (n.event_id, n.problem, n.payload)
    %(source_id)s::text, 'events', 'mapping', n.event_id, 'core.identities: ' || n.problem, n.payload, n.batch_id, %(run_id)s::text,
    %(as_of_at)s::timestamptz
FROM new_events AS n
WHERE n.problem IS NOT NULL
ORDER BY n.event_id ASC, n.problem ASC, n.payload ASC, n.batch_id DESC
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')))
DO UPDATE SET batch_id = excluded.batch_id, resolved_at = NULL
WHERE excluded.batch_id > j.batch_id;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
FROM new_events AS n
WHERE j.source_id = %(source_id)s::text AND j.stream = 'events' AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND j.reason LIKE 'core.identities: %%' AND j.record_key = n.event_id AND n.problem IS NULL AND n.batch_id > j.batch_id;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'events' AND m.target = 'core.identities' AND m.last_batch_id < g.upto_batch_id;
