-- core.coupon_uses: coupon codes that were used on our own pages, or where a page asked for them.
-- Grain: one row per event of kind redemption; the code is a token, as everywhere outside the vault.
-- Params: none.
-- Reads: new_rows (core/events/events.sql), core.coupon_uses
-- Rerun: safe.
INSERT INTO core.coupon_uses (
    source_id, use_id, code_token, order_source_id, order_id, discount_amount, used_at, batch_id
)
SELECT
    n.fact_source_id, n.record_key, n.code_token, n.order_source_id, n.order_id, n.discount_amount, n.occurred_at, n.batch_id
FROM new_rows AS n
WHERE n.problem IS NULL AND n.kind = 'redemption'
ON CONFLICT (source_id, use_id, code_token) DO NOTHING;
