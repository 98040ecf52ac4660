-- No member has two RFM states on one day, and two stretches that touch differ.
-- Table: mart.member_rfm. Severity: fail.
-- Params: none.
-- Reads: mart.member_rfm
-- Holes are not judged: whose orders left the window has no state.
WITH
neighbours AS (
    SELECT
        r.valid_from,
        lag(r.valid_to, 1, '-infinity'::date) OVER w AS previous_to,
        concat_ws('/', r.last_order_date, r.frequency_count, r.monetary_amount, r.r_score, r.f_score, r.m_score) AS state,
        lag(concat_ws('/', r.last_order_date, r.frequency_count, r.monetary_amount, r.r_score, r.f_score, r.m_score)) OVER w
            AS previous_state
    FROM mart.member_rfm AS r
    WINDOW w AS (PARTITION BY r.member_id ORDER BY r.valid_from ASC)
)
SELECT
    count(*) = 0 AS is_passed,
    count(*) || ' stretches that overlap the one before them, or only repeat it' AS observed
FROM neighbours AS n
WHERE coalesce(n.previous_to > n.valid_from, TRUE) OR (n.previous_to = n.valid_from AND n.state = n.previous_state);
