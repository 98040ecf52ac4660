-- reply_in_time_rate: negative reviews answered within the hours / those whose hours are over.
-- Grain: one row.
-- Params: business_date (date), from_day (date), negative_to_rating (integer), reply_hours (integer), source_id (text), until_day (date).
-- Reads: core.reviews
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT
    count(*) FILTER (
        WHERE v.replied_at <= v.created_at + make_interval(hours => %(reply_hours)s::integer)
          AND v.replied_at < (%(business_date)s::date + 1)::timestamptz
    ) AS numerator,
    count(*) AS denominator
FROM core.reviews AS v
WHERE v.rating <= %(negative_to_rating)s::integer
  AND v.created_at + make_interval(hours => %(reply_hours)s::integer) <= (%(business_date)s::date + 1)::timestamptz
  AND NOT (v.replied_at IS NULL AND v.reply IS NOT NULL)
  AND %(source_id)s::text IN ('', v.source_id)
  AND v.created_at >= %(from_day)s::date::timestamptz AND v.created_at < (%(until_day)s::date + 1)::timestamptz;
