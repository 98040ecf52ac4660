-- All money is in one currency: member_days, tiers and RFM add amounts of all shops.
-- Table: core.orders. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: core.orders, core.refunds, core.accounts, raw.batches
-- Judged are the shops, also those that are not read any more, the orders loaded in the week before the business date and since, and
-- refunds of that week; with is_full every order and refund.
SELECT
    count(*) <= 1 AS is_passed,
    coalesce(string_agg(c.currency_code, ', ' ORDER BY c.currency_code), 'no money yet') AS observed
FROM (
    SELECT a.currency_code
    FROM core.accounts AS a
    WHERE EXISTS (SELECT FROM core.orders AS o WHERE o.source_id = a.source_id)
    UNION
    SELECT o.currency_code
    FROM raw.batches AS b
    JOIN core.orders AS o ON o.batch_id = b.batch_id
    WHERE NOT %(is_full)s::boolean AND b.loaded_at >= (%(business_date)s::date - 7)::timestamptz
    UNION
    SELECT r.currency_code
    FROM core.refunds AS r
    WHERE %(is_full)s::boolean OR r.created_at >= (%(business_date)s::date - 7)::timestamptz
    UNION
    SELECT o.currency_code FROM core.orders AS o WHERE %(is_full)s::boolean
) AS c;
