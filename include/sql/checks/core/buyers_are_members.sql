-- Everybody who paid, or got money back, is a member who was not merged away.
-- Table: core.member_identities. Severity: fail.
-- Params: none.
-- Reads: core.orders, core.refunds, core.member_identities, core.members
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' buyers without a member of their own' AS observed
FROM (
    SELECT o.identity_id FROM core.orders AS o WHERE o.is_paid AND o.identity_id IS NOT NULL
    UNION
    SELECT r.identity_id FROM core.refunds AS r WHERE r.is_money AND r.identity_id IS NOT NULL
) AS b
LEFT JOIN core.member_identities AS mi ON mi.identity_id = b.identity_id
LEFT JOIN core.members AS m ON m.member_id = mi.member_id AND m.absorbed_by IS NULL
WHERE m.member_id IS NULL;
