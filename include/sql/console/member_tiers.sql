-- A member's tiers up to a date, newest first, and the measure as it stands on that date.
-- Grain: one row per programme and stretch.   Params: member_id (bigint), as_of (date).
-- Reads: mart.member_tiers, mart.tier_programmes, mart.tier_rules, mart.member_days, mart.point_rules
SELECT
    p.programme, p.name_zh AS programme_zh, p.name_en AS programme_en, p.measure, p.window_days, p.review_days, p.grace_days, p.downgrade,
    t.valid_from, t.valid_to, t.tier, r.name_zh AS tier_zh, r.name_en AS tier_en, r.enter_value, r.keep_value, t.kind, t.measure_value,
    t.review_date, t.reason,
    n.tier AS next_tier, n.enter_value AS next_enter_value,
    greatest(coalesce((
        SELECT
            sum(CASE p.measure
                WHEN 'net_amount' THEN d.net_amount
                WHEN 'order_count' THEN d.order_count
                ELSE floor(d.net_amount * coalesce((SELECT q.points_per_unit FROM mart.point_rules AS q), 1))
            END)
        FROM mart.member_days AS d
        WHERE
            d.member_id = t.member_id AND d.day <= %(as_of)s::date
            AND (p.window_days IS NULL OR d.day > %(as_of)s::date - p.window_days)
    ), 0), 0) AS value_now,
    t.valid_to IS NULL OR t.valid_to > %(as_of)s::date AS is_standing
FROM mart.member_tiers AS t
JOIN mart.tier_programmes AS p ON p.programme = t.programme
JOIN mart.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier
LEFT JOIN mart.tier_rules AS n ON n.programme = t.programme AND n.rank = r.rank + 1
WHERE t.member_id = %(member_id)s::bigint AND t.valid_from <= %(as_of)s::date
ORDER BY p.position ASC, t.valid_from DESC;
