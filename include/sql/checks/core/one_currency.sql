-- All money is in one currency: member_days, tiers and RFM add amounts of all shops.
-- Table: core.orders. Severity: fail.
-- Params: none.
-- Reads: core.orders, core.refunds
SELECT
    count(*) <= 1 AS is_passed,
    coalesce(string_agg(c.currency_code, ', ' ORDER BY c.currency_code), 'no money yet') AS observed
FROM (
    SELECT o.currency_code FROM core.orders AS o
    UNION
    SELECT r.currency_code FROM core.refunds AS r
) AS c;
