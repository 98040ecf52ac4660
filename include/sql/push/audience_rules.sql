-- audience_rules (temporary): which members of the segment a campaign's filters, exclusions and caps leave out, and why.
-- Grain: one row per member and rule that applies; `rule` is its place in the campaign's file and what was found of the member.
-- Params: as_of (date), as_of_at, campaign, account (the WeChat account), default_language; of the filters: filter_tiers, filter_stages,
--   filter_rfm_segments, filter_cities, filter_languages (text[]), min_points; of the exclusions: exclude_tiers, exclude_stages (text[]),
--   exclude_campaigns (text[]) and exclude_days (integer[], same order), exclude_service_case, exclude_refund (booleans); of the caps:
--   cap_messages, cap_days. NULL = there is no such rule.
-- Reads: audience_segment (temporary), core.members, core.member_identities, core.profiles, core.followers, core.refunds,
--   mart.member_tiers, mart.tier_programmes, mart.member_stages, mart.member_rfm, mart.member_facts, mart.points_ledger,
--   push.campaign_runs, push.messages, push.service_cases
-- Rerun: no; build_run makes the temporary table and fills it once. Histories are read as of the date; the city is the last one known.
INSERT INTO audience_rules (member_id, rule)
WITH
selves AS (   -- the member ids a member had before it was merged: what went to them went to this person
    SELECT s.member_id, s.member_id AS former_id FROM audience_segment AS s
    UNION ALL
    SELECT m.absorbed_by, m.member_id
    FROM core.members AS m
    JOIN audience_segment AS s ON s.member_id = m.absorbed_by
),
tiers AS (
    SELECT t.member_id, t.tier
    FROM mart.member_tiers AS t
    JOIN mart.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
    WHERE t.valid_from <= %(as_of)s::date AND (t.valid_to IS NULL OR t.valid_to > %(as_of)s::date)
),
stages AS (
    SELECT h.member_id, h.stage
    FROM mart.member_stages AS h
    WHERE h.valid_from <= %(as_of)s::date AND (h.valid_to IS NULL OR h.valid_to > %(as_of)s::date)
),
rfm AS (
    SELECT r.member_id, r.rfm_segment
    FROM mart.member_rfm AS r
    WHERE r.valid_from <= %(as_of)s::date AND (r.valid_to IS NULL OR r.valid_to > %(as_of)s::date)
),
balances AS (
    SELECT l.member_id, sum(l.points) AS points
    FROM mart.points_ledger AS l
    WHERE l.day <= %(as_of)s::date
    GROUP BY l.member_id
),
chosen AS (   -- the language on a form, the newest one
    SELECT DISTINCT ON (mi.member_id) mi.member_id, p.language
    FROM audience_segment AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    JOIN core.profiles AS p ON p.identity_id = mi.identity_id
    WHERE p.language IS NOT NULL
    ORDER BY mi.member_id ASC, p.observed_at DESC, p.identity_id ASC
),
followed AS (   -- the language of the WeChat account
    SELECT DISTINCT ON (mi.member_id) mi.member_id, f.language
    FROM audience_segment AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    JOIN core.followers AS f ON f.identity_id = mi.identity_id AND f.source_id = %(account)s::text
    ORDER BY mi.member_id ASC, f.followed_at DESC NULLS LAST, f.openid ASC
),
languages AS (   -- as push/audience.sql decides it
    SELECT
        s.member_id,
        CASE
            WHEN coalesce(c.language, f.language) IS NULL THEN %(default_language)s::text
            WHEN lower(coalesce(c.language, f.language)) LIKE 'zh%%' THEN 'zh'
            ELSE 'en'
        END AS language
    FROM audience_segment AS s
    LEFT JOIN chosen AS c ON c.member_id = s.member_id
    LEFT JOIN followed AS f ON f.member_id = s.member_id
),
sent AS (   -- live messages of campaigns before the as-of instant
    SELECT s.member_id, r.campaign, m.accepted_at
    FROM selves AS s
    JOIN push.messages AS m ON m.member_id = s.former_id AND m.accepted_at < %(as_of_at)s::timestamptz
    JOIN push.campaign_runs AS r ON r.run_id = m.run_id AND r.mode = 'live'
),
waiting AS (   -- on its way since before the as-of instant, from another day's run of this campaign: it will count
    SELECT s.member_id
    FROM selves AS s
    JOIN push.messages AS m ON m.member_id = s.former_id AND m.accepted_at IS NULL AND m.queued_at < %(as_of_at)s::timestamptz
    JOIN push.campaign_runs AS r ON r.run_id = m.run_id AND r.mode = 'live' AND r.as_of <> %(as_of)s::date
    WHERE r.campaign = %(campaign)s::text AND m.state IN ('queued', 'sending', 'unknown', 'waiting_staff')
)
SELECT s.member_id, 'filters.tiers: ' || coalesce(t.tier, 'none')
FROM audience_segment AS s
LEFT JOIN tiers AS t ON t.member_id = s.member_id
WHERE %(filter_tiers)s::text[] IS NOT NULL AND coalesce(t.tier <> all(%(filter_tiers)s::text[]), TRUE)
UNION ALL
SELECT s.member_id, 'filters.stages: ' || coalesce(t.stage, 'none')
FROM audience_segment AS s
LEFT JOIN stages AS t ON t.member_id = s.member_id
WHERE %(filter_stages)s::text[] IS NOT NULL AND coalesce(t.stage, 'none') <> all(%(filter_stages)s::text[])
UNION ALL
SELECT s.member_id, 'filters.rfm_segments: ' || coalesce(t.rfm_segment, 'none')
FROM audience_segment AS s
LEFT JOIN rfm AS t ON t.member_id = s.member_id
WHERE %(filter_rfm_segments)s::text[] IS NOT NULL AND coalesce(t.rfm_segment <> all(%(filter_rfm_segments)s::text[]), TRUE)
UNION ALL
SELECT s.member_id, 'filters.cities: ' || coalesce(t.city, 'none')
FROM audience_segment AS s
LEFT JOIN mart.member_facts AS t ON t.member_id = s.member_id
WHERE %(filter_cities)s::text[] IS NOT NULL AND coalesce(t.city <> all(%(filter_cities)s::text[]), TRUE)
UNION ALL
SELECT t.member_id, 'filters.languages: ' || t.language
FROM languages AS t
WHERE %(filter_languages)s::text[] IS NOT NULL AND t.language <> all(%(filter_languages)s::text[])
UNION ALL
SELECT s.member_id, 'filters.min_points: ' || coalesce(t.points, 0)
FROM audience_segment AS s
LEFT JOIN balances AS t ON t.member_id = s.member_id
WHERE coalesce(t.points, 0) < %(min_points)s::bigint
UNION ALL
SELECT s.member_id, 'exclusions.tiers: ' || t.tier
FROM audience_segment AS s
JOIN tiers AS t ON t.member_id = s.member_id
WHERE t.tier = any(%(exclude_tiers)s::text[])
UNION ALL
SELECT s.member_id, 'exclusions.stages: ' || coalesce(t.stage, 'none')
FROM audience_segment AS s
LEFT JOIN stages AS t ON t.member_id = s.member_id
WHERE coalesce(t.stage, 'none') = any(%(exclude_stages)s::text[])
UNION ALL
SELECT DISTINCT t.member_id, 'exclusions.campaigns: ' || t.campaign
FROM sent AS t
JOIN unnest(%(exclude_campaigns)s::text[], %(exclude_days)s::integer[]) AS x (campaign, days) ON x.campaign = t.campaign
WHERE t.accepted_at >= %(as_of_at)s::timestamptz - make_interval(days => x.days)
UNION ALL
SELECT DISTINCT s.member_id, 'exclusions.open_service_case: ' || c.source_id || ' ' || coalesce(c.order_id, c.review_id)
FROM selves AS s
JOIN push.service_cases AS c ON c.member_id = s.former_id
WHERE %(exclude_service_case)s::boolean AND c.opened_at < %(as_of_at)s::timestamptz
  AND coalesce(c.answered_at, c.closed_at, 'infinity') >= %(as_of_at)s::timestamptz
UNION ALL
SELECT DISTINCT s.member_id, 'exclusions.open_refund: ' || f.source_id || ' ' || f.order_id
FROM audience_segment AS s
JOIN core.member_identities AS mi ON mi.member_id = s.member_id
JOIN core.refunds AS f ON f.identity_id = mi.identity_id
WHERE %(exclude_refund)s::boolean AND f.created_at < %(as_of_at)s::timestamptz
  AND (f.status IN ('requested', 'returning') OR f.settled_at >= %(as_of_at)s::timestamptz)
UNION ALL
SELECT t.member_id, 'caps: ' || count(*)
FROM (
    SELECT n.member_id FROM sent AS n
    WHERE n.campaign = %(campaign)s::text AND n.accepted_at >= %(as_of_at)s::timestamptz - make_interval(days => %(cap_days)s::integer)
    UNION ALL
    SELECT w.member_id FROM waiting AS w
) AS t
WHERE %(cap_messages)s::integer IS NOT NULL
GROUP BY t.member_id
HAVING count(*) >= %(cap_messages)s::integer;
