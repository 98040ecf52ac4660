-- Codes that shops say were used are ours, were given to somebody, and were used once.
-- Table: core.coupon_uses. Severity: warn.
-- Params: business_date (date).
-- Reads: core.coupon_uses, core.orders, push.coupon_codes
-- Of the last 14 days. A shop's own public codes are not ours and are told as unknown; a code that was never given, or was used on two
-- orders, is one that somebody should look into.
WITH
uses AS (
    SELECT u.code_token, k.state, count(DISTINCT coalesce(u.order_source_id, u.source_id) || '/' || u.order_id) AS order_count
    FROM core.coupon_uses AS u
    LEFT JOIN push.coupon_codes AS k ON k.code_token = u.code_token
    LEFT JOIN core.orders AS o ON o.source_id = coalesce(u.order_source_id, u.source_id) AND o.order_id = u.order_id
    WHERE u.used_at >= (%(business_date)s::date - 13)::timestamptz AND u.used_at < (%(business_date)s::date + 1)::timestamptz
      AND coalesce(o.is_paid, TRUE)
    GROUP BY u.code_token, k.state
)
SELECT
    count(*) FILTER (WHERE u.state IN ('free', 'void') OR (u.state = 'bound' AND u.order_count > 1)) = 0 AS is_passed,
    count(*) FILTER (WHERE u.state = 'bound') || ' codes of ours, ' || count(*) FILTER (WHERE u.state IS NULL) || ' unknown, '
    || count(*) FILTER (WHERE u.state IN ('free', 'void')) || ' never given, '
    || count(*) FILTER (WHERE u.state = 'bound' AND u.order_count > 1) || ' on more than one order' AS observed
FROM uses AS u;
