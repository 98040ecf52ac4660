-- Every Taobao trade that was paid is worth in core what it was worth as received: price x num over its lines.
-- Table: core.orders. Severity: fail.
-- Params: business_date (date).
-- Reads: raw.heads, raw.records, raw.batches, raw.mappings, raw.rejects, core.orders, core.accounts
-- Looks at what was loaded in the week before the business date and since (a first load is looked at as a whole). Left out:
-- records that were refused with a reason, and those that wait for the mapping (the check nothing_left_to_map sees them).
WITH
received AS (
    SELECT
        h.source_id,
        h.record_key AS order_id,
        r.payload,
        raw.to_instant(r.payload ->> 'modified', '+08') AS modified_at,
        coalesce(r.payload ->> 'pay_time', '') <> '' AND r.payload ->> 'status' <> 'TRADE_CLOSED_BY_TAOBAO' AS is_paid
    FROM raw.heads AS h
    JOIN raw.batches AS b ON b.batch_id = h.batch_id
    JOIN raw.mappings AS m
        ON m.source_id = h.source_id AND m.stream = h.stream AND m.target = 'core.orders' AND m.last_batch_id >= h.batch_id
    LEFT JOIN core.accounts AS a ON a.source_id = h.source_id
    JOIN raw.records AS r
        ON r.source_id = h.source_id AND r.stream = h.stream AND r.record_key = h.record_key AND r.batch_id = h.batch_id
        AND r.content_hash = h.content_hash
    WHERE
        h.stream = 'trades'
        AND coalesce(a.platform, 'taobao') = 'taobao'  -- other platforms call their orders trades too
        AND r.payload ? 'tid'
        AND b.loaded_at >= (%(business_date)s::date - 7)::timestamptz
        AND NOT EXISTS (
            SELECT 1
            FROM raw.rejects AS j
            WHERE
                j.source_id = h.source_id AND j.stream = h.stream AND j.stage = 'mapping' AND j.record_key = h.record_key
                AND j.resolved_at IS NULL
        )
),
priced AS (
    SELECT t.source_id, t.order_id, t.modified_at, t.is_paid, l.goods_amount
    FROM received AS t
    CROSS JOIN LATERAL ( -- summed inside: a row per line would unpack the whole payload again for every line
        SELECT sum(raw.to_amount(e.line ->> 'price') * raw.to_amount(e.line ->> 'num')) AS goods_amount
        FROM jsonb_array_elements(
            CASE WHEN jsonb_typeof(t.payload -> 'orders') = 'array' THEN t.payload -> 'orders' ELSE t.payload #> '{orders,order}' END
        ) AS e (line)
    ) AS l
),
compared AS (
    SELECT
        p.goods_amount * p.is_paid::integer AS raw_amount,
        o.goods_amount * o.is_paid::integer AS core_amount
    FROM priced AS p
    LEFT JOIN core.orders AS o ON o.source_id = p.source_id AND o.order_id = p.order_id
    WHERE o.modified_at IS NULL OR o.modified_at <= p.modified_at -- an old version that came late is not in core
)
SELECT
    count(*) FILTER (WHERE c.raw_amount IS DISTINCT FROM c.core_amount) = 0 AS is_passed,
    count(*) FILTER (WHERE c.raw_amount IS DISTINCT FROM c.core_amount) || ' of ' || count(*) || ' trades differ; paid in raw '
    || coalesce(sum(c.raw_amount), 0) || ', in core ' || coalesce(sum(c.core_amount), 0) AS observed
FROM compared AS c;
