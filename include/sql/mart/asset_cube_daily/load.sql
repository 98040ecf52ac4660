-- mart.asset_cube_daily: what the brand has in its members: width (whom it reaches), length (how long they stay), height (what they bring).
-- Grain: one row per business date, all shops together.
-- Params: business_date (date).
-- Reads: core.members, core.member_identities, core.identities, core.profiles, core.consents, core.followers, core.follow_events,
--   core.suppressed_as_of, core.reviews, mart.member_days
-- Rerun: safe; replaces exactly one business date; a row that does not differ is not rewritten. Any past date can be computed, by who is
-- who today: people who turned out to be one are one on every date (docs/decisions/0069-asset-cube.md).
-- A year is 365 days. Margin and referrals are NULL: no source tells what goods cost, or who brought whom.
DROP TABLE IF EXISTS pg_temp.width;
CREATE TEMPORARY TABLE width ON COMMIT DROP AS
WITH
-- the rule of core.reachability_as_of from its other end: not from all addresses, but from who follows or said yes
last_follow AS (
    SELECT DISTINCT ON (e.source_id, e.identity_id) e.source_id, e.identity_id, e.kind
    FROM core.follow_events AS e
    WHERE e.occurred_at < (%(business_date)s::date + 1)::timestamptz
    ORDER BY e.source_id ASC, e.identity_id ASC, e.occurred_at DESC, e.event_id DESC
),
following AS (
    SELECT DISTINCT f.identity_id
    FROM core.followers AS f
    LEFT JOIN last_follow AS l ON l.source_id = f.source_id AND l.identity_id = f.identity_id
    WHERE
        coalesce(
            l.kind = 'follow',
            coalesce(f.followed_at < (%(business_date)s::date + 1)::timestamptz, f.is_following)
            AND (f.is_following OR f.unfollowed_at >= (%(business_date)s::date + 1)::timestamptz)
        )
),
said AS (
    SELECT DISTINCT ON (mi.member_id, c.channel) mi.member_id, c.channel, c.is_granted
    FROM core.consents AS c
    JOIN core.member_identities AS mi ON mi.identity_id = c.identity_id
    WHERE c.purpose = 'marketing' AND c.occurred_at < (%(business_date)s::date + 1)::timestamptz
    ORDER BY mi.member_id ASC, c.channel ASC, c.ranks_at DESC, c.is_granted ASC
),
addresses AS (
    SELECT 'wechat' AS channel, mi.member_id, i.value AS address
    FROM following AS f
    JOIN core.identities AS i ON i.identity_id = f.identity_id
    JOIN core.member_identities AS mi ON mi.identity_id = f.identity_id
    LEFT JOIN said AS s ON s.member_id = mi.member_id AND s.channel = 'wechat'
    WHERE
        i.kind = 'wechat_openid' AND i.first_seen_at < (%(business_date)s::date + 1)::timestamptz
        AND coalesce(s.is_granted, TRUE)
    UNION ALL
    SELECT s.channel, s.member_id, i.value AS address
    FROM said AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    JOIN core.identities AS i ON i.identity_id = mi.identity_id AND i.kind = core.address_kind(s.channel)
    WHERE
        s.channel <> 'wechat' AND s.is_granted AND i.first_seen_at < (%(business_date)s::date + 1)::timestamptz
),
reached AS (
    SELECT a.member_id, a.channel
    FROM addresses AS a
    LEFT JOIN core.suppressed_as_of((%(business_date)s::date + 1)::timestamptz) AS x
        ON x.channel = a.channel AND x.address = a.address
    GROUP BY a.member_id, a.channel
    HAVING NOT bool_and(x.address IS NOT NULL)
),
named AS (
    SELECT DISTINCT mi.member_id
    FROM core.profiles AS p
    JOIN core.member_identities AS mi ON mi.identity_id = p.identity_id
    WHERE p.name IS NOT NULL AND p.observed_at < (%(business_date)s::date + 1)::timestamptz
),
contactable AS (
    SELECT DISTINCT mi.member_id
    FROM core.identities AS i
    JOIN core.member_identities AS mi ON mi.identity_id = i.identity_id
    WHERE i.kind IN ('phone', 'email') AND i.first_seen_at < (%(business_date)s::date + 1)::timestamptz
)
SELECT r.wechat_count, r.sms_count, r.email_count, r.push_count, r.any_count, c.complete_count, e.member_count
FROM (
    SELECT
        count(*) FILTER (WHERE h.channel = 'wechat') AS wechat_count,
        count(*) FILTER (WHERE h.channel = 'sms') AS sms_count,
        count(*) FILTER (WHERE h.channel = 'email') AS email_count,
        count(*) FILTER (WHERE h.channel = 'push') AS push_count,
        count(DISTINCT h.member_id) AS any_count
    FROM reached AS h
) AS r
CROSS JOIN (SELECT count(*) AS complete_count FROM named AS n JOIN contactable AS k ON k.member_id = n.member_id) AS c
CROSS JOIN (
    SELECT count(*) AS member_count
    FROM core.members AS m
    WHERE m.absorbed_by IS NULL AND m.first_seen_at < (%(business_date)s::date + 1)::timestamptz
) AS e;

DROP TABLE IF EXISTS pg_temp.length_and_height;
CREATE TEMPORARY TABLE length_and_height ON COMMIT DROP AS
SELECT b.buyer_count, b.lifetime_day_count, b.median_lifetime_days, b.previous_buyer_count, b.retained_buyer_count, b.year_buyer_count,
    m.year_net_amount, m.net_amount, v.review_count
FROM (
    SELECT
        count(*) AS buyer_count,
        coalesce(sum(d.last_day - d.first_day), 0) AS lifetime_day_count,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY d.last_day - d.first_day ASC)::numeric AS median_lifetime_days,
        count(*) FILTER (WHERE d.is_of_year_before) AS previous_buyer_count,
        count(*) FILTER (WHERE d.is_of_year_before AND d.last_day > %(business_date)s::date - 365) AS retained_buyer_count,
        count(*) FILTER (WHERE d.last_day > %(business_date)s::date - 365) AS year_buyer_count
    FROM (
        SELECT
            o.member_id,
            min(o.day) AS first_day,
            max(o.day) AS last_day,
            bool_or(o.day > %(business_date)s::date - 730 AND o.day <= %(business_date)s::date - 365) AS is_of_year_before
        FROM mart.member_days AS o
        WHERE o.order_count > 0 AND o.day <= %(business_date)s::date
        GROUP BY o.member_id
    ) AS d
) AS b
CROSS JOIN (
    SELECT
        coalesce(sum(n.net_amount), 0) AS net_amount,
        coalesce(sum(n.net_amount) FILTER (WHERE n.day > %(business_date)s::date - 365), 0) AS year_net_amount
    FROM mart.member_days AS n
    WHERE n.day <= %(business_date)s::date
) AS m
CROSS JOIN (
    SELECT count(*) AS review_count
    FROM core.reviews AS w
    WHERE w.identity_id IS NOT NULL AND w.created_at < (%(business_date)s::date + 1)::timestamptz
) AS v;

INSERT INTO mart.asset_cube_daily (
    business_date, member_count, reachable_wechat_count, reachable_sms_count, reachable_email_count, reachable_push_count,
    reachable_count, reachable_rate, complete_profile_count, complete_profile_rate, buyer_count, lifetime_day_count,
    mean_lifetime_days, median_lifetime_days, previous_buyer_count, retained_buyer_count, retention_rate, year_buyer_count,
    year_net_amount, net_per_buyer_year_amount, net_amount, net_per_buyer_amount, margin_amount, review_count,
    reviews_per_buyer_rate, referral_count
)
SELECT
    %(business_date)s::date, w.member_count, w.wechat_count, w.sms_count, w.email_count, w.push_count, w.any_count,
    w.any_count::numeric / nullif(w.member_count, 0),
    w.complete_count,
    w.complete_count::numeric / nullif(w.member_count, 0),
    h.buyer_count, h.lifetime_day_count,
    h.lifetime_day_count::numeric / nullif(h.buyer_count, 0),
    h.median_lifetime_days, h.previous_buyer_count, h.retained_buyer_count,
    h.retained_buyer_count::numeric / nullif(h.previous_buyer_count, 0),
    h.year_buyer_count, h.year_net_amount,
    h.year_net_amount / nullif(h.year_buyer_count, 0),
    h.net_amount,
    h.net_amount / nullif(h.buyer_count, 0),
    NULL,
    h.review_count,
    h.review_count::numeric / nullif(h.buyer_count, 0),
    NULL
FROM width AS w
CROSS JOIN length_and_height AS h
ON CONFLICT (business_date) DO UPDATE SET
    member_count = excluded.member_count,
    reachable_wechat_count = excluded.reachable_wechat_count,
    reachable_sms_count = excluded.reachable_sms_count,
    reachable_email_count = excluded.reachable_email_count,
    reachable_push_count = excluded.reachable_push_count,
    reachable_count = excluded.reachable_count,
    reachable_rate = excluded.reachable_rate,
    complete_profile_count = excluded.complete_profile_count,
    complete_profile_rate = excluded.complete_profile_rate,
    buyer_count = excluded.buyer_count,
    lifetime_day_count = excluded.lifetime_day_count,
    mean_lifetime_days = excluded.mean_lifetime_days,
    median_lifetime_days = excluded.median_lifetime_days,
    previous_buyer_count = excluded.previous_buyer_count,
    retained_buyer_count = excluded.retained_buyer_count,
    retention_rate = excluded.retention_rate,
    year_buyer_count = excluded.year_buyer_count,
    year_net_amount = excluded.year_net_amount,
    net_per_buyer_year_amount = excluded.net_per_buyer_year_amount,
    net_amount = excluded.net_amount,
    net_per_buyer_amount = excluded.net_per_buyer_amount,
    margin_amount = excluded.margin_amount,
    review_count = excluded.review_count,
    reviews_per_buyer_rate = excluded.reviews_per_buyer_rate,
    referral_count = excluded.referral_count
WHERE
    (
        asset_cube_daily.member_count, asset_cube_daily.reachable_wechat_count, asset_cube_daily.reachable_sms_count,
        asset_cube_daily.reachable_email_count, asset_cube_daily.reachable_push_count, asset_cube_daily.reachable_count,
        asset_cube_daily.complete_profile_count, asset_cube_daily.buyer_count, asset_cube_daily.lifetime_day_count,
        asset_cube_daily.median_lifetime_days, asset_cube_daily.previous_buyer_count, asset_cube_daily.retained_buyer_count,
        asset_cube_daily.year_buyer_count, asset_cube_daily.year_net_amount, asset_cube_daily.net_amount, asset_cube_daily.review_count
    )
    IS DISTINCT FROM (
        excluded.member_count, excluded.reachable_wechat_count, excluded.reachable_sms_count,
        excluded.reachable_email_count, excluded.reachable_push_count, excluded.reachable_count,
        excluded.complete_profile_count, excluded.buyer_count, excluded.lifetime_day_count,
        excluded.median_lifetime_days, excluded.previous_buyer_count, excluded.retained_buyer_count,
        excluded.year_buyer_count, excluded.year_net_amount, excluded.net_amount, excluded.review_count
    );
