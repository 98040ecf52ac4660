-- No member's balance, the sum of the ledger, is below zero at the end of any day.
-- Table: mart.points_ledger. Severity: fail.
-- Params: none.
-- Reads: mart.points_ledger
WITH
balances AS (
    SELECT l.member_id, sum(l.points) OVER (PARTITION BY l.member_id ORDER BY l.day ASC) AS points
    FROM mart.points_ledger AS l
)
SELECT
    count(DISTINCT b.member_id) = 0 AS is_passed,
    count(DISTINCT b.member_id) || ' members, lowest balance ' || coalesce(min(b.points), 0) AS observed
FROM balances AS b
WHERE b.points < 0;
