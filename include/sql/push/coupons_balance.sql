-- What a stock of coupons has made, given and got back. made = free codes + bound + void; every coupon is in one state.
-- Grain: one row; stock_id is NULL when there is no such stock.   Params: stock_id.
-- Reads: push.coupon_stocks, push.coupons, push.coupon_codes, push.coupon_rejects
-- free_count is what can still be promised: the budget in pieces and in money, and for a list the codes that are left.
SELECT
    max(s.stock_id) AS stock_id, max(s.issuer) AS issuer, max(s.name) AS name, bool_or(s.has_codes) AS has_codes,
    max(s.face_amount) AS face_amount, max(s.budget_count) AS budget_count, max(s.budget_amount) AS budget_amount,
    max(k.made_count) AS made_count, max(k.free_codes) AS free_codes, max(k.bound_count) AS bound_count, max(k.void_count) AS void_count,
    max(c.reserved_count) AS reserved_count, max(c.unknown_count) AS unknown_count, max(c.open_count) AS open_count,
    max(c.redeemed_count) AS redeemed_count, max(c.expired_count) AS expired_count, max(c.released_count) AS released_count,
    max(c.used_count * s.face_amount) AS promised_amount, max(j.rejected_count) AS rejected_count,
    greatest(0, max(least(
        s.budget_count - c.used_count,
        floor(s.budget_amount / s.face_amount) - c.used_count,
        CASE WHEN s.issuer = 'code_list' THEN k.free_codes - c.reserved_count END
    )))::integer AS free_count
FROM push.coupon_stocks AS s
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE p.state = 'reserved') AS reserved_count,
        count(*) FILTER (WHERE p.state = 'unknown') AS unknown_count,
        count(*) FILTER (WHERE p.state = 'issued') AS open_count,
        count(*) FILTER (WHERE p.state = 'redeemed') AS redeemed_count,
        count(*) FILTER (WHERE p.state = 'expired') AS expired_count,
        count(*) FILTER (WHERE p.state = 'released') AS released_count,
        count(*) FILTER (WHERE p.state <> 'released') AS used_count
    FROM push.coupons AS p
    WHERE p.stock_id = s.stock_id
) AS c
CROSS JOIN LATERAL (
    SELECT
        count(*) AS made_count,
        count(*) FILTER (WHERE p.state = 'free') AS free_codes,
        count(*) FILTER (WHERE p.state = 'bound') AS bound_count,
        count(*) FILTER (WHERE p.state = 'void') AS void_count
    FROM push.coupon_codes AS p
    WHERE p.stock_id = s.stock_id
) AS k
CROSS JOIN LATERAL (SELECT count(*) AS rejected_count FROM push.coupon_rejects AS r WHERE r.stock_id = s.stock_id) AS j
WHERE s.stock_id = %(stock_id)s::text;
