-- push.coupons and core.coupon_events: codes that shops, tills, pages and desks say were used, with the order they were used on.
-- Params: code_token (NULL: all), now_at.   Reads: core.coupon_uses, core.orders, push.coupon_codes, push.coupons, push.coupon_stocks.
-- Grain of the answer: one row; counts of codes, of what nobody could turn into a redemption as well: nothing is lost.
-- The first use of a code is its redemption. Of an order only when it was paid: what is put into a basket is not used. A use that comes
-- in after the coupon was called expired still counts, the expiry is taken back: the shop accepted it.   Rerun: safe.
WITH
uses AS (
    SELECT
        u.code_token, u.source_id, u.use_id, coalesce(u.order_source_id, u.source_id) AS order_source_id, u.order_id, u.used_at,
        k.state AS code_state, c.request_key, c.state, c.stock_id, c.member_id, s.issuer, s.face_amount, s.is_test
    FROM core.coupon_uses AS u
    LEFT JOIN push.coupon_codes AS k ON k.code_token = u.code_token
    LEFT JOIN push.coupons AS c ON c.request_key = k.request_key AND k.state = 'bound'
    LEFT JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id
    LEFT JOIN core.orders AS o ON o.source_id = coalesce(u.order_source_id, u.source_id) AND o.order_id = u.order_id
    WHERE (%(code_token)s::text IS NULL OR u.code_token = %(code_token)s::text) AND coalesce(o.is_paid, TRUE)
),
first_use AS (
    SELECT DISTINCT ON (u.code_token) u.*
    FROM uses AS u
    WHERE u.request_key IS NOT NULL AND u.state IN ('issued', 'expired')
    ORDER BY u.code_token ASC, u.used_at ASC, u.source_id ASC, u.use_id ASC
),
changed AS (
    UPDATE push.coupons AS c
    SET state = 'redeemed', redeemed_at = f.used_at, updated_at = %(now_at)s::timestamptz
    FROM first_use AS f
    WHERE c.request_key = f.request_key AND c.state IN ('issued', 'expired')
    RETURNING c.request_key
),
taken_back AS (
    DELETE FROM core.coupon_events AS e
    USING first_use AS f
    WHERE e.issuer = f.issuer AND e.platform_coupon_id = f.code_token AND e.kind = 'expired'
    RETURNING e.platform_coupon_id
),
events AS (
    INSERT INTO core.coupon_events (
        issuer, platform_coupon_id, kind, coupon_request, member_id, face_amount, occurred_at, source_id, order_id
    )
    SELECT f.issuer, f.code_token, 'redeemed', f.request_key, f.member_id, f.face_amount, f.used_at, f.order_source_id, f.order_id
    FROM first_use AS f
    WHERE NOT f.is_test
    ON CONFLICT (issuer, platform_coupon_id, kind) DO NOTHING
    RETURNING platform_coupon_id
)
SELECT
    (SELECT count(*) FROM changed) AS redeemed,
    (SELECT count(*) FROM taken_back) AS expired_taken_back,
    (SELECT count(DISTINCT u.code_token) FROM uses AS u WHERE u.code_state IS NULL) AS unknown,
    (SELECT count(DISTINCT u.code_token) FROM uses AS u WHERE u.code_state IN ('free', 'void')) AS not_given,
    (
        SELECT count(*)
        FROM (
            SELECT u.code_token
            FROM uses AS u
            WHERE u.request_key IS NOT NULL AND u.order_id IS NOT NULL
            GROUP BY u.code_token
            HAVING count(DISTINCT u.order_source_id || '/' || u.order_id) > 1
        ) AS d
    ) AS more_than_once,
    (SELECT count(*) FROM events) AS told;
