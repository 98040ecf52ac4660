-- Who is in a state at the end of a month is in it when the next begins, and at the end of the last month stand those of the histories.
-- Table: mart.stage_transitions. Severity: fail.
-- Params: none.
-- Reads: mart.stage_transitions, mart.member_stages, mart.member_tiers, mart.member_rfm, mart.tier_programmes
WITH
newest AS (SELECT max(t.month) AS month FROM mart.stage_transitions AS t),
ends AS (
    SELECT t.about, t.month, t.state_to AS state, sum(t.member_count) AS member_count
    FROM mart.stage_transitions AS t
    WHERE t.state_to <> ''
    GROUP BY t.about, t.month, t.state_to
),
wanted AS (
    SELECT t.about, (t.month - interval '1 month')::date AS month, t.state_from AS state, sum(t.member_count) AS member_count
    FROM mart.stage_transitions AS t
    WHERE t.state_from <> ''
    GROUP BY t.about, t.month, t.state_from
    UNION ALL
    SELECT h.about, n.month, h.state, h.member_count
    FROM newest AS n
    CROSS JOIN (
        SELECT 'stage' AS about, s.stage AS state, count(*) AS member_count
        FROM mart.member_stages AS s
        WHERE s.valid_to IS NULL
        GROUP BY s.stage
        UNION ALL
        SELECT 'tier', t.tier, count(*)
        FROM mart.member_tiers AS t
        WHERE t.valid_to IS NULL AND t.programme = (SELECT p.programme FROM mart.tier_programmes AS p ORDER BY p.position ASC LIMIT 1)
        GROUP BY t.tier
        UNION ALL
        SELECT 'rfm', r.rfm_segment, count(*) FROM mart.member_rfm AS r WHERE r.valid_to IS NULL GROUP BY r.rfm_segment
    ) AS h
)
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' states of months differ' AS observed
FROM ends AS e
FULL JOIN wanted AS w ON w.about = e.about AND w.month = e.month AND w.state = e.state
WHERE e.member_count IS DISTINCT FROM w.member_count;
