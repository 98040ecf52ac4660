-- Every buyer has exactly one tier in each programme on the business date: at least the one whose enter value the measure holds, and a
-- higher one only while its keep value holds, its next review has not passed with the grace, or a person decided so.
-- Table: mart.member_tiers. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: mart.member_days, mart.member_tiers, mart.tier_rules, mart.tier_programmes, mart.point_rules, core.tier_grants, core.members,
--   mart.touched_members
-- Judged are the members that the night touched, whose tier moved in the last week or whose review is due, and every 91st in turn, so
-- that everybody comes round in a quarter; with is_full all.
-- Computed from scratch for one day, without the walk that made the history.
WITH
scope AS (
    SELECT t.member_id FROM mart.touched_members AS t WHERE NOT %(is_full)s::boolean
    UNION
    SELECT m.member_id FROM core.members AS m WHERE mod(m.member_id, 91) = mod(%(business_date)s::date - '2000-01-01'::date, 91)
    UNION
    SELECT x.member_id
    FROM mart.member_tiers AS x
    WHERE x.valid_from > %(business_date)s::date - 7 OR (x.valid_to IS NULL AND x.review_date <= %(business_date)s::date)
    UNION
    SELECT x.member_id FROM mart.member_tiers AS x WHERE %(is_full)s::boolean
    UNION
    SELECT d.member_id FROM mart.member_days AS d WHERE %(is_full)s::boolean
),
measures AS (
    SELECT
        p.programme, d.member_id,
        greatest(coalesce(sum(CASE p.measure
            WHEN 'net_amount' THEN d.net_amount
            WHEN 'order_count' THEN d.order_count
            ELSE floor(d.net_amount * coalesce(q.points_per_unit, 1))
        END) FILTER (WHERE p.window_days IS NULL OR d.day > %(business_date)s::date - p.window_days), 0), 0) AS value
    FROM scope AS x
    JOIN mart.member_days AS d ON d.member_id = x.member_id
    CROSS JOIN mart.tier_programmes AS p
    LEFT JOIN mart.point_rules AS q ON TRUE
    WHERE d.day <= %(business_date)s::date
    GROUP BY p.programme, d.member_id
    HAVING sum(d.order_count) > 0
),
ladders AS (
    SELECT
        p.programme, p.review_days, p.grace_days,
        array_agg(r.enter_value ORDER BY r.rank) AS enter_values, array_agg(r.keep_value ORDER BY r.rank) AS keep_values
    FROM mart.tier_programmes AS p
    LEFT JOIN mart.tier_rules AS r ON r.programme = p.programme
    GROUP BY p.programme
),
standing AS (
    SELECT
        t.programme, t.member_id, min(r.rank) AS rank, count(*) AS row_count, min(t.valid_from) AS since,
        bool_and(t.valid_to IS NULL) AS is_open, min(t.review_date) AS review_date
    FROM scope AS x
    JOIN mart.member_tiers AS t ON t.member_id = x.member_id
    LEFT JOIN mart.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier
    WHERE t.valid_from <= %(business_date)s::date AND (t.valid_to IS NULL OR t.valid_to > %(business_date)s::date)
    GROUP BY t.programme, t.member_id
),
decided AS (
    SELECT DISTINCT g.programme, coalesce(m.absorbed_by, m.member_id) AS member_id
    FROM core.tier_grants AS g
    JOIN core.members AS m ON m.member_id = g.member_id
),
compared AS (
    SELECT
        coalesce(s.row_count, 0) <> 1
        OR (e.member_id IS NULL AND d.member_id IS NULL)
        OR s.rank IS NULL
        OR (d.member_id IS NULL AND (
            s.rank < width_bucket(e.value, l.enter_values)
            -- a row that a later night closed no longer says when its review was; since when a grace runs without reviews, no row says
            OR (
                s.is_open AND s.rank > width_bucket(e.value, l.keep_values)
                AND (l.review_days > 0 OR (l.review_days = 0 AND l.grace_days = 0))
                AND coalesce(s.review_date, s.since) + l.grace_days <= %(business_date)s::date
            )
        )) AS is_different
    FROM measures AS e
    FULL JOIN standing AS s ON s.member_id = e.member_id AND s.programme = e.programme
    LEFT JOIN ladders AS l ON l.programme = coalesce(e.programme, s.programme)
    LEFT JOIN decided AS d ON d.member_id = coalesce(e.member_id, s.member_id) AND d.programme = coalesce(e.programme, s.programme)
)
SELECT
    count(*) FILTER (WHERE c.is_different) = 0 AS is_passed,
    count(*) FILTER (WHERE c.is_different) || ' of ' || count(*) || ' tiers are missing, wrong or double' AS observed
FROM compared AS c;
