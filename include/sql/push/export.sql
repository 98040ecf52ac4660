-- core.exposures, core.message_events ('accepted'), core.coupon_events ('issued'): what a live run did, as facts for the marts.
-- Params: run_id, channels, costs (arrays, same order), attribution_days.
-- Reads: push.campaign_runs, push.audiences, push.messages, push.coupons, push.coupon_stocks.   Rerun: safe.
-- Everybody's attribution window begins when the run's first message was accepted, the hold-out's too: both arms are
-- measured over the same stretch, and members whose message failed stay in the treatment arm (intention to treat).
INSERT INTO core.exposures AS x (
    run_id, member_id, step, campaign, arm, variant, channel, purpose, message_key, group_key, coupon_request, cost_amount,
    as_of, exposed_at, attribution_until
)
WITH
run AS (
    SELECT r.run_id, r.campaign, r.as_of, r.config -> 'campaign' ->> 'purpose' AS purpose, first_message.accepted_at AS exposed_at
    FROM push.campaign_runs AS r
    JOIN LATERAL (
        SELECT min(m.accepted_at) AS accepted_at
        FROM push.messages AS m
        WHERE m.run_id = r.run_id
    ) AS first_message ON first_message.accepted_at IS NOT NULL
    WHERE r.run_id = %(run_id)s::text AND r.mode = 'live'
)
SELECT
    a.run_id, a.member_id, coalesce(m.step, 'send'), r.campaign, a.arm, a.variant, m.channel, r.purpose, m.message_key,
    m.group_key, m.coupon_request,
    CASE WHEN m.state IN ('accepted', 'delivered', 'unknown')
        THEN (%(costs)s::numeric[])[array_position(%(channels)s::text[], m.channel)] * m.billed_parts ELSE 0 END,
    r.as_of, r.exposed_at, r.exposed_at + make_interval(days => %(attribution_days)s::integer)
FROM push.audiences AS a
JOIN run AS r ON r.run_id = a.run_id
LEFT JOIN push.messages AS m ON m.run_id = a.run_id AND m.member_id = a.member_id
WHERE a.state = 'holdout' OR (a.state = 'targeted' AND m.state NOT IN ('queued', 'sending', 'cancelled'))
ON CONFLICT (run_id, member_id, step) DO UPDATE
SET channel = excluded.channel, cost_amount = excluded.cost_amount, exposed_at = excluded.exposed_at,
    attribution_until = excluded.attribution_until
WHERE (x.channel, x.cost_amount, x.exposed_at, x.attribution_until)
    IS DISTINCT FROM (excluded.channel, excluded.cost_amount, excluded.exposed_at, excluded.attribution_until);

INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at)
SELECT m.account, coalesce(m.platform_message_id, m.message_key), coalesce(m.group_key, m.message_key), 'accepted', min(m.accepted_at)
FROM push.messages AS m
JOIN push.campaign_runs AS r ON r.run_id = m.run_id AND r.mode = 'live'
WHERE m.run_id = %(run_id)s::text AND m.accepted_at IS NOT NULL
GROUP BY m.account, coalesce(m.platform_message_id, m.message_key), coalesce(m.group_key, m.message_key)
ON CONFLICT (source_id, event_id) DO NOTHING;

INSERT INTO core.coupon_events (issuer, platform_coupon_id, kind, coupon_request, member_id, face_amount, occurred_at)
SELECT s.issuer, c.platform_coupon_id, 'issued', c.request_key, c.member_id, s.face_amount, c.issued_at
FROM push.coupons AS c
JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id
JOIN push.campaign_runs AS r ON r.run_id = c.run_id AND r.mode = 'live'
WHERE c.run_id = %(run_id)s::text AND c.state IN ('issued', 'redeemed', 'expired') AND c.platform_coupon_id IS NOT NULL
ON CONFLICT (issuer, platform_coupon_id, kind) DO NOTHING;
