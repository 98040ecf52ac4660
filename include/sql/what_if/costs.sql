-- What the rules cost, now and by the proposal: points and coupons for rising.
-- Grain: one row per figure.   Params: business_date (date).
-- Reads: mart.member_tiers, mart.tier_programmes, mart.tier_rules, mart.point_rules, mart.points_ledger, and the temporary tables of
--   nightmarket.what_if.
-- Rerun: reads only. Points cost what tiers.yaml says a spent point costs; every rise of the last 365 days is one coupon of its tier.
WITH
points AS (
    SELECT
        'now' AS which,
        sum(l.points) FILTER (WHERE l.kind = 'earn' AND l.day > %(business_date)s::date - 365) AS earned,
        sum(l.points) AS open_points,
        (SELECT q.point_amount FROM mart.point_rules AS q) AS point_amount
    FROM mart.points_ledger AS l
    WHERE l.day <= %(business_date)s::date
    UNION ALL
    SELECT
        'then',
        sum(l.points) FILTER (WHERE l.kind = 'earn' AND l.day > %(business_date)s::date - 365),
        sum(l.points),
        (SELECT q.point_amount FROM pg_temp.point_rules AS q)
    FROM pg_temp.points_ledger AS l
    WHERE l.day <= %(business_date)s::date
),
rises AS (
    SELECT 'now' AS which, count(*) AS rise_count, sum(r.upgrade_coupon_amount) AS amount
    FROM mart.member_tiers AS t
    JOIN mart.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
    JOIN mart.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier
    WHERE
        t.kind IN ('first', 'up') AND r.rank > 1
        AND t.valid_from > %(business_date)s::date - 365 AND t.valid_from <= %(business_date)s::date
    UNION ALL
    SELECT 'then', count(*), sum(r.upgrade_coupon_amount)
    FROM pg_temp.member_tiers AS t
    JOIN pg_temp.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
    JOIN pg_temp.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier
    WHERE
        t.kind IN ('first', 'up') AND r.rank > 1
        AND t.valid_from > %(business_date)s::date - 365 AND t.valid_from <= %(business_date)s::date
),
falls AS (
    SELECT 'now' AS which, count(*) AS fall_count
    FROM mart.member_tiers AS t
    JOIN mart.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
    WHERE t.kind = 'down' AND t.valid_from > %(business_date)s::date - 365 AND t.valid_from <= %(business_date)s::date
    UNION ALL
    SELECT 'then', count(*)
    FROM pg_temp.member_tiers AS t
    JOIN pg_temp.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
    WHERE t.kind = 'down' AND t.valid_from > %(business_date)s::date - 365 AND t.valid_from <= %(business_date)s::date
),
figures AS (
    SELECT 1 AS place, 'points earned in the last 365 days' AS figure, p.which, coalesce(p.earned, 0) AS value FROM points AS p
    UNION ALL
    SELECT 2, 'what these cost when they are spent', p.which, coalesce(p.earned, 0) * p.point_amount FROM points AS p
    UNION ALL
    SELECT 3, 'points open', p.which, coalesce(p.open_points, 0) FROM points AS p
    UNION ALL
    SELECT 4, 'rises in the last 365 days', r.which, r.rise_count FROM rises AS r
    UNION ALL
    SELECT 5, 'coupons for these rises, face value', r.which, coalesce(r.amount, 0) FROM rises AS r
    UNION ALL
    SELECT 6, 'falls in the last 365 days', f.which, f.fall_count FROM falls AS f
)
SELECT f.figure, max(f.value) FILTER (WHERE f.which = 'now') AS now_value, max(f.value) FILTER (WHERE f.which = 'then') AS proposed_value
FROM figures AS f
GROUP BY f.place, f.figure
ORDER BY f.place ASC;
