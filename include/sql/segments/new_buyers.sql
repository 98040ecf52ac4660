-- Segment new_buyers: members whose first paid order lies at most max_days back.
-- Grain: one row per member.
-- Params: business_date (date), max_days (integer; 0 = on the business date itself).
-- Reads: mart.member_days
-- Rerun: reads only.
SELECT
    d.member_id,
    jsonb_build_object(
        'first_order_date', min(d.day) FILTER (WHERE d.order_count > 0),
        'order_count', sum(d.order_count),
        'net_amount', sum(d.net_amount)
    ) AS facts
FROM mart.member_days AS d
WHERE d.day <= %(business_date)s::date
GROUP BY d.member_id
HAVING min(d.day) FILTER (WHERE d.order_count > 0) >= %(business_date)s::date - %(max_days)s::integer;
