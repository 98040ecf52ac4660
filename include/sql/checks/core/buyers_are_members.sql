-- Everybody who paid, or got money back, is a member who was not merged away.
-- Table: core.member_identities. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: core.orders, core.refunds, core.member_identities, core.members, core.touches, raw.batches
-- Judged are buyers whose orders or refunds were loaded in the week before the business date and since, or who were moved by anything
-- since the last marts; with is_full all.
WITH
people AS (
    SELECT o.identity_id
    FROM raw.batches AS b
    JOIN core.orders AS o ON o.batch_id = b.batch_id
    WHERE o.is_paid AND NOT %(is_full)s::boolean AND b.loaded_at >= (%(business_date)s::date - 7)::timestamptz
    UNION
    SELECT r.identity_id
    FROM core.refunds AS r
    WHERE r.is_money AND (%(is_full)s::boolean OR r.settled_at >= (%(business_date)s::date - 7)::timestamptz)
    UNION
    SELECT t.identity_id
    FROM core.touches AS t
    WHERE
        EXISTS (SELECT FROM core.orders AS o WHERE o.identity_id = t.identity_id AND o.is_paid)
        OR EXISTS (SELECT FROM core.refunds AS r WHERE r.identity_id = t.identity_id AND r.is_money)
    UNION
    SELECT o.identity_id FROM core.orders AS o WHERE o.is_paid AND %(is_full)s::boolean
)
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' buyers without a member of their own' AS observed
FROM people AS b
LEFT JOIN core.member_identities AS mi ON mi.identity_id = b.identity_id
LEFT JOIN core.members AS m ON m.member_id = mi.member_id AND m.absorbed_by IS NULL
WHERE b.identity_id IS NOT NULL AND m.member_id IS NULL;
