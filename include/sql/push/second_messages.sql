-- push.messages: a second message over the next channel for members whose first one was accepted and then never heard of, or was
-- reported as not delivered. Only campaigns that ask for it (fallback in their file), only before the run expires, and not for people who
-- have withdrawn any consent since: they have heard of us.
-- Grain: one row per member and run, once.   Params: now_at, reporting (channels that report delivery), step, second_step, house_zone.
-- Reads: push.campaign_runs, push.messages, core.message_events, core.members, core.member_identities, core.consents.
-- Rerun: safe; a message key stands once.
WITH
run AS (
    SELECT
        r.run_id,
        make_interval(mins => (r.config -> 'campaign' -> 'fallback' ->> 'no_receipt_after_minutes')::integer) AS patience,
        (r.config -> 'campaign' -> 'send_window' ->> 'opens')::time AS opens,
        (r.config -> 'campaign' -> 'send_window' ->> 'closes')::time AS closes
    FROM push.campaign_runs AS r
    WHERE r.state IN ('sending', 'sent') AND r.expires_at > %(now_at)s::timestamptz
      AND r.config -> 'campaign' -> 'fallback' ->> 'no_receipt_after_minutes' IS NOT NULL
),
added AS (
    INSERT INTO push.messages (
        message_key, run_id, member_id, step, channel, account, purpose, address, template, language, variant, variables,
        coupon_request, routes, time_zone, not_before, expires_at, queued_at, updated_at
    )
    SELECT
        m.message_key || '/2', m.run_id, m.member_id, %(second_step)s::text, m.routes -> 0 ->> 'channel', m.routes -> 0 ->> 'account',
        m.purpose, m.routes -> 0 ->> 'address', m.template, m.language, m.variant, m.variables, m.coupon_request, m.routes - 0, m.time_zone,
        push.next_opening(%(now_at)s::timestamptz, r.opens, r.closes, coalesce(m.time_zone, %(house_zone)s::text)),
        m.expires_at, %(now_at)s::timestamptz, %(now_at)s::timestamptz
    FROM run AS r
    JOIN push.messages AS m ON m.run_id = r.run_id AND m.step = %(step)s::text
    WHERE jsonb_array_length(m.routes) > 0 AND m.expires_at > %(now_at)s::timestamptz
      AND m.channel = any(%(reporting)s::text[]) AND m.accepted_at <= %(now_at)s::timestamptz - r.patience
      AND m.state IN ('accepted', 'failed')
      AND NOT EXISTS (
          SELECT 1 FROM core.message_events AS e
          WHERE e.message_key = m.message_key AND e.kind IN ('delivered', 'opened', 'clicked', 'unsubscribed', 'complained')
      )
      AND NOT EXISTS (   -- the event of a click on "unsubscribe" comes with the night, the consent at once
          SELECT 1
          FROM core.members AS p
          JOIN core.member_identities AS mi ON mi.member_id = coalesce(p.absorbed_by, p.member_id)
          JOIN core.consents AS c ON c.identity_id = mi.identity_id
          WHERE p.member_id = m.member_id AND NOT c.is_granted AND c.occurred_at >= m.accepted_at
      )
    ON CONFLICT (message_key) DO NOTHING
    RETURNING run_id
),
reopened AS (
    UPDATE push.campaign_runs AS c SET state = 'sending'
    WHERE c.state = 'sent' AND c.run_id IN (SELECT a.run_id FROM added AS a)
)
SELECT a.run_id, count(*) AS message_count FROM added AS a GROUP BY a.run_id ORDER BY a.run_id;
