-- new_rows: requests to call off an order of a JD shop before it arrives.
-- Grain: one row per version of a request. Amount in CNY; JD writes fen here.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/refunds.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
statuses (status_original, status) AS (
    VALUES ('0', 'requested'), ('1', 'requested'), ('5', 'requested'),      -- approved by the shop or a person, not yet by finance
    ('7', 'returning'),                                                     -- the parcel was called back
    ('2', 'refused'), ('4', 'refused'), ('8', 'refused'),
    -- Where JD's finance has approved, or JD itself refunds. No list of JD says that the money arrived; nothing later comes.
    ('3', 'settled'), ('6', 'settled'), ('9', 'settled')
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        p."orderId" AS order_id, p.status AS status_original, nullif(p.reason, '') AS reason, p."checkTime",
        coalesce(t.status, CASE WHEN p.status ~ '^[0-9]{1,3}$' THEN 'requested' END) AS status,   -- a newer status is no money
        raw.to_amount(p."applyRefundSum") / 100 AS refund_amount,
        raw.to_instant(p."applyTime", '+08') AS created_at,
        raw.to_instant(nullif(p."checkTime", '0001-01-01 00:00:00'), '+08') AS checked_at,
        raw.to_instant(p.modified, '+08') AS changed_at,
        CASE WHEN jsonb_typeof(p."skuVoList") = 'array' AND jsonb_array_length(p."skuVoList") = 1 THEN p."skuVoList" -> 0 END AS sku
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (
        "orderId" text, status text, "applyRefundSum" text, "applyTime" text, "checkTime" text, modified text, reason text,
        "skuVoList" jsonb
    )
    LEFT JOIN statuses AS t ON p.status = t.status_original
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    NULL::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'trade' AS evidence, t.created_at AS seen_at,
    t.record_key AS refund_id, t.order_id, t.sku ->> 'skuId' AS line_id, t.status, t.status_original, t.status = 'settled' AS is_money,
    t.refund_amount, raw.to_amount(t.sku ->> 'skuCount') AS quantity, t.reason, t.created_at,
    CASE WHEN t.status = 'settled' THEN coalesce(t.checked_at, t.changed_at) END AS settled_at,
    coalesce(t.changed_at, t.checked_at, t.created_at) AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN coalesce(t.order_id, '') = '' THEN 'orderId is missing' END,
        CASE WHEN t.status IS NULL THEN 'status is missing or not a number' END,
        CASE WHEN t.refund_amount IS NULL THEN 'applyRefundSum is missing or not a number' END,
        CASE WHEN t.created_at IS NULL THEN 'applyTime is missing or not a time' END,
        CASE WHEN t.checked_at IS NULL AND t."checkTime" NOT IN ('', '0001-01-01 00:00:00') THEN 'checkTime is not a time' END,
        CASE WHEN t.status = 'settled' AND coalesce(t.checked_at, t.changed_at) IS NULL THEN 'checkTime and modified are missing' END
    ), '') AS problem
FROM typed AS t;
