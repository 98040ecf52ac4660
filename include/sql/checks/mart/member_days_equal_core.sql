-- Orders and money of mart.member_days up to the business date are those of core, member by member.
-- Table: mart.member_days. Severity: fail.
-- Params: business_date (date).
-- Reads: core.orders, core.refunds, core.member_identities, mart.member_days
WITH
facts AS (
    SELECT o.identity_id, 1 AS order_count, o.goods_amount AS gross_amount, 0 AS refund_amount
    FROM core.orders AS o
    WHERE o.is_paid AND o.paid_at < (%(business_date)s::date + 1)::timestamptz
    UNION ALL
    SELECT coalesce(r.identity_id, o.identity_id), 0, 0, r.refund_amount
    FROM core.refunds AS r
    LEFT JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
    WHERE r.is_money AND r.settled_at < (%(business_date)s::date + 1)::timestamptz
),
core_sums AS (
    SELECT
        mi.member_id,
        sum(f.order_count) AS order_count,
        sum(f.gross_amount) AS gross_amount,
        sum(f.refund_amount) AS refund_amount
    FROM facts AS f
    JOIN core.member_identities AS mi ON mi.identity_id = f.identity_id
    GROUP BY mi.member_id
),
mart_sums AS (
    SELECT
        d.member_id,
        sum(d.order_count) AS order_count,
        sum(d.gross_amount) AS gross_amount,
        sum(d.refund_amount) AS refund_amount
    FROM mart.member_days AS d
    WHERE d.day <= %(business_date)s::date
    GROUP BY d.member_id
),
compared AS (
    SELECT
        coalesce(c.member_id, m.member_id) AS member_id,
        c.order_count AS core_orders,
        m.order_count AS mart_orders,
        coalesce(c.gross_amount, 0) AS core_amount,
        coalesce(m.gross_amount, 0) AS mart_amount,
        c.refund_amount AS core_refunds,
        m.refund_amount AS mart_refunds
    FROM core_sums AS c
    FULL JOIN mart_sums AS m ON m.member_id = c.member_id
),
different AS (
    SELECT count(*) AS member_count
    FROM compared AS p
    WHERE (p.core_orders, p.core_amount, p.core_refunds) IS DISTINCT FROM (p.mart_orders, p.mart_amount, p.mart_refunds)
)
SELECT
    d.member_count = 0 AS is_passed,
    d.member_count || ' of ' || (SELECT count(*) FROM compared) || ' members differ; paid in core '
    || coalesce((SELECT sum(p.core_amount) FROM compared AS p), 0) || ', in the mart '
    || coalesce((SELECT sum(p.mart_amount) FROM compared AS p), 0) AS observed
FROM different AS d;
