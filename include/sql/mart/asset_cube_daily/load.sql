-- mart.asset_cube_daily: what the brand has in its members: width (whom it reaches), length (how long they stay), height (what they bring).
-- Grain: one row per business date, all shops together.
-- Params: business_date (date).
-- Reads: core.members, core.member_identities, core.identities, core.profiles, core.consents, core.reviews, mart.member_days
-- Rerun: safe; replaces exactly one business date; a row that does not differ is not rewritten. Any past date can be computed, by who is
-- who today: people who turned out to be one are one on every date (docs/decisions/0069-asset-cube.md).
-- A year is 365 days. Margin and referrals are NULL: no source tells what goods cost, or who brought whom.
WITH
night AS (SELECT %(business_date)s::date AS day, (%(business_date)s::date + 1)::timestamptz AS ends_at),
known AS (
    SELECT
        mi.member_id,
        bool_or(i.kind = 'wechat_openid') AS has_wechat,
        bool_or(i.kind = 'phone') AS has_phone,
        bool_or(i.kind = 'email') AS has_email,
        bool_or(i.kind = 'mall_id') AS has_push,
        bool_or(p.name IS NOT NULL) AS has_name
    FROM core.member_identities AS mi
    JOIN core.identities AS i ON i.identity_id = mi.identity_id
    LEFT JOIN core.profiles AS p
        ON p.identity_id = mi.identity_id AND p.observed_at < (%(business_date)s::date + 1)::timestamptz
    WHERE i.first_seen_at < (%(business_date)s::date + 1)::timestamptz
    GROUP BY mi.member_id
),
said AS (
    -- the member's last word about a channel, by the rule of core.consents.ranks_at
    SELECT DISTINCT ON (mi.member_id, c.channel) mi.member_id, c.channel, c.is_granted
    FROM core.consents AS c
    JOIN core.member_identities AS mi ON mi.identity_id = c.identity_id
    WHERE c.purpose = 'marketing' AND c.occurred_at < (%(business_date)s::date + 1)::timestamptz
    ORDER BY mi.member_id ASC, c.channel ASC, c.ranks_at DESC, c.is_granted ASC
),
allowed AS (
    SELECT
        c.member_id,
        bool_or(c.channel = 'wechat') AS wechat,
        bool_or(c.channel = 'sms') AS sms,
        bool_or(c.channel = 'email') AS email,
        bool_or(c.channel = 'push') AS push
    FROM said AS c
    WHERE c.is_granted
    GROUP BY c.member_id
),
width AS (
    -- reached: allowed, and there is an address to write to
    SELECT
        count(*) AS member_count,
        count(*) FILTER (WHERE a.wechat AND k.has_wechat) AS reachable_wechat_count,
        count(*) FILTER (WHERE a.sms AND k.has_phone) AS reachable_sms_count,
        count(*) FILTER (WHERE a.email AND k.has_email) AS reachable_email_count,
        count(*) FILTER (WHERE a.push AND k.has_push) AS reachable_push_count,
        count(*) FILTER (
            WHERE a.wechat AND k.has_wechat OR a.sms AND k.has_phone OR a.email AND k.has_email OR a.push AND k.has_push
        ) AS reachable_count,
        count(*) FILTER (WHERE k.has_name AND (k.has_phone OR k.has_email)) AS complete_profile_count
    FROM core.members AS m
    LEFT JOIN known AS k ON k.member_id = m.member_id
    LEFT JOIN allowed AS a ON a.member_id = m.member_id
    WHERE m.absorbed_by IS NULL AND m.first_seen_at < (%(business_date)s::date + 1)::timestamptz
),
buyers AS (
    SELECT
        d.member_id,
        max(d.day) FILTER (WHERE d.order_count > 0) - min(d.day) FILTER (WHERE d.order_count > 0) AS lifetime_days,
        bool_or(d.order_count > 0 AND d.day > n.day - 365) AS is_of_year,
        bool_or(d.order_count > 0 AND d.day > n.day - 730 AND d.day <= n.day - 365) AS is_of_year_before,
        sum(d.net_amount) AS net_amount,
        coalesce(sum(d.net_amount) FILTER (WHERE d.day > n.day - 365), 0) AS year_net_amount
    FROM night AS n
    JOIN mart.member_days AS d ON d.day <= n.day
    GROUP BY d.member_id
    HAVING bool_or(d.order_count > 0)
),
length_and_height AS (
    SELECT
        count(*) AS buyer_count,
        coalesce(sum(b.lifetime_days), 0) AS lifetime_day_count,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY b.lifetime_days ASC)::numeric AS median_lifetime_days,
        count(*) FILTER (WHERE b.is_of_year_before) AS previous_buyer_count,
        count(*) FILTER (WHERE b.is_of_year_before AND b.is_of_year) AS retained_buyer_count,
        count(*) FILTER (WHERE b.is_of_year) AS year_buyer_count,
        coalesce(sum(b.year_net_amount) FILTER (WHERE b.is_of_year), 0) AS year_net_amount,
        coalesce(sum(b.net_amount), 0) AS net_amount
    FROM buyers AS b
),
voices AS (
    SELECT count(*) AS review_count
    FROM core.reviews AS v
    JOIN core.member_identities AS mi ON mi.identity_id = v.identity_id
    WHERE v.created_at < (%(business_date)s::date + 1)::timestamptz
)
INSERT INTO mart.asset_cube_daily (
    business_date, member_count, reachable_wechat_count, reachable_sms_count, reachable_email_count, reachable_push_count,
    reachable_count, reachable_rate, complete_profile_count, complete_profile_rate, buyer_count, lifetime_day_count,
    mean_lifetime_days, median_lifetime_days, previous_buyer_count, retained_buyer_count, retention_rate, year_buyer_count,
    year_net_amount, net_per_buyer_year_amount, net_amount, net_per_buyer_amount, margin_amount, review_count,
    reviews_per_buyer_rate, referral_count
)
SELECT
    n.day, w.member_count, w.reachable_wechat_count, w.reachable_sms_count, w.reachable_email_count, w.reachable_push_count,
    w.reachable_count,
    w.reachable_count::numeric / nullif(w.member_count, 0),
    w.complete_profile_count,
    w.complete_profile_count::numeric / nullif(w.member_count, 0),
    h.buyer_count, h.lifetime_day_count,
    h.lifetime_day_count::numeric / nullif(h.buyer_count, 0),
    h.median_lifetime_days, h.previous_buyer_count, h.retained_buyer_count,
    h.retained_buyer_count::numeric / nullif(h.previous_buyer_count, 0),
    h.year_buyer_count, h.year_net_amount,
    h.year_net_amount / nullif(h.year_buyer_count, 0),
    h.net_amount,
    h.net_amount / nullif(h.buyer_count, 0),
    NULL,
    v.review_count,
    v.review_count::numeric / nullif(h.buyer_count, 0),
    NULL
FROM night AS n
CROSS JOIN width AS w
CROSS JOIN length_and_height AS h
CROSS JOIN voices AS v
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
