-- The laws that were checked since a day: in how many runs, with what came out; of repeated checks of a run the latest counts.
-- Grain: one row per law.   Params: first_day (date).   Reads: ops.gate_results, push.audiences
WITH
latest AS (
    SELECT DISTINCT ON (g.run_id, g.check_name) g.run_id, g.check_name, g.is_passed, g.observed, g.checked_at, g.result_id
    FROM ops.gate_results AS g
    WHERE g.gate = 'campaign' AND g.business_date >= %(first_day)s::date
    ORDER BY g.run_id ASC, g.check_name ASC, g.checked_at DESC, g.result_id DESC
),
sized AS (
    SELECT l.run_id, (SELECT count(*) FROM push.audiences AS a WHERE a.run_id = l.run_id) AS member_count
    FROM (SELECT DISTINCT run_id FROM latest) AS l
)
SELECT
    l.check_name AS law,
    count(*) AS run_count,
    count(*) FILTER (WHERE l.is_passed) AS kept_count,
    -- of the broken one, else of the largest run
    (array_agg(l.observed ORDER BY l.is_passed ASC, s.member_count DESC, l.result_id DESC))[1] AS observed
FROM latest AS l
JOIN sized AS s ON s.run_id = l.run_id
GROUP BY l.check_name
ORDER BY bool_and(l.is_passed) ASC, min(l.result_id) ASC;
