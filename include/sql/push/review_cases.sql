-- Service cases follow the reviews: a bad one opens a case, a reply in the shop answers it, a deadline that passed makes it overdue.
-- Grain of the answer: one row per case that was opened, answered or became overdue now: case_id, change.
-- Decision: docs/decisions/0078-reviews-in-full.md
-- Params: now_at, written_from (older reviews open no case), negative_to_rating, reply_hours.
-- Reads: core.reviews, core.orders, core.member_identities, push.service_cases.   Rerun: safe.
WITH
opened AS (   -- the deadline runs on the clock from when the review was written, as mart.service_kpis_daily counts it
    INSERT INTO push.service_cases AS c (
        source_id, review_id, order_id, member_id, state, written_at, opened_at, deadline_at
    )
    SELECT
        v.source_id, v.review_id, v.order_id, mi.member_id,
        CASE WHEN v.created_at + make_interval(hours => %(reply_hours)s::integer) <= %(now_at)s::timestamptz THEN 'overdue' ELSE 'open' END,
        v.created_at, %(now_at)s::timestamptz, v.created_at + make_interval(hours => %(reply_hours)s::integer)
    FROM core.reviews AS v
    LEFT JOIN core.orders AS o ON o.source_id = v.source_id AND o.order_id = v.order_id
    LEFT JOIN core.member_identities AS mi ON mi.identity_id = coalesce(v.identity_id, o.identity_id)
    WHERE v.rating <= %(negative_to_rating)s::integer
      AND v.created_at >= %(written_from)s::timestamptz AND v.created_at < %(now_at)s::timestamptz
      AND v.replied_at IS NULL AND v.reply IS NULL
    ON CONFLICT (source_id, review_id) DO NOTHING
    RETURNING c.case_id, 'opened' AS change
),
answered AS (   -- also when somebody had closed it by hand before: what stands in the shop is the better answer
    UPDATE push.service_cases AS c
    SET state = 'answered', answered_at = coalesce(v.replied_at, %(now_at)s::timestamptz), is_in_time = v.replied_at <= c.deadline_at,
        closed_at = NULL, closed_by = NULL, close_reason = NULL
    FROM core.reviews AS v
    WHERE v.source_id = c.source_id AND v.review_id = c.review_id AND c.state <> 'answered'
      AND (v.replied_at IS NOT NULL OR v.reply IS NOT NULL)
    RETURNING c.case_id, 'answered' AS change
),
overdue AS (
    UPDATE push.service_cases AS c
    SET state = 'overdue'
    FROM core.reviews AS v
    WHERE v.source_id = c.source_id AND v.review_id = c.review_id AND c.state = 'open' AND c.deadline_at <= %(now_at)s::timestamptz
      AND v.replied_at IS NULL AND v.reply IS NULL
    RETURNING c.case_id, 'overdue' AS change
)
SELECT o.case_id, o.change FROM opened AS o
UNION ALL
SELECT a.case_id, a.change FROM answered AS a
UNION ALL
SELECT d.case_id, d.change FROM overdue AS d
ORDER BY case_id ASC;
