-- mart.buyer_firsts: the first day each member paid in each shop, and anywhere: who is new, who came back.
-- Grain: one row per member and source with a paid order; source '' = any of them.
-- Params: business_date (date).
-- Reads: core.orders, core.member_identities, mart.touched_members, mart.buyer_firsts, mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. A night looks at members of whom a day was touched, or is new, that is not
-- behind their first one; without a mark, at everybody. A run for an older date takes nothing back.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    (greatest(%(business_date)s::date, m.business_date) + 1)::timestamptz AS ends_at,
    (m.business_date + 1)::timestamptz AS since_at,
    coalesce(m.batch_id, 0) AS after_batch_id,
    greatest(m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), 0)) AS upto_batch_id,
    m.mart IS NULL AS is_full
FROM (SELECT 'buyer_firsts' AS mart) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

DELETE FROM mart.buyer_firsts AS f WHERE (SELECT k.is_full FROM mark AS k);
INSERT INTO mart.buyer_firsts (member_id, source_id, first_date)
WITH
by_source AS (
    SELECT mi.member_id, o.source_id, min(o.paid_at)::date AS first_date
    FROM core.orders AS o
    JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
    WHERE o.is_paid AND o.paid_at < (SELECT k.ends_at FROM mark AS k) AND (SELECT k.is_full FROM mark AS k)
    GROUP BY mi.member_id, o.source_id
)
SELECT member_id, source_id, first_date FROM by_source
UNION ALL
SELECT member_id, '', min(first_date) FROM by_source GROUP BY member_id
ORDER BY member_id ASC, source_id ASC;

-- People who merged or split; of the others those with an order before, or on, the day we took for their first.
DROP TABLE IF EXISTS pg_temp.touched;
CREATE TEMPORARY TABLE touched ON COMMIT DROP AS
SELECT DISTINCT t.member_id, t.day
FROM mart.touched_members AS t
CROSS JOIN mark AS k
WHERE NOT k.is_full AND t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id AND t.day <= k.horizon;
ANALYZE touched;
-- What they bought on these days: of new days read in one go, of older ones looked up.
DROP TABLE IF EXISTS pg_temp.bought;
CREATE TEMPORARY TABLE bought ON COMMIT DROP AS
SELECT mi.member_id, o.source_id, o.paid_at::date AS day
FROM mark AS k
JOIN core.orders AS o ON o.paid_at >= k.since_at AND o.paid_at < k.ends_at
JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
WHERE o.is_paid
UNION ALL
SELECT t.member_id, o.source_id, t.day
FROM mark AS k
JOIN touched AS t ON t.day > '-infinity' AND t.day::timestamptz < k.since_at
JOIN core.member_identities AS mi ON mi.member_id = t.member_id
JOIN core.orders AS o ON o.identity_id = mi.identity_id AND o.paid_at >= t.day::timestamptz AND o.paid_at < (t.day + 1)::timestamptz
WHERE o.is_paid;
ANALYZE bought;
DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT t.member_id FROM touched AS t WHERE t.day = '-infinity'
UNION
SELECT t.member_id
FROM touched AS t
JOIN mart.buyer_firsts AS f ON f.member_id = t.member_id
WHERE f.first_date = t.day
UNION
SELECT b.member_id
FROM bought AS b
LEFT JOIN mart.buyer_firsts AS f ON f.member_id = b.member_id AND f.source_id = b.source_id
WHERE f.first_date IS NULL OR f.first_date > b.day;
ANALYZE scope;

DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
by_source AS (
    SELECT s.member_id, o.source_id, min(o.paid_at)::date AS first_date
    FROM scope AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    JOIN core.orders AS o ON o.identity_id = mi.identity_id
    WHERE o.is_paid AND o.paid_at < (SELECT k.ends_at FROM mark AS k)
    GROUP BY s.member_id, o.source_id
)
SELECT member_id, source_id, first_date FROM by_source
UNION ALL
SELECT member_id, '', min(first_date) FROM by_source GROUP BY member_id;
ANALYZE fresh;

DELETE FROM mart.buyer_firsts AS f
USING scope AS s
WHERE
    f.member_id = s.member_id
    AND NOT EXISTS (SELECT FROM fresh AS n WHERE n.member_id = f.member_id AND n.source_id = f.source_id);

INSERT INTO mart.buyer_firsts AS f (member_id, source_id, first_date)
SELECT n.member_id, n.source_id, n.first_date
FROM fresh AS n
ON CONFLICT (member_id, source_id) DO UPDATE SET first_date = excluded.first_date
WHERE f.first_date IS DISTINCT FROM excluded.first_date;

INSERT INTO mart.marks (mart, business_date, batch_id)
SELECT 'buyer_firsts', k.horizon, k.upto_batch_id FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, computed_at = clock_timestamp()
WHERE (marks.business_date, marks.batch_id) IS DISTINCT FROM (excluded.business_date, excluded.batch_id);
