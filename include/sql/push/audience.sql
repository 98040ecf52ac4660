-- push.audiences: every member of a run's segment in exactly one state: targeted, held out, or excluded by the first gate.
-- Grain: one row per (run_id, member_id).   Decisions: docs/decisions/0031-audience.md, 0088-audience-at-size.md
-- Params: run_id, purpose, as_of_at (all gates look back from it), planned_at (first allowed sending instant after it),
--   planned_until (end of that day's send window), month_start, account (the WeChat account), channels, families,
--   consent_kinds, month_limits, window_hours, window_limits (arrays in channel order; NULL = no such rule),
--   cap_messages, cap_since, campaign, as_of, stock_id, coupon_limit (NULL = no coupon), coupon_needs_openid, global_salt, global_share,
--   salt, holdout_share, variants, bounds, max_messages, default_language, group_channel, can_fall_back (boolean).
-- Reads: audience_segment (temporary: member_id, facts), audience_rules (temporary: member_id, rule), core.member_identities,
--   core.identities, core.followers, core.follow_events, core.consents, core.interactions, core.profiles, push.messages, push.coupons,
--   push.suppressions
-- Rerun: not on top of itself; build_run calls it once per run in the transaction that creates the run.

-- Each member's gates, arm and variant, as if nobody else were there. What concerns channels is a mask: bit 0 is the first channel of
-- the campaign. A mask is or-ed in any order, so no history is sorted by channel, and a member is one row from here on.
CREATE TEMPORARY TABLE audience_decided ON COMMIT DROP AS
WITH
channel_order AS (
    SELECT o.channel, o.family, o.consent_kind, o.month_limit, o.window_hours, o.window_limit, 1 << (o.position - 1)::integer AS bit
    FROM unnest(%(channels)s::text[], %(families)s::text[], %(consent_kinds)s::text[], %(month_limits)s::integer[],
                %(window_hours)s::integer[], %(window_limits)s::integer[])
        WITH ORDINALITY AS o (channel, family, consent_kind, month_limit, window_hours, window_limit, position)
),
family_order AS (
    SELECT o.family, core.address_kind(o.family) AS kind, bit_or(o.bit) AS mask
    FROM channel_order AS o
    GROUP BY o.family
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
    SELECT mi.member_id, mi.identity_id
    FROM audience_segment AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
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
    SELECT
        k.member_id, o.mask,
        -- who only ever said one thing has no second instant to compare with
        coalesce(
            max(c.ranks_at) FILTER (WHERE c.is_granted) > max(c.ranks_at) FILTER (WHERE NOT c.is_granted), bool_and(c.is_granted)
        ) AS is_granted
    FROM core.consents AS c
    JOIN family_order AS o ON o.family = c.channel
    JOIN known AS k ON k.identity_id = c.identity_id
    WHERE c.purpose = %(purpose)s::text AND c.occurred_at < %(as_of_at)s::timestamptz
    GROUP BY k.member_id, o.mask
),
forbidden AS (   -- at the as-of instant; once for all, because a segment may be everybody
    SELECT DISTINCT x.channel, x.address
    FROM push.suppressions AS x
    WHERE x.since < %(as_of_at)s::timestamptz AND (x.until IS NULL OR x.until >= %(as_of_at)s::timestamptz)
),
owned AS (   -- elsewhere: every address of each family
    SELECT
        k.member_id, o.family, i.identity_id, i.value AS address,
        count(*) OVER (PARTITION BY k.member_id, o.family) AS address_count
    FROM family_order AS o
    JOIN core.identities AS i ON i.kind = o.kind
    JOIN known AS k ON k.identity_id = i.identity_id
    WHERE o.family <> 'wechat'
),
given AS (   -- the one that was given most recently; who has only one is not asked when
    SELECT DISTINCT ON (w.member_id, w.family) w.member_id, w.family, w.address
    FROM owned AS w
    ORDER BY
        w.member_id ASC, w.family ASC,
        CASE WHEN w.address_count > 1 THEN (
            SELECT max(c.occurred_at)
            FROM core.consents AS c
            WHERE c.identity_id = w.identity_id AND c.channel = w.family AND c.occurred_at < %(as_of_at)s::timestamptz
        ) END DESC NULLS LAST,
        w.identity_id ASC
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
chosen AS (   -- the language on a form, the newest one
    SELECT DISTINCT ON (k.member_id) k.member_id, p.language
    FROM known AS k
    JOIN core.profiles AS p ON p.identity_id = k.identity_id
    WHERE p.language IS NOT NULL
    ORDER BY k.member_id ASC, p.observed_at DESC, p.identity_id ASC
),
clocks AS (   -- whose clock is not ours
    SELECT DISTINCT ON (k.member_id) k.member_id, p.time_zone
    FROM known AS k
    JOIN core.profiles AS p ON p.identity_id = k.identity_id
    WHERE p.time_zone IS NOT NULL
    ORDER BY k.member_id ASC, p.observed_at DESC, p.identity_id ASC
),
elsewhere AS (   -- the same as one row a member
    SELECT
        g.member_id,
        max(g.address) FILTER (WHERE g.family = 'email') AS email, max(g.address) FILTER (WHERE g.family = 'sms') AS phone,
        max(g.address) FILTER (WHERE g.family = 'push') AS mall_id, max(g.address) FILTER (WHERE g.family = 'wecom') AS wecom_id
    FROM given AS g
    GROUP BY g.member_id
),
-- What went out to the member before the as-of instant; counted by acceptance, whatever came of it later.
used_month AS (   -- of each channel that has a number a month
    SELECT s.member_id, m.channel, count(*) AS message_count
    FROM push.messages AS m
    JOIN selves AS s ON s.former_id = m.member_id
    WHERE m.accepted_at >= %(month_start)s::timestamptz AND m.accepted_at < %(as_of_at)s::timestamptz
      AND m.channel = any(array(SELECT o.channel FROM channel_order AS o WHERE o.month_limit IS NOT NULL))
    GROUP BY s.member_id, m.channel
),
open_windows AS (   -- the window must stay open until the end of the planned day, or the message could fall out of it
    SELECT w.member_id, w.wrote_at, o.channel, o.bit, o.window_limit
    FROM wrote AS w
    JOIN channel_order AS o ON w.wrote_at > %(planned_until)s::timestamptz - make_interval(hours => o.window_hours)
),
used_window AS (   -- since the member wrote, of each channel that has a number a window
    SELECT w.member_id, w.channel, count(*) AS message_count
    FROM open_windows AS w
    JOIN selves AS s ON s.member_id = w.member_id
    JOIN push.messages AS m ON m.member_id = s.former_id AND m.channel = w.channel AND m.accepted_at >= w.wrote_at
    WHERE m.accepted_at < %(as_of_at)s::timestamptz
      AND m.accepted_at >= (SELECT min(x.wrote_at) FROM open_windows AS x)
      AND m.channel = any(array(SELECT o.channel FROM channel_order AS o WHERE o.window_hours IS NOT NULL))
    GROUP BY w.member_id, w.channel
),
marks AS (
    SELECT
        n.member_id, bit_or(n.address) AS address, bit_or(n.granted) AS granted, bit_or(n.refused) AS refused,
        bit_or(n.suppressed) AS suppressed, bit_or(n.used_up) AS used_up, bit_or(n.answerable) AS answerable,
        sum(n.recent) AS recent_count
    FROM (
        SELECT
            a.member_id, o.mask AS address, NULL::integer AS granted, NULL::integer AS refused,
            CASE WHEN x.address IS NOT NULL THEN o.mask END AS suppressed,
            NULL::integer AS used_up, NULL::integer AS answerable, NULL::integer AS recent
        FROM addresses AS a
        JOIN family_order AS o ON o.family = a.family
        LEFT JOIN forbidden AS x ON x.channel = a.family AND x.address = a.address
        UNION ALL
        SELECT
            c.member_id, NULL, CASE WHEN c.is_granted THEN c.mask END, CASE WHEN NOT c.is_granted THEN c.mask END, NULL, NULL, NULL, NULL
        FROM said AS c
        UNION ALL
        SELECT u.member_id, NULL, NULL, NULL, NULL, o.bit, NULL, NULL
        FROM used_month AS u
        JOIN channel_order AS o ON o.channel = u.channel AND u.message_count >= o.month_limit
        UNION ALL
        SELECT w.member_id, NULL, NULL, NULL, NULL, NULL, w.bit, NULL
        FROM open_windows AS w
        LEFT JOIN used_window AS u ON u.member_id = w.member_id AND u.channel = w.channel
        WHERE coalesce(u.message_count, 0) < w.window_limit
        UNION ALL
        SELECT s.member_id, NULL, NULL, NULL, NULL, NULL, NULL, 1
        FROM push.messages AS m
        JOIN selves AS s ON s.former_id = m.member_id
        WHERE m.purpose = 'marketing' AND m.accepted_at >= %(cap_since)s::timestamptz AND m.accepted_at < %(as_of_at)s::timestamptz
    ) AS n
    GROUP BY n.member_id
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
    JOIN core.identities AS i ON i.value = m.address
    JOIN known AS k ON k.identity_id = i.identity_id
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
following AS (SELECT coalesce(bit_or(o.bit), 0) AS mask FROM channel_order AS o WHERE o.consent_kind = 'following'),
windowed AS (SELECT coalesce(bit_or(o.bit), 0) AS mask FROM channel_order AS o WHERE o.window_hours IS NOT NULL),
masked AS (
    SELECT
        n.member_id, n.recent_count, n.used_up, n.answerable, n.suppressed, coalesce(n.address, 0) AS address,
        coalesce(n.address & (coalesce(n.granted, 0) | ((SELECT f.mask FROM following AS f) & ~coalesce(n.refused, 0))), 0) AS consented
    FROM marks AS n
),
facts AS (
    SELECT
        s.member_id, s.facts, f.openid, e.email, e.phone, e.mall_id, e.wecom_id, w.wrote_at, z.time_zone, x.rule,
        u.month_counts, v.window_count,
        coalesce(n.recent_count, 0) AS recent_count,
        a.member_id IS NOT NULL AS is_reached,
        coalesce(c.coupon_count, 0) AS coupon_count,
        coalesce(n.address, 0) AS address,
        coalesce(n.consented, 0) AS consented,
        coalesce(n.consented & ~coalesce(n.suppressed, 0), 0) AS allowed,
        coalesce(n.consented & ~coalesce(n.suppressed, 0) & ~coalesce(n.used_up, 0)
            & (~(SELECT d.mask FROM windowed AS d) | coalesce(n.answerable, 0)), 0) AS open,
        CASE
            WHEN coalesce(p.language, f.language) IS NULL THEN %(default_language)s::text
            WHEN lower(coalesce(p.language, f.language)) LIKE 'zh%%' THEN 'zh'
            ELSE 'en'
        END AS language
    FROM audience_segment AS s
    LEFT JOIN masked AS n ON n.member_id = s.member_id
    LEFT JOIN followed AS f ON f.member_id = s.member_id
    LEFT JOIN elsewhere AS e ON e.member_id = s.member_id
    LEFT JOIN wrote AS w ON w.member_id = s.member_id
    LEFT JOIN chosen AS p ON p.member_id = s.member_id
    LEFT JOIN clocks AS z ON z.member_id = s.member_id
    LEFT JOIN (
        SELECT t.member_id, jsonb_object_agg(t.channel, t.message_count) AS month_counts FROM used_month AS t GROUP BY t.member_id
    ) AS u ON u.member_id = s.member_id
    LEFT JOIN (
        SELECT t.member_id, max(t.message_count) AS window_count FROM used_window AS t GROUP BY t.member_id
    ) AS v ON v.member_id = s.member_id
    LEFT JOIN ruled_out AS x ON x.member_id = s.member_id
    LEFT JOIN reached AS a ON a.member_id = s.member_id
    LEFT JOIN holding AS c ON c.member_id = s.member_id
),
gated AS (   -- the gates, in order; the first that applies is the reason. OFFSET 0: it is not worked out again where it is used
    SELECT
        f.*,
        CASE
            WHEN f.rule IS NOT NULL THEN 'filtered'
            WHEN f.address = 0 THEN 'no_address'
            WHEN f.consented = 0 THEN 'no_consent'
            WHEN f.allowed = 0 THEN 'suppressed'
            WHEN f.open = 0 THEN 'channel_limit'
            WHEN f.recent_count >= %(cap_messages)s::integer THEN 'capped'
            WHEN f.is_reached THEN 'already_reached'
            WHEN (f.openid IS NOT NULL OR NOT %(coupon_needs_openid)s::boolean) AND f.coupon_count >= %(coupon_limit)s::integer
                THEN 'coupon_limit'
            WHEN ('x' || left(encode(sha256(convert_to(%(global_salt)s::text || ':' || f.member_id, 'UTF8')), 'hex'), 12))::bit(48)::bigint
                 / 281474976710656.0::double precision < %(global_share)s::double precision THEN 'global_holdout'
        END AS reason
    FROM facts AS f
    OFFSET 0   -- noqa: AM09
),
drawn AS (   -- experiment.unit() in SQL: the first 48 bits of sha256(salt:member); only for those whom no gate stopped
    SELECT
        g.*,
        CASE WHEN g.reason IS NULL THEN
            ('x' || left(encode(sha256(convert_to(%(salt)s::text || ':holdout:' || g.member_id, 'UTF8')), 'hex'), 12))::bit(48)::bigint
            / 281474976710656.0::double precision
        END AS holdout_unit
    FROM gated AS g
    OFFSET 0   -- noqa: AM09
)
SELECT
    d.member_id, d.facts, d.openid, d.email, d.phone, d.mall_id, d.wecom_id, d.wrote_at, d.time_zone, d.rule, d.month_counts,
    d.window_count, d.recent_count, d.coupon_count, d.is_reached, d.open, d.language, d.reason, d.holdout_unit,
    coalesce(d.holdout_unit < %(holdout_share)s::double precision, FALSE) AS is_holdout,
    CASE WHEN d.holdout_unit >= %(holdout_share)s::double precision THEN
        (%(variants)s::text[])[1 + CASE
            WHEN cardinality(%(bounds)s::double precision[]) = 0 THEN 0
            ELSE width_bucket(
                ('x' || left(encode(sha256(convert_to(%(salt)s::text || ':variant:' || d.member_id, 'UTF8')), 'hex'), 12))::bit(48)::bigint
                / 281474976710656.0::double precision, %(bounds)s::double precision[]
            )
        END]
    END AS variant
FROM drawn AS d;

-- What concerns all together: the size of the campaign, and groups that nobody may be alone in.
INSERT INTO push.audiences (
    run_id, member_id, state, reason, arm, variant, channel, language, address, facts, openid, email, phone, mall_id, wecom_id, wrote_at,
    channels, routes, rule, marketing_recent, this_month, service_in_window, coupons_of_stock, time_zone
)
WITH
ways AS (   -- the channels that a mask stands for, in the campaign's order
    SELECT m.mask, array_agg(o.channel ORDER BY o.position) AS channels, array_agg(o.family ORDER BY o.position) AS families
    FROM generate_series(1, (1 << cardinality(%(channels)s::text[])) - 1) AS m (mask)
    JOIN unnest(%(channels)s::text[], %(families)s::text[]) WITH ORDINALITY AS o (channel, family, position)
        ON m.mask & (1 << (o.position - 1)::integer) > 0
    GROUP BY m.mask
),
allowed AS (   -- by the size limit, less whom other runs of the day have reached: two runs are no more than one
    SELECT greatest(%(max_messages)s::bigint - (SELECT count(*) FROM audience_decided AS d WHERE d.is_reached), 0) AS message_count
),
cut AS (   -- the first one beyond it: in hash order, so that a rerun cuts the same members
    SELECT d.holdout_unit, d.member_id
    FROM audience_decided AS d
    WHERE d.reason IS NULL AND NOT d.is_holdout
      AND (SELECT count(*) FROM audience_decided AS e WHERE e.reason IS NULL AND NOT e.is_holdout)
          > (SELECT l.message_count FROM allowed AS l)
    ORDER BY d.holdout_unit ASC, d.member_id ASC
    LIMIT 1 OFFSET (SELECT l.message_count FROM allowed AS l)
),
lonely AS (   -- a mass send needs two receivers of the same text
    SELECT d.variant, d.language
    FROM audience_decided AS d
    JOIN ways AS w ON w.mask = d.open AND w.channels[1] = %(group_channel)s::text
    WHERE d.reason IS NULL AND NOT d.is_holdout
      AND ((d.holdout_unit, d.member_id) >= (SELECT x.holdout_unit, x.member_id FROM cut AS x)) IS NOT TRUE
    GROUP BY d.variant, d.language
    HAVING count(*) = 1
),
limited AS (
    SELECT
        d.*, w.channels, w.families,
        CASE
            WHEN d.reason IS NOT NULL OR d.is_holdout THEN d.reason
            WHEN (d.holdout_unit, d.member_id) >= (SELECT x.holdout_unit, x.member_id FROM cut AS x) THEN 'over_size_limit'
        END AS limit_reason
    FROM audience_decided AS d
    LEFT JOIN ways AS w ON w.mask = d.open
),
counted AS (
    SELECT
        l.*,
        l.limit_reason IS NULL AND NOT l.is_holdout AND l.channels[1] = %(group_channel)s::text
        AND (l.variant, l.language) IN (SELECT o.variant, o.language FROM lonely AS o) AS is_alone
    FROM limited AS l
    OFFSET 0   -- noqa: AM09
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
    CASE WHEN f.final_reason IS NULL THEN f.variant END,
    CASE WHEN f.final_reason IS NULL AND NOT f.is_holdout THEN f.channels[f.choice] END,
    f.language,
    CASE WHEN f.final_reason IS NULL AND NOT f.is_holdout THEN   -- as core.address_kind says
        CASE f.families[f.choice]
            WHEN 'wechat' THEN f.openid WHEN 'email' THEN f.email WHEN 'sms' THEN f.phone WHEN 'push' THEN f.mall_id
            WHEN 'wecom' THEN f.wecom_id
        END
    END,
    f.facts, f.openid, f.email, f.phone, f.mall_id, f.wecom_id, f.wrote_at, f.channels,
    CASE WHEN %(can_fall_back)s::boolean AND f.final_reason IS NULL AND NOT f.is_holdout
        AND cardinality(f.channels) > f.choice THEN (   -- where it may go next
        SELECT jsonb_agg(jsonb_build_object('channel', n.channel, 'address', CASE n.family
            WHEN 'wechat' THEN f.openid WHEN 'email' THEN f.email WHEN 'sms' THEN f.phone WHEN 'push' THEN f.mall_id
            WHEN 'wecom' THEN f.wecom_id
        END) ORDER BY n.position)
        FROM unnest(f.channels, f.families) WITH ORDINALITY AS n (channel, family, position)
        WHERE n.position > f.choice AND n.channel <> %(group_channel)s::text
    ) END,
    f.rule, f.recent_count, f.month_counts, f.window_count, f.coupon_count, f.time_zone
FROM final AS f;
