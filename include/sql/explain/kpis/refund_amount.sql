-- refund_amount: refunds that settled in the period.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.refunds
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT coalesce(sum(r.refund_amount), 0) AS numerator, NULL::numeric AS denominator
FROM core.refunds AS r
WHERE r.is_money AND %(source_id)s::text IN ('', r.source_id)
  AND r.settled_at >= %(from_day)s::date::timestamptz AND r.settled_at < (%(until_day)s::date + 1)::timestamptz;
