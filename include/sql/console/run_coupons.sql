-- The coupons of a run by state, and how many pieces of their stock no run has taken yet.
-- Grain: one row per coupon stock.   Params: run_id (text).   Reads: push.coupons, push.coupon_stocks
SELECT
    s.stock_id,
    s.issuer,
    s.name,
    s.face_amount,
    s.minimum_amount,
    s.budget_count,
    s.valid_to,
    count(*) AS coupon_count,
    count(*) FILTER (WHERE c.state = 'reserved') AS reserved_count,
    count(*) FILTER (WHERE c.state = 'issued') AS issued_count,
    count(*) FILTER (WHERE c.state = 'redeemed') AS redeemed_count,
    count(*) FILTER (WHERE c.state = 'expired') AS expired_count,
    count(*) FILTER (WHERE c.state = 'released') AS released_count,
    count(*) FILTER (WHERE c.state = 'unknown') AS unknown_count,
    least(s.budget_count, floor(s.budget_amount / s.face_amount)) - (
        SELECT count(*) FROM push.coupons AS taken
        WHERE taken.stock_id = s.stock_id AND taken.state <> 'released'
    ) AS free_count
FROM push.coupons AS c
INNER JOIN push.coupon_stocks AS s ON c.stock_id = s.stock_id
WHERE c.run_id = %(run_id)s::text
GROUP BY s.stock_id
ORDER BY s.stock_id ASC;
