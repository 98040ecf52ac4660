-- core.followers and core.consents: who follows a social account; following is consent to be written to there, leaving its withdrawal.
-- Grain: one row per openid; of consents one per follow or leave and purpose. unfollowed_at is the instant a snapshot first missed
-- somebody (core.follow_events has the exact time when the platform told us).
-- Params: source_id (text).
-- Reads: core.followers
-- Rerun: safe. The newest version counts; event ids of consents follow from the record, so a fact is written once.
INSERT INTO core.followers AS f (
    source_id, openid, identity_id, is_following, followed_at, unfollowed_at, scene, qr_scene, language, batch_id
)
SELECT DISTINCT ON (n.openid)
    %(source_id)s::text, n.openid, w.identity_id, n.is_following,
    -- somebody who left is described by the last version in which they followed
    coalesce(n.followed_at, p.followed_at), CASE WHEN NOT n.is_following THEN n.observed_at END,
    coalesce(n.scene, p.scene), coalesce(n.qr_scene, p.qr_scene), coalesce(n.follower_language, p.follower_language), n.batch_id
FROM new_rows AS n
JOIN row_people AS w ON w.record_id = n.record_id
LEFT JOIN LATERAL (
    SELECT p.followed_at, p.scene, p.qr_scene, p.follower_language
    FROM new_rows AS p
    WHERE p.openid = n.openid AND p.is_following AND p.problem IS NULL AND p.record_id < n.record_id AND NOT n.is_following
    ORDER BY p.record_id DESC LIMIT 1
) AS p ON TRUE
WHERE n.problem IS NULL
ORDER BY n.openid ASC, n.record_id DESC
ON CONFLICT (source_id, openid) DO UPDATE SET
    is_following = excluded.is_following, followed_at = coalesce(excluded.followed_at, f.followed_at),
    unfollowed_at = excluded.unfollowed_at, scene = coalesce(excluded.scene, f.scene),
    qr_scene = CASE WHEN excluded.is_following THEN excluded.qr_scene ELSE coalesce(excluded.qr_scene, f.qr_scene) END,
    language = coalesce(excluded.language, f.language), batch_id = excluded.batch_id
WHERE excluded.batch_id > f.batch_id OR (excluded.batch_id = f.batch_id AND f.qr_scene IS DISTINCT FROM excluded.qr_scene);

INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at, origin)
SELECT
    %(source_id)s::text,
    concat_ws('/', CASE WHEN n.is_following THEN 'follow' ELSE 'leave' END, n.openid, extract(EPOCH FROM e.occurred_at)::bigint),
    w.identity_id, 'wechat', p.purpose, n.is_following,
    CASE WHEN n.is_following THEN 'followed the account' ELSE 'does not follow the account any more' END,
    e.occurred_at, 'platform'
FROM new_rows AS n
JOIN row_people AS w ON w.record_id = n.record_id
CROSS JOIN LATERAL (SELECT CASE WHEN n.is_following THEN n.followed_at ELSE n.observed_at END AS occurred_at) AS e
CROSS JOIN (VALUES ('marketing'), ('service')) AS p (purpose)
WHERE n.problem IS NULL
ON CONFLICT (source_id, event_id, channel, purpose) DO NOTHING;
