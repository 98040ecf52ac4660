-- Orders and money of mart.member_days up to the business date are those of core, member by member and day by day.
-- Table: mart.member_days. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: core.orders, core.refunds, core.members, core.member_identities, mart.member_days, mart.touched_members
-- Judged are all days of the members that the night touched or that have a day in the last 7, and of every 91st member in turn, so that
-- everybody comes round in a quarter; with is_full everybody. A member at a time, by the indexes on the buyer.
WITH
scope AS (
    SELECT t.member_id FROM mart.touched_members AS t WHERE NOT %(is_full)s::boolean
    UNION
    SELECT d.member_id FROM mart.member_days AS d WHERE d.day > %(business_date)s::date - 7 OR %(is_full)s::boolean
    UNION
    SELECT m.member_id
    FROM core.members AS m
    WHERE %(is_full)s::boolean OR mod(m.member_id, 91) = mod(%(business_date)s::date - '2000-01-01'::date, 91)
),
core_days AS (
    SELECT
        s.member_id, f.day, sum(f.order_count) AS order_count, sum(f.gross_amount) AS gross_amount, sum(f.refund_amount) AS refund_amount
    FROM scope AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    CROSS JOIN LATERAL (
        SELECT o.paid_at::date AS day, 1 AS order_count, o.goods_amount AS gross_amount, 0 AS refund_amount
        FROM core.orders AS o
        WHERE o.identity_id = mi.identity_id AND o.is_paid AND o.paid_at < (%(business_date)s::date + 1)::timestamptz
        UNION ALL
        SELECT r.settled_at::date, 0, 0, r.refund_amount
        FROM core.refunds AS r
        WHERE r.identity_id = mi.identity_id AND r.is_money AND r.settled_at < (%(business_date)s::date + 1)::timestamptz
        UNION ALL
        SELECT r.settled_at::date, 0, 0, r.refund_amount
        FROM core.orders AS o
        JOIN core.refunds AS r ON r.source_id = o.source_id AND r.order_id = o.order_id AND r.identity_id IS NULL
        WHERE o.identity_id = mi.identity_id AND r.is_money AND r.settled_at < (%(business_date)s::date + 1)::timestamptz
    ) AS f
    GROUP BY s.member_id, f.day
),
mart_days AS (
    SELECT d.member_id, d.day, d.order_count, d.gross_amount, d.refund_amount
    FROM scope AS s
    JOIN mart.member_days AS d ON d.member_id = s.member_id
    WHERE d.day <= %(business_date)s::date
),
compared AS (
    SELECT
        coalesce(c.member_id, m.member_id) AS member_id,
        coalesce(c.day, m.day) AS day,
        coalesce(c.gross_amount, 0) AS core_amount,
        coalesce(m.gross_amount, 0) AS mart_amount,
        (
            (c.order_count, c.gross_amount, c.refund_amount) IS DISTINCT FROM (m.order_count, m.gross_amount, m.refund_amount)
        ) AS is_different
    FROM core_days AS c
    FULL JOIN mart_days AS m ON m.member_id = c.member_id AND m.day = c.day
)
SELECT
    count(*) FILTER (WHERE p.is_different) = 0 AS is_passed,
    count(DISTINCT p.member_id) FILTER (WHERE p.is_different) || ' of ' || count(DISTINCT p.member_id) || ' members differ'
    || coalesce(', first on ' || min(p.day) FILTER (WHERE p.is_different), '')
    || '; paid in core ' || coalesce(trim_scale(sum(p.core_amount)), 0)
    || ', in the mart ' || coalesce(trim_scale(sum(p.mart_amount)), 0) AS observed
FROM compared AS p;
