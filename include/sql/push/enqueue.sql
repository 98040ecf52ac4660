-- push.messages: one row for every targeted member of a run.
-- Grain: one row per (run_id, member_id, step).   Decision: docs/decisions/0032-outbox.md
-- Params: run_id, key_prefix, step, as_of, purpose, channels, accounts (arrays, same order), variants, templates (arrays),
--   group_channel, group_size, now_at, opens, closes (the send window), house_zone, wants_facts (boolean: the templates say more of a
--   member than name and tier), can_fall_back (boolean: a refused message goes on over the next channel), expires_at.
-- Reads: push.audiences, push.attempts, push.coupons, push.coupon_stocks, core.member_identities, core.profiles, mart.member_tiers,
--   mart.tier_programmes, mart.tier_rules
-- Rerun: safe; a message key stands once. A cancelled message of which no call can have gone out is taken over by the new run.
INSERT INTO push.messages AS m (
    message_key, run_id, member_id, step, channel, account, purpose, address, template, language, variant, variables,
    coupon_request, group_key, routes, time_zone, state, last_error, not_before, expires_at, queued_at, updated_at
)
WITH
targeted AS (
    SELECT a.member_id, a.channel, a.variant, a.language, a.address, a.routes, a.time_zone
    FROM push.audiences AS a
    WHERE a.run_id = %(run_id)s::text AND a.state = 'targeted'
),
names AS (   -- the newest name token of each member
    SELECT DISTINCT ON (t.member_id) t.member_id, p.name
    FROM targeted AS t
    JOIN core.member_identities AS mi ON mi.member_id = t.member_id
    JOIN core.profiles AS p ON p.identity_id = mi.identity_id
    WHERE p.name LIKE 'name:%%'
    ORDER BY t.member_id ASC, p.observed_at DESC, p.identity_id ASC
),
tiers AS (
    SELECT mt.member_id, r.name_zh, r.name_en
    FROM mart.member_tiers AS mt
    JOIN mart.tier_programmes AS g ON g.programme = mt.programme AND g.position = 1
    JOIN mart.tier_rules AS r ON r.programme = mt.programme AND r.tier = mt.tier
    WHERE mt.valid_from <= %(as_of)s::date AND (mt.valid_to IS NULL OR mt.valid_to > %(as_of)s::date)
),
coupons AS (
    SELECT
        c.member_id, c.request_key, c.state, c.last_error,
        jsonb_build_object(
            'name', s.name, 'amount', trim_scale(s.face_amount)::text, 'minimum', trim_scale(s.minimum_amount)::text,
            'valid_to', to_char(coalesce(c.valid_to, s.valid_to), 'YYYY-MM-DD'),
            'code', CASE WHEN s.has_codes THEN c.platform_coupon_id END   -- a token: delivery opens it
        ) AS variables
    FROM push.coupons AS c
    JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id
    WHERE c.run_id = %(run_id)s::text
),
promised AS (
    SELECT
        t.member_id, c.request_key, c.state = 'released' AS is_refused, c.last_error,
        CASE WHEN t.channel = %(group_channel)s::text THEN c.variables - 'code' || '{"code": null}' ELSE c.variables END AS coupon
    FROM targeted AS t
    JOIN coupons AS c ON c.member_id = t.member_id
),
grouped AS (   -- receivers of the same text; groups of equal size, so that none is left with one receiver
    SELECT
        t.member_id,
        row_number() OVER same_text AS position,
        ceil(count(*) OVER same_text_all::numeric / %(group_size)s::integer)::integer AS group_count
    FROM targeted AS t
    LEFT JOIN promised AS c ON c.member_id = t.member_id
    WHERE t.channel = %(group_channel)s::text
    WINDOW
        same_text_all AS (PARTITION BY t.variant, t.language, c.coupon, t.time_zone, coalesce(c.is_refused, FALSE)),
        same_text AS (same_text_all ORDER BY t.member_id)
),
numbered AS (
    SELECT
        t.*, c.request_key, c.is_refused, c.last_error, c.coupon, g.position, g.group_count,
        n.name, CASE t.language WHEN 'zh' THEN r.name_zh ELSE r.name_en END AS tier
    FROM targeted AS t
    LEFT JOIN promised AS c ON c.member_id = t.member_id
    LEFT JOIN grouped AS g ON g.member_id = t.member_id
    LEFT JOIN names AS n ON n.member_id = t.member_id
    LEFT JOIN tiers AS r ON r.member_id = t.member_id
)
SELECT
    %(key_prefix)s::text || '/' || n.member_id || '/' || %(step)s::text,
    %(run_id)s::text,
    n.member_id,
    %(step)s::text,
    n.channel,
    (%(accounts)s::text[])[array_position(%(channels)s::text[], n.channel)],
    %(purpose)s::text,
    n.address,
    (%(templates)s::text[])[array_position(%(variants)s::text[], n.variant)],
    n.language,
    n.variant,
    jsonb_build_object(
        'member', CASE WHEN n.channel = %(group_channel)s::text THEN NULL ELSE jsonb_build_object('name', n.name, 'tier', n.tier)
            || CASE WHEN %(wants_facts)s::boolean THEN mart.template_facts(n.member_id, n.language, %(as_of)s::date) ELSE '{}' END END,
        'coupon', n.coupon
    ),
    n.request_key,
    CASE WHEN n.channel = %(group_channel)s::text THEN 'g-' || left(encode(sha256(convert_to(concat_ws(
        '|', %(run_id)s::text, %(step)s::text, n.variant, n.language, n.coupon::text, n.time_zone, mod(n.position, n.group_count)
    ), 'UTF8')), 'hex'), 40) END,
    CASE WHEN %(can_fall_back)s::boolean AND jsonb_typeof(n.routes) = 'array' THEN coalesce((
        SELECT jsonb_agg(r.route || jsonb_build_object(
            'account', (%(accounts)s::text[])[array_position(%(channels)s::text[], r.route ->> 'channel')]
        ) ORDER BY r.position)
        FROM jsonb_array_elements(n.routes) WITH ORDINALITY AS r (route, position)
    ), '[]') ELSE '[]' END,
    n.time_zone,
    CASE WHEN n.is_refused THEN 'failed' ELSE 'queued' END,
    CASE WHEN n.is_refused THEN 'coupon refused: ' || coalesce(n.last_error, '') END,
    CASE
        WHEN n.time_zone IS NULL   -- asked once, not of every row
            THEN (SELECT push.next_opening(%(now_at)s::timestamptz, %(opens)s::time, %(closes)s::time, %(house_zone)s::text))
        ELSE push.next_opening(%(now_at)s::timestamptz, %(opens)s::time, %(closes)s::time, n.time_zone)
    END,
    %(expires_at)s::timestamptz,
    %(now_at)s::timestamptz,
    %(now_at)s::timestamptz
FROM numbered AS n
ON CONFLICT (message_key) DO UPDATE
SET run_id = excluded.run_id, state = excluded.state, channel = excluded.channel, account = excluded.account,
    address = excluded.address, template = excluded.template, language = excluded.language, variant = excluded.variant,
    variables = excluded.variables, coupon_request = excluded.coupon_request, group_key = excluded.group_key,
    routes = excluded.routes, time_zone = excluded.time_zone, last_error = excluded.last_error,
    not_before = excluded.not_before, expires_at = excluded.expires_at,
    queued_at = excluded.queued_at, updated_at = excluded.updated_at
WHERE m.state = 'cancelled'
  AND NOT EXISTS (   -- written down and given back, told to try again, refused: clear noes; anything else may have gone out
      SELECT 1 FROM push.attempts AS t
      WHERE t.message_id = m.message_id   -- noqa: RF01
        AND (t.finished_at IS NULL OR t.outcome NOT IN ('retry', 'refused'))
  );
