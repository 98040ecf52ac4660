-- read_rate: readers of the posts of the period / people they were delivered to.
-- Grain: one row.
-- Params: business_date (date), from_day (date), source_id (text), until_day (date).
-- Reads: core.social_posts, core.social_post_stats
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT sum(g.readers) AS numerator, sum(g.reached) AS denominator
FROM core.social_posts AS p
CROSS JOIN LATERAL (
    -- platforms count up: the newest figure counts
    SELECT
        max(s.value) FILTER (WHERE s.metric = 'int_page_read_user') AS readers,
        max(s.value) FILTER (WHERE s.metric = 'target_user') AS reached
    FROM (
        SELECT DISTINCT ON (t.metric) t.metric, t.value
        FROM core.social_post_stats AS t
        WHERE t.source_id = p.source_id AND t.post_id = p.post_id AND t.stat_date <= %(business_date)s::date
        ORDER BY t.metric ASC, t.stat_date DESC
    ) AS s
) AS g
WHERE %(source_id)s::text IN ('', p.source_id)
  AND p.published_at >= %(from_day)s::date::timestamptz AND p.published_at < (%(until_day)s::date + 1)::timestamptz
  AND g.readers IS NOT NULL AND g.reached IS NOT NULL;
