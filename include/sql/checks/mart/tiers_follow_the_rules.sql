-- Every buyer has exactly one tier on the business date, and it is the one whose band holds the net amount of the window.
-- Table: mart.member_tiers. Severity: fail.
-- Params: business_date (date).
-- Reads: mart.member_days, mart.member_tiers, mart.tier_rules
-- Computed from scratch for one day, without the running sum that made the history.
WITH
tier_window AS (SELECT max(r.window_days) AS window_days FROM mart.tier_rules AS r),
spend AS (
    SELECT
        d.member_id,
        coalesce(sum(d.net_amount) FILTER (WHERE d.day > %(business_date)s::date - w.window_days), 0) AS net_amount
    FROM mart.member_days AS d
    LEFT JOIN tier_window AS w ON TRUE
    WHERE d.day <= %(business_date)s::date
    GROUP BY d.member_id
    HAVING sum(d.order_count) > 0
),
expected AS (
    SELECT s.member_id, r.tier
    FROM spend AS s
    LEFT JOIN mart.tier_rules AS r
        ON greatest(s.net_amount, 0) >= r.min_net_amount
        AND (r.max_net_amount IS NULL OR greatest(s.net_amount, 0) < r.max_net_amount)
),
standing AS (
    SELECT t.member_id, min(t.tier) AS tier, count(*) AS row_count
    FROM mart.member_tiers AS t
    WHERE t.valid_from <= %(business_date)s::date AND (t.valid_to IS NULL OR t.valid_to > %(business_date)s::date)
    GROUP BY t.member_id
),
compared AS (
    SELECT (e.tier IS NULL OR s.tier IS DISTINCT FROM e.tier OR s.row_count <> 1) AS is_different
    FROM expected AS e
    FULL JOIN standing AS s ON s.member_id = e.member_id
)
SELECT
    count(*) FILTER (WHERE c.is_different) = 0 AS is_passed,
    count(*) FILTER (WHERE c.is_different) || ' of ' || count(*) || ' members have no tier, a wrong one or two' AS observed
FROM compared AS c;
