-- mart.products: every product of every shop: its title, its category, when it was first and last sold.
-- Grain: one row per source and product, sold or only on its shop's list.
-- Params: business_date (date).
-- Reads: core.products, mart.category_rules, mart.product_days, mart.touched_days, mart.marks, mart.products
-- Rerun: safe; a night looks for other titles, and at the days that were touched or are new; with other rules, at everything. Rows
-- that do not differ are not rewritten.
-- The category is the first rule of include/config/categories.yaml that fits the title or the article number
-- (docs/decisions/0067-products.md).
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), m.batch_id, 0) AS upto_batch_id,
    w.settings,
    coalesce(m.settings <> w.settings, TRUE) AS is_full
FROM (
    SELECT
        'products' AS mart,
        coalesce(md5(string_agg(concat_ws('|', r.category, r.is_goods, r.title_pattern, r.article_pattern), E'\n' ORDER BY r.position)), '')
            AS settings
    FROM mart.category_rules AS r
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT x.source_id, x.day
FROM (
    SELECT t.source_id, t.day
    FROM mart.touched_days AS t
    CROSS JOIN mark AS m
    WHERE t.batch_id > m.after_batch_id AND t.batch_id <= m.upto_batch_id
    UNION
    SELECT p.source_id, p.day
    FROM mark AS m
    JOIN mart.product_days AS p ON p.day > m.since AND p.day <= m.horizon
) AS x
CROSS JOIN mark AS k
WHERE NOT k.is_full;
ANALYZE scope;

DROP TABLE IF EXISTS pg_temp.scope_products;
CREATE TEMPORARY TABLE scope_products ON COMMIT DROP AS
SELECT d.source_id, d.product_id, d.day
FROM scope AS s
JOIN mart.product_days AS d ON d.day = s.day AND d.source_id = s.source_id;
ANALYZE scope_products;

-- Products whose first or last day is not theirs any more: an order that turned out to be another day's.
DROP TABLE IF EXISTS pg_temp.lost;
CREATE TEMPORARY TABLE lost ON COMMIT DROP AS
SELECT e.source_id, e.product_id
FROM (
    SELECT p.source_id, p.product_id, p.first_sold_date AS day FROM mart.products AS p
    UNION
    SELECT p.source_id, p.product_id, p.last_sold_date FROM mart.products AS p
) AS e
JOIN scope AS s ON s.source_id = e.source_id AND s.day = e.day
LEFT JOIN scope_products AS d ON d.source_id = e.source_id AND d.product_id = e.product_id AND d.day = e.day
WHERE d.day IS NULL
GROUP BY e.source_id, e.product_id;
ANALYZE lost;

DROP TABLE IF EXISTS pg_temp.sold;
CREATE TEMPORARY TABLE sold ON COMMIT DROP AS
SELECT x.source_id, x.product_id, min(x.first_day) AS first_sold_date, max(x.last_day) AS last_sold_date
FROM (
    SELECT d.source_id, d.product_id, min(d.day) AS first_day, max(d.day) AS last_day
    FROM mart.product_days AS d
    WHERE (SELECT k.is_full FROM mark AS k)
    GROUP BY d.source_id, d.product_id
    UNION ALL
    SELECT d.source_id, d.product_id, d.day AS first_day, d.day AS last_day
    FROM scope_products AS d
    UNION ALL
    SELECT d.source_id, d.product_id, d.day AS first_day, d.day AS last_day
    FROM lost AS l
    JOIN mart.product_days AS d ON d.source_id = l.source_id AND d.product_id = l.product_id
    UNION ALL
    SELECT p.source_id, p.product_id, p.first_sold_date, p.last_sold_date
    FROM mart.products AS p
    CROSS JOIN mark AS k
    WHERE
        NOT k.is_full AND p.first_sold_date IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM lost AS l WHERE l.source_id = p.source_id AND l.product_id = p.product_id)
) AS x
GROUP BY x.source_id, x.product_id;
ANALYZE sold;

DROP TABLE IF EXISTS pg_temp.current_products;
CREATE TEMPORARY TABLE current_products ON COMMIT DROP AS
SELECT
    c.source_id,
    c.product_id,
    c.title,
    c.outer_id,
    c.first_sold_date,
    c.last_sold_date,
    CASE WHEN c.is_as_before THEN c.category ELSE coalesce(r.category, 'other') END AS category,
    CASE WHEN c.is_as_before THEN c.is_goods ELSE coalesce(r.is_goods, TRUE) END AS is_goods
FROM (
    SELECT
        n.source_id, n.product_id, n.title, n.outer_id, n.first_sold_date, n.last_sold_date, m.category, m.is_goods,
        m.category IS NOT NULL AS is_as_before
    FROM (
        SELECT
            coalesce(p.source_id, s.source_id) AS source_id,
            coalesce(p.product_id, s.product_id) AS product_id,
            coalesce(p.title, s.product_id) AS title,
            p.outer_id,
            s.first_sold_date,
            s.last_sold_date
        FROM core.products AS p
        FULL JOIN sold AS s ON s.source_id = p.source_id AND s.product_id = p.product_id
    ) AS n
    CROSS JOIN mark AS k
    LEFT JOIN mart.products AS m
        ON
            m.source_id = n.source_id AND m.product_id = n.product_id AND m.title = n.title
            AND m.outer_id IS NOT DISTINCT FROM n.outer_id AND NOT k.is_full
) AS c
LEFT JOIN LATERAL (
    SELECT f.category, f.is_goods
    FROM mart.category_rules AS f
    WHERE
        NOT c.is_as_before
        AND (
            c.title ~* f.title_pattern
            OR coalesce(c.outer_id, c.product_id) ~* f.article_pattern
            OR coalesce(f.title_pattern, f.article_pattern) IS NULL
        )
    ORDER BY f.position ASC
    LIMIT 1
) AS r ON TRUE;

DELETE FROM mart.products AS m
WHERE NOT EXISTS (
    SELECT 1 FROM current_products AS c WHERE c.source_id = m.source_id AND c.product_id = m.product_id
);

INSERT INTO mart.products (source_id, product_id, title, outer_id, category, is_goods, first_sold_date, last_sold_date)
SELECT c.source_id, c.product_id, c.title, c.outer_id, c.category, c.is_goods, c.first_sold_date, c.last_sold_date
FROM current_products AS c
ON CONFLICT (source_id, product_id) DO UPDATE SET
    title = excluded.title,
    outer_id = excluded.outer_id,
    category = excluded.category,
    is_goods = excluded.is_goods,
    first_sold_date = excluded.first_sold_date,
    last_sold_date = excluded.last_sold_date
WHERE
    (products.title, products.outer_id, products.category, products.is_goods, products.first_sold_date, products.last_sold_date)
    IS DISTINCT FROM (
        excluded.title, excluded.outer_id, excluded.category, excluded.is_goods, excluded.first_sold_date, excluded.last_sold_date
    );

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'products', k.horizon, k.upto_batch_id, k.settings
FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id), excluded.settings);
