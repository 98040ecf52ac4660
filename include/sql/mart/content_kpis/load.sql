-- mart.content_kpis: what each post of our social accounts gathered, up to the business date.
-- Grain: one row per account and post.
-- Params: business_date (date), content_brand_pattern (text).
-- Reads: core.social_posts, core.social_post_stats, core.social_stats_daily, mart.touched_days, mart.touched_facts, mart.content_kpis,
--   mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. Posts are few: a night looks at all of them. Figures ripen; a run for an
-- older date computes with what the newest night knew (docs/decisions/0064-kpi-days.md).
-- Platforms count up: the newest figure of a post is its sum. Where a platform does not say how many read a post, its audience is
-- who followed the account that day.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    greatest(
        m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), 0),
        (SELECT max(t.batch_id) FROM mart.touched_facts AS t)
    ) AS upto_batch_id
FROM (SELECT 'content_kpis' AS mart) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
latest AS (
    SELECT DISTINCT ON (s.source_id, s.post_id, s.metric) s.source_id, s.post_id, s.metric, s.value, s.stat_date
    FROM core.social_post_stats AS s
    JOIN mark AS k ON s.stat_date <= k.horizon
    ORDER BY s.source_id ASC, s.post_id ASC, s.metric ASC, s.stat_date DESC
),
gathered AS (
    -- people where the platform counts people, times where it does not
    SELECT
        source_id,
        post_id,
        max(value) FILTER (WHERE metric = 'target_user') AS reached_count,
        max(value) FILTER (WHERE metric = 'int_page_read_user') AS reader_count,
        max(value) FILTER (WHERE metric = 'int_page_read_count') AS view_count,
        max(value) FILTER (WHERE metric IN ('likes', 'like_user')) AS like_count,
        max(value) FILTER (WHERE metric IN ('comments', 'comment_user')) AS comment_count,
        max(value) FILTER (WHERE metric IN ('reposts', 'share_user')) AS share_count,
        max(value) FILTER (WHERE metric = 'add_to_fav_user') AS favourite_count,
        max(stat_date) AS last_stat_date
    FROM latest
    GROUP BY source_id, post_id
),
totals AS (
    SELECT s.source_id, s.stat_date, max(s.value) AS follower_count
    FROM core.social_stats_daily AS s
    JOIN mark AS k ON s.stat_date <= k.horizon
    WHERE s.metric IN ('cumulate_user', 'followers_count') AND s.report IN ('user_cumulate', 'account')
    GROUP BY s.source_id, s.stat_date
),
posts AS (
    SELECT
        p.source_id, p.post_id, p.published_at::date AS published_date, p.kind,
        CASE WHEN coalesce(p.content, '') ~* %(content_brand_pattern)s::text THEN 'brand' ELSE 'useful' END AS content_kind
    FROM core.social_posts AS p
    JOIN mark AS k ON p.published_at < (k.horizon + 1)::timestamptz
)
SELECT
    p.source_id, p.post_id, p.published_date, p.kind, p.content_kind, g.reached_count, g.reader_count, g.view_count, g.like_count,
    g.comment_count, g.share_count, g.favourite_count, g.last_stat_date,
    coalesce(g.like_count, 0) + coalesce(g.comment_count, 0) + coalesce(g.share_count, 0) + coalesce(g.favourite_count, 0)
        AS participation_count,
    coalesce(g.reader_count, f.follower_count) AS audience_count
FROM posts AS p
LEFT JOIN gathered AS g ON g.source_id = p.source_id AND g.post_id = p.post_id
LEFT JOIN LATERAL (
    SELECT t.follower_count
    FROM totals AS t
    WHERE t.source_id = p.source_id AND t.stat_date <= p.published_date
    ORDER BY t.stat_date DESC
    LIMIT 1
) AS f ON g.reader_count IS NULL;

DELETE FROM mart.content_kpis AS m
WHERE NOT EXISTS (SELECT FROM fresh AS f WHERE f.source_id = m.source_id AND f.post_id = m.post_id);

INSERT INTO mart.content_kpis AS m (
    source_id, post_id, published_date, kind, content_kind, reached_count, reader_count, view_count, like_count, comment_count,
    share_count, favourite_count, participation_count, audience_count, participation_rate, read_rate, last_stat_date
)
SELECT
    f.source_id, f.post_id, f.published_date, f.kind, f.content_kind, f.reached_count, f.reader_count, f.view_count, f.like_count,
    f.comment_count, f.share_count, f.favourite_count, f.participation_count, f.audience_count,
    f.participation_count::numeric / nullif(f.audience_count, 0),
    f.reader_count::numeric / nullif(f.reached_count, 0),
    f.last_stat_date
FROM fresh AS f
ON CONFLICT (source_id, post_id) DO UPDATE SET
    published_date = excluded.published_date,
    kind = excluded.kind,
    content_kind = excluded.content_kind,
    reached_count = excluded.reached_count,
    reader_count = excluded.reader_count,
    view_count = excluded.view_count,
    like_count = excluded.like_count,
    comment_count = excluded.comment_count,
    share_count = excluded.share_count,
    favourite_count = excluded.favourite_count,
    participation_count = excluded.participation_count,
    audience_count = excluded.audience_count,
    participation_rate = excluded.participation_rate,
    read_rate = excluded.read_rate,
    last_stat_date = excluded.last_stat_date
WHERE
    (
        m.published_date, m.kind, m.content_kind, m.reached_count, m.reader_count, m.view_count, m.like_count, m.comment_count,
        m.share_count, m.favourite_count, m.audience_count, m.last_stat_date
    )
    IS DISTINCT FROM (
        excluded.published_date, excluded.kind, excluded.content_kind, excluded.reached_count, excluded.reader_count,
        excluded.view_count, excluded.like_count, excluded.comment_count, excluded.share_count, excluded.favourite_count,
        excluded.audience_count, excluded.last_stat_date
    );

INSERT INTO mart.marks (mart, business_date, batch_id)
SELECT 'content_kpis', k.horizon, k.upto_batch_id FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, computed_at = clock_timestamp()
WHERE (marks.business_date, marks.batch_id) IS DISTINCT FROM (excluded.business_date, excluded.batch_id);
