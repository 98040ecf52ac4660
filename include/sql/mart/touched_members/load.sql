-- mart.touched_members, mart.touched_days: what the marts have to look at again, from what was written in core since the last night.
-- Grain: one row per taking, member and day; one row per taking, source and day.
-- Params: business_date (date).
-- Reads: core.touches, core.member_identities, core.orders, mart.marks, mart.touched_members, mart.touched_days
-- Rerun: safe; nothing new, nothing written. Rows that every mart knows are dropped. Before the first marts there is nothing to
-- remember: they compute everything (docs/decisions/0060-nights-touch-what-moved.md).
SELECT pg_advisory_xact_lock(hashtextextended('mart.touched', 0));

DROP TABLE IF EXISTS pg_temp.taken;
CREATE TEMPORARY TABLE taken (kind text, source_id text, identity_id bigint, member_id bigint, day date) ON COMMIT DROP;
-- what happened after the business date waits for its own night
WITH gone AS (
    DELETE FROM core.touches AS t
    WHERE t.day IS NULL OR t.day <= greatest(%(business_date)s::date, (SELECT max(m.business_date) FROM mart.marks AS m))
    RETURNING t.kind, t.source_id, t.identity_id, t.member_id, t.day
)
INSERT INTO taken (kind, source_id, identity_id, member_id, day)
SELECT DISTINCT g.kind, g.source_id, g.identity_id, g.member_id, g.day
FROM gone AS g
WHERE EXISTS (SELECT FROM mart.marks);
ANALYZE taken;

DROP TABLE IF EXISTS pg_temp.taking;
CREATE TEMPORARY TABLE taking ON COMMIT DROP AS
SELECT
    CASE WHEN EXISTS (SELECT FROM taken) THEN nextval('mart.touch_batches') END AS batch_id,
    (SELECT max(m.business_date) FROM mart.marks AS m) AS last_date;

INSERT INTO mart.touched_members (batch_id, member_id, day)
SELECT b.batch_id, t.member_id, t.day
FROM (
    SELECT mi.member_id, CASE WHEN k.kind = 'member' THEN 'infinity' ELSE k.day END AS day
    FROM taken AS k
    JOIN core.member_identities AS mi ON mi.identity_id = k.identity_id
    WHERE k.kind IN ('money', 'refund', 'review', 'status', 'member')
    UNION
    SELECT k.member_id, CASE k.kind WHEN 'member' THEN 'infinity'::date ELSE '-infinity'::date END
    FROM taken AS k
    WHERE k.kind IN ('identity', 'member') AND k.member_id IS NOT NULL
) AS t
CROSS JOIN taking AS b
WHERE t.day IS NOT NULL;

-- Whose purchases count as first or repeated may change on later days: of a late order, of people who merged or split.
DROP TABLE IF EXISTS pg_temp.shifted;
CREATE TEMPORARY TABLE shifted ON COMMIT DROP AS
SELECT s.member_id, min(s.day) AS day
FROM (
    SELECT mi.member_id, k.day
    FROM taken AS k
    CROSS JOIN taking AS b
    JOIN core.member_identities AS mi ON mi.identity_id = k.identity_id
    WHERE k.kind = 'money' AND k.day <= b.last_date
    UNION ALL
    SELECT k.member_id, '-infinity'
    FROM taken AS k
    WHERE
        k.kind = 'identity'
        -- a value that is somebody's for the first time moves nobody
        AND k.identity_id IN (
            SELECT v.identity_id FROM taken AS v WHERE v.kind = 'identity' GROUP BY v.identity_id HAVING count(DISTINCT v.member_id) > 1
        )
) AS s
GROUP BY s.member_id;
ANALYZE shifted;

INSERT INTO mart.touched_days (batch_id, source_id, day)
SELECT b.batch_id, d.source_id, d.day
FROM (
    SELECT k.source_id, k.day FROM taken AS k WHERE k.source_id IS NOT NULL AND k.day IS NOT NULL
    UNION
    SELECT o.source_id, o.paid_at::date
    FROM shifted AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    JOIN core.orders AS o ON o.identity_id = mi.identity_id
    WHERE o.is_paid AND o.paid_at >= s.day::timestamptz
) AS d
CROSS JOIN taking AS b;

DELETE FROM mart.touched_members AS t WHERE t.batch_id <= (SELECT min(m.batch_id) FROM mart.marks AS m);
DELETE FROM mart.touched_days AS t WHERE t.batch_id <= (SELECT min(m.batch_id) FROM mart.marks AS m);
