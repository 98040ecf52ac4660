-- hours_to_first_reply: hours from review to reply / negative reviews of the period with a reply of known time.
-- Grain: one row.
-- Params: business_date (date), from_day (date), negative_to_rating (integer), source_id (text), until_day (date).
-- Reads: core.reviews
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT
    round(coalesce(sum(extract(EPOCH FROM greatest(v.replied_at, v.created_at) - v.created_at)) / 3600, 0), 4) AS numerator,
    count(*) AS denominator
FROM core.reviews AS v
WHERE v.rating <= %(negative_to_rating)s::integer AND v.replied_at < (%(business_date)s::date + 1)::timestamptz
  AND %(source_id)s::text IN ('', v.source_id)
  AND v.created_at >= %(from_day)s::date::timestamptz AND v.created_at < (%(until_day)s::date + 1)::timestamptz;
