-- How the members of a run were split: held out, by variant, and left out by the size limit after the draw.
-- Grain: one row per arm and variant.   Params: run_id (text).   Reads: push.audiences
SELECT
    CASE WHEN a.reason = 'over_size_limit' THEN 'cut' ELSE a.arm END AS arm,
    coalesce(a.variant, '') AS variant,
    count(*) AS member_count
FROM push.audiences AS a
WHERE a.run_id = %(run_id)s::text AND (a.state <> 'excluded' OR a.reason = 'over_size_limit')
GROUP BY CASE WHEN a.reason = 'over_size_limit' THEN 'cut' ELSE a.arm END, coalesce(a.variant, '')
ORDER BY arm ASC, variant ASC;
