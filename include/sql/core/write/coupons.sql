-- core.shop_coupons: coupon and voucher activities that a shop itself runs.
-- Grain: one row per activity. Amounts in the source's currency.
-- Params: source_id (text).
-- Reads: core.shop_coupons
-- Rerun: safe. The newest modified_at counts.
INSERT INTO core.shop_coupons AS c (
    source_id, coupon_id, name, face_amount, minimum_amount, starts_at, ends_at, status, issued_count, used_count, modified_at, batch_id
)
SELECT DISTINCT ON (n.coupon_id)
    %(source_id)s::text, n.coupon_id, n.name, n.face_amount, n.minimum_amount, n.starts_at, n.ends_at, n.status, n.issued_count,
    n.used_count, n.modified_at, n.batch_id
FROM new_rows AS n
WHERE n.problem IS NULL
ORDER BY n.coupon_id ASC, n.modified_at DESC, n.record_id DESC
ON CONFLICT (source_id, coupon_id) DO UPDATE SET
    name = excluded.name, face_amount = excluded.face_amount, minimum_amount = excluded.minimum_amount, starts_at = excluded.starts_at,
    ends_at = excluded.ends_at, status = excluded.status, issued_count = excluded.issued_count, used_count = excluded.used_count,
    modified_at = excluded.modified_at, batch_id = excluded.batch_id
WHERE excluded.modified_at >= c.modified_at AND c.batch_id <> excluded.batch_id;
