-- message_cost_amount: cost of the messages sent in the period.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.exposures
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT coalesce(sum(x.cost_amount), 0) AS numerator, NULL::numeric AS denominator
FROM core.exposures AS x
WHERE x.channel IS NOT NULL AND x.message_key IS NOT NULL AND %(source_id)s::text IN ('', x.channel)
  AND x.exposed_at >= %(from_day)s::date::timestamptz AND x.exposed_at < (%(until_day)s::date + 1)::timestamptz;
