-- Paid orders and money by day, all shops of one currency together; days without a row are 0.
-- Grain: one row per currency and day.   Params: first_day (date), last_day (date, inclusive).
-- Reads: mart.shop_kpis_daily, core.accounts
WITH
days AS (SELECT d::date AS day FROM generate_series(%(first_day)s::date, %(last_day)s::date, interval '1 day') AS d),
sold AS (
    SELECT
        coalesce(a.currency_code, 'CNY') AS currency_code,
        k.day,
        sum(k.paid_order_count) AS paid_order_count,
        sum(k.gross_amount) AS gross_amount,
        sum(k.refund_amount) AS refund_amount,
        sum(k.net_amount) AS net_amount
    FROM mart.shop_kpis_daily AS k
    LEFT JOIN core.accounts AS a ON k.source_id = a.source_id
    WHERE k.day >= %(first_day)s::date AND k.day <= %(last_day)s::date
    GROUP BY coalesce(a.currency_code, 'CNY'), k.day
),
currencies AS (SELECT DISTINCT s.currency_code FROM sold AS s)
SELECT
    c.currency_code,
    d.day,
    coalesce(s.paid_order_count, 0) AS paid_order_count,
    coalesce(s.gross_amount, 0) AS gross_amount,
    coalesce(s.refund_amount, 0) AS refund_amount,
    coalesce(s.net_amount, 0) AS net_amount
FROM currencies AS c
CROSS JOIN days AS d
LEFT JOIN sold AS s ON c.currency_code = s.currency_code AND d.day = s.day
ORDER BY c.currency_code ASC, d.day ASC;
