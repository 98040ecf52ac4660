-- Why did a member get a campaign, or not? Newest run first; `facts` is what the gates saw.
-- Grain: one row per run of the campaign.   Params: campaign, member_id.   Reads: push.campaign_runs, push.audiences, push.messages
SELECT
    r.run_id, r.mode, r.as_of, coalesce(a.state, 'not in the segment') AS state, a.reason, a.arm, a.variant, a.channel,
    m.state AS message_state, m.last_error, a.facts
FROM push.campaign_runs AS r
LEFT JOIN push.audiences AS a ON a.run_id = r.run_id AND a.member_id = %(member_id)s::bigint
LEFT JOIN push.messages AS m ON m.run_id = r.run_id AND m.member_id = %(member_id)s::bigint
WHERE r.campaign = %(campaign)s::text
ORDER BY r.created_at DESC, r.run_id DESC;
