-- Why did a member get a campaign, or not? Newest run first; `facts` is what the gates saw, `config` what the run froze.
-- Grain: one row per run of the campaign and step.   Params: campaign, member_id.
-- Reads: push.campaign_runs, push.audiences, push.messages, core.members
-- A member merged into another one is looked up under every id it has had.
WITH
selves AS (
    SELECT %(member_id)s::bigint AS member_id
    UNION
    SELECT m.absorbed_by FROM core.members AS m WHERE m.member_id = %(member_id)s::bigint AND m.absorbed_by IS NOT NULL
    UNION
    SELECT m.member_id FROM core.members AS m WHERE m.absorbed_by = %(member_id)s::bigint
)
SELECT
    r.run_id, r.mode, r.as_of, coalesce(a.state, 'not in the segment') AS state, a.reason, a.arm, a.variant, a.channel, a.language,
    m.state AS message_state, m.last_error, push.audience_facts(a) AS facts, r.config
FROM push.campaign_runs AS r
LEFT JOIN push.audiences AS a ON a.run_id = r.run_id AND a.member_id IN (SELECT s.member_id FROM selves AS s)
LEFT JOIN push.messages AS m ON m.run_id = r.run_id AND m.member_id = a.member_id
WHERE r.campaign = %(campaign)s::text
ORDER BY r.created_at DESC, r.run_id DESC, m.message_id DESC;
