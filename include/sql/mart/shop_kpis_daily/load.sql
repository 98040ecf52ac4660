-- mart.shop_kpis_daily: orders, money, buyers and reviews of each shop by day, up to the business date.
-- Grain: one row per source and day (Asia/Shanghai), from the shop's first fact on; days without a sale have a row of zeros.
-- Params: business_date (date), positive_from_rating (integer).
-- Reads: core.orders, core.refunds, core.reviews, core.member_identities
-- Rerun: safe; rows that do not differ are not rewritten. "Paid by now" and "signed by now" ripen; a run for an older date
-- leaves rows alone that a later night has changed (docs/decisions/0022-ripening-figures.md).
WITH
night AS (SELECT (%(business_date)s::date + 1)::timestamptz AS ends_at),
known_orders AS (
    -- what was known of each order at the end of the business date
    SELECT
        o.source_id,
        o.order_id,
        coalesce(mi.member_id, -o.identity_id) AS buyer_id, -- negative: an identity that is nobody's yet
        o.created_at::date AS created_date,
        CASE WHEN o.is_paid AND o.paid_at < n.ends_at THEN o.paid_at::date END AS paid_date,
        o.is_paid AND o.paid_at < n.ends_at AND o.signed_at < n.ends_at AS is_signed,
        o.goods_amount,
        o.unit_count
    FROM core.orders AS o
    JOIN night AS n ON least(o.created_at, o.paid_at) < n.ends_at
    LEFT JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
),
created AS (
    SELECT
        source_id,
        created_date AS day,
        count(*) AS order_count,
        count(paid_date) AS paid_count,
        count(*) FILTER (WHERE is_signed) AS signed_count
    FROM known_orders
    GROUP BY source_id, created_date
),
paid AS (
    SELECT
        source_id,
        paid_date AS day,
        count(*) AS order_count,
        sum(goods_amount) AS gross_amount,
        sum(unit_count) AS unit_count
    FROM known_orders
    WHERE paid_date IS NOT NULL
    GROUP BY source_id, paid_date
),
buyers AS (
    -- a buyer is repeat on a day when the same shop was paid by the same person on an earlier day
    SELECT
        b.source_id,
        b.paid_date AS day,
        count(*) AS buyer_count,
        count(*) FILTER (WHERE b.paid_date > b.first_paid_date) AS repeat_buyer_count
    FROM (
        SELECT
            source_id, buyer_id, paid_date,
            min(paid_date) OVER (PARTITION BY source_id, buyer_id) AS first_paid_date
        FROM known_orders
        WHERE paid_date IS NOT NULL AND buyer_id IS NOT NULL
        GROUP BY source_id, buyer_id, paid_date
    ) AS b
    GROUP BY b.source_id, b.paid_date
),
refunded AS (
    SELECT
        r.source_id,
        r.settled_at::date AS day,
        count(DISTINCT r.order_id) AS order_count,
        sum(r.refund_amount) AS refund_amount
    FROM core.refunds AS r
    JOIN night AS n ON r.settled_at < n.ends_at
    WHERE r.is_money
    GROUP BY r.source_id, r.settled_at::date
),
reviewed AS (
    SELECT
        v.source_id,
        v.created_at::date AS day,
        count(*) AS review_count,
        count(*) FILTER (WHERE v.rating >= %(positive_from_rating)s::integer) AS positive_count
    FROM core.reviews AS v
    JOIN night AS n ON v.created_at < n.ends_at
    GROUP BY v.source_id, v.created_at::date
),
days AS (
    SELECT s.source_id, d::date AS day
    FROM (
        SELECT f.source_id, min(f.day) AS first_day
        FROM (
            SELECT source_id, day FROM created
            UNION ALL
            SELECT source_id, day FROM paid
            UNION ALL
            SELECT source_id, day FROM refunded
            UNION ALL
            SELECT source_id, day FROM reviewed
        ) AS f
        GROUP BY f.source_id
    ) AS s
    CROSS JOIN generate_series(s.first_day, %(business_date)s::date, interval '1 day') AS d
),
final AS (
    SELECT
        d.source_id,
        d.day,
        coalesce(c.order_count, 0) AS created_order_count,
        coalesce(p.order_count, 0) AS paid_order_count,
        coalesce(c.paid_count, 0) AS paid_of_created_count,
        coalesce(c.signed_count, 0) AS signed_of_created_count,
        coalesce(b.buyer_count, 0) AS buyer_count,
        coalesce(b.repeat_buyer_count, 0) AS repeat_buyer_count,
        coalesce(p.gross_amount, 0) AS gross_amount,
        coalesce(r.refund_amount, 0) AS refund_amount,
        coalesce(r.order_count, 0) AS refund_order_count,
        coalesce(p.unit_count, 0) AS unit_count,
        coalesce(v.review_count, 0) AS review_count,
        coalesce(v.positive_count, 0) AS positive_review_count
    FROM days AS d
    LEFT JOIN created AS c ON c.source_id = d.source_id AND c.day = d.day
    LEFT JOIN paid AS p ON p.source_id = d.source_id AND p.day = d.day
    LEFT JOIN buyers AS b ON b.source_id = d.source_id AND b.day = d.day
    LEFT JOIN refunded AS r ON r.source_id = d.source_id AND r.day = d.day
    LEFT JOIN reviewed AS v ON v.source_id = d.source_id AND v.day = d.day
),
vanished AS (
    DELETE FROM mart.shop_kpis_daily AS m
    WHERE
        m.day <= %(business_date)s::date
        AND m.business_date <= %(business_date)s::date
        AND NOT EXISTS (SELECT 1 FROM days AS d WHERE d.source_id = m.source_id AND d.day = m.day)
)
INSERT INTO mart.shop_kpis_daily (
    source_id, day, business_date, created_order_count, paid_order_count, paid_of_created_count, payment_conversion_rate,
    signed_of_created_count, order_success_rate, buyer_count, repeat_buyer_count, repeat_purchase_rate, gross_amount,
    refund_amount, net_amount, refund_order_count, refund_rate, average_order_value_amount, unit_count, review_count,
    positive_review_count, positive_review_rate
)
SELECT
    f.source_id,
    f.day,
    %(business_date)s::date,
    f.created_order_count,
    f.paid_order_count,
    f.paid_of_created_count,
    f.paid_of_created_count::numeric / nullif(f.created_order_count, 0),
    f.signed_of_created_count,
    f.signed_of_created_count::numeric / nullif(f.created_order_count, 0),
    f.buyer_count,
    f.repeat_buyer_count,
    f.repeat_buyer_count::numeric / nullif(f.buyer_count, 0),
    f.gross_amount,
    f.refund_amount,
    f.gross_amount - f.refund_amount,
    f.refund_order_count,
    f.refund_amount / nullif(f.gross_amount, 0),
    f.gross_amount / nullif(f.paid_order_count, 0),
    f.unit_count,
    f.review_count,
    f.positive_review_count,
    f.positive_review_count::numeric / nullif(f.review_count, 0)
FROM final AS f
ON CONFLICT (source_id, day) DO UPDATE SET
    business_date = excluded.business_date,
    created_order_count = excluded.created_order_count,
    paid_order_count = excluded.paid_order_count,
    paid_of_created_count = excluded.paid_of_created_count,
    payment_conversion_rate = excluded.payment_conversion_rate,
    signed_of_created_count = excluded.signed_of_created_count,
    order_success_rate = excluded.order_success_rate,
    buyer_count = excluded.buyer_count,
    repeat_buyer_count = excluded.repeat_buyer_count,
    repeat_purchase_rate = excluded.repeat_purchase_rate,
    gross_amount = excluded.gross_amount,
    refund_amount = excluded.refund_amount,
    net_amount = excluded.net_amount,
    refund_order_count = excluded.refund_order_count,
    refund_rate = excluded.refund_rate,
    average_order_value_amount = excluded.average_order_value_amount,
    unit_count = excluded.unit_count,
    review_count = excluded.review_count,
    positive_review_count = excluded.positive_review_count,
    positive_review_rate = excluded.positive_review_rate
WHERE
    shop_kpis_daily.business_date <= excluded.business_date
    AND (
        shop_kpis_daily.created_order_count, shop_kpis_daily.paid_order_count, shop_kpis_daily.paid_of_created_count,
        shop_kpis_daily.signed_of_created_count, shop_kpis_daily.buyer_count, shop_kpis_daily.repeat_buyer_count,
        shop_kpis_daily.gross_amount, shop_kpis_daily.refund_amount, shop_kpis_daily.refund_order_count,
        shop_kpis_daily.unit_count, shop_kpis_daily.review_count, shop_kpis_daily.positive_review_count
    )
    IS DISTINCT FROM (
        excluded.created_order_count, excluded.paid_order_count, excluded.paid_of_created_count,
        excluded.signed_of_created_count, excluded.buyer_count, excluded.repeat_buyer_count,
        excluded.gross_amount, excluded.refund_amount, excluded.refund_order_count,
        excluded.unit_count, excluded.review_count, excluded.positive_review_count
    );
