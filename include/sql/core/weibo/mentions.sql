-- new_rows: posts of others on Weibo that mention us.
-- Grain: one row per version of a mention.
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes a temporary table only. core/write/comments.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload,
        CASE  -- `Tue May 31 17:46:55 +0800 2011`
            WHEN r.payload ->> 'created_at' ~ '^[A-Z][a-z]{2} [A-Z][a-z]{2} '
                AND pg_input_is_valid(r.payload ->> 'created_at', 'timestamptz')
                THEN (r.payload ->> 'created_at')::timestamptz
        END AS created_at,
        coalesce(nullif(r.payload #>> '{longText,longTextContent}', ''), r.payload ->> 'text') AS content
    FROM new_records AS r
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(jsonb_build_object('kind', 'weibo_uid', 'value', t.payload #>> '{user,id}')) AS identities,
    NULL::text AS name, NULL::text AS language, 'profile' AS evidence, t.created_at AS seen_at,
    -- posts and comments are numbered apart
    'status:' || t.record_key AS comment_id, NULL::text AS post_id, 'mention' AS kind, t.content, t.created_at,
    nullif(concat_ws('; ',
        CASE WHEN t.created_at IS NULL THEN 'created_at is missing or not a time' END,
        CASE WHEN t.content IS NULL THEN 'text is missing' END
    ), '') AS problem
FROM typed AS t;
