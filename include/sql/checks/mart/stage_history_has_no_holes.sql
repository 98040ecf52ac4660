-- Every stretch of a member's way begins where the one before it ends, in the stage it came from, and the last one is open.
-- Table: mart.member_stages. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: mart.member_stages, mart.touched_members, core.members
-- Judged are the members that the night touched, and every 91st in turn, so that everybody comes round in a quarter; with is_full all.
WITH
scope AS (
    SELECT t.member_id FROM mart.touched_members AS t WHERE NOT %(is_full)s::boolean
    UNION
    SELECT m.member_id FROM core.members AS m WHERE mod(m.member_id, 91) = mod(%(business_date)s::date - '2000-01-01'::date, 91)
    UNION
    SELECT x.member_id FROM mart.member_stages AS x WHERE %(is_full)s::boolean
),
neighbours AS (
    SELECT
        s.valid_from,
        s.valid_to,
        s.previous_stage,
        lag(s.valid_to) OVER w AS previous_to,
        lag(s.stage) OVER w AS stage_before,
        lead(s.valid_from) OVER w AS next_from
    FROM scope AS q
    JOIN mart.member_stages AS s ON s.member_id = q.member_id
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
