-- mart.shop_kpis_daily: orders, money, buyers and reviews of each shop by day, up to the business date.
-- Grain: one row per source and day (Asia/Shanghai), from the shop's first fact on; days without a sale have a row of zeros.
-- Params: business_date (date), positive_from_rating (integer).
-- Reads: core.accounts, core.orders, core.refunds, core.reviews, mart.buyer_periods, mart.touched_days, mart.shop_kpis_daily, mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. A night computes the days that were touched, are new, or whose orders
-- were paid or signed since; without a mark, all (docs/decisions/0060-nights-touch-what-moved.md). "Paid by now" and "signed by
-- now" ripen; a run for an older date computes with what the newest night knew (docs/decisions/0064-kpi-days.md). What is paid over the
-- counter (sources.yaml: is_store) is signed for.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    (greatest(%(business_date)s::date, m.business_date) + 1)::timestamptz AS ends_at,
    m.business_date AS since,
    (m.business_date + 1)::timestamptz AS since_at,
    coalesce(m.batch_id, 0) AS after_batch_id,
    greatest(m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), 0)) AS upto_batch_id,
    w.settings,
    coalesce(m.settings <> w.settings, TRUE) AS is_full
FROM (
    SELECT
        'shop_kpis_daily' AS mart,
        'positive from ' || %(positive_from_rating)s::integer || ', stores '
        || coalesce((SELECT string_agg(a.source_id, ',' ORDER BY a.source_id) FROM core.accounts AS a WHERE a.is_store), '') AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

DROP TABLE IF EXISTS pg_temp.scope_days;
CREATE TEMPORARY TABLE scope_days ON COMMIT DROP AS
SELECT t.day
FROM mart.touched_days AS t
CROSS JOIN mark AS k
WHERE t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id AND t.day <= k.horizon
UNION
SELECT d::date
FROM mark AS k
CROSS JOIN generate_series(k.since + 1, k.horizon, interval '1 day') AS d
UNION
SELECT o.created_at::date
FROM mark AS k
JOIN core.orders AS o ON o.paid_at >= k.since_at AND o.paid_at < k.ends_at AND o.created_at < k.ends_at
UNION
SELECT o.created_at::date
FROM mark AS k
JOIN core.orders AS o ON o.signed_at >= k.since_at AND o.signed_at < k.ends_at AND o.created_at < k.ends_at
UNION
-- buyers are counted over there
SELECT coalesce(b.period_start, m.day)
FROM (SELECT p.* FROM mart.buyer_periods AS p WHERE p.grain = 'day' AND p.source_id <> '') AS b
FULL JOIN mart.shop_kpis_daily AS m ON m.source_id = b.source_id AND m.day = b.period_start
CROSS JOIN mark AS k
WHERE
    coalesce(b.period_start, m.day) <= k.horizon
    AND (coalesce(b.buyer_count, 0), coalesce(b.repeat_buyer_count, 0)) IS DISTINCT FROM (m.buyer_count, m.repeat_buyer_count);

DROP TABLE IF EXISTS pg_temp.ranges;
CREATE TEMPORARY TABLE ranges ON COMMIT DROP AS
SELECT min(i.day)::timestamptz AS from_at, (max(i.day) + 1)::timestamptz AS until_at
FROM (SELECT d.day, d.day - row_number() OVER (ORDER BY d.day ASC)::integer AS island FROM scope_days AS d) AS i
CROSS JOIN mark AS k
WHERE NOT k.is_full
GROUP BY i.island
UNION ALL
SELECT '-infinity'::timestamptz, k.ends_at FROM mark AS k WHERE k.is_full;
ANALYZE ranges;

-- What happened on the days to be computed. Scales are trimmed: 0 and 0.00 must be one and the same row.
DROP TABLE IF EXISTS pg_temp.facts;
CREATE TEMPORARY TABLE facts ON COMMIT DROP AS
WITH
created AS (
    SELECT
        o.source_id,
        o.created_at::date AS day,
        count(*) AS order_count,
        count(*) FILTER (WHERE o.is_paid AND o.paid_at < k.ends_at) AS paid_count,
        count(*) FILTER (
            WHERE o.is_paid AND o.paid_at < k.ends_at AND (o.signed_at < k.ends_at OR o.source_id = any(s.source_ids))
        ) AS signed_count,
        max(o.paid_at) FILTER (WHERE o.is_paid AND o.paid_at < k.ends_at) AS last_paid_at,
        max(o.signed_at) FILTER (WHERE o.is_paid AND o.paid_at < k.ends_at AND o.signed_at < k.ends_at) AS last_signed_at
    FROM ranges AS r
    CROSS JOIN mark AS k
    CROSS JOIN (SELECT array_agg(a.source_id) AS source_ids FROM core.accounts AS a WHERE a.is_store) AS s
    JOIN core.orders AS o ON o.created_at >= r.from_at AND o.created_at < r.until_at
    GROUP BY o.source_id, o.created_at::date
),
paid AS (
    SELECT
        o.source_id,
        o.paid_at::date AS day,
        count(*) AS order_count,
        trim_scale(sum(o.goods_amount)) AS gross_amount,
        trim_scale(sum(o.unit_count)) AS unit_count
    FROM ranges AS r
    JOIN core.orders AS o ON o.paid_at >= r.from_at AND o.paid_at < r.until_at
    WHERE o.is_paid
    GROUP BY o.source_id, o.paid_at::date
),
refunded AS (
    SELECT
        f.source_id,
        f.settled_at::date AS day,
        count(DISTINCT f.order_id) AS order_count,
        trim_scale(sum(f.refund_amount)) AS refund_amount
    FROM ranges AS r
    JOIN core.refunds AS f ON f.settled_at >= r.from_at AND f.settled_at < r.until_at
    WHERE f.is_money
    GROUP BY f.source_id, f.settled_at::date
),
reviewed AS (
    SELECT
        v.source_id,
        v.created_at::date AS day,
        count(*) AS review_count,
        count(*) FILTER (WHERE v.rating >= %(positive_from_rating)s::integer) AS positive_count
    FROM ranges AS r
    JOIN core.reviews AS v ON v.created_at >= r.from_at AND v.created_at < r.until_at
    GROUP BY v.source_id, v.created_at::date
),
days AS (
    SELECT source_id, day FROM created
    UNION
    SELECT source_id, day FROM paid
    UNION
    SELECT source_id, day FROM refunded
    UNION
    SELECT source_id, day FROM reviewed
)
SELECT
    d.source_id,
    d.day,
    greatest(d.day, c.last_paid_at::date, c.last_signed_at::date) AS business_date,
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
LEFT JOIN refunded AS r ON r.source_id = d.source_id AND r.day = d.day
LEFT JOIN reviewed AS v ON v.source_id = d.source_id AND v.day = d.day
LEFT JOIN mart.buyer_periods AS b ON b.grain = 'day' AND b.source_id = d.source_id AND b.period_start = d.day;

-- A shop's days begin with its first fact: of the days computed now, or of a row that stays.
DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
standing AS (
    SELECT m.source_id, m.day, m.created_order_count + m.paid_order_count + m.refund_order_count + m.review_count > 0 AS is_fact
    FROM mart.shop_kpis_daily AS m
    CROSS JOIN mark AS k
    WHERE NOT k.is_full AND NOT EXISTS (SELECT FROM scope_days AS d WHERE d.day = m.day)
),
shops AS (
    SELECT f.source_id, min(f.day) AS first_day
    FROM (
        SELECT source_id, day FROM facts
        UNION ALL
        SELECT source_id, day FROM standing WHERE is_fact
    ) AS f
    GROUP BY f.source_id
)
SELECT
    s.source_id, d::date AS day, coalesce(f.business_date, d::date) AS business_date, t.day IS NOT NULL AS is_standing,
    coalesce(f.created_order_count, 0) AS created_order_count, coalesce(f.paid_order_count, 0) AS paid_order_count,
    coalesce(f.paid_of_created_count, 0) AS paid_of_created_count, coalesce(f.signed_of_created_count, 0) AS signed_of_created_count,
    coalesce(f.buyer_count, 0) AS buyer_count, coalesce(f.repeat_buyer_count, 0) AS repeat_buyer_count,
    coalesce(f.gross_amount, 0) AS gross_amount, coalesce(f.refund_amount, 0) AS refund_amount,
    coalesce(f.refund_order_count, 0) AS refund_order_count, coalesce(f.unit_count, 0) AS unit_count,
    coalesce(f.review_count, 0) AS review_count, coalesce(f.positive_review_count, 0) AS positive_review_count
FROM shops AS s
CROSS JOIN mark AS k
CROSS JOIN generate_series(s.first_day, k.horizon, interval '1 day') AS d
LEFT JOIN facts AS f ON f.source_id = s.source_id AND f.day = d::date
LEFT JOIN standing AS t ON t.source_id = s.source_id AND t.day = d::date;

DELETE FROM mart.shop_kpis_daily AS m
WHERE NOT EXISTS (SELECT FROM fresh AS f WHERE f.source_id = m.source_id AND f.day = m.day);

INSERT INTO mart.shop_kpis_daily AS m (
    source_id, day, business_date, created_order_count, paid_order_count, paid_of_created_count, payment_conversion_rate,
    signed_of_created_count, order_success_rate, buyer_count, repeat_buyer_count, repeat_purchase_rate, gross_amount,
    refund_amount, net_amount, refund_order_count, refund_rate, average_order_value_amount, unit_count, review_count,
    positive_review_count, positive_review_rate
)
SELECT
    f.source_id,
    f.day,
    f.business_date,
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
    trim_scale(f.gross_amount - f.refund_amount),
    f.refund_order_count,
    f.refund_amount / nullif(f.gross_amount, 0),
    f.gross_amount / nullif(f.paid_order_count, 0),
    f.unit_count,
    f.review_count,
    f.positive_review_count,
    f.positive_review_count::numeric / nullif(f.review_count, 0)
FROM fresh AS f
WHERE NOT f.is_standing
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
    (
        m.business_date, m.created_order_count, m.paid_order_count, m.paid_of_created_count, m.signed_of_created_count, m.buyer_count,
        m.repeat_buyer_count, m.gross_amount, m.refund_amount, m.refund_order_count, m.unit_count, m.review_count,
        m.positive_review_count
    )
    IS DISTINCT FROM (
        excluded.business_date, excluded.created_order_count, excluded.paid_order_count, excluded.paid_of_created_count,
        excluded.signed_of_created_count, excluded.buyer_count, excluded.repeat_buyer_count, excluded.gross_amount,
        excluded.refund_amount, excluded.refund_order_count, excluded.unit_count, excluded.review_count,
        excluded.positive_review_count
    );

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'shop_kpis_daily', k.horizon, k.upto_batch_id, k.settings FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, excluded.batch_id, excluded.settings);
