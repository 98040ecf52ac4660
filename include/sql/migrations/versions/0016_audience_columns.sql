-- What the gates of a campaign saw of a member, as columns: making one JSON object a member of them took a third of an audience's time.
-- docs/decisions/0088-audience-at-size.md. `facts` keeps what the segment said of the member; before this migration it held both.
ALTER TABLE push.audiences
    ADD COLUMN openid text,                  -- the account that followed at the as-of instant
    ADD COLUMN email text,                   -- the address of each family of the campaign, as core.address_kind says; tokens
    ADD COLUMN phone text,
    ADD COLUMN mall_id text,
    ADD COLUMN wecom_id text,
    ADD COLUMN wrote_at timestamptz,         -- when the member last wrote to us
    ADD COLUMN channels text[],              -- allowed and open, in the campaign's order
    ADD COLUMN routes jsonb,                 -- where a refused message goes next: [{"channel", "address"}]
    ADD COLUMN rule text,                    -- the campaign's rule that left the member out, and what was found
    ADD COLUMN marketing_recent integer,     -- messages within the days of the cap
    ADD COLUMN this_month jsonb,             -- messages per channel that has a number a month
    ADD COLUMN service_in_window integer,    -- messages since the member wrote, on a channel that has a number a window
    ADD COLUMN coupons_of_stock integer,
    ADD COLUMN time_zone text;               -- NULL: the clock of the house

UPDATE push.audiences SET
    openid = facts ->> 'openid',
    email = facts #>> '{addresses,email}',
    phone = facts #>> '{addresses,sms}',
    mall_id = facts #>> '{addresses,push}',
    wecom_id = facts #>> '{addresses,wecom}',
    wrote_at = (facts ->> 'wrote_at')::timestamptz,
    channels = CASE WHEN jsonb_typeof(facts -> 'channels') = 'array' THEN array(SELECT jsonb_array_elements_text(facts -> 'channels')) END,
    routes = nullif(facts -> 'routes', 'null'),
    rule = facts ->> 'rule',
    marketing_recent = (facts ->> 'marketing_recent')::integer,
    this_month = nullif(facts -> 'this_month', 'null'),
    service_in_window = (facts ->> 'service_in_window')::integer,
    coupons_of_stock = (facts ->> 'coupons_of_stock')::integer,
    time_zone = facts ->> 'time_zone'
WHERE facts <> '{}';

-- Everything known of a member of an audience, for a person who asks: what the segment said, and what the gates saw.
CREATE FUNCTION push.audience_facts(a push.audiences) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT a.facts || jsonb_strip_nulls(jsonb_build_object(
        'openid', a.openid,
        'addresses', nullif(jsonb_strip_nulls(jsonb_build_object(
            'wechat', a.openid, 'email', a.email, 'sms', a.phone, 'push', a.mall_id, 'wecom', a.wecom_id
        )), '{}'),
        'wrote_at', a.wrote_at, 'channels', a.channels, 'routes', a.routes, 'rule', a.rule, 'marketing_recent', a.marketing_recent,
        'this_month', a.this_month, 'service_in_window', a.service_in_window, 'coupons_of_stock', a.coupons_of_stock,
        'time_zone', a.time_zone
    ))
$$;

-- As in 0011; the account that was found to follow is a column now.
CREATE OR REPLACE FUNCTION push.coupon_receivers(
    wanted_run text, wanted_stock text, receiver_kind text, points_price bigint, member_limit integer
)
RETURNS TABLE (member_id bigint, receiver text) LANGUAGE sql STABLE AS $$
    WITH
    held AS (   -- of other runs, or of none
        SELECT coalesce(m.absorbed_by, m.member_id) AS person_id, count(*) AS coupon_count
        FROM push.coupons AS c
        JOIN core.members AS m ON m.member_id = c.member_id
        WHERE c.stock_id = wanted_stock AND c.state <> 'released' AND c.run_id IS DISTINCT FROM wanted_run
        GROUP BY coalesce(m.absorbed_by, m.member_id)
    )
    SELECT a.member_id, k.receiver
    FROM push.audiences AS a
    LEFT JOIN core.members AS p ON p.member_id = a.member_id
    LEFT JOIN held AS h ON h.person_id = coalesce(p.absorbed_by, a.member_id)
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN receiver_kind IS NULL THEN NULL
            WHEN receiver_kind = 'wechat_openid' THEN a.openid
            ELSE (
                SELECT i.value
                FROM core.member_identities AS mi
                JOIN core.identities AS i ON i.identity_id = mi.identity_id AND i.kind = receiver_kind
                WHERE mi.member_id = a.member_id
                ORDER BY i.identity_id DESC
                LIMIT 1
            )
        END AS receiver
    ) AS k
    WHERE wanted_stock IS NOT NULL AND a.run_id = wanted_run AND a.state = 'targeted'
      AND (receiver_kind IS NULL OR k.receiver IS NOT NULL)
      AND coalesce(h.coupon_count, 0) < member_limit
      AND NOT EXISTS (   -- two members who have turned out to be one person since get one: the survivor, who has the smallest id
          SELECT 1
          FROM core.members AS other
          JOIN push.audiences AS o ON o.member_id = other.member_id AND o.run_id = wanted_run AND o.state = 'targeted'
          WHERE (other.member_id = p.absorbed_by OR other.absorbed_by = p.absorbed_by) AND other.member_id < a.member_id
      )
      AND CASE WHEN points_price = 0 THEN TRUE ELSE mart.points_balance(coalesce(p.absorbed_by, a.member_id)) >= points_price END
$$;
