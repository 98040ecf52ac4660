-- return_rate: orders with a refund settled on a day of the period, day by day / orders paid in it.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.refunds, core.orders
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT
    (
        SELECT count(*)
        FROM (
            SELECT DISTINCT r.source_id, r.order_id, r.settled_at::date
            FROM core.refunds AS r
            WHERE r.is_money AND %(source_id)s::text IN ('', r.source_id)
              AND r.settled_at >= %(from_day)s::date::timestamptz AND r.settled_at < (%(until_day)s::date + 1)::timestamptz
        ) AS d
    ) AS numerator,
    (
        SELECT count(*)
        FROM core.orders AS o
        WHERE o.is_paid AND %(source_id)s::text IN ('', o.source_id)
          AND o.paid_at >= %(from_day)s::date::timestamptz AND o.paid_at < (%(until_day)s::date + 1)::timestamptz
    ) AS denominator;
