-- Every stretch of a member's tier history begins where the one before it ends, in the tier it came from, and the last one is open.
-- Table: mart.member_tiers. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: mart.member_tiers, mart.touched_members, core.members
-- Judged are the members that the night touched, and every 91st in turn, so that everybody comes round in a quarter; with is_full all.
WITH
scope AS (
    SELECT t.member_id FROM mart.touched_members AS t WHERE NOT %(is_full)s::boolean
    UNION
    SELECT m.member_id FROM core.members AS m WHERE mod(m.member_id, 91) = mod(%(business_date)s::date - '2000-01-01'::date, 91)
    UNION
    SELECT x.member_id FROM mart.member_tiers AS x WHERE %(is_full)s::boolean
),
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
    FROM scope AS q
    JOIN mart.member_tiers AS t ON t.member_id = q.member_id
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
