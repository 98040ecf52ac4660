-- Why did this member get, or not get, this campaign: the state it was put in and the facts the gates saw.
-- Grain: one row, or none when the member was not in the segment.   Params: run_id (text), member_id (bigint).
-- Reads: push.audiences, push.messages, push.coupons, core.members
-- A member merged into another one is looked up under both ids. Addresses are not shown, only whether there is one.
SELECT
    a.member_id, a.state, a.reason, a.arm, a.variant, a.channel, a.language,
    (f.facts - ARRAY['openid', 'email', 'address', 'addresses', 'routes']) || jsonb_build_object(
        'has_openid', f.facts ->> 'openid' IS NOT NULL, 'has_email', f.facts -> 'addresses' ->> 'email' IS NOT NULL
    ) AS facts,
    m.message_key, m.step, m.state AS message_state, m.last_error, m.queued_at, m.accepted_at, m.delivered_at,
    m.attempt_count, c.state AS coupon_state
FROM push.audiences AS a
CROSS JOIN LATERAL (SELECT push.audience_facts(a) AS facts) AS f
LEFT JOIN push.messages AS m ON a.run_id = m.run_id AND a.member_id = m.member_id
LEFT JOIN push.coupons AS c ON a.run_id = c.run_id AND a.member_id = c.member_id
WHERE
    a.run_id = %(run_id)s::text
    AND a.member_id IN (
        SELECT %(member_id)s::bigint
        UNION
        SELECT p.absorbed_by FROM core.members AS p WHERE p.member_id = %(member_id)s::bigint
        UNION
        SELECT p.member_id FROM core.members AS p WHERE p.absorbed_by = %(member_id)s::bigint
    )
ORDER BY a.member_id ASC, m.message_id ASC;
