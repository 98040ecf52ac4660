-- How held-out members of a run were reached all the same inside its attribution window, as far as we know today: what the laws of
-- the run (push/laws.sql) cannot see, because who is who and what others send becomes known later.
-- Grain: one row; `ways` is a list of {way, channel, holdout_count, treated_count}, people each.   Params: run_id.
-- Reads: core.exposures, core.members, core.member_identities, core.identities, core.interactions, push.messages,
--   push.campaign_runs
-- Ways: shared_address = a message of this run went to an address that is theirs; same_campaign = another run of the campaign;
-- other_campaign = another campaign's marketing (it reaches both arms: compare them); passed_on = they opened a link of this run that
-- somebody passed on; two_names = held out under one name and treated under another, which turned out to be one person.
WITH
run AS (
    SELECT
        r.run_id, r.campaign,
        (SELECT min(e.exposed_at) FROM core.exposures AS e WHERE e.run_id = r.run_id) AS since,
        (SELECT max(e.attribution_until) FROM core.exposures AS e WHERE e.run_id = r.run_id) AS until
    FROM push.campaign_runs AS r
    WHERE r.run_id = %(run_id)s::text
),
people AS (   -- who was treated under one name and held out under another was treated, as in mart.campaign_funnels
    SELECT coalesce(p.absorbed_by, x.member_id) AS member_id, max(x.arm) AS arm, count(DISTINCT x.arm) AS arm_count
    FROM core.exposures AS x
    LEFT JOIN core.members AS p ON p.member_id = x.member_id
    WHERE x.run_id = %(run_id)s::text
    GROUP BY coalesce(p.absorbed_by, x.member_id)
),
sent AS (   -- everything that went out inside the window, and to which members of the run: by name and by address
    SELECT m.message_id, m.run_id, m.channel, coalesce(p.absorbed_by, m.member_id) AS member_id, m.address
    FROM run AS r
    JOIN push.messages AS m ON m.accepted_at >= r.since AND m.accepted_at < r.until AND m.purpose = 'marketing'
    LEFT JOIN core.members AS p ON p.member_id = m.member_id
),
received AS (
    SELECT s.message_id, s.run_id, s.channel, s.member_id FROM sent AS s
    UNION
    SELECT s.message_id, s.run_id, s.channel, mi.member_id
    FROM sent AS s
    JOIN core.identities AS i
        ON i.value = s.address AND i.kind IN ('wechat_openid', 'email', 'phone', 'mall_id', 'wecom_external_id')
    JOIN core.member_identities AS mi ON mi.identity_id = i.identity_id
),
reached AS (
    SELECT
        CASE
            WHEN x.run_id = r.run_id THEN 'shared_address'
            WHEN o.campaign = r.campaign THEN 'same_campaign'
            ELSE 'other_campaign'
        END AS way,
        x.channel, p.member_id, p.arm
    FROM received AS x
    CROSS JOIN run AS r
    JOIN people AS p ON p.member_id = x.member_id
    JOIN push.campaign_runs AS o ON o.run_id = x.run_id AND o.mode = 'live'
    WHERE x.run_id <> r.run_id OR p.arm = 'holdout'
    UNION ALL
    SELECT 'passed_on', coalesce(m.channel, 'link'), p.member_id, p.arm
    FROM people AS p
    JOIN core.member_identities AS mi ON mi.member_id = p.member_id
    JOIN core.interactions AS i ON i.identity_id = mi.identity_id AND i.kind = 'click'
    JOIN push.messages AS m ON m.message_key = i.message_key AND m.run_id = %(run_id)s::text
    CROSS JOIN run AS r
    WHERE p.arm = 'holdout' AND i.occurred_at < r.until
    UNION ALL
    SELECT 'two_names', '', p.member_id, p.arm
    FROM people AS p
    WHERE p.arm_count > 1
),
counted AS (
    SELECT
        x.way, x.channel,
        count(DISTINCT x.member_id) FILTER (WHERE x.arm = 'holdout') AS holdout_count,
        count(DISTINCT x.member_id) FILTER (WHERE x.arm = 'treatment') AS treated_count
    FROM reached AS x
    GROUP BY x.way, x.channel
)
SELECT coalesce(
    jsonb_agg(
        jsonb_build_object(
            'way', c.way, 'channel', c.channel, 'holdout_count', c.holdout_count, 'treated_count', c.treated_count
        )
        ORDER BY c.way ASC, c.channel ASC
    ),
    '[]'
) AS ways
FROM counted AS c;
