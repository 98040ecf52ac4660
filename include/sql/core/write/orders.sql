-- core.orders, core.order_lines, core.products, core.shipments: the orders of the new rows, whatever shop they come from.
-- Grain: one row per order; its lines, products and parcels with it. Amounts in the source's currency, before refunds.
-- Params: source_id (text), currency_code (text).
-- Reads: core.orders, core.order_lines
-- Rerun: safe. Of several versions the newest modified_at counts; an unusable one leaves the last good one in place. Lines and
-- parcels are exactly those of the version in force.
DROP TABLE IF EXISTS pg_temp.line_facts;
CREATE TEMPORARY TABLE line_facts ON COMMIT DROP AS
SELECT
    l.record_id,
    count(*) AS line_count,
    count(*) FILTER (
        WHERE l.line_id <> '' AND l.product_id <> '' AND l.unit_price IS NOT NULL AND l.quantity IS NOT NULL
    ) AS usable_count,
    count(DISTINCT l.line_id) AS distinct_count,
    sum(l.unit_price * l.quantity) AS goods_amount,
    sum(l.quantity) AS unit_count
FROM new_lines AS l
GROUP BY l.record_id;

UPDATE new_rows AS n SET problem = concat_ws('; ', n.problem, x.problem)
FROM (
    SELECT
        r.record_id,
        CASE
            WHEN f.record_id IS NULL THEN 'the order has no lines'
            WHEN f.usable_count < f.line_count THEN 'a line has no id or no product, or a price or quantity that is missing or not a number'
            WHEN f.distinct_count < f.line_count THEN 'a line stands twice'
        END AS problem
    FROM new_rows AS r
    LEFT JOIN line_facts AS f ON f.record_id = r.record_id
) AS x
WHERE x.record_id = n.record_id AND x.problem IS NOT NULL;
ANALYZE new_rows, new_lines, line_facts;  -- nobody does it for temporary tables, and plans for empty ones are slow

INSERT INTO core.orders AS o (
    source_id, order_id, identity_id, status, status_original, is_paid, currency_code, goods_amount, paid_amount, postage_amount,
    line_count, unit_count, city, created_at, paid_at, shipped_at, signed_at, modified_at, batch_id, loaded_at
)
SELECT DISTINCT ON (n.order_id)
    %(source_id)s::text, n.order_id, p.identity_id, n.status, n.status_original, n.is_paid, %(currency_code)s::text,
    f.goods_amount, n.paid_amount, coalesce(n.postage_amount, 0), f.line_count, f.unit_count, nullif(n.city, ''),
    n.created_at, n.paid_at, n.shipped_at, n.signed_at, n.modified_at, n.batch_id, n.observed_at
FROM new_rows AS n
JOIN line_facts AS f ON f.record_id = n.record_id
LEFT JOIN row_people AS p ON p.record_id = n.record_id
WHERE n.problem IS NULL
ORDER BY n.order_id ASC, n.modified_at DESC, n.record_id DESC
ON CONFLICT (source_id, order_id) DO UPDATE SET
    identity_id = excluded.identity_id, status = excluded.status, status_original = excluded.status_original,
    is_paid = excluded.is_paid, currency_code = excluded.currency_code, goods_amount = excluded.goods_amount,
    paid_amount = excluded.paid_amount, postage_amount = excluded.postage_amount, line_count = excluded.line_count,
    unit_count = excluded.unit_count, city = excluded.city, created_at = excluded.created_at, paid_at = excluded.paid_at,
    shipped_at = excluded.shipped_at, signed_at = excluded.signed_at, modified_at = excluded.modified_at, batch_id = excluded.batch_id,
    loaded_at = excluded.loaded_at
WHERE excluded.modified_at >= o.modified_at                                     -- a late answer must not bring back an old state
  AND (o.batch_id, o.identity_id) IS DISTINCT FROM (excluded.batch_id, excluded.identity_id);

-- The rows that are in force now: a batch holds one version of an order.
DROP TABLE IF EXISTS pg_temp.rows_in_force;
CREATE TEMPORARY TABLE rows_in_force ON COMMIT DROP AS
SELECT n.record_id, o.order_id, o.batch_id, o.status, o.shipped_at, o.signed_at, o.modified_at
FROM new_rows AS n
-- by the primary key: through the index on batch_id every row would look at all orders of its batch
JOIN core.orders AS o ON o.source_id = %(source_id)s::text AND o.order_id = n.order_id AND o.batch_id + 0 = n.batch_id
WHERE n.problem IS NULL;
ANALYZE rows_in_force;

INSERT INTO core.order_lines AS c (
    source_id, order_id, line_id, product_id, outer_id, title, unit_price_amount, quantity, line_amount, paid_amount, status, batch_id
)
SELECT
    %(source_id)s::text, o.order_id, l.line_id, l.product_id, nullif(l.outer_id, ''), coalesce(nullif(l.title, ''), l.product_id),
    l.unit_price, l.quantity, l.unit_price * l.quantity, coalesce(l.paid_amount, l.unit_price * l.quantity),
    coalesce(l.status, o.status), o.batch_id
FROM rows_in_force AS o
JOIN new_lines AS l ON l.record_id = o.record_id
ON CONFLICT (source_id, order_id, line_id) DO UPDATE SET
    product_id = excluded.product_id, outer_id = excluded.outer_id, title = excluded.title,
    unit_price_amount = excluded.unit_price_amount, quantity = excluded.quantity, line_amount = excluded.line_amount,
    paid_amount = excluded.paid_amount, status = excluded.status, batch_id = excluded.batch_id
WHERE (c.batch_id, c.status, c.paid_amount) IS DISTINCT FROM (excluded.batch_id, excluded.status, excluded.paid_amount);

-- Lines that the newer version of their order does not have any more.
DELETE FROM core.order_lines AS c
USING rows_in_force AS o
WHERE c.source_id = %(source_id)s::text AND c.order_id = o.order_id AND c.batch_id <> o.batch_id;

INSERT INTO core.products AS p (source_id, product_id, title, outer_id, seen_at)
SELECT DISTINCT ON (x.product_id) %(source_id)s::text, x.product_id, x.title, x.outer_id, x.seen_at
FROM (   -- thousands of lines name the same few articles: they are put together before they are sorted
    SELECT
        l.product_id, coalesce(nullif(l.title, ''), l.product_id) AS title, nullif(l.outer_id, '') AS outer_id,
        max(o.modified_at) AS seen_at
    FROM rows_in_force AS o
    JOIN new_lines AS l ON l.record_id = o.record_id
    GROUP BY l.product_id, coalesce(nullif(l.title, ''), l.product_id), nullif(l.outer_id, '')
) AS x
ORDER BY x.product_id ASC, x.seen_at DESC, x.title DESC, x.outer_id DESC NULLS LAST
ON CONFLICT (source_id, product_id) DO UPDATE SET title = excluded.title, outer_id = excluded.outer_id, seen_at = excluded.seen_at
WHERE (excluded.seen_at, excluded.title, coalesce(excluded.outer_id, '')) > (p.seen_at, p.title, coalesce(p.outer_id, ''));

-- An order whose lines name no waybill is one parcel named after the order.
INSERT INTO core.shipments AS s (source_id, order_id, shipment_id, carrier, shipped_at, signed_at, batch_id)
SELECT
    %(source_id)s::text, o.order_id, coalesce(nullif(l.shipment_id, ''), o.order_id), max(nullif(l.carrier, '')),
    coalesce(min(l.shipped_at), o.shipped_at), o.signed_at, o.batch_id
FROM rows_in_force AS o
JOIN new_lines AS l ON l.record_id = o.record_id
WHERE coalesce(l.shipped_at, o.shipped_at) IS NOT NULL
GROUP BY o.order_id, coalesce(nullif(l.shipment_id, ''), o.order_id), o.shipped_at, o.signed_at, o.batch_id
ON CONFLICT (source_id, order_id, shipment_id) DO UPDATE SET
    carrier = excluded.carrier, shipped_at = excluded.shipped_at, signed_at = excluded.signed_at, batch_id = excluded.batch_id
WHERE (s.carrier, s.shipped_at, s.signed_at, s.batch_id)
    IS DISTINCT FROM (excluded.carrier, excluded.shipped_at, excluded.signed_at, excluded.batch_id);

DELETE FROM core.shipments AS s
USING rows_in_force AS o
WHERE s.source_id = %(source_id)s::text AND s.order_id = o.order_id AND s.batch_id <> o.batch_id;
