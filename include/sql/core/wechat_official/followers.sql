-- new_rows: who follows a WeChat official account, and who followed it once.
-- Grain: one row per version of a profile. Leaving is a state: is_following false.
-- Params: source_id (text).
-- Reads: core.identities, core.profiles
-- Rerun: safe; writes a temporary table only. core/write/followers.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, p.subscribe, nullif(p.unionid, '') AS unionid,
        CASE p.subscribe WHEN '1' THEN TRUE WHEN '0' THEN FALSE END AS is_following,
        raw.from_epoch(p.subscribe_time) AS followed_at,
        nullif(p.subscribe_scene, '') AS scene,
        coalesce(nullif(p.qr_scene_str, ''), nullif(p.qr_scene, '0')) AS qr_scene,
        CASE WHEN p.language LIKE 'zh%%' THEN 'zh' WHEN p.language LIKE 'en%%' THEN 'en' END AS follower_language
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        subscribe text, unionid text, subscribe_time text, subscribe_scene text, qr_scene text, qr_scene_str text, language text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'wechat_openid', 'value', t.record_key), jsonb_build_object('kind', 'wechat_unionid', 'value', t.unionid)
    ) AS identities,
    NULL::text AS name,
    -- the language of the person's WeChat; what somebody chose on a form of ours stands
    CASE WHEN NOT EXISTS (
        SELECT FROM core.identities AS i
        JOIN core.profiles AS f ON f.identity_id = i.identity_id
        WHERE i.kind = 'wechat_openid' AND i.value = t.record_key AND f.source_id <> %(source_id)s::text
    ) THEN t.follower_language END AS language,
    'profile' AS evidence, coalesce(t.followed_at, t.observed_at) AS seen_at,
    t.record_key AS openid, t.is_following, t.followed_at, t.scene, nullif(t.qr_scene, '') AS qr_scene, t.follower_language,
    nullif(concat_ws('; ',
        CASE WHEN t.is_following IS NULL THEN 'subscribe is neither 0 nor 1' END,
        CASE WHEN t.is_following AND t.followed_at IS NULL THEN 'subscribe_time is missing or not a time' END
    ), '') AS problem
FROM typed AS t;
