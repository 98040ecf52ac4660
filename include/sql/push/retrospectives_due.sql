-- Runs whose attribution window was over in the marts of the last night, and whose retrospective report is not made yet.
-- Grain: one row per run.   Params: none.   Reads: push.campaign_runs, push.retrospectives, mart.campaign_results
SELECT r.run_id
FROM push.campaign_runs AS r
JOIN mart.campaign_results AS c ON c.run_id = r.run_id AND c.is_window_closed
WHERE r.mode = 'live' AND r.state = 'finished'
  AND NOT EXISTS (SELECT FROM push.retrospectives AS p WHERE p.run_id = r.run_id)
ORDER BY r.as_of ASC, r.run_id ASC;
