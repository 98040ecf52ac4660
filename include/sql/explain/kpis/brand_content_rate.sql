-- brand_content_rate: posts about the brand / posts published in the period.
-- Grain: one row.
-- Params: content_brand_pattern (text), from_day (date), source_id (text), until_day (date).
-- Reads: core.social_posts
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT count(*) FILTER (WHERE coalesce(p.content, '') ~* %(content_brand_pattern)s::text) AS numerator, count(*) AS denominator
FROM core.social_posts AS p
WHERE %(source_id)s::text IN ('', p.source_id)
  AND p.published_at >= %(from_day)s::date::timestamptz AND p.published_at < (%(until_day)s::date + 1)::timestamptz;
