-- social_messages: what people wrote to our accounts in the period.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.interactions, core.accounts
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT count(*) AS numerator, NULL::numeric AS denominator
FROM core.interactions AS i
JOIN core.accounts AS a ON a.source_id = i.source_id AND a.kind = 'social'
WHERE i.kind = 'message' AND %(source_id)s::text IN ('', i.source_id)
  AND i.occurred_at >= %(from_day)s::date::timestamptz AND i.occurred_at < (%(until_day)s::date + 1)::timestamptz;
