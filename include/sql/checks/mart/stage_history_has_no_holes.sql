-- Every stretch of a member's way begins where the one before it ends, in the stage it came from, and the last one is open.
-- Table: mart.member_stages. Severity: fail.
-- Params: none.
-- Reads: mart.member_stages
WITH
neighbours AS (
    SELECT
        s.valid_from,
        s.valid_to,
        s.previous_stage,
        lag(s.valid_to) OVER w AS previous_to,
        lag(s.stage) OVER w AS stage_before,
        lead(s.valid_from) OVER w AS next_from
    FROM mart.member_stages AS s
    WINDOW w AS (PARTITION BY s.member_id ORDER BY s.valid_from ASC)
)
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' stretches with a hole, an overlap or a wrong previous stage before them, or an end behind them' AS observed
FROM neighbours AS n
WHERE
    n.previous_stage IS DISTINCT FROM n.stage_before
    OR (n.stage_before IS NOT NULL AND n.valid_from IS DISTINCT FROM n.previous_to)
    OR (n.next_from IS NULL AND n.valid_to IS NOT NULL);
