-- order_success_rate: orders created in the period and signed by now / orders created.
-- Grain: one row.
-- Params: business_date (date), from_day (date), source_id (text), until_day (date).
-- Reads: core.orders
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT
    count(*) FILTER (
        WHERE o.is_paid AND o.paid_at < (%(business_date)s::date + 1)::timestamptz
          AND o.signed_at < (%(business_date)s::date + 1)::timestamptz
    ) AS numerator,
    count(*) AS denominator
FROM core.orders AS o
WHERE %(source_id)s::text IN ('', o.source_id)
  AND o.created_at >= %(from_day)s::date::timestamptz AND o.created_at < (%(until_day)s::date + 1)::timestamptz;
