-- Every check of the gates between layers with its state in the last nights, oldest first; not passed last night comes first.
-- Grain: one row per gate, table and check.   Params: business_date (date), night_count (int).   Reads: ops.gate_results
-- A state is passed, warn, fail, or NULL where the check did not run; of repeated runs of a night the latest counts.
WITH
nights AS (
    SELECT DISTINCT g.business_date
    FROM ops.gate_results AS g
    WHERE g.gate IN ('core', 'mart') AND g.business_date <= %(business_date)s::date
    ORDER BY g.business_date DESC
    LIMIT %(night_count)s::int
),
latest AS (
    SELECT DISTINCT ON (g.business_date, g.gate, g.table_name, g.check_name)
        g.business_date, g.gate, g.table_name, g.check_name, g.observed, g.checked_at,
        CASE WHEN g.is_passed THEN 'passed' ELSE g.severity END AS state
    FROM nights AS n
    JOIN ops.gate_results AS g ON g.business_date = n.business_date
    WHERE g.gate IN ('core', 'mart')
    ORDER BY
        g.business_date ASC, g.gate ASC, g.table_name ASC, g.check_name ASC, g.checked_at DESC, g.result_id DESC
),
checks AS (SELECT DISTINCT l.gate, l.table_name, l.check_name FROM latest AS l)
SELECT
    c.gate, c.table_name, c.check_name,
    array_agg(n.business_date ORDER BY n.business_date ASC) AS nights,
    array_agg(l.state ORDER BY n.business_date ASC) AS states,
    (array_agg(l.state ORDER BY n.business_date DESC))[1] AS state,
    (array_agg(l.observed ORDER BY n.business_date DESC))[1] AS observed,
    count(*) FILTER (WHERE l.state IN ('warn', 'fail')) AS open_count
FROM checks AS c
CROSS JOIN nights AS n
LEFT JOIN latest AS l
    ON l.business_date = n.business_date AND l.gate = c.gate AND l.table_name = c.table_name AND l.check_name = c.check_name
GROUP BY c.gate, c.table_name, c.check_name
ORDER BY
    array_position(ARRAY['fail', 'warn'], (array_agg(l.state ORDER BY n.business_date DESC))[1]) ASC NULLS LAST,
    count(*) FILTER (WHERE l.state IN ('warn', 'fail')) DESC, c.gate ASC, c.table_name ASC, c.check_name ASC;
