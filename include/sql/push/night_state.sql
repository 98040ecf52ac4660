-- Is the data of a business date fit to act on? The newest result of every check of the core, mart and push gates counts.
-- Grain: one row.   Params: business_date.   Reads: ops.gate_results
WITH
latest AS (
    SELECT DISTINCT ON (g.gate, g.table_name, g.check_name) g.gate, g.table_name, g.check_name, g.severity, g.is_passed
    FROM ops.gate_results AS g
    WHERE g.business_date = %(business_date)s::date AND g.gate IN ('core', 'mart', 'push')
    ORDER BY g.gate ASC, g.table_name ASC, g.check_name ASC, g.result_id DESC
)
SELECT
    count(*) FILTER (WHERE gate = 'mart') AS checked_count,
    string_agg(table_name || ': ' || check_name, ', ' ORDER BY table_name, check_name)
        FILTER (WHERE severity = 'fail' AND NOT is_passed) AS failed_checks
FROM latest;
