-- How many members each channel reaches at the end of a business date: an address there, consent, and nothing that forbids it.
-- Grain: one row per channel, and one 'any' for members whom at least one reaches.
-- Params: business_date (date), purpose (text; marketing or service).   Reads: core.members, core.reachability_as_of
-- Units: counts are members; reachable_rate is the share of all members (0..1).
WITH
everybody AS (
    SELECT count(*) AS member_count
    FROM core.members AS m
    WHERE m.absorbed_by IS NULL AND m.first_seen_at < (%(business_date)s::date + 1)::timestamptz
),
judged AS (
    SELECT r.member_id, r.channel, r.has_consent, r.is_suppressed
    FROM core.reachability_as_of((%(business_date)s::date + 1)::timestamptz, %(purpose)s::text) AS r
),
counted AS (
    SELECT
        j.channel, count(*) AS address_count, count(*) FILTER (WHERE NOT j.has_consent) AS no_consent_count,
        count(*) FILTER (WHERE j.has_consent AND j.is_suppressed) AS suppressed_count,
        count(*) FILTER (WHERE j.has_consent AND NOT j.is_suppressed) AS reachable_count
    FROM judged AS j
    GROUP BY j.channel
    UNION ALL
    SELECT
        'any' AS channel, count(*) AS address_count, count(*) FILTER (WHERE NOT a.has_consent) AS no_consent_count,
        count(*) FILTER (WHERE a.has_consent AND NOT a.is_reachable) AS suppressed_count,
        count(*) FILTER (WHERE a.is_reachable) AS reachable_count
    FROM (
        SELECT j.member_id, bool_or(j.has_consent) AS has_consent, bool_or(j.has_consent AND NOT j.is_suppressed) AS is_reachable
        FROM judged AS j
        GROUP BY j.member_id
    ) AS a
)
SELECT
    c.channel, e.member_count, coalesce(k.address_count, 0) AS address_count, coalesce(k.no_consent_count, 0) AS no_consent_count,
    coalesce(k.suppressed_count, 0) AS suppressed_count, coalesce(k.reachable_count, 0) AS reachable_count,
    round(coalesce(k.reachable_count, 0)::numeric / nullif(e.member_count, 0), 4) AS reachable_rate
FROM (VALUES ('wechat', 1), ('sms', 2), ('email', 3), ('push', 4), ('any', 5)) AS c (channel, position)
CROSS JOIN everybody AS e
LEFT JOIN counted AS k ON k.channel = c.channel
ORDER BY c.position;
