-- Who is asked for a review tonight, reminded, thanked for one, or asked how a service case went: one row per member. Thanks come
-- first, then the survey after a case, then the newest order that is due.
-- Grain: one row per member.   Decision: docs/decisions/0035-review-requests.md, docs/decisions/0078-reviews-in-full.md
-- Params: as_of_at, planned_at, ask_from, ask_until (signed in [from, until)), remind_from, remind_until (asked in
--   [from, until)), written_from (reviewed, or the case settled, in [from, as_of_at)), gap_since, journey, run_id, account, channels,
--   families, consent_kinds, default_language, notice_templates (step -> WeChat's template of a subscription notice, jsonb).
-- Reads: core.orders, core.order_lines, core.written_reviews, core.refunds, core.member_identities, core.members, core.identities,
--   core.followers, core.consents, core.profiles, core.point_uses, push.messages, push.campaign_runs, push.suppressions,
--   push.service_cases
-- Ratings are not read: nobody is asked or thanked by what they think (docs/decisions/0035-review-requests.md).
WITH
channel_order AS (
    SELECT o.channel, o.family, o.consent_kind, o.position
    FROM unnest(%(channels)s::text[], %(families)s::text[], %(consent_kinds)s::text[])
        WITH ORDINALITY AS o (channel, family, consent_kind, position)
),
asked AS (   -- every request this journey ever made, whatever became of it
    SELECT m.message_key, m.member_id, m.step, m.state, m.accepted_at, coalesce(m.accepted_at, m.queued_at) AS asked_at, m.run_id
    FROM push.campaign_runs AS r
    JOIN push.messages AS m ON m.run_id = r.run_id
    WHERE r.campaign = %(journey)s::text
),
open_orders AS (   -- signed, not sent back, and nobody has written about any of its lines
    SELECT o.source_id, o.order_id, o.identity_id, o.signed_at, 'review/' || o.source_id || '/' || o.order_id AS key_prefix
    FROM core.orders AS o
    WHERE o.signed_at >= least(%(ask_from)s::timestamptz, %(remind_from)s::timestamptz - interval '60 days')
      AND o.signed_at < %(ask_until)s::timestamptz
      AND o.status IN ('signed', 'finished')
      AND NOT EXISTS (
          SELECT 1 FROM core.written_reviews AS v
          WHERE v.source_id = o.source_id AND v.order_id = o.order_id AND v.created_at < %(as_of_at)s::timestamptz
      )
      AND NOT EXISTS (
          SELECT 1 FROM core.refunds AS f
          WHERE f.source_id = o.source_id AND f.order_id = o.order_id AND f.status NOT IN ('refused', 'closed')
      )
),
due AS (
    SELECT o.*, 'ask' AS step
    FROM open_orders AS o
    WHERE o.signed_at >= %(ask_from)s::timestamptz
      AND NOT EXISTS (SELECT 1 FROM asked AS a WHERE a.message_key = o.key_prefix || '/ask')
    UNION ALL
    SELECT o.*, 'remind' AS step
    FROM open_orders AS o
    JOIN asked AS a ON a.message_key = o.key_prefix || '/ask'
    WHERE a.state IN ('accepted', 'delivered')
      AND a.accepted_at >= %(remind_from)s::timestamptz AND a.accepted_at < %(remind_until)s::timestamptz
      AND NOT EXISTS (SELECT 1 FROM asked AS b WHERE b.message_key = o.key_prefix || '/remind')
),
settled AS (   -- any review at all is thanked for; a case that was answered or closed is asked about
    SELECT v.source_id, v.order_id, 'thanks' AS step, min(v.created_at) AS at_instant
    FROM core.written_reviews AS v
    WHERE v.created_at >= %(written_from)s::timestamptz AND v.created_at < %(as_of_at)s::timestamptz
    GROUP BY v.source_id, v.order_id
    UNION ALL
    SELECT c.source_id, c.order_id, 'survey' AS step, max(coalesce(c.answered_at, c.closed_at)) AS at_instant
    FROM push.service_cases AS c
    WHERE c.state IN ('answered', 'closed') AND coalesce(c.answered_at, c.closed_at) >= %(written_from)s::timestamptz
      AND coalesce(c.answered_at, c.closed_at) < %(as_of_at)s::timestamptz
    GROUP BY c.source_id, c.order_id
),
steps AS (
    SELECT d.source_id, d.order_id, d.identity_id, d.signed_at, d.key_prefix, d.step, 3 AS rank FROM due AS d
    UNION ALL
    SELECT o.source_id, o.order_id, o.identity_id, coalesce(o.signed_at, s.at_instant) AS signed_at,
           'review/' || o.source_id || '/' || o.order_id AS key_prefix, s.step, CASE s.step WHEN 'thanks' THEN 1 ELSE 2 END AS rank
    FROM settled AS s
    JOIN core.orders AS o ON o.source_id = s.source_id AND o.order_id = s.order_id
    WHERE NOT EXISTS (SELECT 1 FROM asked AS a WHERE a.message_key = 'review/' || o.source_id || '/' || o.order_id || '/' || s.step)
),
chosen AS (   -- one message per person and night; of requests the newest order
    SELECT DISTINCT ON (mi.member_id) mi.member_id, d.source_id, d.order_id, d.signed_at, d.key_prefix, d.step
    FROM steps AS d
    JOIN core.member_identities AS mi ON mi.identity_id = d.identity_id
    WHERE d.rank < 3 OR NOT EXISTS (   -- and some days between two requests
        SELECT 1
        FROM asked AS a
        LEFT JOIN core.members AS former ON former.member_id = a.member_id
        WHERE coalesce(former.absorbed_by, a.member_id) = mi.member_id AND a.run_id <> %(run_id)s::text
          AND a.asked_at >= %(gap_since)s::timestamptz AND a.state NOT IN ('failed', 'expired', 'suppressed', 'cancelled')
    )
    ORDER BY mi.member_id ASC, d.rank ASC, d.signed_at DESC, d.source_id ASC, d.order_id ASC, d.step ASC
),
known AS (
    SELECT c.member_id, i.identity_id, i.kind, i.value
    FROM chosen AS c
    JOIN core.member_identities AS mi ON mi.member_id = c.member_id
    JOIN core.identities AS i ON i.identity_id = mi.identity_id
),
followed AS (
    SELECT DISTINCT ON (k.member_id) k.member_id, f.openid, f.language
    FROM known AS k
    JOIN core.followers AS f ON f.identity_id = k.identity_id AND f.source_id = %(account)s::text AND f.is_following
    ORDER BY k.member_id ASC, f.followed_at DESC NULLS LAST, f.openid ASC
),
said AS (
    SELECT DISTINCT ON (k.member_id, c.channel, c.purpose) k.member_id, c.channel AS family, c.purpose, c.is_granted
    FROM known AS k
    JOIN core.consents AS c ON c.identity_id = k.identity_id
    WHERE c.occurred_at < %(as_of_at)s::timestamptz
    ORDER BY k.member_id ASC, c.channel ASC, c.purpose ASC, c.ranks_at DESC, c.is_granted ASC
),
mailable AS (
    SELECT DISTINCT ON (k.member_id) k.member_id, k.value AS email
    FROM known AS k
    LEFT JOIN core.consents AS c
        ON c.identity_id = k.identity_id AND c.channel = 'email' AND c.occurred_at < %(as_of_at)s::timestamptz
    WHERE k.kind = 'email'
    ORDER BY k.member_id ASC, c.occurred_at DESC NULLS LAST, k.identity_id ASC
),
people AS (
    SELECT DISTINCT ON (k.member_id) k.member_id, p.language
    FROM known AS k
    JOIN core.profiles AS p ON p.identity_id = k.identity_id
    WHERE p.language IS NOT NULL
    ORDER BY k.member_id ASC, p.observed_at DESC, p.identity_id ASC
),
names AS (
    SELECT DISTINCT ON (k.member_id) k.member_id, p.name
    FROM known AS k
    JOIN core.profiles AS p ON p.identity_id = k.identity_id
    WHERE p.name LIKE 'name:%%'
    ORDER BY k.member_id ASC, p.observed_at DESC, p.identity_id ASC
),
addressed AS (
    SELECT c.*, f.openid, e.email, f.language AS follower_language, o.channel, o.family, o.consent_kind, o.position,
           CASE o.family WHEN 'wechat' THEN f.openid ELSE e.email END AS address
    FROM chosen AS c
    LEFT JOIN followed AS f ON f.member_id = c.member_id
    LEFT JOIN mailable AS e ON e.member_id = c.member_id
    CROSS JOIN channel_order AS o
),
options AS (   -- a service message needs service consent; on e-mail the marketing consent of the form covers it too
    SELECT
        a.member_id, a.channel, a.address, a.position,
        coalesce(service.is_granted, marketing.is_granted, a.consent_kind = 'following') AS has_consent,
        EXISTS (  -- noqa: CP03,LT01,LT06
            SELECT 1 FROM push.suppressions AS x
            WHERE x.channel = a.family AND x.address = a.address AND x.since < %(planned_at)s::timestamptz
              AND (x.until IS NULL OR x.until >= %(planned_at)s::timestamptz)
        ) AS is_suppressed,
        a.channel <> 'wechat_subscribe' OR push.subscribe_balance(
            %(account)s::text, a.address, %(notice_templates)s::jsonb ->> a.step, %(planned_at)s::timestamptz
        ) > 0 AS is_open
    FROM addressed AS a
    LEFT JOIN said AS service ON service.member_id = a.member_id AND service.family = a.family AND service.purpose = 'service'
    LEFT JOIN said AS marketing ON marketing.member_id = a.member_id AND marketing.family = a.family AND marketing.purpose = 'marketing'
    WHERE a.address IS NOT NULL
),
routes AS (
    SELECT
        member_id,
        bool_or(has_consent) AS has_consent,
        bool_or(has_consent AND NOT is_suppressed) AS is_allowed,
        (array_agg(channel ORDER BY position) FILTER (WHERE has_consent AND NOT is_suppressed AND is_open))[1] AS channel,
        (array_agg(address ORDER BY position) FILTER (WHERE has_consent AND NOT is_suppressed AND is_open))[1] AS address
    FROM options
    GROUP BY member_id
)
SELECT
    c.member_id, c.step, c.key_prefix || '/' || c.step AS message_key,
    CASE
        WHEN r.member_id IS NULL THEN 'no_address'
        WHEN NOT r.has_consent THEN 'no_consent'
        WHEN NOT r.is_allowed THEN 'suppressed'
        WHEN r.channel IS NULL THEN 'channel_limit'
    END AS reason,
    r.channel, r.address, n.name,
    CASE
        WHEN coalesce(p.language, f.language) IS NULL THEN %(default_language)s::text
        WHEN lower(coalesce(p.language, f.language)) LIKE 'zh%%' THEN 'zh'
        ELSE 'en'
    END AS language,
    jsonb_build_object('title', line.title, 'date', to_char(c.signed_at, 'YYYY-MM-DD')) AS order_facts,
    reward.points AS reward_points, f.openid, e.email
FROM chosen AS c
LEFT JOIN core.point_uses AS reward ON c.step = 'thanks' AND reward.use_id = c.key_prefix || '/reward'
LEFT JOIN routes AS r ON r.member_id = c.member_id
LEFT JOIN followed AS f ON f.member_id = c.member_id
LEFT JOIN mailable AS e ON e.member_id = c.member_id
LEFT JOIN people AS p ON p.member_id = c.member_id
LEFT JOIN names AS n ON n.member_id = c.member_id
LEFT JOIN LATERAL (
    SELECT l.title
    FROM core.order_lines AS l
    WHERE l.source_id = c.source_id AND l.order_id = c.order_id
    ORDER BY l.line_amount DESC, l.line_id ASC
    LIMIT 1
) AS line ON TRUE
ORDER BY c.member_id;
