-- push.coupons and core.coupon_events: coupons the issuer calls redeemed or expired.
-- Params: now_at, keys, states, instants (arrays of equal length).   Rerun: safe.
UPDATE push.coupons AS c
SET state = u.state, redeemed_at = CASE WHEN u.state = 'redeemed' THEN u.instant END, updated_at = %(now_at)s::timestamptz
FROM unnest(%(keys)s::text[], %(states)s::text[], %(instants)s::timestamptz[]) AS u (key, state, instant)
WHERE c.request_key = u.key AND c.state = 'issued';

INSERT INTO core.coupon_events (issuer, platform_coupon_id, kind, coupon_request, member_id, face_amount, occurred_at)
SELECT s.issuer, c.platform_coupon_id, u.state, c.request_key, c.member_id, s.face_amount, u.instant
FROM unnest(%(keys)s::text[], %(states)s::text[], %(instants)s::timestamptz[]) AS u (key, state, instant)
JOIN push.coupons AS c ON c.request_key = u.key AND c.state = u.state
JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id
ON CONFLICT (issuer, platform_coupon_id, kind) DO NOTHING;
