-- negative_reviews: negative reviews written in the period.
-- Grain: one row.
-- Params: from_day (date), negative_to_rating (integer), source_id (text), until_day (date).
-- Reads: core.reviews
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT count(*) AS numerator, NULL::numeric AS denominator
FROM core.reviews AS v
WHERE v.rating <= %(negative_to_rating)s::integer AND %(source_id)s::text IN ('', v.source_id)
  AND v.created_at >= %(from_day)s::date::timestamptz AND v.created_at < (%(until_day)s::date + 1)::timestamptz;
