-- core.followers: who follows the account, and who followed it once.
-- Grain: one row per openid. Leaving is a state: is_following false, unfollowed_at the instant a snapshot first missed it
-- (core.follow_events has the exact time when WeChat told us).
-- Params: source_id (text), run_id (text), as_of_at (timestamptz).
-- Reads: raw.records, raw.batches, raw.mappings, core.identities
-- Rerun: safe; maps records newer than the mark in raw.mappings and moves it. The newest version counts.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'followers', 'core.followers')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'followers' AND m.target = 'core.followers'
FOR UPDATE OF m;

DROP TABLE IF EXISTS pg_temp.new_followers;
CREATE TEMPORARY TABLE new_followers ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key AS openid, r.observed_at, r.payload,
    CASE r.payload ->> 'subscribe' WHEN '1' THEN TRUE WHEN '0' THEN FALSE END AS is_following,
    raw.from_epoch(r.payload ->> 'subscribe_time') AS followed_at,
    nullif(r.payload ->> 'subscribe_scene', '') AS scene,
    CASE WHEN r.payload ->> 'language' LIKE 'zh%%' THEN 'zh' WHEN r.payload ->> 'language' LIKE 'en%%' THEN 'en' END AS language,
    nullif(concat_ws('; ',
        CASE WHEN r.payload ->> 'subscribe' IS NULL OR r.payload ->> 'subscribe' NOT IN ('0', '1') THEN 'subscribe is neither 0 nor 1' END,
        CASE WHEN r.payload ->> 'subscribe' = '1' AND raw.from_epoch(r.payload ->> 'subscribe_time') IS NULL
             THEN 'subscribe_time is missing or not a time' END
    ), '') AS problem
FROM mapping_range AS g
JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
WHERE r.source_id = %(source_id)s::text AND r.stream = 'followers';

INSERT INTO core.followers AS f (
    source_id, openid, identity_id, is_following, followed_at, unfollowed_at, scene, language, batch_id
)
SELECT DISTINCT ON (n.openid)
    %(source_id)s::text, n.openid, i.identity_id, n.is_following,
    -- somebody who left is described by the last version in which they followed
    coalesce(n.followed_at, p.followed_at), CASE WHEN NOT n.is_following THEN n.observed_at END,
    coalesce(n.scene, p.scene), coalesce(n.language, p.language), n.batch_id
FROM new_followers AS n
JOIN core.identities AS i ON i.kind = 'wechat_openid' AND n.openid = i.value
LEFT JOIN LATERAL (
    SELECT p.followed_at, p.scene, p.language
    FROM new_followers AS p
    WHERE p.openid = n.openid AND p.is_following AND p.problem IS NULL AND p.record_id < n.record_id AND NOT n.is_following
    ORDER BY p.record_id DESC LIMIT 1
) AS p ON TRUE
WHERE n.problem IS NULL
ORDER BY n.openid ASC, n.record_id DESC
ON CONFLICT (source_id, openid) DO UPDATE SET
    is_following = excluded.is_following, followed_at = coalesce(excluded.followed_at, f.followed_at),
    unfollowed_at = excluded.unfollowed_at, scene = coalesce(excluded.scene, f.scene),
    language = coalesce(excluded.language, f.language), batch_id = excluded.batch_id
WHERE excluded.batch_id > f.batch_id;

INSERT INTO raw.rejects AS j (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
SELECT DISTINCT ON (n.openid, n.problem, n.payload)
    %(source_id)s::text, 'followers', 'mapping', n.openid, 'core.followers: ' || n.problem, n.payload, n.batch_id, %(run_id)s::text,
    %(as_of_at)s::timestamptz
FROM new_followers AS n
WHERE n.problem IS NOT NULL
ORDER BY n.openid ASC, n.problem ASC, n.payload ASC, n.batch_id DESC
ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')))
DO UPDATE SET batch_id = excluded.batch_id, resolved_at = NULL
WHERE excluded.batch_id > j.batch_id;

UPDATE raw.rejects AS j SET resolved_at = %(as_of_at)s::timestamptz
FROM core.followers AS f
WHERE j.source_id = %(source_id)s::text AND j.stream = 'followers' AND j.stage = 'mapping' AND j.resolved_at IS NULL
  AND j.reason LIKE 'core.followers: %%' AND f.source_id = j.source_id AND f.openid = j.record_key AND f.batch_id > j.batch_id;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'followers' AND m.target = 'core.followers' AND m.last_batch_id < g.upto_batch_id;
