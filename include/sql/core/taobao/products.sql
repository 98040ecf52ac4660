-- core.products: what the shop sells, as its order lines name it.
-- Grain: one row per item (num_iid); the title is that of the newest order.
-- Params: source_id (text), as_of_at (timestamptz).   Reads: raw.mappings, core.orders, core.order_lines
-- Rerun: safe; looks at the orders that are new since the mark and moves it.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'trades', 'core.products')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id, l.last_batch_id AS upto_batch_id
FROM raw.mappings AS m
JOIN raw.mappings AS l ON l.source_id = m.source_id AND l.stream = m.stream AND l.target = 'core.order_lines'
WHERE m.source_id = %(source_id)s::text AND m.stream = 'trades' AND m.target = 'core.products'
FOR UPDATE OF m;

INSERT INTO core.products AS p (source_id, product_id, title, outer_id, seen_at)
SELECT DISTINCT ON (l.product_id) l.source_id, l.product_id, l.title, l.outer_id, o.modified_at
FROM mapping_range AS g
JOIN core.orders AS o ON o.batch_id > g.after_batch_id AND o.batch_id <= g.upto_batch_id AND o.source_id = %(source_id)s::text
JOIN core.order_lines AS l ON l.source_id = o.source_id AND l.order_id = o.order_id
ORDER BY l.product_id ASC, o.modified_at DESC, l.title DESC, l.outer_id DESC
ON CONFLICT (source_id, product_id) DO UPDATE SET title = excluded.title, outer_id = excluded.outer_id, seen_at = excluded.seen_at
WHERE (excluded.seen_at, excluded.title, coalesce(excluded.outer_id, '')) > (p.seen_at, p.title, coalesce(p.outer_id, ''));

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'trades' AND m.target = 'core.products' AND m.last_batch_id < g.upto_batch_id;
