-- Lease due messages of one run and channel to one worker, after asking again whether each may go out now.
-- Grain: one returned row per message that was looked at; only those with state 'sending' are to be sent.
-- Params: run_id, channel, account, family, identity_kind, worker, now_at, lease_until, claim_size, group_key (NULL = single
--   messages), is_repeat (an earlier identical call may have gone out: nothing is asked again, or the receivers would differ),
--   config_hash (of the configuration the worker renders from), implied_consent, cap_messages, cap_since, campaign, campaign_cap,
--   campaign_since, day_limit, day_start, month_limit, month_start, window_hours, window_limit (NULL = no such rule),
--   opens, closes (the send window), house_zone.
-- Reads: core.identities, core.member_identities, core.members, core.consents, core.followers, core.interactions, push.suppressions,
--   push.messages, push.attempts, push.audiences, push.campaign_runs, push.calls_before_restore
-- Members may have become one person, or two, since the audience was built: what went out under any of a person's names counts, one
-- person gets one message of a run, and an address that is somebody else's today is no address.
-- Outside the send window on the receiver's clock a message goes back to wait for it. What its channel may not send any more goes on
-- over the next channel of its routes; what nobody may send ends here.
-- Rerun: safe; rows locked by another worker are skipped.
WITH
picked AS (
    SELECT
        m.message_id, m.message_key, m.member_id, m.step, m.purpose, m.address, m.expires_at, m.run_id, m.routes,
        EXISTS (  -- noqa: CP03,LT01,LT06
            -- an earlier call of this message may have gone out
            SELECT 1 FROM push.attempts AS a WHERE a.message_id = m.message_id AND (a.outcome IS NULL OR a.outcome = 'unknown')
        ) AS is_doubted,
        CASE
            WHEN m.time_zone IS NULL   -- asked once, not of every row
                THEN (SELECT push.next_opening(%(now_at)s::timestamptz, %(opens)s::time, %(closes)s::time, %(house_zone)s::text))
            ELSE push.next_opening(%(now_at)s::timestamptz, %(opens)s::time, %(closes)s::time, m.time_zone)
        END AS opens_at
    FROM push.messages AS m
    WHERE m.state = 'queued' AND m.channel = %(channel)s::text AND m.account = %(account)s::text
      AND m.not_before <= %(now_at)s::timestamptz AND m.run_id = %(run_id)s::text
      -- not IS NOT DISTINCT FROM: the planner takes that for no row at all, and reads the whole table for one claim
      AND (m.group_key = %(group_key)s::text OR (m.group_key IS NULL AND %(group_key)s::text IS NULL))
      AND EXISTS (   -- neither paused, cancelled nor changed
          SELECT 1
          FROM push.campaign_runs AS r
          WHERE r.run_id = %(run_id)s::text AND r.state = 'sending' AND r.paused_at IS NULL AND r.config_hash = %(config_hash)s::text
      )
    ORDER BY m.not_before ASC, m.message_id ASC
    LIMIT %(claim_size)s::integer
    FOR UPDATE SKIP LOCKED
),
person AS (   -- who the address belongs to today, who the member is today, and every member id of that person
    SELECT
        p.*, mi.member_id AS person_id, coalesce(f.absorbed_by, p.member_id) AS today_id,
        array(SELECT n.member_id FROM core.members AS n WHERE n.absorbed_by = mi.member_id) || p.member_id || mi.member_id AS names
    FROM picked AS p
    LEFT JOIN core.identities AS i ON i.kind = %(identity_kind)s::text AND i.value = p.address
    LEFT JOIN core.member_identities AS mi ON mi.identity_id = i.identity_id
    LEFT JOIN core.members AS f ON f.member_id = p.member_id
),
judged AS MATERIALIZED (   -- once: the verdict is asked for several times below
    SELECT
        p.message_id, p.opens_at, p.is_doubted, p.routes,   -- carried along: a join with `picked` would be one of all with all
        CASE
            WHEN p.expires_at <= %(now_at)s::timestamptz THEN 'expired'
            WHEN EXISTS (SELECT 1 FROM push.calls_before_restore AS k WHERE k.message_key = p.message_key)
                THEN 'called before a restore'
            WHEN p.opens_at > %(now_at)s::timestamptz THEN 'outside the send window'
            WHEN %(is_repeat)s::boolean THEN NULL
            WHEN p.person_id <> p.today_id THEN 'no_address'
            WHEN p.person_id <> p.member_id AND EXISTS (
                SELECT 1 FROM push.audiences AS a WHERE a.run_id = p.run_id AND a.member_id = p.person_id AND a.state = 'holdout'
            ) THEN 'holdout'
            WHEN cardinality(p.names) > 2 AND EXISTS (   -- one of two: who was written to, else the survivor, who has the smallest id
                SELECT 1
                FROM push.messages AS o
                WHERE o.member_id = any(p.names) AND o.run_id = p.run_id AND o.step = p.step AND o.message_id <> p.message_id
                  AND (
                      o.state IN ('sending', 'accepted', 'delivered', 'unknown', 'waiting_staff') OR o.accepted_at IS NOT NULL
                      OR (o.state = 'queued' AND o.member_id < p.member_id)
                  )
            ) THEN 'already_reached'
            WHEN %(family)s::text = 'wechat' AND NOT coalesce(
                (SELECT f.is_following FROM core.followers AS f WHERE f.source_id = %(account)s::text AND f.openid = p.address),
                FALSE
            ) THEN 'unfollowed'
            WHEN NOT coalesce(
                CASE WHEN p.purpose = 'service' THEN service.is_granted END, marketing.is_granted, %(implied_consent)s::boolean
            ) THEN 'no_consent'
            WHEN EXISTS (
                SELECT 1 FROM push.suppressions AS x
                WHERE x.channel = %(family)s::text AND x.address = p.address AND x.since <= %(now_at)s::timestamptz
                  AND (x.until IS NULL OR x.until > %(now_at)s::timestamptz)
            ) THEN 'suppressed'
            WHEN %(channel)s::text = 'wechat_subscribe' AND NOT push.may_notify(p.message_id, %(now_at)s::timestamptz)
                THEN 'no_subscription'
            WHEN p.purpose = 'marketing' AND sent.marketing_count >= %(cap_messages)s::integer THEN 'capped'
            WHEN p.purpose = 'marketing' AND own.campaign_count >= %(campaign_cap)s::integer THEN 'campaign_capped'
            WHEN sent.day_count >= %(day_limit)s::integer OR sent.month_count >= %(month_limit)s::integer THEN 'channel_limit'
            WHEN %(window_hours)s::integer IS NOT NULL
                AND NOT coalesce(wrote.wrote_at > %(now_at)s::timestamptz - make_interval(hours => %(window_hours)s::integer), FALSE)
                THEN 'window_closed'
            WHEN sent.window_count >= %(window_limit)s::integer THEN 'channel_limit'
        END AS verdict
    FROM person AS p
    LEFT JOIN LATERAL (
        SELECT c.is_granted
        FROM core.member_identities AS mi
        JOIN core.consents AS c ON c.identity_id = mi.identity_id
        WHERE mi.member_id = p.person_id AND c.channel = %(family)s::text AND c.purpose = 'marketing'
          AND c.occurred_at <= %(now_at)s::timestamptz
        ORDER BY c.ranks_at DESC, c.is_granted ASC
        LIMIT 1
    ) AS marketing ON TRUE
    LEFT JOIN LATERAL (
        SELECT c.is_granted
        FROM core.member_identities AS mi
        JOIN core.consents AS c ON c.identity_id = mi.identity_id
        WHERE mi.member_id = p.person_id AND c.channel = %(family)s::text AND c.purpose = 'service'
          AND c.occurred_at <= %(now_at)s::timestamptz
        ORDER BY c.ranks_at DESC, c.is_granted ASC
        LIMIT 1
    ) AS service ON TRUE
    LEFT JOIN LATERAL (
        SELECT max(i.occurred_at) AS wrote_at
        FROM core.member_identities AS mi
        JOIN core.interactions AS i ON i.identity_id = mi.identity_id AND i.kind = 'message'
        WHERE %(window_hours)s::integer IS NOT NULL AND mi.member_id = p.person_id
          AND i.occurred_at <= %(now_at)s::timestamptz
    ) AS wrote ON TRUE
    LEFT JOIN LATERAL (   -- what is on its way or in doubt counts too
        SELECT
            count(*) FILTER (WHERE o.purpose = 'marketing'
                AND (o.accepted_at >= %(cap_since)s::timestamptz OR o.state IN ('sending', 'unknown', 'waiting_staff'))) AS marketing_count,
            count(*) FILTER (WHERE o.channel = %(channel)s::text
                AND (o.accepted_at >= %(day_start)s::timestamptz OR o.state IN ('sending', 'unknown', 'waiting_staff'))) AS day_count,
            count(*) FILTER (WHERE o.channel = %(channel)s::text
                AND (o.accepted_at >= %(month_start)s::timestamptz OR o.state IN ('sending', 'unknown', 'waiting_staff'))) AS month_count,
            count(*) FILTER (WHERE o.channel = %(channel)s::text
                AND (o.accepted_at >= wrote.wrote_at OR o.state IN ('sending', 'unknown', 'waiting_staff'))) AS window_count
        FROM push.messages AS o
        WHERE o.member_id = any(p.names) AND o.message_id <> p.message_id   -- a first message counts when it is the second's turn
    ) AS sent ON TRUE
    LEFT JOIN LATERAL (   -- of this campaign's other runs
        SELECT count(*) AS campaign_count
        FROM push.messages AS o
        JOIN push.campaign_runs AS r ON r.run_id = o.run_id AND r.campaign = %(campaign)s::text AND r.mode = 'live'
        WHERE %(campaign_cap)s::integer IS NOT NULL AND o.member_id = any(p.names) AND o.run_id <> p.run_id
          AND (o.accepted_at >= %(campaign_since)s::timestamptz OR o.state IN ('sending', 'unknown', 'waiting_staff'))
    ) AS own ON TRUE
)
UPDATE push.messages AS m
SET state = CASE
        WHEN j.verdict IS NULL THEN 'sending'
        WHEN j.verdict = 'outside the send window' OR j.goes_on THEN 'queued'
        -- it may not be repeated, and nobody knows about the first time
        WHEN j.verdict = 'called before a restore' OR j.is_doubted THEN 'unknown'
        WHEN j.verdict = 'expired' THEN 'expired'
        ELSE 'suppressed'
    END,
    channel = CASE WHEN j.goes_on THEN m.routes -> 0 ->> 'channel' ELSE m.channel END,
    account = CASE WHEN j.goes_on THEN m.routes -> 0 ->> 'account' ELSE m.account END,
    address = CASE WHEN j.goes_on THEN m.routes -> 0 ->> 'address' ELSE m.address END,
    routes = CASE WHEN j.goes_on THEN m.routes - 0 ELSE m.routes END,
    group_key = CASE WHEN j.goes_on THEN NULL ELSE m.group_key END,
    not_before = CASE WHEN j.verdict = 'outside the send window' THEN j.opens_at ELSE m.not_before END,
    lease_owner = CASE WHEN j.verdict IS NULL THEN %(worker)s::text END,
    lease_until = CASE WHEN j.verdict IS NULL THEN %(lease_until)s::timestamptz END,
    last_error = coalesce(j.verdict, m.last_error),
    updated_at = %(now_at)s::timestamptz
FROM (
    SELECT
        v.*,
        v.verdict IN ('unfollowed', 'no_address', 'no_consent', 'suppressed', 'no_subscription', 'channel_limit', 'window_closed')
            AND NOT v.is_doubted AND jsonb_array_length(v.routes) > 0 AS goes_on
    FROM judged AS v
) AS j
WHERE m.message_id = j.message_id
RETURNING m.message_id, m.message_key, m.group_key, m.state, m.address, m.template, m.language, m.variables, m.attempt_count,
    m.last_error;
