-- new_rows: the customer list of a Taobao shop.
-- Grain: one row per version of a customer (ouid, the buyer's id in this shop). Amount in CNY, as TOP counts it.
-- Params: none.
-- Reads: nothing but new_records (core/open.sql).
-- Rerun: safe; writes a temporary table only. core/write/customers.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        p.grade, p.trade_count, p.trade_amount, p.last_trade_time,
        raw.to_amount(p.grade) AS level,
        raw.to_amount(p.trade_count) AS order_count,
        raw.to_amount(p.trade_amount) AS spent_amount,
        raw.to_instant(p.last_trade_time, '+08') AS last_order_at
    FROM new_records AS r
    CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (grade text, trade_count text, trade_amount text, last_trade_time text)
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(jsonb_build_object('kind', 'taobao_ouid', 'value', t.record_key)) AS identities,
    NULL::text AS name, NULL::text AS language, 'profile' AS evidence, coalesce(t.last_order_at, t.observed_at) AS seen_at,
    t.record_key AS customer_id,
    t.level > 0 AS is_member,                           -- grade 0: bought, but is no member of the shop's club
    t.grade AS level,
    NULL::numeric AS points, t.order_count::integer AS order_count, t.spent_amount, NULL::timestamptz AS joined_at, t.last_order_at,
    t.observed_at AS modified_at,                       -- TOP does not say when a customer's numbers changed
    nullif(concat_ws('; ',
        CASE WHEN t.level IS NULL THEN 'grade is missing or not a number' END,
        CASE WHEN t.order_count IS NULL AND t.trade_count <> '' THEN 'trade_count is not a number' END,
        CASE WHEN t.spent_amount IS NULL AND t.trade_amount <> '' THEN 'trade_amount is not a number' END,
        CASE WHEN t.last_order_at IS NULL AND t.last_trade_time <> '' THEN 'last_trade_time is not a time' END
    ), '') AS problem
FROM typed AS t;
