-- push.coupons, push.coupon_codes, core.point_uses, core.coupon_events: coupons that are taken back, because nobody got them.
-- Reserved ones of a run that ended, or is over its time, before it issued them; and issued codes whose message ended, or never came
-- to be, without a call that may have gone out. Platforms cannot take a coupon back: theirs stay issued.
-- Params: run_id (NULL: of all runs), now_at.
-- Reads: push.campaign_runs, push.coupon_stocks, push.messages, push.attempts, core.members.   Grain of the answer: one row.
-- A code that was never in a call is free again; one that was may have been seen, and is void: it never goes to a second person.
-- Rerun: safe.
WITH
over AS (
    SELECT
        c.request_key, c.stock_id, c.state, c.member_id, c.points_paid, c.reserved_at, c.platform_coupon_id, s.issuer, s.face_amount,
        0 < (
            SELECT count(*)
            FROM push.messages AS m
            JOIN push.attempts AS t ON t.message_id = m.message_id
            WHERE m.coupon_request = c.request_key
        ) AS was_in_a_call
    FROM push.coupons AS c
    JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id
    JOIN push.campaign_runs AS r ON r.run_id = c.run_id
    WHERE (%(run_id)s::text IS NULL OR c.run_id = %(run_id)s::text)
      AND (
          (c.state = 'reserved' AND (r.state IN ('rejected', 'cancelled', 'failed') OR r.expires_at <= %(now_at)s::timestamptz))
          OR (
              c.state = 'issued' AND s.has_codes
              AND (
                  r.state IN ('rejected', 'cancelled', 'failed') OR r.expires_at <= %(now_at)s::timestamptz
                  OR EXISTS (SELECT 1 FROM push.messages AS m WHERE m.coupon_request = c.request_key)
              )
              AND NOT EXISTS (   -- a message that may still go out, or has
                  SELECT 1
                  FROM push.messages AS m
                  LEFT JOIN push.attempts AS t
                      ON t.message_id = m.message_id AND (t.outcome IS NULL OR t.outcome IN ('accepted', 'unknown'))
                  WHERE m.coupon_request = c.request_key
                    AND (m.state NOT IN ('failed', 'expired', 'suppressed', 'cancelled') OR t.message_id IS NOT NULL)
              )
          )
      )
    FOR UPDATE OF c
),
released AS (
    UPDATE push.coupons AS c
    SET state = 'released', platform_coupon_id = NULL, valid_to = NULL, updated_at = %(now_at)s::timestamptz
    FROM over AS o
    WHERE c.request_key = o.request_key
    RETURNING c.request_key
),
codes AS (
    UPDATE push.coupon_codes AS k
    SET state = CASE WHEN o.was_in_a_call THEN 'void' ELSE 'free' END,
        request_key = CASE WHEN o.was_in_a_call THEN k.request_key END, updated_at = %(now_at)s::timestamptz
    FROM over AS o
    WHERE k.request_key = o.request_key AND k.state = 'bound'
    RETURNING k.code_token
),
given_back AS (
    INSERT INTO core.point_uses (use_id, member_id, kind, points, reason, used_at)
    SELECT
        'coupon/' || o.request_key || '/' || extract(EPOCH FROM o.reserved_at)::text || '/back', coalesce(m.absorbed_by, m.member_id),
        'adjust', o.points_paid, 'coupon of stock ' || o.stock_id || ' taken back', %(now_at)s::timestamptz
    FROM over AS o
    JOIN core.members AS m ON m.member_id = o.member_id
    WHERE o.points_paid > 0
    ON CONFLICT (use_id) DO NOTHING
    RETURNING use_id
),
told AS (   -- only where core was told that it was given
    INSERT INTO core.coupon_events (issuer, platform_coupon_id, kind, coupon_request, member_id, face_amount, occurred_at)
    SELECT o.issuer, o.platform_coupon_id, 'released', o.request_key, o.member_id, o.face_amount, %(now_at)s::timestamptz
    FROM over AS o
    JOIN core.coupon_events AS e ON e.issuer = o.issuer AND e.platform_coupon_id = o.platform_coupon_id AND e.kind = 'issued'
    ON CONFLICT (issuer, platform_coupon_id, kind) DO NOTHING
    RETURNING platform_coupon_id
)
SELECT
    (SELECT count(*) FROM released) AS released,
    (SELECT count(*) FROM codes) AS codes,
    (SELECT count(*) FROM given_back) AS points_given_back,
    (SELECT count(*) FROM told) AS told;
