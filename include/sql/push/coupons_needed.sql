-- How many coupons a run still has to reserve: targeted members who can have one and have none from it yet.
-- Grain: one row.   Params: run_id, stock_id, receiver_kind, points_price, member_limit.
-- Reads: push.coupon_receivers (push.audiences, push.coupons, core.members), push.coupons
SELECT count(*) AS needed_count
FROM push.coupon_receivers(
    %(run_id)s::text, %(stock_id)s::text, %(receiver_kind)s::text, %(points_price)s::integer, %(member_limit)s::integer
) AS r
WHERE NOT EXISTS (SELECT 1 FROM push.coupons AS c WHERE c.run_id = %(run_id)s::text AND c.member_id = r.member_id);
