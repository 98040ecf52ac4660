-- mart.member_facts: what a member's orders and reviews say in one row: first and last order, rhythm, favourites, satisfaction.
-- Grain: one row per member with a paid order, as of the newest business date.
-- Params: business_date (date), portrait_window_days (integer; what favourites and city look back over).
-- Reads: mart.member_days, mart.products, core.orders, core.order_lines, core.reviews, core.member_identities, mart.touched_members,
--   mart.marks, mart.member_facts
-- Rerun: safe; members who were touched, bought, or whose orders left the window are computed, rows that do not differ stay. A run for
-- an older date takes nothing back. Nothing here moves with time alone but the window: days since and ages are reckoned by who reads.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), m.batch_id, 0) AS upto_batch_id,
    w.settings,
    m.mart IS NULL OR m.settings <> w.settings AS is_full
FROM (
    -- a product that changed its category moves favourites; categories are few rules, so everything is told again
    SELECT
        'member_facts' AS mart,
        %(portrait_window_days)s::integer || '/'
        || coalesce((SELECT min(c.settings) FROM mart.marks AS c WHERE c.mart = 'products'), '') AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT DISTINCT x.member_id
FROM (
    SELECT t.member_id
    FROM mart.touched_members AS t
    CROSS JOIN mark AS k
    WHERE NOT k.is_full AND t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id
    UNION ALL
    SELECT d.member_id
    FROM mark AS k
    JOIN mart.member_days AS d
        ON (d.day > k.since AND d.day <= k.horizon)
        OR (d.day > k.since - %(portrait_window_days)s::integer AND d.day <= k.horizon - %(portrait_window_days)s::integer)
    WHERE NOT k.is_full
    UNION ALL
    SELECT d.member_id FROM mart.member_days AS d WHERE (SELECT k.is_full FROM mark AS k)
    UNION ALL
    SELECT f.member_id FROM mart.member_facts AS f WHERE (SELECT k.is_full FROM mark AS k)
) AS x;
CREATE UNIQUE INDEX ON scope (member_id);
ANALYZE scope;

-- The members' orders inside the window, whatever shop they come from.
DROP TABLE IF EXISTS pg_temp.recent;
CREATE TEMPORARY TABLE recent ON COMMIT DROP AS
SELECT mi.member_id, o.source_id, o.order_id, o.paid_at, o.goods_amount, o.city
FROM scope AS s
JOIN core.member_identities AS mi ON mi.member_id = s.member_id
JOIN core.orders AS o ON o.identity_id = mi.identity_id
CROSS JOIN mark AS k
WHERE
    o.is_paid AND o.paid_at >= (k.horizon + 1 - %(portrait_window_days)s::integer)::timestamptz
    AND o.paid_at < (k.horizon + 1)::timestamptz;
ANALYZE recent;

DROP TABLE IF EXISTS pg_temp.told;
CREATE TEMPORARY TABLE told ON COMMIT DROP AS
WITH
days AS (
    SELECT
        d.member_id, d.day, d.order_count, d.gross_amount, d.net_amount,
        CASE WHEN d.order_count > 0 THEN
            -- the order day before it; days with a refund only lie between, so not lag(), and no other order than the key's
            d.day - max(CASE WHEN d.order_count > 0 THEN d.day END) OVER (
                PARTITION BY d.member_id ORDER BY d.day ASC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            )
        END AS gap_days
    FROM scope AS s
    JOIN mart.member_days AS d ON d.member_id = s.member_id
),
bought AS (
    SELECT
        d.member_id,
        min(d.day) FILTER (WHERE d.order_count > 0) AS first_order_date,
        max(d.day) FILTER (WHERE d.order_count > 0) AS last_order_date,
        (count(*) FILTER (WHERE d.order_count > 0))::integer AS order_day_count,
        sum(d.order_count)::integer AS order_count,
        sum(d.gross_amount) AS gross_amount,
        sum(d.net_amount) AS net_amount,
        (percentile_cont(0.5) WITHIN GROUP (ORDER BY d.gap_days ASC))::numeric AS median_gap_days
    FROM days AS d
    GROUP BY d.member_id
    HAVING sum(d.order_count) > 0
),
sources AS (
    SELECT DISTINCT ON (c.member_id) c.member_id, c.source_id
    FROM (
        SELECT r.member_id, r.source_id, count(*) AS order_count, sum(r.goods_amount) AS amount
        FROM recent AS r
        GROUP BY r.member_id, r.source_id
    ) AS c
    ORDER BY c.member_id ASC, c.order_count DESC, c.amount DESC, c.source_id ASC
),
categories AS (
    SELECT DISTINCT ON (c.member_id) c.member_id, c.category
    FROM (
        SELECT r.member_id, p.category, sum(l.line_amount) AS amount, sum(l.quantity) AS quantity
        FROM recent AS r
        JOIN core.order_lines AS l ON l.source_id = r.source_id AND l.order_id = r.order_id
        JOIN mart.products AS p ON p.source_id = l.source_id AND p.product_id = l.product_id
        WHERE p.category NOT IN ('other', 'service')
        GROUP BY r.member_id, p.category
    ) AS c
    ORDER BY c.member_id ASC, c.amount DESC, c.quantity DESC, c.category ASC
),
cities AS (
    SELECT DISTINCT ON (r.member_id) r.member_id, r.city
    FROM recent AS r
    WHERE r.city IS NOT NULL
    ORDER BY r.member_id ASC, r.paid_at DESC, r.source_id ASC, r.order_id DESC
),
ratings AS (
    SELECT DISTINCT ON (s.member_id) s.member_id, v.rating, v.created_at::date AS day
    FROM core.reviews AS v
    JOIN core.member_identities AS mi ON mi.identity_id = v.identity_id
    JOIN scope AS s ON s.member_id = mi.member_id
    WHERE v.created_at < ((SELECT k.horizon FROM mark AS k) + 1)::timestamptz
    ORDER BY s.member_id ASC, v.created_at DESC, v.source_id ASC, v.review_id DESC
)
SELECT
    b.member_id, b.first_order_date, b.last_order_date, b.order_day_count, b.order_count, b.gross_amount, b.net_amount, b.median_gap_days,
    b.last_order_date + round(b.median_gap_days)::integer AS expected_next_order_date,
    s.source_id AS favourite_source_id, c.category AS favourite_category, t.city, r.rating AS last_rating, r.day AS last_rated_date
FROM bought AS b
LEFT JOIN sources AS s ON s.member_id = b.member_id
LEFT JOIN categories AS c ON c.member_id = b.member_id
LEFT JOIN cities AS t ON t.member_id = b.member_id
LEFT JOIN ratings AS r ON r.member_id = b.member_id;
CREATE UNIQUE INDEX ON told (member_id);
ANALYZE told;

DELETE FROM mart.member_facts AS f
USING scope AS s
WHERE f.member_id = s.member_id AND NOT EXISTS (SELECT 1 FROM told AS t WHERE t.member_id = f.member_id);

UPDATE mart.member_facts AS m SET
    first_order_date = t.first_order_date,
    last_order_date = t.last_order_date,
    order_day_count = t.order_day_count,
    order_count = t.order_count,
    gross_amount = t.gross_amount,
    net_amount = t.net_amount,
    median_gap_days = t.median_gap_days,
    expected_next_order_date = t.expected_next_order_date,
    favourite_source_id = t.favourite_source_id,
    favourite_category = t.favourite_category,
    city = t.city,
    last_rating = t.last_rating,
    last_rated_date = t.last_rated_date
FROM told AS t
WHERE
    m.member_id = t.member_id
    AND (
        m.first_order_date, m.last_order_date, m.order_day_count, m.order_count,
        m.gross_amount, m.net_amount, m.median_gap_days, m.favourite_source_id,
        m.favourite_category, m.city, m.last_rating, m.last_rated_date
    )
    IS DISTINCT FROM (
        t.first_order_date, t.last_order_date, t.order_day_count, t.order_count,
        t.gross_amount, t.net_amount, t.median_gap_days, t.favourite_source_id,
        t.favourite_category, t.city, t.last_rating, t.last_rated_date
    );

INSERT INTO mart.member_facts (
    member_id, first_order_date, last_order_date, order_day_count, order_count, gross_amount, net_amount, median_gap_days,
    expected_next_order_date, favourite_source_id, favourite_category, city, last_rating, last_rated_date
)
SELECT
    t.member_id, t.first_order_date, t.last_order_date, t.order_day_count, t.order_count, t.gross_amount, t.net_amount, t.median_gap_days,
    t.expected_next_order_date, t.favourite_source_id, t.favourite_category, t.city, t.last_rating, t.last_rated_date
FROM told AS t
WHERE NOT EXISTS (SELECT 1 FROM mart.member_facts AS m WHERE m.member_id = t.member_id)
ORDER BY t.member_id ASC;

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'member_facts', k.horizon, k.upto_batch_id, k.settings FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id), excluded.settings);
