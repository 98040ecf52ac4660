-- review_rate: orders signed in the period with a review by now / orders signed.
-- Grain: one row.
-- Params: business_date (date), from_day (date), source_id (text), until_day (date).
-- Reads: core.reviews, core.orders
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT
    count(*) FILTER (WHERE EXISTS (
        SELECT
        FROM core.reviews AS v
        WHERE v.source_id = o.source_id AND v.order_id = o.order_id AND v.created_at < (%(business_date)s::date + 1)::timestamptz
    )) AS numerator,
    count(*) AS denominator
FROM core.orders AS o
WHERE o.is_paid AND %(source_id)s::text IN ('', o.source_id)
  AND o.signed_at >= %(from_day)s::date::timestamptz AND o.signed_at < (%(until_day)s::date + 1)::timestamptz;
