-- Business dates whose quality gates have run, newest first.
-- Grain: one row per business date.   Params: limit_rows (int).   Reads: ops.gate_results
-- A business date's night is the 24 hours after its end: what was loaded, sent and answered then belongs to it.
SELECT DISTINCT g.business_date
FROM ops.gate_results AS g
WHERE g.gate IN ('core', 'mart')
ORDER BY g.business_date DESC
LIMIT %(limit_rows)s::int;
