-- reach_rate: people reached by the widest post of each day / followers of these days.
-- Grain: one row.
-- Params: business_date (date), from_day (date), source_id (text), until_day (date).
-- Reads: core.social_posts, core.social_post_stats, core.social_stats_daily
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT sum(d.reached) AS numerator, sum(t.value) AS denominator
FROM (
    SELECT p.source_id, p.published_at::date AS day, max(s.value) AS reached
    FROM core.social_posts AS p
    JOIN core.social_post_stats AS s
        ON s.source_id = p.source_id AND s.post_id = p.post_id AND s.metric = 'target_user' AND s.stat_date <= %(business_date)s::date
    WHERE %(source_id)s::text IN ('', p.source_id)
      AND p.published_at >= %(from_day)s::date::timestamptz AND p.published_at < (%(until_day)s::date + 1)::timestamptz
    GROUP BY p.source_id, p.published_at::date
) AS d
JOIN core.social_stats_daily AS t
    ON t.source_id = d.source_id AND t.stat_date = d.day AND t.metric IN ('cumulate_user', 'followers_count');
