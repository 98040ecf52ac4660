-- Orders and money of mart.member_days up to the business date are those of core, member by member and day by day.
-- Table: mart.member_days. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: core.orders, core.refunds, core.members, core.member_identities, mart.member_days, mart.touched_members
-- Judged are the days of members that the night touched, everybody's last two days, and all days of who merged or split and of every
-- 91st member in turn, so that everybody comes round in a quarter; with is_full all days. A member at a time, by the indexes on the buyer.
WITH
whole AS (
    SELECT t.member_id FROM mart.touched_members AS t WHERE t.day = '-infinity'
    UNION
    SELECT m.member_id FROM core.members AS m WHERE mod(m.member_id, 91) = mod(%(business_date)s::date - '2000-01-01'::date, 91)
    UNION
    SELECT m.member_id FROM core.members AS m WHERE %(is_full)s::boolean
    UNION
    SELECT d.member_id FROM mart.member_days AS d WHERE %(is_full)s::boolean
),
scope AS (
    SELECT w.member_id, '-infinity'::timestamptz AS from_at, (%(business_date)s::date + 1)::timestamptz AS until_at
    FROM whole AS w
    UNION ALL
    SELECT x.member_id, x.day::timestamptz, (x.day + 1)::timestamptz
    FROM (
        SELECT t.member_id, t.day FROM mart.touched_members AS t WHERE isfinite(t.day)
        UNION
        SELECT d.member_id, d.day FROM mart.member_days AS d WHERE d.day > %(business_date)s::date - 2
    ) AS x
    WHERE x.day <= %(business_date)s::date AND x.member_id NOT IN (SELECT w.member_id FROM whole AS w)
),
core_days AS (
    SELECT
        s.member_id, f.day, sum(f.order_count) AS order_count, sum(f.gross_amount) AS gross_amount, sum(f.refund_amount) AS refund_amount
    FROM scope AS s
    JOIN core.member_identities AS mi ON mi.member_id = s.member_id
    CROSS JOIN LATERAL (
        SELECT o.paid_at::date AS day, 1 AS order_count, o.goods_amount AS gross_amount, 0 AS refund_amount
        FROM core.orders AS o
        WHERE o.identity_id = mi.identity_id AND o.is_paid AND o.paid_at >= s.from_at AND o.paid_at < s.until_at
        UNION ALL
        SELECT r.settled_at::date, 0, 0, r.refund_amount
        FROM core.refunds AS r
        WHERE r.identity_id = mi.identity_id AND r.is_money AND r.settled_at >= s.from_at AND r.settled_at < s.until_at
        UNION ALL
        SELECT r.settled_at::date, 0, 0, r.refund_amount
        FROM core.orders AS o
        CROSS JOIN LATERAL (
            SELECT u.settled_at, u.refund_amount
            FROM core.refunds AS u
            WHERE u.source_id = o.source_id AND u.order_id = o.order_id AND u.identity_id IS NULL AND u.is_money
            ORDER BY u.refund_id ASC  -- by the order: sorted, this is not turned into a join with all refunds of a time
        ) AS r
        WHERE o.identity_id = mi.identity_id AND r.settled_at >= s.from_at AND r.settled_at < s.until_at
    ) AS f
    GROUP BY s.member_id, f.day
),
mart_days AS (
    SELECT d.member_id, d.day, d.order_count, d.gross_amount, d.refund_amount
    FROM scope AS s
    JOIN mart.member_days AS d ON d.member_id = s.member_id AND d.day >= s.from_at::date AND d.day < s.until_at::date
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
