-- new_rows: after-sale orders of a WeChat store.
-- Grain: one row per version of an after-sale order. Fen on the wire, yuan here; what goes back to the buyer.
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes a temporary table only. core/write/refunds.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('MERCHANT_REFUND_SUCCESS', 'settled'), ('MERCHANT_RETURN_SUCCESS', 'settled'),  -- only these two have moved money
    ('USER_CANCELD', 'closed'), ('RETURN_CLOSED', 'closed'),
    ('MERCHANT_REJECT_REFUND', 'refused'), ('MERCHANT_REJECT_RETURN', 'refused'),
    ('USER_WAIT_RETURN', 'returning'), ('MERCHANT_WAIT_RECEIPT', 'returning'),
    ('MERCHANT_PROCESSING', 'requested'), ('MERCHANT_OVERDUE_REFUND', 'requested'), ('PLATFORM_REFUNDING', 'requested'),
    ('PLATFORM_REFUND_FAIL', 'requested'), ('USER_WAIT_CONFIRM', 'requested'), ('MERCHANT_REFUND_RETRY_FAIL', 'requested'),
    ('MERCHANT_FAIL', 'requested'), ('USER_WAIT_CONFIRM_UPDATE', 'requested'), ('USER_WAIT_HANDLE_MERCHANT_AFTER_SALE', 'requested')
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        p.order_id, p.openid, coalesce(nullif(p.unionid, ''), p.union_id) AS unionid, p.complete_time,
        p.product_info ->> 'product_id' AS product_id, p.product_info ->> 'sku_id' AS sku_id, p.product_info ->> 'count' AS count,
        coalesce(nullif(p.reason_text, ''), p.reason) AS reason,
        t.status, p.status AS status_original,
        raw.to_amount(p.refund_info ->> 'amount') / 100 AS refund_amount,
        raw.to_amount(p.product_info ->> 'count') AS quantity,
        raw.from_epoch(p.create_time) AS created_at,
        raw.from_epoch(p.update_time) AS modified_at,
        raw.from_epoch(p.complete_time) AS completed_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        order_id text, openid text, unionid text, union_id text, status text, product_info jsonb, refund_info jsonb, create_time text,
        update_time text, complete_time text, reason text, reason_text text
    )
    LEFT JOIN statuses AS t ON p.status = t.status_original
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'wechat_store_openid', 'value', t.openid),
        jsonb_build_object('kind', 'wechat_unionid', 'value', t.unionid)
    ) AS identities,
    NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS refund_id, t.order_id,
    nullif(t.product_id, '') || coalesce('-' || nullif(t.sku_id, ''), '') AS line_id,
    t.status, t.status_original, t.status = 'settled' AS is_money, t.refund_amount, t.quantity, t.reason, t.created_at,
    CASE WHEN t.status = 'settled' THEN coalesce(t.completed_at, t.modified_at) END AS settled_at,
    t.modified_at,
    nullif(concat_ws('; ',
        CASE WHEN t.order_id IS NULL OR t.order_id = '' THEN 'order_id is missing' END,
        CASE WHEN t.status IS NULL THEN 'status is missing or unknown' END,
        CASE WHEN t.refund_amount IS NULL THEN 'refund_info.amount is missing or not a number' END,
        CASE WHEN t.created_at IS NULL THEN 'create_time is missing or not a time' END,
        CASE WHEN t.modified_at IS NULL THEN 'update_time is missing or not a time' END,
        CASE WHEN t.completed_at IS NULL AND t.complete_time NOT IN ('', '0') THEN 'complete_time is not a time' END,
        CASE WHEN t.quantity IS NULL AND t.count <> '' THEN 'product_info.count is not a number' END
    ), '') AS problem
FROM typed AS t;
