-- core.order_lines: what was in the trades that core.orders holds.
-- Grain: one row per sub-order (oid). Amounts in CNY.
-- Params: source_id (text), as_of_at (timestamptz).   Reads: raw.records, raw.mappings, core.orders
-- Rerun: safe; follows core.orders: for every order whose version is new the lines of exactly that version, no others.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'trades', 'core.order_lines')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id, o.last_batch_id AS upto_batch_id
FROM raw.mappings AS m
JOIN raw.mappings AS o ON o.source_id = m.source_id AND o.stream = m.stream AND o.target = 'core.orders'  -- never further than the orders
WHERE m.source_id = %(source_id)s::text AND m.stream = 'trades' AND m.target = 'core.order_lines'
FOR UPDATE OF m;

INSERT INTO core.order_lines AS c (
    source_id, order_id, line_id, product_id, outer_id, title, unit_price_amount, quantity, line_amount, paid_amount, status, batch_id
)
SELECT
    o.source_id, o.order_id, e.line ->> 'oid', e.line ->> 'num_iid',
    coalesce(nullif(e.line ->> 'outer_sku_id', ''), nullif(e.line ->> 'outer_iid', '')),
    coalesce(nullif(e.line ->> 'title', ''), e.line ->> 'num_iid'),
    v.price, v.num, v.price * v.num,
    coalesce(raw.to_amount(e.line ->> 'divide_order_fee'), raw.to_amount(e.line ->> 'payment'), v.price * v.num),
    CASE e.line ->> 'status'
        WHEN 'TRADE_NO_CREATE_PAY' THEN 'unpaid' WHEN 'WAIT_BUYER_PAY' THEN 'unpaid' WHEN 'PAY_PENDING' THEN 'unpaid'
        WHEN 'WAIT_PRE_AUTH_CONFIRM' THEN 'unpaid' WHEN 'PAID_FORBID_CONSIGN' THEN 'paid' WHEN 'WAIT_SELLER_SEND_GOODS' THEN 'paid'
        WHEN 'SELLER_CONSIGNED_PART' THEN 'paid' WHEN 'WAIT_BUYER_CONFIRM_GOODS' THEN 'shipped'
        WHEN 'TRADE_BUYER_SIGNED' THEN 'signed' WHEN 'TRADE_FINISHED' THEN 'finished' WHEN 'TRADE_CLOSED' THEN 'refunded'
        WHEN 'TRADE_CLOSED_BY_TAOBAO' THEN 'cancelled' ELSE o.status
    END,
    o.batch_id
FROM mapping_range AS g
JOIN core.orders AS o ON o.batch_id > g.after_batch_id AND o.batch_id <= g.upto_batch_id AND o.source_id = %(source_id)s::text
-- the record that became this row of core.orders: a batch holds one version of a trade
JOIN raw.records AS r ON r.source_id = o.source_id AND r.stream = 'trades' AND r.record_key = o.order_id AND r.batch_id = o.batch_id
CROSS JOIN LATERAL jsonb_array_elements(r.payload #> '{orders,order}') AS e (line)
CROSS JOIN LATERAL (SELECT (e.line ->> 'price')::numeric AS price, (e.line ->> 'num')::numeric AS num) AS v
ON CONFLICT (source_id, order_id, line_id) DO UPDATE SET
    product_id = excluded.product_id, outer_id = excluded.outer_id, title = excluded.title,
    unit_price_amount = excluded.unit_price_amount, quantity = excluded.quantity, line_amount = excluded.line_amount,
    paid_amount = excluded.paid_amount, status = excluded.status, batch_id = excluded.batch_id
WHERE (c.batch_id, c.status, c.paid_amount) IS DISTINCT FROM (excluded.batch_id, excluded.status, excluded.paid_amount);

-- Lines that the newer version of their order does not have any more.
DELETE FROM core.order_lines AS c
USING mapping_range AS g, core.orders AS o
WHERE o.batch_id > g.after_batch_id AND o.batch_id <= g.upto_batch_id AND o.source_id = %(source_id)s::text
  AND c.source_id = o.source_id AND c.order_id = o.order_id AND c.batch_id <> o.batch_id;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'trades' AND m.target = 'core.order_lines' AND m.last_batch_id < g.upto_batch_id;
