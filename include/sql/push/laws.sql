-- The laws of a run, as counts of what breaks them (docs/decisions/0034-laws.md).
-- Grain: one row.   Params: run_id, repeatable (channels), first_step, second_step (of a campaign).
-- Reads: push.campaign_runs, push.audiences, push.messages, push.attempts, push.coupons, push.coupon_stocks, push.coupon_codes
WITH
run AS (SELECT r.* FROM push.campaign_runs AS r WHERE r.run_id = %(run_id)s::text),
audience AS (SELECT a.* FROM push.audiences AS a WHERE a.run_id = %(run_id)s::text),
message AS (SELECT m.* FROM push.messages AS m WHERE m.run_id = %(run_id)s::text),
coupon AS (SELECT c.* FROM push.coupons AS c WHERE c.run_id = %(run_id)s::text),
held_address AS (
    SELECT h.address
    FROM audience AS a
    CROSS JOIN LATERAL unnest(ARRAY[a.openid, a.email, a.phone, a.mall_id, a.wecom_id]) AS h (address)
    WHERE a.state = 'holdout' AND h.address IS NOT NULL
),
stock AS (
    SELECT s.stock_id, s.budget_count, count(c.request_key) FILTER (WHERE c.state <> 'released') AS used_count
    FROM push.coupon_stocks AS s
    LEFT JOIN push.coupons AS c ON c.stock_id = s.stock_id
    WHERE s.stock_id IN (SELECT c2.stock_id FROM coupon AS c2)
    GROUP BY s.stock_id, s.budget_count
)
SELECT
    (SELECT count(*) FROM audience) AS segment_count,
    (SELECT count(*) FROM audience WHERE state = 'targeted') AS targeted_count,
    (SELECT count(*) FROM audience WHERE state = 'holdout') AS holdout_count,
    (SELECT count(*) FROM audience WHERE state = 'excluded') AS excluded_count,
    (SELECT count(*) FROM message) AS message_count,
    -- targeted without a message: sent + failed + unknown ... would not add up to the segment
    (SELECT count(*) FROM audience AS a WHERE a.state = 'targeted'
        AND NOT EXISTS (SELECT 1 FROM message AS m WHERE m.member_id = a.member_id)) AS missing_count,
    -- a message for somebody who was held out, excluded or never in the segment
    (SELECT count(*) FROM message AS m
        WHERE NOT EXISTS (SELECT 1 FROM audience AS a WHERE a.member_id = m.member_id AND a.state = 'targeted')) AS forbidden_count,
    -- a held-out member reached by this run at an address they share with somebody
    (SELECT count(*) FROM message AS m WHERE m.address IN (SELECT h.address FROM held_address AS h)) AS leaked_count,
    (
        SELECT count(*)
        FROM (SELECT m.address FROM message AS m GROUP BY m.channel, m.address, m.step HAVING count(*) > 1) AS d
    ) AS same_address_count,
    -- two calls that may both have gone out, on a channel that cannot recognise a repeat
    (SELECT count(*) FROM (
        SELECT t.message_id
        FROM push.attempts AS t
        JOIN message AS m ON m.message_id = t.message_id
        WHERE t.outcome IN ('accepted', 'unknown') AND t.channel <> all(%(repeatable)s::text[])
        GROUP BY t.message_id HAVING count(*) > 1
    ) AS d) AS twice_count,
    -- a second message although the first one was known to have arrived when it was queued (a receipt may come later)
    (SELECT count(*) FROM message AS m
        JOIN message AS f ON f.member_id = m.member_id AND f.step = %(first_step)s::text
        WHERE m.step = %(second_step)s::text
          AND ((f.delivered_at < m.queued_at AND f.updated_at < m.queued_at) OR f.state = 'unknown')) AS needless_count,
    (SELECT count(*) FROM message AS m WHERE m.step = %(second_step)s::text) AS second_count,
    (SELECT count(*) FROM message AS m JOIN run AS r ON m.accepted_at > r.expires_at + interval '1 minute') AS late_count,
    (
        SELECT count(*) FROM message CROSS JOIN run AS r WHERE r.approved_hash IS NULL OR r.approved_hash <> r.content_hash
    ) AS unapproved_count,
    (SELECT count(*) FROM coupon) AS coupon_count,
    (SELECT count(*) FROM coupon WHERE state = 'reserved') AS coupon_reserved_count,
    (SELECT count(*) FROM coupon WHERE state IN ('issued', 'redeemed', 'expired')) AS coupon_issued_count,
    (SELECT count(*) FROM coupon WHERE state = 'issued') AS coupon_open_count,
    (SELECT count(*) FROM coupon WHERE state = 'redeemed') AS coupon_redeemed_count,
    (SELECT count(*) FROM coupon WHERE state = 'expired') AS coupon_expired_count,
    (SELECT count(*) FROM coupon WHERE state = 'released') AS coupon_released_count,
    (SELECT count(*) FROM coupon WHERE state = 'unknown') AS coupon_unknown_count,
    (
        SELECT count(*) FROM coupon
        WHERE (state IN ('issued', 'redeemed', 'expired')) <> (platform_coupon_id IS NOT NULL)
    ) AS coupon_idless_count,
    (SELECT count(*) - count(DISTINCT platform_coupon_id) FROM coupon WHERE platform_coupon_id IS NOT NULL) AS coupon_twice_count,
    -- a coupon that is a code, and is not bound to it; or a code bound to a coupon that nobody was given
    (
        SELECT count(*)
        FROM coupon AS c
        JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id AND s.has_codes
        LEFT JOIN push.coupon_codes AS k ON k.request_key = c.request_key AND k.state = 'bound'
        WHERE k.code_token IS DISTINCT FROM c.platform_coupon_id
    ) AS coupon_codeless_count,
    (SELECT count(*) FROM stock WHERE used_count > budget_count) AS over_budget_count,
    -- a message that promises a coupon its receiver does not have
    (SELECT count(*) FROM message AS m JOIN coupon AS c ON c.request_key = m.coupon_request
        WHERE m.accepted_at IS NOT NULL AND c.state NOT IN ('issued', 'redeemed', 'expired')) AS empty_promise_count;
