-- net_amount: line value paid less refunds settled.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.orders, core.refunds
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT
    coalesce((
        SELECT sum(o.goods_amount)
        FROM core.orders AS o
        WHERE o.is_paid AND %(source_id)s::text IN ('', o.source_id)
          AND o.paid_at >= %(from_day)s::date::timestamptz AND o.paid_at < (%(until_day)s::date + 1)::timestamptz
    ), 0)
    - coalesce((
        SELECT sum(r.refund_amount)
        FROM core.refunds AS r
        WHERE r.is_money AND %(source_id)s::text IN ('', r.source_id)
          AND r.settled_at >= %(from_day)s::date::timestamptz AND r.settled_at < (%(until_day)s::date + 1)::timestamptz
    ), 0) AS numerator,
    NULL::numeric AS denominator;
