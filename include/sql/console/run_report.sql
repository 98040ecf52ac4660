-- The dry-run report of a run as it was shown to whoever decided: sizes, cost, coupons, differences, samples, findings.
-- Grain: one row, or none.   Params: run_id (text).   Reads: push.campaign_runs
SELECT r.report
FROM push.campaign_runs AS r
WHERE r.run_id = %(run_id)s::text AND r.report IS NOT NULL;
