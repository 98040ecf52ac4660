-- on_time_delivery_rate: orders paid in the period and signed within the promised days / those whose days are over.
-- Grain: one row.
-- Params: business_date (date), from_day (date), promised_delivery_days (integer), source_id (text), until_day (date).
-- Reads: core.orders, core.refunds
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT count(*) FILTER (WHERE o.signed_at <= o.paid_at + p.promise AND o.signed_at < p.ends_at) AS numerator, count(*) AS denominator
FROM core.orders AS o
CROSS JOIN (
    SELECT make_interval(days => %(promised_delivery_days)s::integer) AS promise, (%(business_date)s::date + 1)::timestamptz AS ends_at
) AS p
WHERE o.is_paid AND %(source_id)s::text IN ('', o.source_id)
  AND o.paid_at >= %(from_day)s::date::timestamptz AND o.paid_at < (%(until_day)s::date + 1)::timestamptz
  AND o.paid_at + p.promise <= p.ends_at
  -- not the ones whose money went back in full before
  AND (
      (o.signed_at IS NULL OR o.signed_at >= p.ends_at)
      AND o.goods_amount <= (
          SELECT sum(r.refund_amount)
          FROM core.refunds AS r
          WHERE r.source_id = o.source_id AND r.order_id = o.order_id AND r.is_money AND r.settled_at < o.paid_at + p.promise
      )
  ) IS NOT TRUE;
