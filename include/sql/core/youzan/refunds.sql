-- new_rows: refund requests of a Youzan shop.
-- Grain: one row per version of a refund request. Amount in yuan, what goes back to the buyer; Youzan does not say for which line.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/refunds.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('WAIT_SELLER_AGREE', 'requested'), ('WAIT_BUYER_RETURN_GOODS', 'returning'), ('WAIT_SELLER_CONFIRM_GOODS', 'returning'),
    ('SELLER_REFUSE_BUYER', 'refused'), ('CLOSED', 'closed'), ('SUCCESS', 'settled')
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        p.tid, p.reason, t.status, p.status AS status_original,
        coalesce(raw.to_amount(r.payload #>> '{detail,refund_fee}'), raw.to_amount(p.refund_fee)) AS asked_amount,
        -- the order list writes times as texts, this one as Unix seconds; either is taken
        coalesce(raw.from_epoch(p.created), raw.from_epoch_ms(p.created), raw.to_instant(p.created, '+08')) AS created_at,
        coalesce(raw.from_epoch(p.modified), raw.from_epoch_ms(p.modified), raw.to_instant(p.modified, '+08')) AS modified_at,
        coalesce(
            raw.from_epoch(d.refund_account_time), raw.from_epoch_ms(d.refund_account_time), raw.to_instant(d.refund_account_time, '+08'),
            raw.from_epoch(d.refund_success_time), raw.from_epoch_ms(d.refund_success_time), raw.to_instant(d.refund_success_time, '+08')
        ) AS account_at,
        f.payments, f.unreadable, f.on_its_way_amount
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        tid text, status text, reason text, refund_fee text, created text, modified text
    )
    CROSS JOIN LATERAL jsonb_to_record(
        CASE WHEN jsonb_typeof(r.payload -> 'detail') = 'object' THEN r.payload -> 'detail' ELSE '{}' END
    ) AS d (refund_account_time text, refund_success_time text)
    LEFT JOIN statuses AS t ON p.status = t.status_original
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS payments,
            count(*) FILTER (WHERE raw.to_amount(e.fund ->> 'refund_fee') IS NULL) AS unreadable,
            -- 0 processing, 1 failed, 2 arrived; the amounts of this list are fen
            coalesce(sum(raw.to_amount(e.fund ->> 'refund_fee')) FILTER (WHERE e.fund ->> 'status' <> '1'), 0) / 100 AS on_its_way_amount
        FROM jsonb_array_elements(
            CASE WHEN jsonb_typeof(r.payload #> '{detail,refund_fund_list}') = 'array'
                 THEN r.payload #> '{detail,refund_fund_list}' ELSE '[]' END
        ) AS e (fund)
    ) AS f
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    '[]'::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS refund_id, t.tid AS order_id, NULL::text AS line_id, t.status, t.status_original,
    t.status = 'settled' AND (t.payments = 0 OR t.on_its_way_amount > 0) AS is_money,
    CASE WHEN t.status = 'settled' AND t.on_its_way_amount > 0 THEN t.on_its_way_amount ELSE t.asked_amount END AS refund_amount,
    NULL::numeric AS quantity, t.reason, t.created_at,
    -- the day the money arrived, else the day the case was closed
    CASE WHEN t.status = 'settled' THEN coalesce(t.account_at, t.modified_at) END AS settled_at,
    t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.tid IS NULL OR t.tid = '' THEN 'tid is missing' END,
        CASE WHEN t.status IS NULL THEN 'status is missing or unknown' END,
        CASE WHEN t.asked_amount IS NULL THEN 'refund_fee is missing or not a number' END,
        CASE WHEN t.unreadable > 0 THEN 'refund_fund_list: refund_fee is missing or not a number' END,
        CASE WHEN t.created_at IS NULL THEN 'created is missing or not a time' END,
        CASE WHEN t.modified_at IS NULL THEN 'modified is missing or not a time' END
    ), '') AS problem
FROM typed AS t;
