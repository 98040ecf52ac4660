-- What the marts know of one member at a date: for whoever asks why a segment did not select them.
-- Grain: one row.   Params: member_id, as_of (date).   Reads: mart.member_days, mart.member_tiers, mart.tier_programmes, mart.member_stages
SELECT
    b.last_order_date, b.order_count, b.net_amount,
    (
        SELECT t.tier
        FROM mart.member_tiers AS t
        JOIN mart.tier_programmes AS p ON p.programme = t.programme AND p.position = 1
        WHERE t.member_id = %(member_id)s::bigint AND t.valid_from <= %(as_of)s::date
          AND (t.valid_to IS NULL OR t.valid_to > %(as_of)s::date)
    ) AS tier,
    (
        SELECT s.stage
        FROM mart.member_stages AS s
        WHERE s.member_id = %(member_id)s::bigint AND s.valid_from <= %(as_of)s::date
          AND (s.valid_to IS NULL OR s.valid_to > %(as_of)s::date)
    ) AS stage
FROM (
    SELECT
        max(d.day) FILTER (WHERE d.order_count > 0) AS last_order_date,
        sum(d.order_count) AS order_count,
        sum(d.net_amount) AS net_amount
    FROM mart.member_days AS d
    WHERE d.member_id = %(member_id)s::bigint AND d.day <= %(as_of)s::date
) AS b;
