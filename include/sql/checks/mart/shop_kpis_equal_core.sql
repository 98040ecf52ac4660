-- Orders, money and reviews of mart.shop_kpis_daily are those of core, by source and day.
-- Table: mart.shop_kpis_daily. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: core.orders, core.refunds, core.reviews, mart.shop_kpis_daily, mart.touched_days
-- Judged are the days that the night touched, the last 35, and every 91st day back, so that all of the past comes round in a quarter;
-- with is_full every day. A day at a time, by the indexes on the time of payment, settlement and review.
WITH
ranges AS (
    SELECT d.day::timestamptz AS from_at, (d.day + 1)::timestamptz AS until_at
    FROM (
        SELECT t.day FROM mart.touched_days AS t WHERE t.day <= %(business_date)s::date
        UNION
        SELECT %(business_date)s::date - n.nth FROM generate_series(0, 34) AS n (nth)
        UNION
        SELECT %(business_date)s::date - 91 * n.nth FROM generate_series(0, 40) AS n (nth)
    ) AS d
    WHERE NOT %(is_full)s::boolean
    UNION ALL
    SELECT '-infinity', (%(business_date)s::date + 1)::timestamptz
    WHERE %(is_full)s::boolean
),
core_days AS (
    SELECT
        f.source_id, f.day, sum(f.order_count) AS order_count, sum(f.gross_amount) AS gross_amount, sum(f.refund_amount) AS refund_amount,
        sum(f.review_count) AS review_count
    FROM ranges AS g
    CROSS JOIN LATERAL (
        SELECT
            o.source_id, o.paid_at::date AS day, count(*) AS order_count, sum(o.goods_amount) AS gross_amount, 0 AS refund_amount,
            0 AS review_count
        FROM core.orders AS o
        WHERE o.is_paid AND o.paid_at >= g.from_at AND o.paid_at < g.until_at
        GROUP BY o.source_id, o.paid_at::date
        UNION ALL
        SELECT r.source_id, r.settled_at::date, 0, 0, sum(r.refund_amount), 0
        FROM core.refunds AS r
        WHERE r.is_money AND r.settled_at >= g.from_at AND r.settled_at < g.until_at
        GROUP BY r.source_id, r.settled_at::date
        UNION ALL
        SELECT v.source_id, v.created_at::date, 0, 0, 0, count(*)
        FROM core.reviews AS v
        WHERE v.created_at >= g.from_at AND v.created_at < g.until_at
        GROUP BY v.source_id, v.created_at::date
    ) AS f
    GROUP BY f.source_id, f.day
),
mart_days AS (
    SELECT k.source_id, k.day, k.paid_order_count, k.gross_amount, k.refund_amount, k.review_count
    FROM ranges AS g
    JOIN mart.shop_kpis_daily AS k ON k.day >= g.from_at::date AND k.day < g.until_at::date
),
compared AS (
    SELECT
        coalesce(c.source_id, m.source_id) AS source_id,
        coalesce(c.day, m.day) AS day,
        coalesce(c.gross_amount, 0) AS core_amount,
        coalesce(m.gross_amount, 0) AS mart_amount,
        coalesce(c.refund_amount, 0) AS core_refunds,
        coalesce(m.refund_amount, 0) AS mart_refunds,
        coalesce(c.order_count, 0) AS core_orders,
        coalesce(m.paid_order_count, 0) AS mart_orders,
        coalesce(c.review_count, 0) AS core_reviews,
        coalesce(m.review_count, 0) AS mart_reviews
    FROM core_days AS c
    FULL JOIN mart_days AS m ON m.source_id = c.source_id AND m.day = c.day
),
different AS (
    SELECT
        p.source_id || ' ' || p.day || ': paid in core ' || trim_scale(p.core_amount) || ' (' || p.core_orders || ' orders), in the mart '
        || trim_scale(p.mart_amount) || ' (' || p.mart_orders || '); refunded in core ' || trim_scale(p.core_refunds) || ', in the mart '
        || trim_scale(p.mart_refunds) || '; reviews in core ' || p.core_reviews || ', in the mart ' || p.mart_reviews AS sentence,
        row_number() OVER (ORDER BY p.day ASC, p.source_id ASC) AS place,
        count(*) OVER () AS day_count
    FROM compared AS p
    WHERE
        (p.core_amount, p.core_refunds, p.core_orders, p.core_reviews)
        IS DISTINCT FROM (p.mart_amount, p.mart_refunds, p.mart_orders, p.mart_reviews)
)
SELECT
    NOT EXISTS (SELECT FROM different) AS is_passed,
    coalesce(
        (SELECT d.day_count || ' days of sources differ, first ' || d.sentence FROM different AS d WHERE d.place = 1),
        count(*) || ' days of sources agree: paid ' || coalesce(trim_scale(sum(p.core_amount)), 0) || ', refunded '
        || coalesce(trim_scale(sum(p.core_refunds)), 0)
    ) AS observed
FROM compared AS p;
