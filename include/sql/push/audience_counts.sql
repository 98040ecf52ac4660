-- How many members of a run are in which state, for which reason, in which arm, on which channel, in which language.
-- Grain: one row per combination.   Params: run_id, stock_id, receiver_kind, points_price, member_limit (of the run's coupons).
-- Reads: push.audiences, push.coupon_receivers (push.coupons)
SELECT
    a.state, a.reason, a.variant, a.channel, a.language,
    r.member_id IS NOT NULL AS can_have_coupon,
    count(*) AS member_count,
    min(a.member_id) AS first_member_id
FROM push.audiences AS a
LEFT JOIN push.coupon_receivers(
    %(run_id)s::text, %(stock_id)s::text, %(receiver_kind)s::text, %(points_price)s::integer, %(member_limit)s::integer
) AS r ON r.member_id = a.member_id
WHERE a.run_id = %(run_id)s::text
GROUP BY a.state, a.reason, a.variant, a.channel, a.language, can_have_coupon
ORDER BY a.state, a.reason, a.variant, a.channel, a.language, can_have_coupon;
