-- mart.product_days: what was sold of each product on each day, up to the business date.
-- Grain: one row per day (Asia/Shanghai), source and product with a paid order.
-- Params: business_date (date).
-- Reads: core.orders, core.order_lines, core.member_identities, mart.touched_days, mart.marks, mart.product_days
-- Rerun: safe; a night computes the days of the shops that were touched or are new, and rows that do not differ are not rewritten.
-- Without a mark, everything in one pass (docs/decisions/0060-nights-touch-what-moved.md). An older date takes nothing back.
-- Over its products a shop's day adds up to gross_amount and unit_count of mart.shop_kpis_daily; orders and buyers do not: an order of
-- three products counts for each of them.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), m.batch_id, 0) AS upto_batch_id,
    m.mart IS NULL AS is_full,
    NOT EXISTS (SELECT FROM mart.product_days) AS is_empty,
    current_setting('random_page_cost') AS page_cost
FROM (SELECT 'product_days' AS mart) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

-- A night touches a hundredth of tables that are in memory; everything is a scan.
SELECT set_config('random_page_cost', CASE WHEN k.is_full THEN k.page_cost ELSE '1.1' END, TRUE) FROM mark AS k;

DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT x.source_id, x.day
FROM (
    SELECT t.source_id, t.day
    FROM mart.touched_days AS t
    CROSS JOIN mark AS m
    WHERE t.batch_id > m.after_batch_id AND t.batch_id <= m.upto_batch_id
    UNION
    SELECT o.source_id, o.paid_at::date
    FROM mark AS m
    JOIN core.orders AS o ON o.paid_at >= (m.since + 1)::timestamptz AND o.paid_at < (m.horizon + 1)::timestamptz
    UNION
    SELECT p.source_id, p.day
    FROM mark AS m
    JOIN mart.product_days AS p ON p.day > m.since AND p.day <= m.horizon
) AS x
CROSS JOIN mark AS k
WHERE NOT k.is_full AND x.day <= k.horizon;
ANALYZE scope;

DROP TABLE IF EXISTS pg_temp.scope_orders;
CREATE TEMPORARY TABLE scope_orders ON COMMIT DROP AS
SELECT o.source_id, o.order_id, d.day, coalesce(mi.member_id, -o.identity_id) AS buyer_id
FROM (SELECT DISTINCT c.day FROM scope AS c) AS d
JOIN core.orders AS o ON o.paid_at >= d.day::timestamptz AND o.paid_at < (d.day + 1)::timestamptz
JOIN scope AS s ON s.source_id = o.source_id AND s.day = d.day
LEFT JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
WHERE o.is_paid;
ANALYZE scope_orders;

DROP TABLE IF EXISTS pg_temp.new_days;
CREATE TEMPORARY TABLE new_days ON COMMIT DROP AS
SELECT
    o.paid_at::date AS day,
    l.source_id,
    l.product_id,
    sum(l.quantity) AS unit_count,
    sum(l.line_amount) AS gross_amount,
    count(DISTINCT l.order_id) AS order_count,
    count(DISTINCT coalesce(mi.member_id, -o.identity_id)) AS buyer_count -- negative: an identity that is nobody's yet
FROM core.orders AS o
JOIN core.order_lines AS l ON l.source_id = o.source_id AND l.order_id = o.order_id
LEFT JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
WHERE (SELECT k.is_full FROM mark AS k) AND o.is_paid AND o.paid_at < (%(business_date)s::date + 1)::timestamptz
GROUP BY o.paid_at::date, l.source_id, l.product_id
UNION ALL
SELECT
    o.day, l.source_id, l.product_id, sum(l.quantity), sum(l.line_amount), count(DISTINCT l.order_id), count(DISTINCT o.buyer_id)
FROM scope_orders AS o
JOIN core.order_lines AS l ON l.source_id = o.source_id AND l.order_id = o.order_id
GROUP BY o.day, l.source_id, l.product_id;
ANALYZE new_days;

DELETE FROM mart.product_days AS m
USING scope AS s
WHERE
    m.day = s.day AND m.source_id = s.source_id
    AND NOT EXISTS (
        SELECT 1 FROM new_days AS n WHERE n.day = m.day AND n.source_id = m.source_id AND n.product_id = m.product_id
    );
DELETE FROM mart.product_days AS m
WHERE
    (SELECT k.is_full FROM mark AS k) AND m.day <= %(business_date)s::date
    AND NOT EXISTS (
        SELECT 1 FROM new_days AS n WHERE n.day = m.day AND n.source_id = m.source_id AND n.product_id = m.product_id
    );

-- The first time there is nothing to compare with, which is three times as fast.
INSERT INTO mart.product_days (day, source_id, product_id, unit_count, gross_amount, order_count, buyer_count)
SELECT n.day, n.source_id, n.product_id, n.unit_count, n.gross_amount, n.order_count, n.buyer_count
FROM new_days AS n
WHERE (SELECT k.is_empty FROM mark AS k)
ORDER BY n.day ASC, n.source_id ASC, n.product_id ASC;
INSERT INTO mart.product_days (day, source_id, product_id, unit_count, gross_amount, order_count, buyer_count)
SELECT n.day, n.source_id, n.product_id, n.unit_count, n.gross_amount, n.order_count, n.buyer_count
FROM new_days AS n
WHERE NOT (SELECT k.is_empty FROM mark AS k)
ORDER BY n.day ASC, n.source_id ASC, n.product_id ASC
ON CONFLICT (day, source_id, product_id) DO UPDATE SET
    unit_count = excluded.unit_count,
    gross_amount = excluded.gross_amount,
    order_count = excluded.order_count,
    buyer_count = excluded.buyer_count
WHERE
    (product_days.unit_count, product_days.gross_amount, product_days.order_count, product_days.buyer_count)
    IS DISTINCT FROM (excluded.unit_count, excluded.gross_amount, excluded.order_count, excluded.buyer_count);

INSERT INTO mart.marks (mart, business_date, batch_id)
SELECT 'product_days', k.horizon, k.upto_batch_id
FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), computed_at = clock_timestamp()
WHERE (marks.business_date, marks.batch_id) IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id));

SELECT set_config('random_page_cost', k.page_cost, TRUE) FROM mark AS k;
