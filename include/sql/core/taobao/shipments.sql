-- core.shipments: parcels of the orders that were sent.
-- Grain: one row per order and waybill; an order whose lines name no waybill is one parcel named after the order.
-- Params: source_id (text), as_of_at (timestamptz).   Reads: raw.records, raw.mappings, core.orders
-- Rerun: safe; follows core.orders and keeps exactly the parcels of its current versions.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'trades', 'core.shipments')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id, o.last_batch_id AS upto_batch_id
FROM raw.mappings AS m
JOIN raw.mappings AS o ON o.source_id = m.source_id AND o.stream = m.stream AND o.target = 'core.orders'
WHERE m.source_id = %(source_id)s::text AND m.stream = 'trades' AND m.target = 'core.shipments'
FOR UPDATE OF m;

INSERT INTO core.shipments AS s (source_id, order_id, shipment_id, carrier, shipped_at, signed_at, batch_id)
SELECT
    o.source_id, o.order_id, p.shipment_id, max(p.carrier),
    coalesce(min(p.shipped_at), o.shipped_at), o.signed_at, o.batch_id
FROM mapping_range AS g
JOIN core.orders AS o ON o.batch_id > g.after_batch_id AND o.batch_id <= g.upto_batch_id AND o.source_id = %(source_id)s::text
-- the record that became this row of core.orders: a batch holds one version of a trade
JOIN raw.records AS r ON r.source_id = o.source_id AND r.stream = 'trades' AND r.record_key = o.order_id AND r.batch_id = o.batch_id
CROSS JOIN LATERAL (
    SELECT
        coalesce(nullif(e.line ->> 'invoice_no', ''), nullif(r.payload ->> 'invoice_no', ''), o.order_id) AS shipment_id,
        coalesce(nullif(e.line ->> 'logistics_company', ''), nullif(r.payload ->> 'logistics_company', '')) AS carrier,
        raw.to_instant(e.line ->> 'consign_time', '+08') AS shipped_at
    FROM jsonb_array_elements(r.payload #> '{orders,order}') AS e (line)
) AS p
WHERE coalesce(p.shipped_at, o.shipped_at) IS NOT NULL
GROUP BY o.source_id, o.order_id, p.shipment_id, o.shipped_at, o.signed_at, o.batch_id
ON CONFLICT (source_id, order_id, shipment_id) DO UPDATE SET
    carrier = excluded.carrier, shipped_at = excluded.shipped_at, signed_at = excluded.signed_at, batch_id = excluded.batch_id
WHERE (s.carrier, s.shipped_at, s.signed_at, s.batch_id)
    IS DISTINCT FROM (excluded.carrier, excluded.shipped_at, excluded.signed_at, excluded.batch_id);

DELETE FROM core.shipments AS s
USING mapping_range AS g, core.orders AS o
WHERE o.batch_id > g.after_batch_id AND o.batch_id <= g.upto_batch_id AND o.source_id = %(source_id)s::text
  AND s.source_id = o.source_id AND s.order_id = o.order_id AND s.batch_id <> o.batch_id;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'trades' AND m.target = 'core.shipments' AND m.last_batch_id < g.upto_batch_id;
