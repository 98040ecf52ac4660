-- push.coupons, core.point_uses: one reserved coupon per targeted member who can have one, and the points it costs them.
-- The caller holds the lock of the stock's row, and of the members' rows when points are paid.
-- Params: run_id, stock_id, key_prefix, step, now_at, receiver_kind, points_price, member_limit.
-- Reads: push.coupon_receivers (push.audiences, push.coupons, core.members), core.members
-- Rerun: safe; a request key stands once. A coupon that was released before it was ever used is taken up again.
WITH
reserved AS (
    INSERT INTO push.coupons AS c (
        request_key, stock_id, run_id, member_id, receiver, state, points_paid, reserved_at, updated_at
    )
    SELECT
        %(key_prefix)s::text || '_' || r.member_id || '_' || %(step)s::text, %(stock_id)s::text, %(run_id)s::text, r.member_id, r.receiver,
        'reserved', %(points_price)s::integer, %(now_at)s::timestamptz, %(now_at)s::timestamptz
    FROM push.coupon_receivers(
        %(run_id)s::text, %(stock_id)s::text, %(receiver_kind)s::text, %(points_price)s::integer, %(member_limit)s::integer
    ) AS r
    WHERE NOT EXISTS (SELECT 1 FROM push.coupons AS k WHERE k.run_id = %(run_id)s::text AND k.member_id = r.member_id)
    ON CONFLICT (request_key) DO UPDATE
    SET run_id = excluded.run_id, stock_id = excluded.stock_id, receiver = excluded.receiver, state = 'reserved', last_error = NULL,
        points_paid = excluded.points_paid, valid_to = NULL, issued_at = NULL, reserved_at = excluded.reserved_at,
        updated_at = excluded.updated_at
    WHERE c.state = 'released' AND c.run_id IS DISTINCT FROM excluded.run_id
    RETURNING c.request_key, c.member_id, c.points_paid, c.reserved_at
)
INSERT INTO core.point_uses (use_id, member_id, kind, points, reason, used_at)
SELECT
    'coupon/' || r.request_key || '/' || extract(EPOCH FROM r.reserved_at)::text, coalesce(m.absorbed_by, m.member_id), 'redeem',
    r.points_paid, 'coupon of stock ' || %(stock_id)s::text, %(now_at)s::timestamptz
FROM reserved AS r
JOIN core.members AS m ON m.member_id = r.member_id
WHERE r.points_paid > 0
ON CONFLICT (use_id) DO NOTHING;
