-- new_rows: our own posts on Weibo.
-- Grain: one row per version of a post.
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes a temporary table only. core/write/posts.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload,
        CASE  -- `Tue May 31 17:46:55 +0800 2011`
            WHEN r.payload ->> 'created_at' ~ '^[A-Z][a-z]{2} [A-Z][a-z]{2} '
                AND pg_input_is_valid(r.payload ->> 'created_at', 'timestamptz')
                THEN (r.payload ->> 'created_at')::timestamptz
        END AS published_at,
        coalesce(nullif(r.payload #>> '{longText,longTextContent}', ''), r.payload ->> 'text') AS content
    FROM new_records AS r
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    t.record_key AS post_id, t.content,
    'https://weibo.com/' || nullif(t.payload #>> '{user,id}', '') || '/' || nullif(t.payload ->> 'mid', '') AS url,
    CASE WHEN jsonb_typeof(t.payload -> 'retweeted_status') = 'object' THEN 'repost' ELSE 'post' END AS kind,
    t.published_at, t.observed_at AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.published_at IS NULL THEN 'created_at is missing or not a time' END,
        CASE WHEN t.content IS NULL THEN 'text is missing' END
    ), '') AS problem
FROM typed AS t;
