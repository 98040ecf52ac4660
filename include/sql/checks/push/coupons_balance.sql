-- Coupons, codes, points and money balance: nothing was given twice, nothing is missing, no stock gave more than it has.
-- Table: push.coupons. Severity: fail.
-- Params: none.
-- Reads: push.coupons, push.coupon_codes, push.coupon_stocks, core.coupon_events, core.point_uses
-- Judged is everything, every night: a stock is small beside history. Per stock made = free + bound + void, and bound codes are exactly the
-- coupons that are issued = open + redeemed + expired; points taken less points given back are what standing coupons cost; core was told
-- of every redemption, once. A promise that a list of codes cannot keep breaks it too.
WITH
stock AS (
    SELECT
        s.stock_id, s.issuer, s.has_codes, s.is_test, s.budget_count, s.budget_amount, s.face_amount,
        c.reserved_count, c.given_count, c.used_count, k.free_count, k.bound_count, k.void_count
    FROM push.coupon_stocks AS s
    CROSS JOIN LATERAL (
        SELECT
            count(*) FILTER (WHERE p.state IN ('reserved', 'unknown')) AS reserved_count,
            count(*) FILTER (WHERE p.state IN ('issued', 'redeemed', 'expired')) AS given_count,
            count(*) FILTER (WHERE p.state <> 'released') AS used_count
        FROM push.coupons AS p
        WHERE p.stock_id = s.stock_id
    ) AS c
    CROSS JOIN LATERAL (
        SELECT
            count(*) FILTER (WHERE p.state = 'free') AS free_count,
            count(*) FILTER (WHERE p.state = 'bound') AS bound_count,
            count(*) FILTER (WHERE p.state = 'void') AS void_count
        FROM push.coupon_codes AS p
        WHERE p.stock_id = s.stock_id
    ) AS k
),
broken AS (
    SELECT s.stock_id || ' gave ' || s.used_count || ' of ' || s.budget_count AS what
    FROM stock AS s
    WHERE s.used_count > s.budget_count OR s.used_count * s.face_amount > s.budget_amount
    UNION ALL
    SELECT s.stock_id || ' promises ' || s.reserved_count || ' and has ' || s.free_count || ' codes'
    FROM stock AS s
    WHERE s.issuer = 'code_list' AND s.reserved_count > s.free_count
    UNION ALL
    SELECT s.stock_id || ' has ' || s.given_count || ' coupons given and ' || s.bound_count || ' codes bound'
    FROM stock AS s
    WHERE s.has_codes AND s.given_count <> s.bound_count
    UNION ALL
    SELECT 'coupon ' || c.request_key || ' is not its code'
    FROM push.coupons AS c
    JOIN stock AS s ON s.stock_id = c.stock_id AND s.has_codes
    LEFT JOIN push.coupon_codes AS k ON k.request_key = c.request_key AND k.state = 'bound'
    WHERE (c.state IN ('issued', 'redeemed', 'expired') OR k.code_token IS NOT NULL)
      AND (k.code_token, k.stock_id) IS DISTINCT FROM (c.platform_coupon_id, c.stock_id)
    UNION ALL
    SELECT 'coupon ' || c.request_key || ' is redeemed and core does not say so'
    FROM push.coupons AS c
    JOIN stock AS s ON s.stock_id = c.stock_id AND NOT s.is_test
    LEFT JOIN core.coupon_events AS e
        ON e.issuer = s.issuer AND e.platform_coupon_id = c.platform_coupon_id AND e.kind = 'redeemed'
    WHERE c.state = 'redeemed' AND e.coupon_request IS DISTINCT FROM c.request_key
    UNION ALL
    SELECT 'core says that coupon ' || c.request_key || ' is redeemed, it is ' || c.state
    FROM core.coupon_events AS e
    JOIN push.coupons AS c ON c.request_key = e.coupon_request
    WHERE e.kind = 'redeemed' AND c.state <> 'redeemed'
    UNION ALL
    SELECT 'points: ' || p.taken || ' taken for coupons that cost ' || p.cost
    FROM (
        SELECT
            (SELECT coalesce(sum(CASE u.kind WHEN 'redeem' THEN u.points ELSE -u.points END), 0)
             FROM core.point_uses AS u WHERE u.use_id LIKE 'coupon/%%') AS taken,
            (SELECT coalesce(sum(c.points_paid), 0) FROM push.coupons AS c WHERE c.state <> 'released') AS cost
    ) AS p
    WHERE p.taken <> p.cost
)
SELECT
    NOT EXISTS (SELECT FROM broken) AS is_passed,
    coalesce(
        (SELECT string_agg(b.what, '; ' ORDER BY b.what) FROM (SELECT x.what FROM broken AS x ORDER BY x.what LIMIT 5) AS b),
        (
            SELECT
                coalesce(sum(s.given_count), 0) || ' coupons given, ' || coalesce(sum(s.reserved_count), 0) || ' promised; codes: '
                || coalesce(sum(s.free_count), 0) || ' free, ' || coalesce(sum(s.bound_count), 0) || ' bound, '
                || coalesce(sum(s.void_count), 0) || ' void'
            FROM stock AS s
        )
    ) AS observed;
