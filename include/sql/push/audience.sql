-- push.audiences: every member of a run's segment in exactly one state: targeted, held out, or excluded by the first gate.
-- Grain: one row per (run_id, member_id).   Decision: docs/decisions/0031-audience.md
-- Params: run_id, purpose, as_of_at (all gates look back from it), planned_at (first allowed sending instant after it),
--   planned_until (end of that day's send window), month_start, account (the WeChat account), channels, families,
--   consent_kinds, month_limits, window_hours, window_limits (arrays in channel order; NULL = no such rule),
--   cap_messages, cap_since, campaign, as_of, stock_id, coupon_limit (NULL = no coupon), coupon_needs_openid, global_salt, global_share,
--   salt, holdout_share, variants, bounds, max_messages, default_language, group_channel, can_fall_back (boolean).
-- Reads: audience_segment (temporary: member_id, facts), audience_rules (temporary: member_id, rule), core.member_identities,
--   core.identities, core.followers, core.follow_events, core.consents, core.interactions, core.profiles, push.messages, push.coupons,
--   push.suppressions
-- Rerun: not on top of itself; build_run calls it once per run in the transaction that creates the run.
INSERT INTO push.audiences (run_id, member_id, state, reason, arm, variant, channel, language, address, facts)
WITH
channel_order AS (
    SELECT o.channel, o.family, o.consent_kind, o.month_limit, o.window_hours, o.window_limit, o.position
    FROM unnest(%(channels)s::text[], %(families)s::text[], %(consent_kinds)s::text[], %(month_limits)s::integer[],
                %(window_hours)s::integer[], %(window_limits)s::integer[])
        WITH ORDINALITY AS o (channel, family, consent_kind, month_limit, window_hours, window_limit, position)
),
selves AS (   -- the member ids a member had before it was merged: what went to them went to this person
    SELECT s.member_id, s.member_id AS former_id
    FROM audience_segment AS s
    UNION ALL
    SELECT m.absorbed_by, m.member_id
    FROM core.members AS m
    JOIN audience_segment AS s ON s.member_id = m.absorbed_by
),
known AS (   -- every identity of a member of the segment
    SELECT mi.member_id, i.identity_id, i.kind, i.value
    FROM audience_segment AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    JOIN core.identities AS i ON i.identity_id = mi.identity_id
),
last_follow AS (   -- what each identity did last before the as-of instant
    SELECT DISTINCT ON (e.identity_id) e.identity_id, e.kind
    FROM core.follow_events AS e
    WHERE e.source_id = %(account)s::text AND e.occurred_at < %(as_of_at)s::timestamptz
    ORDER BY e.identity_id ASC, e.occurred_at DESC, e.event_id DESC
),
followed AS (   -- the account of the member that followed us at the as-of instant; the newest when there are several
    SELECT DISTINCT ON (k.member_id) k.member_id, f.openid, f.language
    FROM known AS k
    JOIN core.followers AS f ON f.identity_id = k.identity_id AND f.source_id = %(account)s::text
    LEFT JOIN last_follow AS l ON l.identity_id = f.identity_id
    WHERE coalesce(
        l.kind = 'follow',
        coalesce(f.followed_at < %(as_of_at)s::timestamptz, f.is_following)
        AND (f.is_following OR f.unfollowed_at >= %(as_of_at)s::timestamptz)
    )
    ORDER BY k.member_id ASC, f.followed_at DESC NULLS LAST, f.openid ASC
),
said AS (   -- the member's last word per channel family, by the rule of core.consents.ranks_at (as in core.consents_as_of)
    SELECT DISTINCT ON (k.member_id, c.channel) k.member_id, c.channel AS family, c.is_granted
    FROM known AS k
    JOIN core.consents AS c ON c.identity_id = k.identity_id
    WHERE c.purpose = %(purpose)s::text AND c.occurred_at < %(as_of_at)s::timestamptz
    ORDER BY k.member_id ASC, c.channel ASC, c.ranks_at DESC, c.is_granted ASC
),
forbidden AS (   -- at the as-of instant; once for all, because a segment may be everybody
    SELECT DISTINCT x.channel, x.address
    FROM push.suppressions AS x
    WHERE x.since < %(as_of_at)s::timestamptz AND (x.until IS NULL OR x.until >= %(as_of_at)s::timestamptz)
),
given AS (   -- elsewhere: the address of each family that was given most recently
    SELECT DISTINCT ON (k.member_id, o.family) k.member_id, o.family, k.value AS address
    FROM (SELECT DISTINCT d.family, core.address_kind(d.family) AS kind FROM channel_order AS d WHERE d.family <> 'wechat') AS o
    JOIN known AS k ON k.kind = o.kind
    LEFT JOIN core.consents AS c
        ON c.identity_id = k.identity_id AND c.channel = o.family AND c.occurred_at < %(as_of_at)s::timestamptz
    ORDER BY k.member_id ASC, o.family ASC, c.occurred_at DESC NULLS LAST, k.identity_id ASC
),
addresses AS (
    SELECT f.member_id, 'wechat' AS family, f.openid AS address FROM followed AS f
    UNION ALL
    SELECT g.member_id, g.family, g.address FROM given AS g
),
wrote AS (   -- when the member last wrote to us
    SELECT k.member_id, max(i.occurred_at) AS wrote_at
    FROM known AS k
    JOIN core.interactions AS i ON i.identity_id = k.identity_id AND i.kind = 'message'
    WHERE i.occurred_at < %(as_of_at)s::timestamptz
    GROUP BY k.member_id
),
spoken AS (   -- who chose which language on a form, and whose clock is not ours
    SELECT
        k.member_id,
        (array_agg(p.language ORDER BY p.observed_at DESC, p.identity_id ASC) FILTER (WHERE p.language IS NOT NULL))[1] AS language,
        (array_agg(p.time_zone ORDER BY p.observed_at DESC, p.identity_id ASC) FILTER (WHERE p.time_zone IS NOT NULL))[1] AS time_zone
    FROM known AS k
    JOIN core.profiles AS p ON p.identity_id = k.identity_id
    WHERE p.language IS NOT NULL OR p.time_zone IS NOT NULL
    GROUP BY k.member_id
),
received AS (   -- what went out to the member before the as-of instant; counted by acceptance, whatever came of it later
    SELECT
        s.member_id, m.channel,
        count(*) FILTER (WHERE m.purpose = 'marketing' AND m.accepted_at >= %(cap_since)s::timestamptz) AS recent_count,
        count(*) FILTER (WHERE m.accepted_at >= %(month_start)s::timestamptz) AS month_count,
        count(*) FILTER (WHERE m.accepted_at >= w.wrote_at) AS window_count
    FROM selves AS s
    JOIN push.messages AS m ON m.member_id = s.former_id
    LEFT JOIN wrote AS w ON w.member_id = s.member_id
    WHERE m.accepted_at < %(as_of_at)s::timestamptz
      AND m.accepted_at >= least(%(cap_since)s::timestamptz, %(month_start)s::timestamptz, w.wrote_at)
    GROUP BY s.member_id, m.channel
),
received_in_all AS (
    SELECT r.member_id, sum(r.recent_count) AS recent_count FROM received AS r GROUP BY r.member_id
),
ruled_out AS (   -- by a filter or an exclusion of the campaign: the first rule by name
    SELECT r.member_id, min(r.rule) AS rule FROM audience_rules AS r GROUP BY r.member_id
),
reached AS (   -- another run of this campaign for this day has a message for the member, or to an address that is theirs now
    SELECT DISTINCT s.member_id
    FROM push.campaign_runs AS r
    JOIN push.messages AS m ON m.run_id = r.run_id
    JOIN selves AS s ON s.former_id = m.member_id
    WHERE r.campaign = %(campaign)s::text AND r.as_of = %(as_of)s::date AND r.mode = 'live'
      AND r.run_id <> %(run_id)s::text AND m.state <> 'cancelled'
    UNION
    SELECT k.member_id
    FROM push.campaign_runs AS r
    JOIN push.messages AS m ON m.run_id = r.run_id
    JOIN known AS k ON k.value = m.address
    WHERE r.campaign = %(campaign)s::text AND r.as_of = %(as_of)s::date AND r.mode = 'live'
      AND r.run_id <> %(run_id)s::text AND m.state <> 'cancelled'
),
holding AS (   -- coupons of this stock the member has had
    SELECT s.member_id, count(*) AS coupon_count
    FROM push.coupons AS c
    JOIN selves AS s ON s.former_id = c.member_id
    WHERE c.stock_id = %(stock_id)s::text AND c.state <> 'released' AND c.reserved_at < %(as_of_at)s::timestamptz
    GROUP BY s.member_id
),
facts AS (
    SELECT
        s.member_id, s.facts AS segment_facts, f.openid, w.wrote_at, p.time_zone, x.rule,
        coalesce(r.recent_count, 0) AS recent_count,
        a.member_id IS NOT NULL AS is_reached,
        coalesce(h.coupon_count, 0) AS coupon_count,
        CASE
            WHEN coalesce(p.language, f.language) IS NULL THEN %(default_language)s::text
            WHEN lower(coalesce(p.language, f.language)) LIKE 'zh%%' THEN 'zh'
            ELSE 'en'
        END AS language
    FROM audience_segment AS s
    LEFT JOIN followed AS f ON f.member_id = s.member_id
    LEFT JOIN wrote AS w ON w.member_id = s.member_id
    LEFT JOIN spoken AS p ON p.member_id = s.member_id
    LEFT JOIN received_in_all AS r ON r.member_id = s.member_id
    LEFT JOIN ruled_out AS x ON x.member_id = s.member_id
    LEFT JOIN reached AS a ON a.member_id = s.member_id
    LEFT JOIN holding AS h ON h.member_id = s.member_id
),
options AS (   -- every channel of the campaign for every member who has an address there
    SELECT
        a.member_id, o.channel, o.family, o.position, a.address, r.month_count, r.window_count,
        coalesce(c.is_granted, o.consent_kind = 'following') AS has_consent,
        x.address IS NOT NULL AS is_suppressed,
        (o.month_limit IS NULL OR coalesce(r.month_count, 0) < o.month_limit)
        AND (
            o.window_hours IS NULL
            -- the window must stay open until the end of the planned day, or the message could fall out of it
            OR (w.wrote_at > %(planned_until)s::timestamptz - make_interval(hours => o.window_hours)
                AND coalesce(r.window_count, 0) < o.window_limit)
        ) AS is_open
    FROM addresses AS a
    JOIN channel_order AS o ON o.family = a.family
    LEFT JOIN wrote AS w ON w.member_id = a.member_id
    LEFT JOIN received AS r ON r.member_id = a.member_id AND r.channel = o.channel
    LEFT JOIN said AS c ON c.member_id = a.member_id AND c.family = o.family
    LEFT JOIN forbidden AS x ON x.channel = o.family AND x.address = a.address
),
routes AS (
    SELECT
        member_id,
        bool_or(has_consent) AS has_consent,
        bool_or(has_consent AND NOT is_suppressed) AS is_allowed,
        array_agg(channel ORDER BY position) FILTER (WHERE has_consent AND NOT is_suppressed AND is_open) AS channels,
        array_agg(address ORDER BY position) FILTER (WHERE has_consent AND NOT is_suppressed AND is_open) AS addresses,
        jsonb_object_agg(family, address) AS every_address,
        jsonb_object_agg(channel, month_count) FILTER (WHERE month_count > 0) AS month_counts,
        max(window_count) AS window_count
    FROM options
    GROUP BY member_id
),
gated AS (   -- the gates, in order; the first that applies is the reason
    SELECT
        f.*, r.channels, r.addresses, r.every_address, r.month_counts, r.window_count,
        CASE
            WHEN f.rule IS NOT NULL THEN 'filtered'
            WHEN r.member_id IS NULL THEN 'no_address'
            WHEN NOT r.has_consent THEN 'no_consent'
            WHEN NOT r.is_allowed THEN 'suppressed'
            WHEN r.channels IS NULL THEN 'channel_limit'
            WHEN f.recent_count >= %(cap_messages)s::integer THEN 'capped'
            WHEN f.is_reached THEN 'already_reached'
            WHEN (f.openid IS NOT NULL OR NOT %(coupon_needs_openid)s::boolean) AND f.coupon_count >= %(coupon_limit)s::integer
                THEN 'coupon_limit'
            WHEN ('x' || left(encode(sha256(convert_to(%(global_salt)s::text || ':' || f.member_id, 'UTF8')), 'hex'), 12))::bit(48)::bigint
                 / 281474976710656.0::double precision < %(global_share)s::double precision THEN 'global_holdout'
        END AS reason
    FROM facts AS f
    LEFT JOIN routes AS r ON r.member_id = f.member_id
),
drawn AS (   -- experiment.unit() in SQL: the first 48 bits of sha256(salt:member); only for those whom no gate stopped
    SELECT
        g.*,
        CASE WHEN g.reason IS NULL THEN
            ('x' || left(encode(sha256(convert_to(%(salt)s::text || ':holdout:' || g.member_id, 'UTF8')), 'hex'), 12))::bit(48)::bigint
            / 281474976710656.0::double precision
        END AS holdout_unit,
        CASE WHEN g.reason IS NULL THEN
            ('x' || left(encode(sha256(convert_to(%(salt)s::text || ':variant:' || g.member_id, 'UTF8')), 'hex'), 12))::bit(48)::bigint
            / 281474976710656.0::double precision
        END AS variant_unit
    FROM gated AS g
),
armed AS (
    SELECT
        d.*,
        d.reason IS NULL AND d.holdout_unit < %(holdout_share)s::double precision AS is_holdout,
        (%(variants)s::text[])[1 + CASE
            WHEN cardinality(%(bounds)s::double precision[]) = 0 THEN 0
            ELSE width_bucket(d.variant_unit, %(bounds)s::double precision[])
        END] AS variant
    FROM drawn AS d
),
-- Two questions about all together are asked of few columns: windows over these wide rows would sort all of them twice.
allowed AS (   -- by the size limit, less whom other runs of the day have reached: two runs are no more than one
    SELECT greatest(%(max_messages)s::bigint - (SELECT count(*) FROM facts AS f WHERE f.is_reached), 0) AS message_count
),
cut AS (   -- the first one beyond it: in hash order, so that a rerun cuts the same members
    SELECT a.holdout_unit, a.member_id
    FROM armed AS a
    WHERE a.reason IS NULL AND NOT a.is_holdout
      AND (SELECT count(*) FROM armed AS e WHERE e.reason IS NULL AND NOT e.is_holdout) > (SELECT l.message_count FROM allowed AS l)
    ORDER BY a.holdout_unit ASC, a.member_id ASC
    LIMIT 1 OFFSET (SELECT l.message_count FROM allowed AS l)
),
limited AS (
    SELECT
        a.*,
        CASE
            WHEN a.reason IS NOT NULL OR a.is_holdout THEN a.reason
            WHEN (a.holdout_unit, a.member_id) >= (SELECT x.holdout_unit, x.member_id FROM cut AS x) THEN 'over_size_limit'
        END AS limit_reason
    FROM armed AS a
),
lonely AS (   -- a mass send needs two receivers of the same text
    SELECT a.variant, a.language
    FROM armed AS a
    WHERE a.reason IS NULL AND NOT a.is_holdout AND a.channels[1] = %(group_channel)s::text
      AND ((a.holdout_unit, a.member_id) >= (SELECT x.holdout_unit, x.member_id FROM cut AS x)) IS NOT TRUE
    GROUP BY a.variant, a.language
    HAVING count(*) = 1
),
counted AS (
    SELECT
        l.*,
        l.limit_reason IS NULL AND NOT l.is_holdout AND l.channels[1] = %(group_channel)s::text
        AND (l.variant, l.language) IN (SELECT o.variant, o.language FROM lonely AS o) AS is_alone
    FROM limited AS l
),
final AS (
    SELECT
        c.*,
        CASE WHEN c.is_alone THEN 2 ELSE 1 END AS choice,
        CASE WHEN c.is_alone AND c.channels[2] IS NULL THEN 'alone_in_group' ELSE c.limit_reason END AS final_reason
    FROM counted AS c
)
SELECT
    %(run_id)s::text,
    f.member_id,
    CASE WHEN f.final_reason IS NOT NULL THEN 'excluded' WHEN f.is_holdout THEN 'holdout' ELSE 'targeted' END,
    f.final_reason,
    CASE WHEN f.final_reason IS NOT NULL THEN NULL WHEN f.is_holdout THEN 'holdout' ELSE 'treatment' END,
    CASE WHEN f.final_reason IS NULL AND NOT f.is_holdout THEN f.variant END,
    CASE WHEN f.final_reason IS NULL AND NOT f.is_holdout THEN f.channels[f.choice] END,
    f.language,
    CASE WHEN f.final_reason IS NULL AND NOT f.is_holdout THEN f.addresses[f.choice] END,
    f.segment_facts || jsonb_build_object(
        'openid', f.openid, 'addresses', f.every_address, 'wrote_at', f.wrote_at, 'channels', f.channels, 'rule', f.rule,
        'marketing_recent', f.recent_count, 'this_month', f.month_counts, 'service_in_window', f.window_count,
        'coupons_of_stock', f.coupon_count, 'time_zone', f.time_zone,
        'routes', CASE WHEN %(can_fall_back)s::boolean AND f.final_reason IS NULL AND NOT f.is_holdout THEN (   -- where it may go next
            SELECT jsonb_agg(jsonb_build_object('channel', n.channel, 'address', n.address) ORDER BY n.position)
            FROM unnest(f.channels, f.addresses) WITH ORDINALITY AS n (channel, address, position)
            WHERE n.position > f.choice AND n.channel <> %(group_channel)s::text
        ) END
    )
FROM final AS f;
