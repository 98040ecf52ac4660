-- How many members of a run are in which state, for which reason, in which arm, on which channel, in which language.
-- Grain: one row per combination.   Params: run_id.   Reads: push.audiences
SELECT
    a.state, a.reason, a.variant, a.channel, a.language,
    a.state = 'targeted' AND a.facts ->> 'openid' IS NOT NULL AS can_have_coupon,
    count(*) AS member_count,
    min(a.member_id) AS first_member_id
FROM push.audiences AS a
WHERE a.run_id = %(run_id)s::text
GROUP BY a.state, a.reason, a.variant, a.channel, a.language, can_have_coupon
ORDER BY a.state, a.reason, a.variant, a.channel, a.language, can_have_coupon;
