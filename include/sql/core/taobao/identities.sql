-- core.identities, core.identity_links, core.profiles: the people whom a Taobao shop's trades and refunds name.
-- Grain: one identity per open uid and per receiver's phone token; one link per pair; one profile per buyer.
-- Params: source_id (text), as_of_at (timestamptz).   Reads: raw.records, raw.batches, raw.mappings, core.identities
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it. Deleting the mark maps everything again.
-- Two sources that meet the same new people at the same time would wait for each other for ever: one after the other.
SELECT pg_advisory_xact_lock(hashtextextended('core.identities', 0));

INSERT INTO raw.mappings (source_id, stream, target)
VALUES (%(source_id)s::text, 'trades', 'core.identities'), (%(source_id)s::text, 'refunds', 'core.identities')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.stream, m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.target = 'core.identities' AND m.stream IN ('trades', 'refunds')
FOR UPDATE OF m;

DROP TABLE IF EXISTS pg_temp.new_sightings;
CREATE TEMPORARY TABLE new_sightings ON COMMIT DROP AS
SELECT
    r.payload ->> 'buyer_open_uid' AS open_uid,
    -- a masked or missing phone is no evidence: only a token is
    CASE WHEN r.payload ->> 'receiver_mobile' LIKE 'phone:%%' THEN r.payload ->> 'receiver_mobile' END AS phone,
    CASE WHEN r.payload ->> 'receiver_name' LIKE 'name:%%' THEN r.payload ->> 'receiver_name' END AS name,
    coalesce(raw.to_instant(r.payload ->> 'created', '+08'), r.observed_at) AS seen_at
FROM mapping_range AS g
JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id AND r.stream = g.stream
WHERE r.source_id = %(source_id)s::text;

INSERT INTO core.identities AS i (kind, value, source_id, first_seen_at)
SELECT v.kind, v.value, %(source_id)s::text, min(s.seen_at)
FROM new_sightings AS s
CROSS JOIN LATERAL (VALUES ('taobao_open_uid', s.open_uid), ('phone', s.phone)) AS v (kind, value)
WHERE v.value <> ''
GROUP BY v.kind, v.value
ORDER BY min(s.seen_at), v.kind DESC, v.value ASC
ON CONFLICT (kind, value) DO UPDATE SET first_seen_at = excluded.first_seen_at
WHERE excluded.first_seen_at < i.first_seen_at;

-- A parcel to this phone for this buyer: evidence that they are one person.
INSERT INTO core.identity_links AS l (identity_a, identity_b, source_id, evidence, observed_at)
SELECT least(u.identity_id, p.identity_id), greatest(u.identity_id, p.identity_id), %(source_id)s::text, 'trade', min(s.seen_at)
FROM new_sightings AS s
JOIN core.identities AS u ON u.kind = 'taobao_open_uid' AND s.open_uid = u.value
JOIN core.identities AS p ON p.kind = 'phone' AND s.phone = p.value
GROUP BY u.identity_id, p.identity_id
ON CONFLICT (identity_a, identity_b, source_id, evidence) DO UPDATE SET observed_at = excluded.observed_at
WHERE excluded.observed_at < l.observed_at;

-- How to greet the buyer: the receiver's name of the newest trade.
INSERT INTO core.profiles AS f (identity_id, source_id, name, observed_at)
SELECT DISTINCT ON (u.identity_id) u.identity_id, %(source_id)s::text, s.name, s.seen_at
FROM new_sightings AS s
JOIN core.identities AS u ON u.kind = 'taobao_open_uid' AND s.open_uid = u.value
WHERE s.name IS NOT NULL
ORDER BY u.identity_id ASC, s.seen_at DESC, s.name ASC
ON CONFLICT (identity_id) DO UPDATE SET name = excluded.name, observed_at = excluded.observed_at, source_id = excluded.source_id
WHERE excluded.observed_at >= f.observed_at AND (f.name, f.observed_at) IS DISTINCT FROM (excluded.name, excluded.observed_at);

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = g.stream AND m.target = 'core.identities' AND m.last_batch_id < g.upto_batch_id;
