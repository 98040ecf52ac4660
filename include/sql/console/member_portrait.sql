-- Who a member is today, in one row; of a member who was merged, the one it became.
-- Grain: one row, or none when there is no such member.   Params: member_id (bigint).   Reads: core.members, mart.member_portraits
SELECT
    p.member_id, p.business_date, p.known_since_date, p.tier, p.tier_zh, p.tier_en, p.tier_since_date, p.tier_review_date, p.points_balance,
    p.stage, p.stage_since_date, p.rfm_segment, p.activity, p.first_order_date, p.last_order_date, p.order_count, p.gross_amount,
    p.net_amount, p.median_gap_days, p.expected_next_order_date, p.favourite_source_id, p.favourite_source_name, p.favourite_category,
    p.favourite_category_zh, p.favourite_category_en, p.city, p.last_rating, p.last_rated_date, p.alive_probability,
    p.expected_order_count, p.expected_amount, p.expected_days, p.birth_month, p.birth_day, p.last_contact_at, p.identity_count,
    p.has_wechat, p.has_email, p.has_phone
FROM core.members AS m
JOIN mart.member_portraits AS p ON p.member_id = coalesce(m.absorbed_by, m.member_id)
WHERE m.member_id = %(member_id)s::bigint;
