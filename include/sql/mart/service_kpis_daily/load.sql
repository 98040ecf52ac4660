-- mart.service_kpis_daily: how fast negative reviews are answered, by the day they were written, as known at the end of the business date.
-- Grain: one row per source and day of the review (Asia/Shanghai) with at least one negative review.
-- Params: business_date (date), negative_to_rating (integer), reply_hours (integer).
-- Reads: core.reviews, mart.touched_days, mart.service_kpis_daily, mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. A night computes the days that were touched, are new, were answered since,
-- or whose deadline fell due; without a mark, all. All figures ripen; a run for an older date computes with what the newest night
-- knew (docs/decisions/0064-kpi-days.md).
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    (greatest(%(business_date)s::date, m.business_date) + 1)::timestamptz AS ends_at,
    m.business_date AS since,
    (m.business_date + 1)::timestamptz AS since_at,
    make_interval(hours => %(reply_hours)s::integer) AS deadline,
    coalesce(m.batch_id, 0) AS after_batch_id,
    greatest(m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), 0)) AS upto_batch_id,
    w.settings,
    coalesce(m.settings <> w.settings, TRUE) AS is_full
FROM (
    SELECT
        'service_kpis_daily' AS mart,
        'negative to ' || %(negative_to_rating)s::integer || ', ' || %(reply_hours)s::integer || ' hours' AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

DROP TABLE IF EXISTS pg_temp.scope_days;
CREATE TEMPORARY TABLE scope_days ON COMMIT DROP AS
SELECT t.day
FROM mart.touched_days AS t
CROSS JOIN mark AS k
WHERE t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id AND t.day <= k.horizon
UNION
SELECT d::date
FROM mark AS k
CROSS JOIN generate_series(least(k.since + 1, (k.since_at - k.deadline)::date), k.horizon, interval '1 day') AS d
UNION
SELECT v.created_at::date
FROM mark AS k
JOIN core.reviews AS v ON v.replied_at >= k.since_at AND v.replied_at < k.ends_at AND v.created_at < k.ends_at
WHERE v.rating <= %(negative_to_rating)s::integer;

DROP TABLE IF EXISTS pg_temp.ranges;
CREATE TEMPORARY TABLE ranges ON COMMIT DROP AS
SELECT min(i.day)::timestamptz AS from_at, (max(i.day) + 1)::timestamptz AS until_at
FROM (SELECT d.day, d.day - row_number() OVER (ORDER BY d.day ASC)::integer AS island FROM scope_days AS d) AS i
CROSS JOIN mark AS k
WHERE NOT k.is_full
GROUP BY i.island
UNION ALL
SELECT '-infinity'::timestamptz, k.ends_at FROM mark AS k WHERE k.is_full;
ANALYZE ranges;

DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
negative AS (
    SELECT
        v.source_id,
        v.created_at::date AS day,
        v.created_at,
        v.created_at + k.deadline AS due_at,
        -- a reply before the review is a clock that is wrong: answered at once
        CASE WHEN v.replied_at < k.ends_at THEN greatest(v.replied_at, v.created_at) END AS replied_at,
        -- some platforms show the reply and not its time: it is answered, and nobody knows how fast
        v.replied_at IS NULL AND v.reply IS NOT NULL AS is_untimed,
        v.created_at + k.deadline <= k.ends_at AS is_over
    FROM ranges AS r
    CROSS JOIN mark AS k
    JOIN core.reviews AS v ON v.created_at >= r.from_at AND v.created_at < r.until_at
    WHERE v.rating <= %(negative_to_rating)s::integer
)
SELECT
    n.source_id,
    n.day,
    greatest(
        n.day, max(n.replied_at)::date, (max(n.due_at) FILTER (WHERE n.is_over AND NOT n.is_untimed) - interval '1 microsecond')::date
    ) AS business_date,
    count(*) AS negative_review_count,
    count(*) FILTER (WHERE n.replied_at IS NOT NULL OR n.is_untimed) AS replied_count,
    count(n.replied_at) AS timed_reply_count,
    round(coalesce(sum(extract(EPOCH FROM n.replied_at - n.created_at)) / 3600, 0), 4) AS reply_hours,
    round((percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(EPOCH FROM n.replied_at - n.created_at) ASC) / 3600)::numeric, 2)
        AS median_hours_to_reply,
    count(*) FILTER (WHERE n.is_over AND NOT n.is_untimed) AS due_count,
    count(*) FILTER (WHERE n.is_over AND n.replied_at <= n.due_at) AS replied_in_time_count,
    count(*) FILTER (WHERE n.is_over AND n.replied_at IS NULL AND NOT n.is_untimed) AS overdue_count
FROM negative AS n
GROUP BY n.source_id, n.day;

DELETE FROM mart.service_kpis_daily AS m
USING mark AS k
WHERE
    (k.is_full OR EXISTS (SELECT FROM scope_days AS d WHERE d.day = m.day))
    AND NOT EXISTS (SELECT FROM fresh AS f WHERE f.source_id = m.source_id AND f.day = m.day);

INSERT INTO mart.service_kpis_daily AS m (
    source_id, day, business_date, negative_review_count, replied_count, timed_reply_count, reply_hours, median_hours_to_reply,
    due_count, replied_in_time_count, reply_in_time_rate, overdue_count
)
SELECT
    f.source_id,
    f.day,
    f.business_date,
    f.negative_review_count,
    f.replied_count,
    f.timed_reply_count,
    f.reply_hours,
    f.median_hours_to_reply,
    f.due_count,
    f.replied_in_time_count,
    f.replied_in_time_count::numeric / nullif(f.due_count, 0),
    f.overdue_count
FROM fresh AS f
ON CONFLICT (source_id, day) DO UPDATE SET
    business_date = excluded.business_date,
    negative_review_count = excluded.negative_review_count,
    replied_count = excluded.replied_count,
    timed_reply_count = excluded.timed_reply_count,
    reply_hours = excluded.reply_hours,
    median_hours_to_reply = excluded.median_hours_to_reply,
    due_count = excluded.due_count,
    replied_in_time_count = excluded.replied_in_time_count,
    reply_in_time_rate = excluded.reply_in_time_rate,
    overdue_count = excluded.overdue_count
WHERE
    (
        m.business_date, m.negative_review_count, m.replied_count, m.timed_reply_count, m.reply_hours, m.median_hours_to_reply,
        m.due_count, m.replied_in_time_count, m.overdue_count
    )
    IS DISTINCT FROM (
        excluded.business_date, excluded.negative_review_count, excluded.replied_count, excluded.timed_reply_count,
        excluded.reply_hours, excluded.median_hours_to_reply, excluded.due_count, excluded.replied_in_time_count,
        excluded.overdue_count
    );

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'service_kpis_daily', k.horizon, k.upto_batch_id, k.settings FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, excluded.batch_id, excluded.settings);
