-- Points of one business date and what is open at its end, with what that would cost.
-- Grain: one row.   Params: business_date (date).   Reads: mart.points_ledger, mart.point_rules
SELECT
    coalesce(sum(l.points) FILTER (WHERE l.kind = 'earn' AND l.day = %(business_date)s::date), 0) AS earned_points,
    coalesce(-sum(l.points) FILTER (WHERE l.kind = 'reverse' AND l.day = %(business_date)s::date), 0) AS reversed_points,
    coalesce(-sum(l.points) FILTER (WHERE l.kind = 'redeem' AND l.day = %(business_date)s::date), 0) AS redeemed_points,
    coalesce(-sum(l.points) FILTER (WHERE l.kind = 'expire' AND l.day = %(business_date)s::date), 0) AS expired_points,
    coalesce(sum(l.points), 0) AS open_points,
    coalesce(sum(l.points), 0) * coalesce((SELECT q.point_amount FROM mart.point_rules AS q), 0) AS open_amount
FROM mart.points_ledger AS l
WHERE l.day <= %(business_date)s::date;
