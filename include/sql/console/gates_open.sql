-- Checks of a business date that did not pass when they last ran.
-- Grain: one row per gate, table and check (and run, for the laws of a campaign).   Params: business_date (date).
-- Reads: ops.gate_results
WITH
latest AS (
    SELECT DISTINCT ON (g.gate, g.table_name, g.check_name, CASE WHEN g.gate = 'campaign' THEN g.run_id END)
        g.gate, g.table_name, g.check_name, g.severity, g.is_passed, g.observed, g.message, g.run_id, g.checked_at
    FROM ops.gate_results AS g
    WHERE g.business_date = %(business_date)s::date
    ORDER BY
        g.gate ASC, g.table_name ASC, g.check_name ASC,
        CASE WHEN g.gate = 'campaign' THEN g.run_id END ASC, g.checked_at DESC, g.result_id DESC
)
SELECT l.gate, l.table_name, l.check_name, l.severity, l.observed, l.message, l.run_id, l.checked_at
FROM latest AS l
WHERE NOT l.is_passed
ORDER BY l.severity ASC, l.gate ASC, l.table_name ASC, l.check_name ASC;
