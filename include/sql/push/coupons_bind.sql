-- push.coupon_codes, push.coupons: each reserved coupon becomes issued with one free code of its stock, oldest codes first.
-- Params: stock_id, keys (request keys), now_at, today_ends (end of the day: valid_days count from it).   Reads: push.coupon_stocks
-- Rerun: safe; only reserved coupons and free codes are touched. The caller holds the lock of the stock's row.
WITH
wanted AS (
    SELECT c.request_key, row_number() OVER (ORDER BY c.request_key ASC) AS position
    FROM push.coupons AS c
    WHERE c.request_key = any(%(keys)s::text[]) AND c.stock_id = %(stock_id)s::text AND c.state = 'reserved'
),
oldest AS (
    SELECT k.code_token, k.code_number
    FROM push.coupon_codes AS k
    WHERE k.stock_id = %(stock_id)s::text AND k.state = 'free'
    ORDER BY k.code_number ASC
    LIMIT (SELECT count(*) FROM wanted)
),
bound AS (
    UPDATE push.coupon_codes AS k
    SET state = 'bound', request_key = w.request_key, updated_at = %(now_at)s::timestamptz
    FROM (SELECT o.code_token, row_number() OVER (ORDER BY o.code_number ASC) AS position FROM oldest AS o) AS o
    JOIN wanted AS w ON w.position = o.position
    WHERE k.code_token = o.code_token
    RETURNING k.code_token, k.request_key
)
UPDATE push.coupons AS c
SET state = 'issued', platform_coupon_id = b.code_token, issued_at = %(now_at)s::timestamptz, updated_at = %(now_at)s::timestamptz,
    last_error = NULL,
    valid_to = least(
        s.valid_to, %(today_ends)s::timestamptz - interval '1 second' + make_interval(days => s.valid_days)
    )
FROM bound AS b
JOIN push.coupon_stocks AS s ON s.stock_id = %(stock_id)s::text
WHERE c.request_key = b.request_key;
