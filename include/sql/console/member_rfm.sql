-- A member's recency, frequency and money on a date.
-- Grain: one row, or none when the member was not in the window.   Params: member_id (bigint), as_of (date).   Reads: mart.member_rfm
SELECT r.valid_from, r.last_order_date, %(as_of)s::date + 1 - r.last_order_date AS recency_days, r.frequency_count, r.monetary_amount,
    r.r_score, r.f_score, r.m_score, r.rfm_segment
FROM mart.member_rfm AS r
WHERE r.member_id = %(member_id)s::bigint AND r.valid_from <= %(as_of)s::date AND (r.valid_to IS NULL OR r.valid_to > %(as_of)s::date);
