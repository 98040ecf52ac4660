-- Every stretch of a member's tier history begins where the one before it ends, in the tier it came from.
-- Table: mart.member_tiers. Severity: fail.
-- Params: none.
-- Reads: mart.member_tiers
WITH
neighbours AS (
    SELECT
        t.valid_from,
        t.previous_tier,
        t.kind,
        lag(t.valid_to) OVER w AS previous_to,
        lag(t.tier) OVER w AS tier_before,
        row_number() OVER w AS position
    FROM mart.member_tiers AS t
    WINDOW w AS (PARTITION BY t.member_id, t.programme ORDER BY t.valid_from ASC)
)
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' stretches with a hole, an overlap or a wrong previous tier before them' AS observed
FROM neighbours AS n
WHERE
    -- who only ever had a granted tier has none between two grants
    (n.previous_tier IS NOT NULL OR n.kind <> 'grant')
    AND (n.previous_tier IS DISTINCT FROM n.tier_before OR (n.position > 1 AND n.valid_from IS DISTINCT FROM n.previous_to));
