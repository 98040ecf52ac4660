-- positive_review_rate: reviews of the period rated positive / all of them.
-- Grain: one row.
-- Params: from_day (date), positive_from_rating (integer), source_id (text), until_day (date).
-- Reads: core.reviews
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT count(*) FILTER (WHERE v.rating >= %(positive_from_rating)s::integer) AS numerator, count(*) AS denominator
FROM core.reviews AS v
WHERE %(source_id)s::text IN ('', v.source_id)
  AND v.created_at >= %(from_day)s::date::timestamptz AND v.created_at < (%(until_day)s::date + 1)::timestamptz;
