-- No member's balance, the sum of the ledger, is below zero at the end of any day.
-- Table: mart.points_ledger. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: mart.points_ledger, mart.touched_members, core.members
-- Judged are the members that the night touched, and every 91st in turn, so that everybody comes round in a quarter; with is_full all.
WITH
scope AS (
    SELECT t.member_id FROM mart.touched_members AS t WHERE NOT %(is_full)s::boolean
    UNION
    SELECT m.member_id FROM core.members AS m WHERE mod(m.member_id, 91) = mod(%(business_date)s::date - '2000-01-01'::date, 91)
    UNION
    SELECT x.member_id FROM mart.points_ledger AS x WHERE %(is_full)s::boolean
),
balances AS (
    SELECT l.member_id, sum(l.points) OVER (PARTITION BY l.member_id ORDER BY l.day ASC) AS points
    FROM scope AS q
    JOIN mart.points_ledger AS l ON l.member_id = q.member_id
)
SELECT
    count(DISTINCT b.member_id) = 0 AS is_passed,
    count(DISTINCT b.member_id) || ' members, lowest balance ' || coalesce(min(b.points), 0) AS observed
FROM balances AS b
WHERE b.points < 0;
