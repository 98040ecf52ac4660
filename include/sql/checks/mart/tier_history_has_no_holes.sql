-- Every stretch of a member's tier history begins where the one before it ends, in the tier it came from, and the last one is open.
-- Table: mart.member_tiers. Severity: fail.
-- Params: none.
-- Reads: mart.member_tiers
WITH
neighbours AS (
    SELECT
        t.valid_from,
        t.valid_to,
        t.previous_tier,
        t.kind,
        lag(t.valid_to) OVER w AS previous_to,
        lag(t.tier) OVER w AS tier_before,
        lag(t.kind) OVER w AS kind_before,
        lead(t.valid_from) OVER w AS next_from
    FROM mart.member_tiers AS t
    WINDOW w AS (PARTITION BY t.member_id, t.programme ORDER BY t.valid_from ASC)
)
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' stretches with a hole, an overlap or a wrong previous tier before them, or an end behind them' AS observed
FROM neighbours AS n
WHERE
    -- a grant that ends where nothing was earned yet leaves no tier
    CASE
        WHEN n.previous_tier IS NULL AND n.kind_before = 'grant' THEN n.previous_to IS NULL OR n.previous_to >= n.valid_from
        ELSE n.previous_tier IS DISTINCT FROM n.tier_before OR (n.tier_before IS NOT NULL AND n.valid_from IS DISTINCT FROM n.previous_to)
    END
    OR (n.next_from IS NULL AND n.valid_to IS NOT NULL AND n.kind <> 'grant');
