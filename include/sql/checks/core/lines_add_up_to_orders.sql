-- The lines of every order add up to its goods amount, its line count and its units.
-- Table: core.order_lines. Severity: fail.
-- Params: none.
-- Reads: core.orders, core.order_lines
WITH
added AS (
    SELECT
        l.source_id, l.order_id, sum(l.line_amount) AS goods_amount, count(*) AS line_count, sum(l.quantity) AS unit_count
    FROM core.order_lines AS l
    GROUP BY l.source_id, l.order_id
)
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' orders differ from their lines, by ' || coalesce(sum(abs(o.goods_amount - coalesce(a.goods_amount, 0))), 0) AS observed
FROM core.orders AS o
FULL JOIN added AS a ON a.source_id = o.source_id AND a.order_id = o.order_id
WHERE (o.goods_amount, o.line_count, o.unit_count) IS DISTINCT FROM (a.goods_amount, a.line_count, a.unit_count);
