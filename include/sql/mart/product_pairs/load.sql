-- mart.product_pairs: which products are bought together, more often than chance would have it.
-- Grain: one row per week's end (a Sunday), source and pair of products; the smaller product id is a.
-- Params: business_date (date), pair_window_days (integer), pair_max_products (integer), pair_min_orders (integer),
--   pairs_per_source (integer), pair_keep_weeks (integer).
-- Reads: core.orders, core.order_lines, mart.products, mart.marks, mart.product_pairs
-- Rerun: safe; computes the last Sunday up to the business date once, and an older Sunday when asked for it. A late order moves
-- only Sundays that are still to come; delete the mark to compute the newest again (docs/decisions/0067-products.md).
-- A basket is a paid order, with its different goods; one of more than pair_max_products is a wholesaler's list and left out
-- altogether: its n products would make n * (n - 1) / 2 pairs that say nothing.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    w.sunday,
    w.settings,
    greatest(w.sunday, m.business_date) AS newest,
    coalesce(
        w.sunday > m.business_date
        OR (w.sunday = m.business_date AND w.settings <> m.settings)
        OR (w.sunday < m.business_date AND w.sunday > m.business_date - 7 * %(pair_keep_weeks)s::integer),
        TRUE
    ) AS is_due
FROM (
    SELECT
        'product_pairs' AS mart,
        %(business_date)s::date - mod(extract(ISODOW FROM %(business_date)s::date)::integer, 7) AS sunday,
        concat_ws(
            '/', %(pair_window_days)s::integer, %(pair_max_products)s::integer, %(pair_min_orders)s::integer,
            %(pairs_per_source)s::integer
        ) AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

-- Goods by number: millions of lines are sorted and joined below, and numbers are quicker than names.
DROP TABLE IF EXISTS pg_temp.goods;
CREATE TEMPORARY TABLE goods ON COMMIT DROP AS
SELECT p.source_id, p.product_id, row_number() OVER (ORDER BY p.source_id ASC, p.product_id ASC)::integer AS number
FROM mart.products AS p
WHERE p.is_goods;
ANALYZE goods;

DROP TABLE IF EXISTS pg_temp.baskets;
CREATE TEMPORARY TABLE baskets ON COMMIT DROP AS
SELECT
    row_number() OVER ()::integer AS number,
    b.source_id,
    b.products
FROM (
    SELECT o.source_id, array_agg(DISTINCT g.number) AS products
    FROM core.orders AS o
    JOIN core.order_lines AS i ON i.source_id = o.source_id AND i.order_id = o.order_id
    JOIN goods AS g ON g.source_id = i.source_id AND g.product_id = i.product_id
    WHERE
        (SELECT k.is_due FROM mark AS k) AND o.is_paid
        -- the Sunday from the parameters, so that the plan knows how many orders there are
        AND o.paid_at >= (
            %(business_date)s::date - mod(extract(ISODOW FROM %(business_date)s::date)::integer, 7)
            + 1 - %(pair_window_days)s::integer
        )::timestamptz
        AND o.paid_at < (
            %(business_date)s::date - mod(extract(ISODOW FROM %(business_date)s::date)::integer, 7) + 1
        )::timestamptz
    GROUP BY o.source_id, o.order_id
) AS b
WHERE cardinality(b.products) <= %(pair_max_products)s::integer;
ANALYZE baskets;

DROP TABLE IF EXISTS pg_temp.basket_items;
CREATE TEMPORARY TABLE basket_items ON COMMIT DROP AS
SELECT b.number, u.product
FROM baskets AS b
CROSS JOIN LATERAL unnest(b.products) AS u (product);
ANALYZE basket_items;

DROP TABLE IF EXISTS pg_temp.product_baskets;
CREATE TEMPORARY TABLE product_baskets ON COMMIT DROP AS
SELECT b.product, count(*) AS order_count
FROM basket_items AS b
GROUP BY b.product
HAVING count(*) >= %(pair_min_orders)s::integer;
ANALYZE product_baskets;

-- Only products that stand in enough baskets can stand in enough of them together.
DROP TABLE IF EXISTS pg_temp.frequent_items;
CREATE TEMPORARY TABLE frequent_items ON COMMIT DROP AS
SELECT b.number, b.product
FROM basket_items AS b
JOIN product_baskets AS p ON p.product = b.product;
ANALYZE frequent_items;

DROP TABLE IF EXISTS pg_temp.new_pairs;
CREATE TEMPORARY TABLE new_pairs ON COMMIT DROP AS
SELECT x.source_id, x.product_a, x.product_b, x.order_count, x.a_order_count, x.b_order_count, x.basket_count, x.lift, x.pair_rank
FROM (
    SELECT
        c.source_id, c.product_a, c.product_b, c.order_count, c.a_order_count, c.b_order_count, c.basket_count, c.lift,
        row_number() OVER (
            PARTITION BY c.source_id ORDER BY c.lift DESC, c.order_count DESC, c.product_a ASC, c.product_b ASC
        ) AS pair_rank
    FROM (
        SELECT
            ga.source_id, ga.product_id AS product_a, gb.product_id AS product_b, t.order_count, a.order_count AS a_order_count,
            b.order_count AS b_order_count, n.basket_count,
            t.order_count::numeric * n.basket_count / (a.order_count::numeric * b.order_count) AS lift
        FROM (
            -- numbers follow ids, so the smaller id is a
            SELECT i.product AS product_a, j.product AS product_b, count(*) AS order_count
            FROM frequent_items AS i
            JOIN frequent_items AS j ON j.number = i.number AND j.product > i.product
            GROUP BY i.product, j.product
            HAVING count(*) >= %(pair_min_orders)s::integer
        ) AS t
        JOIN product_baskets AS a ON a.product = t.product_a
        JOIN product_baskets AS b ON b.product = t.product_b
        JOIN goods AS ga ON ga.number = t.product_a
        JOIN goods AS gb ON gb.number = t.product_b
        JOIN (SELECT z.source_id, count(*) AS basket_count FROM baskets AS z GROUP BY z.source_id) AS n ON n.source_id = ga.source_id
    ) AS c
) AS x
WHERE x.pair_rank <= %(pairs_per_source)s::integer;

DELETE FROM mart.product_pairs AS m
USING mark AS k
WHERE
    m.business_date <= k.newest - 7 * %(pair_keep_weeks)s::integer
    OR (
        k.is_due AND m.business_date = k.sunday
        AND NOT EXISTS (
            SELECT 1 FROM new_pairs AS n
            WHERE n.source_id = m.source_id AND n.product_a = m.product_a AND n.product_b = m.product_b
        )
    );

INSERT INTO mart.product_pairs (
    business_date, source_id, product_a, product_b, pair_rank, order_count, a_order_count, b_order_count, basket_count, support_rate,
    a_to_b_rate, b_to_a_rate, lift
)
SELECT
    k.sunday,
    n.source_id,
    n.product_a,
    n.product_b,
    n.pair_rank,
    n.order_count,
    n.a_order_count,
    n.b_order_count,
    n.basket_count,
    n.order_count::numeric / n.basket_count,
    n.order_count::numeric / n.a_order_count,
    n.order_count::numeric / n.b_order_count,
    n.lift
FROM new_pairs AS n
CROSS JOIN mark AS k
WHERE k.is_due
ON CONFLICT (business_date, source_id, product_a, product_b) DO UPDATE SET
    pair_rank = excluded.pair_rank,
    order_count = excluded.order_count,
    a_order_count = excluded.a_order_count,
    b_order_count = excluded.b_order_count,
    basket_count = excluded.basket_count,
    support_rate = excluded.support_rate,
    a_to_b_rate = excluded.a_to_b_rate,
    b_to_a_rate = excluded.b_to_a_rate,
    lift = excluded.lift
WHERE
    (
        product_pairs.pair_rank, product_pairs.order_count, product_pairs.a_order_count, product_pairs.b_order_count,
        product_pairs.basket_count
    )
    IS DISTINCT FROM (
        excluded.pair_rank, excluded.order_count, excluded.a_order_count, excluded.b_order_count, excluded.basket_count
    );

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'product_pairs', k.sunday, 9223372036854775807, k.settings -- it waits for no batch of touches
FROM mark AS k
WHERE k.sunday = k.newest
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, settings = excluded.settings, computed_at = clock_timestamp()
WHERE (marks.business_date, marks.settings) IS DISTINCT FROM (excluded.business_date, excluded.settings);
