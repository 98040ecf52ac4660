-- How many coupons a run still has to reserve: targeted members with an openid who have none from it yet.
-- Grain: one row.   Params: run_id.   Reads: push.audiences, push.coupons
SELECT count(*) AS needed_count
FROM push.audiences AS a
WHERE a.run_id = %(run_id)s::text AND a.state = 'targeted' AND a.facts ->> 'openid' IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM push.coupons AS c WHERE c.run_id = a.run_id AND c.member_id = a.member_id);
