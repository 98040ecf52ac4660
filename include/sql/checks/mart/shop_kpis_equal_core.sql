-- Orders and money of mart.shop_kpis_daily up to the business date are those of core, shop by shop.
-- Table: mart.shop_kpis_daily. Severity: fail.
-- Params: business_date (date).
-- Reads: core.orders, core.refunds, core.reviews, mart.shop_kpis_daily
WITH
facts AS (
    SELECT o.source_id, 1 AS order_count, o.goods_amount AS gross_amount, 0 AS refund_amount, 0 AS review_count
    FROM core.orders AS o
    WHERE o.is_paid AND o.paid_at < (%(business_date)s::date + 1)::timestamptz
    UNION ALL
    SELECT r.source_id, 0, 0, r.refund_amount, 0
    FROM core.refunds AS r
    WHERE r.is_money AND r.settled_at < (%(business_date)s::date + 1)::timestamptz
    UNION ALL
    SELECT v.source_id, 0, 0, 0, 1
    FROM core.reviews AS v
    WHERE v.created_at < (%(business_date)s::date + 1)::timestamptz
),
core_sums AS (
    SELECT
        f.source_id,
        sum(f.order_count) AS order_count,
        sum(f.gross_amount) AS gross_amount,
        sum(f.refund_amount) AS refund_amount,
        sum(f.review_count) AS review_count
    FROM facts AS f
    GROUP BY f.source_id
),
mart_sums AS (
    SELECT
        k.source_id,
        sum(k.paid_order_count) AS order_count,
        sum(k.gross_amount) AS gross_amount,
        sum(k.refund_amount) AS refund_amount,
        sum(k.review_count) AS review_count
    FROM mart.shop_kpis_daily AS k
    WHERE k.day <= %(business_date)s::date
    GROUP BY k.source_id
)
SELECT
    count(*) FILTER (
        WHERE (c.order_count, c.gross_amount, c.refund_amount, c.review_count)
        IS DISTINCT FROM (m.order_count, m.gross_amount, m.refund_amount, m.review_count)
    ) = 0 AS is_passed,
    coalesce(
        string_agg(
            coalesce(c.source_id, m.source_id) || ': paid in core ' || coalesce(c.gross_amount, 0) || ', in the mart '
            || coalesce(m.gross_amount, 0) || '; refunded in core ' || coalesce(c.refund_amount, 0) || ', in the mart '
            || coalesce(m.refund_amount, 0),
            ', ' ORDER BY coalesce(c.source_id, m.source_id)
        ),
        'no shop has sold anything yet'
    ) AS observed
FROM core_sums AS c
FULL JOIN mart_sums AS m ON m.source_id = c.source_id;
