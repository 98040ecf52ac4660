-- Reviews written on a business date, and the bad ones nobody has answered yet.
-- Grain: one row.   Params: business_date (date).   Reads: core.reviews
SELECT
    count(*) FILTER (WHERE r.is_of_day) AS review_count,
    count(*) FILTER (WHERE r.is_of_day AND r.rating >= 4) AS positive_count,
    count(*) FILTER (WHERE r.is_of_day AND r.rating = 3) AS neutral_count,
    count(*) FILTER (WHERE r.is_of_day AND r.rating <= 2) AS negative_count,
    count(*) FILTER (WHERE r.rating <= 2 AND r.is_recent AND NOT r.is_answered) AS unanswered_count
FROM (
    SELECT
        v.rating,
        v.created_at >= %(business_date)s::date::timestamptz AS is_of_day,
        v.created_at >= (%(business_date)s::date - 29)::timestamptz AS is_recent,
        coalesce(v.replied_at < (%(business_date)s::date + 2)::timestamptz, v.reply IS NOT NULL) AS is_answered
    FROM core.reviews AS v
    WHERE v.created_at < (%(business_date)s::date + 1)::timestamptz
) AS r;
