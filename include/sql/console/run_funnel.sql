-- The funnel of a run, treated beside held out; variant '' is the whole arm.
-- Grain: one row per arm and variant.   Params: run_id (text).   Reads: mart.campaign_funnels
SELECT
    f.arm, f.variant, f.member_count, f.accepted_count, f.delivered_count, f.opened_count, f.clicked_count, f.failed_count,
    f.unsubscribed_count,
    f.coupon_issued_count, f.coupon_redeemed_count, f.coupon_expired_count, f.visited_count,
    f.ordered_count, f.buyer_count, f.order_count, f.revenue_amount, f.refund_amount,
    f.net_revenue_square_sum, f.cost_amount,
    f.accepted_count::numeric / nullif(f.member_count, 0) AS accepted_rate,
    f.delivered_count::numeric / nullif(f.member_count, 0) AS delivered_rate,
    f.clicked_count::numeric / nullif(f.member_count, 0) AS clicked_rate,
    f.unsubscribed_count::numeric / nullif(f.member_count, 0) AS unsubscribed_rate,
    f.coupon_redeemed_count::numeric / nullif(f.coupon_issued_count, 0) AS redemption_rate,
    f.visited_count::numeric / nullif(f.member_count, 0) AS visited_rate,
    f.ordered_count::numeric / nullif(f.member_count, 0) AS ordered_rate,
    f.opened_count::numeric / nullif(f.member_count, 0) AS opened_rate,
    f.failed_count::numeric / nullif(f.member_count, 0) AS failed_rate,
    f.buyer_count::numeric / nullif(f.member_count, 0) AS buyer_rate,
    f.revenue_amount / nullif(f.member_count, 0) AS revenue_per_member_amount
FROM mart.campaign_funnels AS f
WHERE f.run_id = %(run_id)s::text
ORDER BY f.arm DESC, f.variant ASC;
