-- push.coupons: one reserved coupon per targeted member with an openid. The caller holds the lock of the stock's row.
-- Params: run_id, stock_id, key_prefix, step, now_at.   Reads: push.audiences
-- Rerun: safe; a request key stands once. A coupon that was released before it was ever issued is taken up again.
INSERT INTO push.coupons AS c (request_key, stock_id, run_id, member_id, openid, state, reserved_at, updated_at)
SELECT
    %(key_prefix)s::text || '_' || a.member_id || '_' || %(step)s::text,
    %(stock_id)s::text, a.run_id, a.member_id, a.facts ->> 'openid', 'reserved', %(now_at)s::timestamptz, %(now_at)s::timestamptz
FROM push.audiences AS a
WHERE a.run_id = %(run_id)s::text AND a.state = 'targeted' AND a.facts ->> 'openid' IS NOT NULL
ON CONFLICT (request_key) DO UPDATE
SET run_id = excluded.run_id, stock_id = excluded.stock_id, openid = excluded.openid, state = 'reserved', last_error = NULL,
    reserved_at = excluded.reserved_at, updated_at = excluded.updated_at
WHERE c.state = 'released' AND c.run_id <> excluded.run_id;
