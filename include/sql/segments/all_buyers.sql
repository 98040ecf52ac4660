-- Segment all_buyers: every member who has ever paid an order.
-- Grain: one row per member.   Params: business_date (date).   Reads: mart.member_days
-- Rerun: reads only. Facts: when and how much, as the campaign's gates and "why not me" show them.
SELECT
    d.member_id,
    jsonb_build_object(
        'last_order_date', max(d.day) FILTER (WHERE d.order_count > 0),
        'order_count', sum(d.order_count),
        'net_amount', sum(d.net_amount)
    ) AS facts
FROM mart.member_days AS d
WHERE d.day <= %(business_date)s::date
GROUP BY d.member_id
HAVING sum(d.order_count) > 0;
