-- push.coupons and core.coupon_events: coupons the issuer calls redeemed or expired, and those whose time is over.
-- A coupon whose issuer tells nothing (codes of ours, Taobao) expires by itself; a late redemption is still taken (coupons_settle.sql).
-- Params: now_at, keys, states, instants (arrays of equal length), silent_issuers.   Rerun: safe.   Grain of the answer: one row.
WITH
told AS (
    SELECT u.key, u.state, u.instant
    FROM unnest(%(keys)s::text[], %(states)s::text[], %(instants)s::timestamptz[]) AS u (key, state, instant)
    UNION ALL
    SELECT c.request_key, 'expired', coalesce(c.valid_to, s.valid_to)
    FROM push.coupons AS c
    JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id
    WHERE c.state = 'issued' AND s.issuer = any(%(silent_issuers)s::text[]) AND coalesce(c.valid_to, s.valid_to) < %(now_at)s::timestamptz
),
changed AS (
    UPDATE push.coupons AS c
    SET state = t.state, redeemed_at = CASE WHEN t.state = 'redeemed' THEN t.instant END, updated_at = %(now_at)s::timestamptz
    FROM told AS t
    WHERE c.request_key = t.key AND c.state = 'issued'
    RETURNING c.request_key, c.stock_id, c.platform_coupon_id, c.member_id, c.state, t.instant
),
events AS (
    INSERT INTO core.coupon_events (issuer, platform_coupon_id, kind, coupon_request, member_id, face_amount, occurred_at)
    SELECT s.issuer, c.platform_coupon_id, c.state, c.request_key, c.member_id, s.face_amount, c.instant
    FROM changed AS c
    JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id AND NOT s.is_test
    ON CONFLICT (issuer, platform_coupon_id, kind) DO NOTHING
    RETURNING platform_coupon_id
)
SELECT
    count(*) FILTER (WHERE c.state = 'redeemed') AS redeemed,
    count(*) FILTER (WHERE c.state = 'expired') AS expired,
    (SELECT count(*) FROM events) AS told
FROM changed AS c;
