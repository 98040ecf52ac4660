-- repeat_purchase_rate: buyers of the period with an order in it on a later day than their first / buyers.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.orders, core.member_identities
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT count(*) FILTER (WHERE b.last_day > b.first_day) AS numerator, count(*) AS denominator
FROM (
    SELECT mi.member_id, min(o.paid_at)::date AS first_day, max(o.paid_at)::date AS last_day
    FROM core.orders AS o
    JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
    WHERE o.is_paid AND %(source_id)s::text IN ('', o.source_id)
      AND o.paid_at < (%(until_day)s::date + 1)::timestamptz
    GROUP BY mi.member_id
) AS b
WHERE b.last_day >= %(from_day)s::date;
