-- participation_rate: likes, comments, shares, favourites of the posts of the period / their audience.
-- Grain: one row.
-- Params: business_date (date), from_day (date), source_id (text), until_day (date).
-- Reads: core.social_posts, core.social_post_stats, core.social_stats_daily
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT coalesce(sum(g.participation), 0) AS numerator, coalesce(sum(a.audience), 0) AS denominator
FROM core.social_posts AS p
CROSS JOIN LATERAL (
    -- platforms count up: the newest figure counts
    SELECT
        max(s.value) FILTER (WHERE s.metric = 'int_page_read_user') AS readers,
        coalesce(max(s.value) FILTER (WHERE s.metric IN ('likes', 'like_user')), 0)
        + coalesce(max(s.value) FILTER (WHERE s.metric IN ('comments', 'comment_user')), 0)
        + coalesce(max(s.value) FILTER (WHERE s.metric IN ('reposts', 'share_user')), 0)
        + coalesce(max(s.value) FILTER (WHERE s.metric = 'add_to_fav_user'), 0) AS participation
    FROM (
        SELECT DISTINCT ON (t.metric) t.metric, t.value
        FROM core.social_post_stats AS t
        WHERE t.source_id = p.source_id AND t.post_id = p.post_id AND t.stat_date <= %(business_date)s::date
        ORDER BY t.metric ASC, t.stat_date DESC
    ) AS s
) AS g
CROSS JOIN LATERAL (
    SELECT coalesce(g.readers, (
        SELECT t.value
        FROM core.social_stats_daily AS t
        WHERE t.source_id = p.source_id AND t.stat_date <= p.published_at::date AND t.metric IN ('cumulate_user', 'followers_count')
        ORDER BY t.stat_date DESC
        LIMIT 1
    )) AS audience
) AS a
WHERE %(source_id)s::text IN ('', p.source_id)
  AND p.published_at >= %(from_day)s::date::timestamptz AND p.published_at < (%(until_day)s::date + 1)::timestamptz
  AND a.audience IS NOT NULL;
