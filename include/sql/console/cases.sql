-- Service cases: bad reviews somebody has to answer; what is late first, then by deadline, then what is settled.
-- Grain: one row per case.   Params: only_open (boolean), limit_rows (integer).   Reads: push.service_cases, core.reviews
SELECT
    c.case_id,
    c.source_id,
    c.order_id,
    c.review_id,
    c.state,
    v.rating,
    c.written_at,
    c.deadline_at,
    c.assigned_to,
    c.answered_at,
    c.is_in_time,
    c.closed_at,
    c.close_reason
FROM push.service_cases AS c
LEFT JOIN core.reviews AS v ON v.source_id = c.source_id AND v.review_id = c.review_id
WHERE NOT %(only_open)s::boolean OR c.state IN ('open', 'overdue')
ORDER BY array_position(ARRAY['overdue', 'open', 'answered', 'closed'], c.state) ASC, c.deadline_at ASC, c.case_id ASC
LIMIT %(limit_rows)s::integer;
