-- Money and pieces of mart.product_days are those of the lines of paid orders in core, shop by shop, over the last week.
-- Table: mart.product_days. Severity: fail.
-- Params: business_date (date).
-- Reads: core.orders, core.order_lines, mart.product_days
-- A week, not all: what is older was compared when it was young, and a night that looks at few days is judged by reading few.
WITH
core_sums AS (
    SELECT o.source_id, o.paid_at::date AS day, sum(l.line_amount) AS gross_amount, sum(l.quantity) AS unit_count
    FROM core.orders AS o
    JOIN core.order_lines AS l ON l.source_id = o.source_id AND l.order_id = o.order_id
    WHERE
        o.is_paid AND o.paid_at >= (%(business_date)s::date - 6)::timestamptz
        AND o.paid_at < (%(business_date)s::date + 1)::timestamptz
    GROUP BY o.source_id, o.paid_at::date
),
mart_sums AS (
    SELECT d.source_id, d.day, sum(d.gross_amount) AS gross_amount, sum(d.unit_count) AS unit_count
    FROM mart.product_days AS d
    WHERE d.day > %(business_date)s::date - 7 AND d.day <= %(business_date)s::date
    GROUP BY d.source_id, d.day
),
compared AS (
    SELECT
        coalesce(c.gross_amount, 0) AS core_amount,
        coalesce(m.gross_amount, 0) AS mart_amount,
        coalesce(c.gross_amount, 0) <> coalesce(m.gross_amount, 0)
        OR coalesce(c.unit_count, 0) <> coalesce(m.unit_count, 0) AS is_different
    FROM core_sums AS c
    FULL JOIN mart_sums AS m ON m.source_id = c.source_id AND m.day = c.day
)
SELECT
    count(*) FILTER (WHERE p.is_different) = 0 AS is_passed,
    count(*) FILTER (WHERE p.is_different) || ' of ' || count(*) || ' days of shops differ; in core ' || coalesce(sum(p.core_amount), 0)
    || ', in the mart ' || coalesce(sum(p.mart_amount), 0) AS observed
FROM compared AS p;
