-- Segment sleeping_valuable: members who spent a lot with us and have not bought for a while.
-- Grain: one row per member.
-- Params: business_date (date), min_days and max_days (integers: days from the last paid order to the business date, both
--   included), min_net_amount (numeric: net amount of all time, in the shops' currency).
-- Reads: mart.member_days
-- Rerun: reads only. Later days than the business date do not count, so any past date gives the members of that date.
SELECT
    d.member_id,
    jsonb_build_object(
        'last_order_date', max(d.day) FILTER (WHERE d.order_count > 0),
        'days_since_order', %(business_date)s::date - max(d.day) FILTER (WHERE d.order_count > 0),
        'order_count', sum(d.order_count),
        'net_amount', sum(d.net_amount)
    ) AS facts
FROM mart.member_days AS d
WHERE d.day <= %(business_date)s::date
GROUP BY d.member_id
HAVING
    %(business_date)s::date - max(d.day) FILTER (WHERE d.order_count > 0)
    BETWEEN %(min_days)s::integer AND %(max_days)s::integer
    AND sum(d.net_amount) >= %(min_net_amount)s::numeric;
