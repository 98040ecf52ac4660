-- mart.member_days: what each member did on each day, up to the business date.
-- Grain: one row per member and day (Asia/Shanghai) with a paid order or a settled refund.
-- Params: business_date (date).
-- Reads: core.orders, core.refunds, core.member_identities, mart.touched_members, mart.marks, mart.member_days
-- Rerun: safe; a night computes the days that were touched or are new, and rows that do not differ are not rewritten. Without a
-- mark, everything (docs/decisions/0060-nights-touch-what-moved.md). A run for an older date takes nothing back.
-- An order counts on the day it was paid, a refund on the day it settled, whenever they were loaded. Orders and refunds
-- of nobody we know are in shop_kpis_daily only. One currency: checks/core/one_currency.sql stops the night otherwise.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), m.batch_id, 0) AS upto_batch_id,
    m.mart IS NULL AS is_full
FROM (SELECT 'member_days' AS mart) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

-- A platform may leave the buyer out of a refund; the order knows it.
DROP VIEW IF EXISTS pg_temp.money_back;
CREATE TEMPORARY VIEW money_back AS
SELECT r.identity_id, r.settled_at, r.refund_amount
FROM core.refunds AS r
WHERE r.is_money AND r.identity_id IS NOT NULL
UNION ALL
SELECT o.identity_id, r.settled_at, r.refund_amount
FROM core.refunds AS r
JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
WHERE r.is_money AND r.identity_id IS NULL AND o.identity_id IS NOT NULL;

-- The first time: one pass over everything, written in the order of the key.
DELETE FROM mart.member_days AS m WHERE (SELECT k.is_full FROM mark AS k);
SET LOCAL enable_hashagg = off;  -- nearly every row is a group of its own: one sort does both, a hash table of that size spills first
INSERT INTO mart.member_days (member_id, day, order_count, gross_amount, refund_amount, net_amount)
SELECT
    f.member_id, f.day, sum(f.order_count), sum(f.gross_amount), sum(f.refund_amount), sum(f.gross_amount) - sum(f.refund_amount)
FROM (
    SELECT mi.member_id, o.paid_at::date AS day, 1 AS order_count, o.goods_amount AS gross_amount, 0 AS refund_amount
    FROM core.orders AS o
    JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
    WHERE o.is_paid AND o.paid_at < (%(business_date)s::date + 1)::timestamptz
    UNION ALL
    SELECT mi.member_id, b.settled_at::date, 0, 0, b.refund_amount
    FROM money_back AS b
    JOIN core.member_identities AS mi ON mi.identity_id = b.identity_id
    WHERE b.settled_at < (%(business_date)s::date + 1)::timestamptz
) AS f
WHERE (SELECT k.is_full FROM mark AS k)
GROUP BY f.member_id, f.day
ORDER BY f.member_id ASC, f.day ASC;
SET LOCAL enable_hashagg = on;

-- Later: the days that somebody touched, all days of people who merged or split, and the days since the last night.
DROP TABLE IF EXISTS pg_temp.whole_members;
CREATE TEMPORARY TABLE whole_members ON COMMIT DROP AS
SELECT DISTINCT t.member_id
FROM mart.touched_members AS t
CROSS JOIN mark AS k
WHERE t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id AND t.day = '-infinity';
ANALYZE whole_members;

DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT x.member_id, x.day
FROM (
    SELECT t.member_id, t.day
    FROM mart.touched_members AS t
    CROSS JOIN mark AS k
    WHERE t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id AND isfinite(t.day)
    UNION
    SELECT m.member_id, m.day FROM whole_members AS w JOIN mart.member_days AS m ON m.member_id = w.member_id
    UNION
    SELECT mi.member_id, o.paid_at::date
    FROM whole_members AS w
    JOIN core.member_identities AS mi ON mi.member_id = w.member_id
    JOIN core.orders AS o ON o.identity_id = mi.identity_id
    WHERE o.is_paid
    UNION
    SELECT mi.member_id, b.settled_at::date
    FROM whole_members AS w
    JOIN core.member_identities AS mi ON mi.member_id = w.member_id
    JOIN money_back AS b ON b.identity_id = mi.identity_id
    UNION
    SELECT mi.member_id, o.paid_at::date
    FROM mark AS k
    JOIN core.orders AS o ON o.paid_at >= (k.since + 1)::timestamptz AND o.paid_at < (k.horizon + 1)::timestamptz AND o.is_paid
    JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
    UNION
    SELECT mi.member_id, b.settled_at::date
    FROM mark AS k
    JOIN money_back AS b ON b.settled_at >= (k.since + 1)::timestamptz AND b.settled_at < (k.horizon + 1)::timestamptz
    JOIN core.member_identities AS mi ON mi.identity_id = b.identity_id
) AS x
CROSS JOIN mark AS q
WHERE NOT q.is_full AND x.day <= q.horizon;
ANALYZE scope;

DROP TABLE IF EXISTS pg_temp.new_days;
CREATE TEMPORARY TABLE new_days ON COMMIT DROP AS
SELECT
    f.member_id, f.day, sum(f.order_count) AS order_count, sum(f.gross_amount) AS gross_amount, sum(f.refund_amount) AS refund_amount
FROM (
    SELECT s.member_id, s.day, 1 AS order_count, o.goods_amount AS gross_amount, 0 AS refund_amount
    FROM scope AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    JOIN core.orders AS o
        ON o.identity_id = mi.identity_id AND o.paid_at >= s.day::timestamptz AND o.paid_at < (s.day + 1)::timestamptz
    WHERE o.is_paid
    UNION ALL
    SELECT s.member_id, s.day, 0, 0, b.refund_amount
    FROM scope AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    JOIN money_back AS b ON b.identity_id = mi.identity_id
    WHERE b.settled_at >= s.day::timestamptz AND b.settled_at < (s.day + 1)::timestamptz
) AS f
GROUP BY f.member_id, f.day;
ANALYZE new_days;

DELETE FROM mart.member_days AS m
USING scope AS s
WHERE
    m.member_id = s.member_id AND m.day = s.day
    AND NOT EXISTS (SELECT 1 FROM new_days AS n WHERE n.member_id = m.member_id AND n.day = m.day);

INSERT INTO mart.member_days (member_id, day, order_count, gross_amount, refund_amount, net_amount)
SELECT n.member_id, n.day, n.order_count, n.gross_amount, n.refund_amount, n.gross_amount - n.refund_amount
FROM new_days AS n
ORDER BY n.member_id ASC, n.day ASC
ON CONFLICT (member_id, day) DO UPDATE SET
    order_count = excluded.order_count,
    gross_amount = excluded.gross_amount,
    refund_amount = excluded.refund_amount,
    net_amount = excluded.net_amount
WHERE
    (member_days.order_count, member_days.gross_amount, member_days.refund_amount)
    IS DISTINCT FROM (excluded.order_count, excluded.gross_amount, excluded.refund_amount);

INSERT INTO mart.marks (mart, business_date, batch_id)
SELECT 'member_days', k.horizon, k.upto_batch_id FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), computed_at = clock_timestamp()
WHERE (marks.business_date, marks.batch_id) IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id));
