-- core.products: what a shop sells, as its own list of items says.
-- Grain: one row per item. Price in the source's currency.
-- Params: source_id (text).
-- Reads: core.products
-- Rerun: safe. The newest modified_at counts; order lines know titles too (write/orders.sql), never prices.
INSERT INTO core.products AS p (source_id, product_id, title, outer_id, price_amount, is_listed, seen_at)
SELECT DISTINCT ON (n.product_id)
    %(source_id)s::text, n.product_id, n.title, nullif(n.outer_id, ''), n.price_amount, n.is_listed, n.modified_at
FROM new_rows AS n
WHERE n.problem IS NULL
ORDER BY n.product_id ASC, n.modified_at DESC, n.record_id DESC
ON CONFLICT (source_id, product_id) DO UPDATE SET
    title = CASE WHEN excluded.seen_at >= p.seen_at THEN excluded.title ELSE p.title END,
    outer_id = CASE WHEN excluded.seen_at >= p.seen_at THEN coalesce(excluded.outer_id, p.outer_id) ELSE p.outer_id END,
    price_amount = excluded.price_amount, is_listed = excluded.is_listed, seen_at = greatest(excluded.seen_at, p.seen_at)
WHERE (p.title, p.price_amount, p.is_listed, p.seen_at)
    IS DISTINCT FROM (excluded.title, excluded.price_amount, excluded.is_listed, excluded.seen_at);
