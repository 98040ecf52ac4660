-- mart.member_days: what each member did on each day, up to the business date.
-- Grain: one row per member and day (Asia/Shanghai) with a paid order or a settled refund.
-- Params: business_date (date).
-- Reads: core.orders, core.refunds, core.member_identities
-- Rerun: safe; days up to the business date are brought to what core says, rows that do not differ are not rewritten.
-- An order counts on the day it was paid, a refund on the day it settled, whenever they were loaded. Orders and refunds
-- of nobody we know are in shop_kpis_daily only. One currency: checks/core/one_currency.sql stops the night otherwise.
WITH
paid AS (
    SELECT mi.member_id, o.paid_at::date AS day, count(*) AS order_count, sum(o.goods_amount) AS gross_amount
    FROM core.orders AS o
    JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
    WHERE o.is_paid AND o.paid_at < (%(business_date)s::date + 1)::timestamptz
    GROUP BY mi.member_id, o.paid_at::date
),
refunded AS (
    -- a platform may leave the buyer out of a refund; the order knows it
    SELECT mi.member_id, r.settled_at::date AS day, sum(r.refund_amount) AS refund_amount
    FROM core.refunds AS r
    LEFT JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
    JOIN core.member_identities AS mi ON mi.identity_id = coalesce(r.identity_id, o.identity_id)
    WHERE r.is_money AND r.settled_at < (%(business_date)s::date + 1)::timestamptz
    GROUP BY mi.member_id, r.settled_at::date
),
member_day AS (
    SELECT
        member_id,
        day,
        coalesce(p.order_count, 0) AS order_count,
        coalesce(p.gross_amount, 0) AS gross_amount,
        coalesce(r.refund_amount, 0) AS refund_amount
    FROM paid AS p
    FULL JOIN refunded AS r USING (member_id, day)
),
vanished AS (
    DELETE FROM mart.member_days AS m
    WHERE
        m.day <= %(business_date)s::date
        AND NOT EXISTS (SELECT 1 FROM member_day AS d WHERE d.member_id = m.member_id AND d.day = m.day)
)
INSERT INTO mart.member_days (member_id, day, order_count, gross_amount, refund_amount, net_amount)
SELECT d.member_id, d.day, d.order_count, d.gross_amount, d.refund_amount, d.gross_amount - d.refund_amount
FROM member_day AS d
ON CONFLICT (member_id, day) DO UPDATE SET
    order_count = excluded.order_count,
    gross_amount = excluded.gross_amount,
    refund_amount = excluded.refund_amount,
    net_amount = excluded.net_amount
WHERE
    (member_days.order_count, member_days.gross_amount, member_days.refund_amount)
    IS DISTINCT FROM (excluded.order_count, excluded.gross_amount, excluded.refund_amount);
