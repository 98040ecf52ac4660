-- What the brand has in its members at the end of a business date, beside the same 30 days earlier where that was computed.
-- Grain: one row per date.   Params: business_date (date).   Reads: mart.asset_cube_daily
SELECT
    c.business_date, c.member_count, c.reachable_count, c.reachable_rate, c.reachable_wechat_count, c.reachable_sms_count,
    c.reachable_email_count, c.reachable_push_count, c.complete_profile_count, c.complete_profile_rate, c.buyer_count,
    c.mean_lifetime_days, c.median_lifetime_days, c.previous_buyer_count, c.retained_buyer_count, c.retention_rate,
    c.year_buyer_count, c.year_net_amount, c.net_per_buyer_year_amount, c.net_amount, c.net_per_buyer_amount, c.margin_amount,
    c.review_count, c.reviews_per_buyer_rate, c.referral_count
FROM mart.asset_cube_daily AS c
WHERE c.business_date IN (%(business_date)s::date, %(business_date)s::date - 30)
ORDER BY c.business_date DESC;
