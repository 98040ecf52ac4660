-- The lines of every order add up to its goods amount, its line count and its units.
-- Table: core.order_lines. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: core.orders, core.order_lines, raw.batches
-- Judged are the orders loaded in the week before the business date and since, and those of every 91st day back, so that all of the
-- past comes round in a quarter; with is_full all. An order at a time, by the keys: what it costs goes with the week, not with history.
WITH
scope AS (
    SELECT o.source_id, o.order_id, o.goods_amount, o.line_count, o.unit_count
    FROM raw.batches AS b
    JOIN core.orders AS o ON o.batch_id = b.batch_id
    WHERE NOT %(is_full)s::boolean AND b.changed_count > 0 AND b.loaded_at >= (%(business_date)s::date - 7)::timestamptz
    UNION
    SELECT o.source_id, o.order_id, o.goods_amount, o.line_count, o.unit_count
    FROM generate_series(0, 40) AS n (nth)
    JOIN core.orders AS o
        ON
            o.created_at >= (%(business_date)s::date - 91 * n.nth)::timestamptz
            AND o.created_at < (%(business_date)s::date - 91 * n.nth + 1)::timestamptz
    WHERE NOT %(is_full)s::boolean
    UNION ALL
    SELECT o.source_id, o.order_id, o.goods_amount, o.line_count, o.unit_count FROM core.orders AS o WHERE %(is_full)s::boolean
    UNION ALL
    SELECT DISTINCT l.source_id, l.order_id, NULL::numeric, NULL::integer, NULL::numeric  -- lines of no order
    FROM core.order_lines AS l
    LEFT JOIN core.orders AS o ON o.source_id = l.source_id AND o.order_id = l.order_id
    WHERE o.order_id IS NULL AND %(is_full)s::boolean
)
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' orders differ from their lines, by ' || coalesce(sum(abs(s.goods_amount - coalesce(a.goods_amount, 0))), 0) AS observed
FROM scope AS s
CROSS JOIN LATERAL (
    SELECT sum(l.line_amount) AS goods_amount, count(*) AS line_count, sum(l.quantity) AS unit_count
    FROM core.order_lines AS l
    WHERE l.source_id = s.source_id AND l.order_id = s.order_id
) AS a
WHERE (s.goods_amount, s.line_count, s.unit_count) IS DISTINCT FROM (a.goods_amount, a.line_count, a.unit_count);
