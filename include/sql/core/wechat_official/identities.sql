-- core.identities, core.identity_links, core.profiles: the people who follow a WeChat official account.
-- Grain: one identity per openid and per unionid; one link per pair; one profile per openid.
-- Params: source_id (text), as_of_at (timestamptz).   Reads: raw.records, raw.batches, raw.mappings, core.identities
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it. Deleting the mark maps everything again.
-- Two sources that meet the same new people at the same time would wait for each other for ever: one after the other.
SELECT pg_advisory_xact_lock(hashtextextended('core.identities', 0));

INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'followers', 'core.identities')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'followers' AND m.target = 'core.identities'
FOR UPDATE OF m;

DROP TABLE IF EXISTS pg_temp.new_sightings;
CREATE TEMPORARY TABLE new_sightings ON COMMIT DROP AS
SELECT
    r.record_key AS openid,
    nullif(r.payload ->> 'unionid', '') AS unionid,
    CASE WHEN r.payload ->> 'language' LIKE 'zh%%' THEN 'zh' WHEN r.payload ->> 'language' LIKE 'en%%' THEN 'en' END AS language,
    coalesce(raw.from_epoch(r.payload ->> 'subscribe_time'), r.observed_at) AS seen_at
FROM mapping_range AS g
JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
WHERE r.source_id = %(source_id)s::text AND r.stream = 'followers';

INSERT INTO core.identities AS i (kind, value, source_id, first_seen_at)
SELECT v.kind, v.value, %(source_id)s::text, min(s.seen_at)
FROM new_sightings AS s
CROSS JOIN LATERAL (VALUES ('wechat_openid', s.openid), ('wechat_unionid', s.unionid)) AS v (kind, value)
WHERE v.value IS NOT NULL
GROUP BY v.kind, v.value
ORDER BY min(s.seen_at), v.kind, v.value
ON CONFLICT (kind, value) DO UPDATE SET first_seen_at = excluded.first_seen_at
WHERE excluded.first_seen_at < i.first_seen_at;

INSERT INTO core.identity_links AS l (identity_a, identity_b, source_id, evidence, observed_at)
SELECT least(o.identity_id, u.identity_id), greatest(o.identity_id, u.identity_id), %(source_id)s::text, 'profile', min(s.seen_at)
FROM new_sightings AS s
JOIN core.identities AS o ON o.kind = 'wechat_openid' AND s.openid = o.value
JOIN core.identities AS u ON u.kind = 'wechat_unionid' AND s.unionid = u.value
GROUP BY o.identity_id, u.identity_id
ON CONFLICT (identity_a, identity_b, source_id, evidence) DO UPDATE SET observed_at = excluded.observed_at
WHERE excluded.observed_at < l.observed_at;

-- The language of the person's WeChat; what somebody chose on our own form (own_pages) comes later and stands.
INSERT INTO core.profiles AS f (identity_id, source_id, language, observed_at)
SELECT DISTINCT ON (o.identity_id) o.identity_id, %(source_id)s::text, s.language, s.seen_at
FROM new_sightings AS s
JOIN core.identities AS o ON o.kind = 'wechat_openid' AND s.openid = o.value
WHERE s.language IS NOT NULL
ORDER BY o.identity_id ASC, s.seen_at DESC, s.language ASC
ON CONFLICT (identity_id) DO UPDATE SET language = excluded.language, observed_at = excluded.observed_at, source_id = excluded.source_id
WHERE f.source_id = excluded.source_id AND excluded.observed_at >= f.observed_at
  AND (f.language, f.observed_at) IS DISTINCT FROM (excluded.language, excluded.observed_at);

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'followers' AND m.target = 'core.identities' AND m.last_batch_id < g.upto_batch_id;
