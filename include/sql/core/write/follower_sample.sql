-- core.followers: people whom a platform showed among our followers, where it shows a sample only.
-- Grain: one row per person and source.
-- Params: source_id (text).
-- Reads: core.followers
-- Rerun: safe. A row is added or refreshed, never ended: who is not in the sample may still follow us. No consent follows from it.
INSERT INTO core.followers AS f (source_id, openid, identity_id, is_following, followed_at, unfollowed_at, scene, language, batch_id)
SELECT DISTINCT ON (n.openid)
    %(source_id)s::text, n.openid, p.identity_id, TRUE, NULL::timestamptz, NULL::timestamptz, 'sample', NULL::text, n.batch_id
FROM new_rows AS n
JOIN row_people AS p ON p.record_id = n.record_id
WHERE n.problem IS NULL
ORDER BY n.openid ASC, n.record_id DESC
ON CONFLICT (source_id, openid) DO UPDATE SET batch_id = excluded.batch_id
WHERE excluded.batch_id > f.batch_id;
