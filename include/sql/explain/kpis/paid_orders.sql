-- paid_orders: orders paid in the period.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.orders
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT count(*) AS numerator, NULL::numeric AS denominator
FROM core.orders AS o
WHERE o.is_paid AND %(source_id)s::text IN ('', o.source_id)
  AND o.paid_at >= %(from_day)s::date::timestamptz AND o.paid_at < (%(until_day)s::date + 1)::timestamptz;
