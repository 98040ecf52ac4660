-- Business dates the house has worked on, newest first: those with KPIs of a shop or results of a gate.
-- Grain: one row per business date.   Params: limit_rows (int).   Reads: ops.gate_results, mart.member_rfm
-- A business date's night is the 24 hours after its end: what was loaded, sent and answered then belongs to it.
SELECT d.business_date
FROM (
    SELECT g.business_date FROM ops.gate_results AS g WHERE g.gate IN ('core', 'mart')
    UNION
    SELECT r.business_date FROM mart.member_rfm AS r
) AS d
ORDER BY d.business_date DESC
LIMIT %(limit_rows)s::int;
