-- Who is in the campaign now and was not in its last run, and the other way round (targeted or held out).
-- Grain: one row; NULL `against` = there is no earlier run.   Params: run_id, shown (how many member ids to name each way).
-- Reads: push.campaign_runs, push.audiences
WITH
this_run AS (SELECT r.campaign, r.created_at FROM push.campaign_runs AS r WHERE r.run_id = %(run_id)s::text),
last_run AS (
    SELECT r.run_id
    FROM push.campaign_runs AS r
    JOIN this_run AS t ON t.campaign = r.campaign AND r.created_at < t.created_at
    WHERE r.mode <> 'test' AND r.state <> 'building'
    ORDER BY r.created_at DESC, r.run_id DESC
    LIMIT 1
),
now_in AS (SELECT a.member_id FROM push.audiences AS a WHERE a.run_id = %(run_id)s::text AND a.state <> 'excluded'),
then_in AS (SELECT a.member_id FROM push.audiences AS a JOIN last_run AS l ON l.run_id = a.run_id WHERE a.state <> 'excluded'),
entered AS (SELECT n.member_id FROM now_in AS n WHERE NOT EXISTS (SELECT 1 FROM then_in AS t WHERE t.member_id = n.member_id)),
gone AS (SELECT t.member_id FROM then_in AS t WHERE NOT EXISTS (SELECT 1 FROM now_in AS n WHERE n.member_id = t.member_id))
SELECT
    (SELECT l.run_id FROM last_run AS l) AS against,
    (SELECT count(*) FROM entered) AS entered,
    (SELECT count(*) FROM gone) AS left_count,
    array(SELECT e.member_id FROM entered AS e ORDER BY e.member_id LIMIT %(shown)s::integer) AS entered_ids,
    array(SELECT g.member_id FROM gone AS g ORDER BY g.member_id LIMIT %(shown)s::integer) AS left_ids;
