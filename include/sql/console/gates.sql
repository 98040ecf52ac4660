-- Results of the quality gates and laws of a business date, by gate; of repeated checks the latest counts.
-- Grain: one row per gate.   Params: business_date (date).   Reads: ops.gate_results
WITH
latest AS (
    SELECT DISTINCT ON (g.gate, g.table_name, g.check_name, CASE WHEN g.gate = 'campaign' THEN g.run_id END)
        g.gate, g.severity, g.is_passed, g.checked_at
    FROM ops.gate_results AS g
    WHERE g.business_date = %(business_date)s::date
    ORDER BY
        g.gate ASC, g.table_name ASC, g.check_name ASC,
        CASE WHEN g.gate = 'campaign' THEN g.run_id END ASC, g.checked_at DESC, g.result_id DESC
)
SELECT
    l.gate,
    count(*) AS check_count,
    count(*) FILTER (WHERE l.is_passed) AS passed_count,
    count(*) FILTER (WHERE NOT l.is_passed AND l.severity = 'fail') AS failed_count,
    count(*) FILTER (WHERE NOT l.is_passed AND l.severity = 'warn') AS warned_count,
    max(l.checked_at) AS checked_at
FROM latest AS l
GROUP BY l.gate
ORDER BY array_position(ARRAY['core', 'mart', 'push', 'campaign'], l.gate) ASC, l.gate ASC;
