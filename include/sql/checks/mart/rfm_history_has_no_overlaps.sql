-- No member has two RFM states on one day, and two stretches that touch differ.
-- Table: mart.member_rfm. Severity: fail.
-- Params: business_date (date), is_full (boolean).
-- Reads: mart.member_rfm, mart.touched_members, core.members
-- Judged are the members that the night touched, and every 91st in turn, so that everybody comes round in a quarter; with is_full all.
-- Holes are not judged: whose orders left the window has no state.
WITH
scope AS (
    SELECT t.member_id FROM mart.touched_members AS t WHERE NOT %(is_full)s::boolean
    UNION
    SELECT m.member_id FROM core.members AS m WHERE mod(m.member_id, 91) = mod(%(business_date)s::date - '2000-01-01'::date, 91)
    UNION
    SELECT x.member_id FROM mart.member_rfm AS x WHERE %(is_full)s::boolean
),
neighbours AS (
    SELECT
        r.valid_from,
        lag(r.valid_to, 1, '-infinity'::date) OVER w AS previous_to,
        concat_ws('/', r.last_order_date, r.frequency_count, r.monetary_amount, r.r_score, r.f_score, r.m_score) AS state,
        lag(concat_ws('/', r.last_order_date, r.frequency_count, r.monetary_amount, r.r_score, r.f_score, r.m_score)) OVER w
            AS previous_state
    FROM scope AS q
    JOIN mart.member_rfm AS r ON r.member_id = q.member_id
    WINDOW w AS (PARTITION BY r.member_id ORDER BY r.valid_from ASC)
)
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' stretches that overlap the one before them, or only repeat it' AS observed
FROM neighbours AS n
WHERE coalesce(n.previous_to > n.valid_from, TRUE) OR (n.previous_to = n.valid_from AND n.state = n.previous_state);
