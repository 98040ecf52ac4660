-- Paid line value is in core what the platforms said, by source and day of payment, order by order.
-- Table: core.orders. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: raw.heads, raw.records, raw.batches, raw.mappings, raw.rejects, core.orders, core.accounts
-- Reads the payloads a second time, without the files that map them: price x quantity over the lines, the day it was paid. Judged is
-- the newest version of every order that was loaded in the week before the business date and since (a first load as a whole, for a
-- week; with is_full everything). Left out: what was refused with a reason, and what waits for the mapping (nothing_left_to_map sees
-- it). Goes from the batches of the week to their records by index, then one probe per record into heads and orders.
WITH
loaded AS (
    SELECT b.batch_id, b.source_id, b.stream, a.platform
    FROM raw.batches AS b
    JOIN raw.mappings AS m
        ON m.source_id = b.source_id AND m.stream = b.stream AND m.target = 'core.orders' AND m.last_batch_id >= b.batch_id
    LEFT JOIN core.accounts AS a ON a.source_id = b.source_id
    WHERE b.changed_count > 0 AND (%(is_full)s::boolean OR b.loaded_at >= (%(business_date)s::date - 7)::timestamptz)
),
received AS (
    SELECT b.source_id, r.record_key AS order_id, b.platform, r.payload
    FROM loaded AS b
    CROSS JOIN LATERAL (
        SELECT v.record_key, v.content_hash, v.payload FROM raw.records AS v WHERE v.batch_id = b.batch_id
        ORDER BY v.record_id ASC  -- batch by batch: sorted, this is not turned into a join that reads all of raw
    ) AS r
    WHERE
        EXISTS (
            SELECT FROM raw.heads AS h
            WHERE
                h.source_id = b.source_id AND h.stream = b.stream AND h.record_key = r.record_key
                AND h.batch_id = b.batch_id AND h.content_hash = r.content_hash
        )
        AND NOT EXISTS (
            SELECT FROM raw.rejects AS j
            WHERE
                j.source_id = b.source_id AND j.stream = b.stream AND j.stage = 'mapping' AND j.record_key = r.record_key
                AND j.resolved_at IS NULL AND starts_with(j.reason, 'core.orders: ')
        )
),
-- One branch per platform; a platform without one has no amount, and so differs. Shares of a cent: WooCommerce gives amounts per
-- line, not per piece, and what it rounds is not ours to stop at.
read AS (
    SELECT t.source_id, t.order_id, p.modified_at, p.paid_at, coalesce(p.is_paid, FALSE) AS is_paid, p.goods_amount, p.tolerance
    FROM received AS t
    LEFT JOIN LATERAL (
        SELECT
            raw.to_instant(k.modified, '+08') AS modified_at,
            raw.to_instant(k.pay_time, '+08') AS paid_at,
            k.pay_time <> '' AND k.status <> 'TRADE_CLOSED_BY_TAOBAO' AS is_paid,
            (
                SELECT sum(raw.to_amount(e.line ->> 'price') * raw.to_amount(e.line ->> 'num'))
                FROM jsonb_path_query(coalesce(k.orders -> 'order', k.orders), '$[*]') AS e (line)
            ) AS goods_amount,
            0 AS tolerance
        FROM jsonb_to_record(t.payload) AS k (status text, modified text, pay_time text, orders jsonb)
        WHERE t.platform = 'taobao'
        UNION ALL
        SELECT
            raw.to_instant(k.modified, '+08'),
            -- never is the year 1; who pays the courier has paid when the order is over
            CASE
                WHEN k."paymentConfirmTime" > '0002' THEN raw.to_instant(k."paymentConfirmTime", '+08')
                WHEN k."orderState" = 'FINISHED_L' AND k."orderEndTime" > '0002' THEN raw.to_instant(k."orderEndTime", '+08')
            END,
            k."paymentConfirmTime" > '0002' OR (k."orderState" = 'FINISHED_L' AND k."orderEndTime" > '0002'),
            (
                SELECT sum(raw.to_amount(e.line ->> 'jdPrice') * raw.to_amount(e.line ->> 'itemTotal'))
                FROM jsonb_path_query(k."itemInfoList", '$[*]') AS e (line)
            ),
            0
        FROM jsonb_to_record(t.payload) AS k (
            modified text, "paymentConfirmTime" text, "orderState" text, "orderEndTime" text, "itemInfoList" jsonb
        )
        WHERE t.platform = 'jd'
        UNION ALL
        SELECT
            raw.to_instant(k.trade #>> '{order_info,update_time}', '+08'),
            raw.to_instant(k.trade #>> '{order_info,pay_time}', '+08'),
            k.trade #>> '{order_info,pay_time}' <> '',
            (
                SELECT sum(raw.to_amount(e.line ->> 'price') * raw.to_amount(e.line ->> 'num'))
                FROM jsonb_path_query(k.trade -> 'orders', '$[*]') AS e (line)
            ),
            0
        FROM (
            SELECT CASE
                WHEN t.payload #> '{detail,full_order_info}' ? 'order_info' THEN t.payload #> '{detail,full_order_info}'
                ELSE t.payload -> 'full_order_info'
            END AS trade
        ) AS k
        WHERE t.platform = 'youzan'
        UNION ALL
        SELECT
            coalesce(
                raw.to_instant(k.update_time, '+08'),
                greatest(
                    raw.to_instant(k.time, '+08'), raw.to_instant(k.pay_time, '+08'), raw.to_instant(k.send_time, '+08'),
                    raw.to_instant(k.confirm_time, '+08')
                )
            ),
            raw.to_instant(k.pay_time, '+08'),
            k.pay_time <> '',
            (
                SELECT sum(raw.to_amount(e.line ->> 'price') * raw.to_amount(e.line ->> 'quantity'))
                FROM jsonb_path_query(k.items, '$[*]') AS e (line)
            ),
            0
        FROM jsonb_to_record(CASE WHEN jsonb_typeof(t.payload -> 'detail') = 'object' THEN t.payload -> 'detail' ELSE '{}' END) AS k (
            time text, update_time text, pay_time text, send_time text, confirm_time text, items jsonb
        )
        WHERE t.platform = 'weidian'
        UNION ALL
        SELECT
            raw.from_epoch(k.update_time),
            -- 2 is "pay later": the money comes when the order is done; 3 was won, 4 is points
            CASE
                WHEN coalesce(d.pay_info ->> 'payment_method', '') <> '2' THEN raw.from_epoch(d.pay_info ->> 'pay_time')
                ELSE coalesce(raw.from_epoch(d.ext_info ->> 'confirm_receipt_time'), raw.from_epoch(k.update_time))
            END,
            raw.from_epoch(d.pay_info ->> 'pay_time') IS NOT NULL
            AND (
                coalesce(d.pay_info ->> 'payment_method', '') IN ('', '0', '1')
                OR (d.pay_info ->> 'payment_method' = '2' AND k.status = '100')
            ),
            (
                SELECT sum(raw.to_amount(e.line ->> 'sale_price') * raw.to_amount(e.line ->> 'sku_cnt')) / 100
                FROM jsonb_path_query(d.product_infos, '$[*]') AS e (line)
            ),
            0
        FROM jsonb_to_record(t.payload) AS k (status text, update_time text, order_detail jsonb)
        CROSS JOIN LATERAL jsonb_to_record(CASE WHEN jsonb_typeof(k.order_detail) = 'object' THEN k.order_detail ELSE '{}' END) AS d (
            pay_info jsonb, ext_info jsonb, product_infos jsonb
        )
        WHERE t.platform = 'wechat_store'
        UNION ALL
        SELECT
            raw.to_instant(k.updated_at),
            coalesce(raw.to_instant(k.processed_at), raw.to_instant(k.created_at)),
            k.financial_status IN ('paid', 'partially_refunded', 'refunded'),
            (
                SELECT sum(raw.to_amount(e.line ->> 'price') * raw.to_amount(e.line ->> 'quantity'))
                FROM jsonb_path_query(k.line_items, '$[*]') AS e (line)
            ),
            0
        FROM jsonb_to_record(t.payload) AS k (
            financial_status text, created_at text, processed_at text, updated_at text, line_items jsonb
        )
        WHERE t.platform = 'shopify'
        UNION ALL
        SELECT
            raw.to_instant(k.date_modified_gmt, 'Z'),
            raw.to_instant(k.date_paid_gmt, 'Z'),
            k.date_paid_gmt <> '',
            (
                SELECT sum(raw.to_amount(e.line ->> 'subtotal') + coalesce(raw.to_amount(e.line ->> 'subtotal_tax'), 0))
                FROM jsonb_path_query(k.line_items, '$[*]') AS e (line)
            ),
            0.005
        FROM jsonb_to_record(t.payload) AS k (date_modified_gmt text, date_paid_gmt text, line_items jsonb)
        WHERE t.platform = 'woocommerce'
        UNION ALL
        SELECT
            coalesce(
                raw.to_instant(k.modified_at), raw.to_instant(k.at ->> 'file_of'),
                greatest(
                    raw.to_instant(k.created_at), raw.to_instant(k.paid_at), raw.to_instant(k.shipped_at), raw.to_instant(k.signed_at)
                )
            ),
            raw.to_instant(k.paid_at),
            coalesce(k.is_paid = 'true', k.status NOT IN ('unpaid', 'cancelled')),
            (
                SELECT sum(raw.to_amount(e.line ->> 'unit_price') * raw.to_amount(e.line ->> 'quantity'))
                FROM jsonb_path_query(k.lines, '$[*]') AS e (line)
            ),
            0
        FROM jsonb_to_record(t.payload) AS k (
            status text, is_paid text, created_at text, modified_at text, paid_at text, shipped_at text, signed_at text, at jsonb,
            lines jsonb
        )
        WHERE t.platform IN ('files', 'rest')
    ) AS p ON TRUE
),
compared AS (
    SELECT
        r.source_id,
        CASE WHEN r.is_paid THEN r.paid_at::date END AS raw_day,
        CASE WHEN o.is_paid THEN o.paid_at::date END AS core_day,
        r.goods_amount * r.is_paid::integer AS raw_amount,
        o.goods_amount * o.is_paid::integer AS core_amount,
        r.tolerance
    FROM read AS r
    LEFT JOIN core.orders AS o ON o.source_id = r.source_id AND o.order_id = r.order_id
    WHERE coalesce(o.modified_at <= r.modified_at, TRUE)  -- an old version that came late is not in core
),
judged AS (
    SELECT
        c.source_id, c.raw_day, c.core_day, c.raw_amount, c.core_amount,
        (c.raw_day IS DISTINCT FROM c.core_day) OR coalesce(abs(c.raw_amount - c.core_amount) > c.tolerance, TRUE) AS is_different
    FROM compared AS c
),
days AS (
    SELECT
        s.source_id, s.day, sum(s.raw_amount) AS raw_amount, sum(s.core_amount) AS core_amount, bool_or(s.is_different) AS is_different
    FROM (
        SELECT j.source_id, j.raw_day AS day, j.raw_amount, 0 AS core_amount, j.is_different FROM judged AS j
        UNION ALL
        SELECT j.source_id, j.core_day, 0, j.core_amount, j.is_different FROM judged AS j
    ) AS s
    GROUP BY s.source_id, s.day
),
first_day AS (
    SELECT
        d.source_id || ' ' || coalesce(d.day::text, 'unpaid') || ': paid in raw ' || coalesce(trim_scale(d.raw_amount)::text, 'unknown')
        || ', in core ' || coalesce(trim_scale(d.core_amount)::text, 'nothing') AS sentence
    FROM days AS d
    WHERE d.is_different
    ORDER BY d.day ASC NULLS LAST, d.source_id ASC
    LIMIT 1
)
SELECT
    count(*) FILTER (WHERE j.is_different) = 0 AS is_passed,
    count(*) FILTER (WHERE j.is_different) || ' of ' || count(*) || ' orders differ; '
    || coalesce((SELECT 'first ' || f.sentence FROM first_day AS f) || '; ', '')
    || 'paid in raw ' || coalesce(trim_scale(sum(j.raw_amount)), 0)
    || ', in core ' || coalesce(trim_scale(sum(j.core_amount)), 0) AS observed
FROM judged AS j;
