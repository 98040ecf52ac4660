-- new_rows: after-sale services of a JD shop, as refunds.
-- Grain: one row per version of a service bill. Amount in CNY, 0 until money has moved; JD writes the unit that amountUnit says.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/refunds.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        b."orderId" AS order_id, b."wareId" AS line_id, coalesce(nullif(b."applyReason", ''), nullif(b."questionDesc", '')) AS reason,
        p.status AS status_original, p.status = '13' AS is_money, p."completeTime",
        raw.to_amount(p."refoundAmount") / CASE p."amountUnit" WHEN 'fen' THEN 100 ELSE 1 END AS refund_amount,
        coalesce(raw.from_epoch_ms(b."afsApplyTime"), raw.to_instant(b."afsApplyTime", '+08')) AS created_at,
        coalesce(raw.from_epoch_ms(b."approveDate"), raw.to_instant(b."approveDate", '+08')) AS approved_at,
        coalesce(raw.from_epoch_ms(p."completeTime"), raw.to_instant(p."completeTime", '+08')) AS completed_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        status text, "refoundAmount" text, "completeTime" text, "amountUnit" text, "sameOrderServiceBill" jsonb
    )
    CROSS JOIN LATERAL jsonb_to_record(p."sameOrderServiceBill") AS b (
        "orderId" text, "wareId" text, "afsApplyTime" text, "approveDate" text, "applyReason" text, "questionDesc" text
    )
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    NULL::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    'afs-' || t.record_key AS refund_id,        -- numbers of their own: JD's requests to call off an order may have the same
    t.order_id, t.line_id,
    CASE WHEN t.is_money THEN 'settled' ELSE 'requested' END AS status,     -- 14, failed, is money that is still owed
    coalesce(t.status_original, 'none') AS status_original, coalesce(t.is_money, FALSE) AS is_money,
    CASE WHEN t.is_money THEN t.refund_amount ELSE coalesce(t.refund_amount, 0) END AS refund_amount,
    NULL::numeric AS quantity, t.reason, t.created_at,
    CASE WHEN t.is_money THEN t.completed_at END AS settled_at,
    greatest(t.created_at, t.approved_at, t.completed_at) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(t.order_id, '') = '' THEN 'sameOrderServiceBill.orderId is missing' END,
        CASE WHEN t.created_at IS NULL THEN 'sameOrderServiceBill.afsApplyTime is missing or not a time' END,
        CASE WHEN t.is_money AND t.refund_amount IS NULL THEN 'refoundAmount is missing or not a number' END,
        CASE WHEN t.is_money AND t.completed_at IS NULL THEN 'completeTime is missing or not a time' END
    ), '') AS problem
FROM typed AS t;
