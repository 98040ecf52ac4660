-- new_rows: the followers that Weibo's free API shows: a sample.
-- Grain: one row per version of a person's profile.
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes a temporary table only. core/write/follower_sample.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    jsonb_build_array(jsonb_build_object('kind', 'weibo_uid', 'value', r.record_key)) AS identities,
    NULL::text AS name, NULL::text AS language, 'profile' AS evidence, r.observed_at AS seen_at,
    r.record_key AS openid, NULL::text AS problem
FROM new_records AS r;
