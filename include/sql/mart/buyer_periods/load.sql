-- mart.buyer_periods: how many different people bought in each day, ISO week and month, how many for the first time, how many again.
-- Grain: one row per source ('' = all of them), grain (day, week, month) and first day of the period, with at least one buyer.
-- Params: business_date (date).
-- Reads: core.orders, core.member_identities, mart.member_days, mart.buyer_firsts, mart.touched_days, mart.buyer_periods, mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. A night counts the periods of the days that were touched or are new;
-- without a mark, all (docs/decisions/0060-nights-touch-what-moved.md). A run for an older date takes nothing back.
-- A person counts in a period on their first day in it, so that nobody has to be told apart from anybody else: one pass, in the
-- order of people and days. A person of two shops is one in ''. Weeks begin on Monday.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    (greatest(%(business_date)s::date, m.business_date) + 1)::timestamptz AS ends_at,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    greatest(m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), 0)) AS upto_batch_id,
    m.mart IS NULL AS is_full
FROM (SELECT 'buyer_periods' AS mart) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

-- Of every day its periods; without a mark from the first order on.
DROP TABLE IF EXISTS pg_temp.scope_days;
CREATE TEMPORARY TABLE scope_days ON COMMIT DROP AS
SELECT t.day
FROM mart.touched_days AS t
CROSS JOIN mark AS k
WHERE NOT k.is_full AND t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id AND t.day <= k.horizon
UNION
SELECT d::date
FROM mark AS k
CROSS JOIN generate_series(
    CASE WHEN k.is_full THEN (SELECT min(o.paid_at)::date FROM core.orders AS o) ELSE k.since + 1 END, k.horizon, interval '1 day'
) AS d;
DROP TABLE IF EXISTS pg_temp.scope_periods;
CREATE TEMPORARY TABLE scope_periods ON COMMIT DROP AS
SELECT DISTINCT p.grain, p.period_start, p.period_end
FROM scope_days AS d
CROSS JOIN LATERAL (
    VALUES
    ('day', d.day, d.day),
    ('week', date_trunc('week', d.day)::date, date_trunc('week', d.day)::date + 6),
    ('month', date_trunc('month', d.day)::date, (date_trunc('month', d.day) + interval '1 month')::date - 1)
) AS p (grain, period_start, period_end);
DROP TABLE IF EXISTS pg_temp.calendar;
CREATE TEMPORARY TABLE calendar ON COMMIT DROP AS
SELECT DISTINCT
    d::date AS day, date_trunc('week', d)::date AS week_start, date_trunc('month', d)::date AS month_start
FROM scope_periods AS p
CROSS JOIN mark AS k
CROSS JOIN generate_series(p.period_start, least(p.period_end, k.horizon), interval '1 day') AS d;
ANALYZE calendar;
DROP TABLE IF EXISTS pg_temp.ranges;
CREATE TEMPORARY TABLE ranges ON COMMIT DROP AS
SELECT min(i.day) AS from_day, max(i.day) AS until_day, min(i.day)::timestamptz AS from_at, (max(i.day) + 1)::timestamptz AS until_at
FROM (SELECT c.day, c.day - row_number() OVER (ORDER BY c.day ASC)::integer AS island FROM calendar AS c) AS i
GROUP BY i.island;
ANALYZE ranges;

SET LOCAL enable_sort = off;  -- people are put in order once, which cannot be avoided; their days are few and need no second time
DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
bought AS (
    SELECT o.source_id, mi.member_id, o.paid_at::date AS day
    FROM ranges AS r
    JOIN core.orders AS o ON o.paid_at >= r.from_at AND o.paid_at < r.until_at
    JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id
    WHERE o.is_paid
    UNION ALL
    SELECT '', m.member_id, m.day
    FROM ranges AS r
    JOIN mart.member_days AS m ON m.day >= r.from_day AND m.day <= r.until_day
    WHERE m.order_count > 0
),
ordered AS (
    SELECT
        b.member_id, b.source_id, b.day,
        lag(b.day) OVER (PARTITION BY b.member_id, b.source_id ORDER BY b.day ASC) AS day_before
    FROM bought AS b
),
by_day AS (
    -- the first day that counts: after the day before it that does not
    SELECT
        o.source_id,
        c.day,
        count(*) AS day_buyers,
        count(*) FILTER (WHERE o.day_before IS NULL OR o.day_before < c.week_start) AS week_buyers,
        count(*) FILTER (WHERE o.day_before IS NULL OR o.day_before < c.month_start) AS month_buyers,
        count(*) FILTER (WHERE c.day = f.first_date) AS new_buyers,
        count(*) FILTER (WHERE c.day > f.first_date) AS day_repeats,
        count(*) FILTER (
            WHERE c.day > f.first_date AND (o.day_before IS NULL OR o.day_before < c.week_start OR o.day_before = f.first_date)
        ) AS week_repeats,
        count(*) FILTER (
            WHERE c.day > f.first_date AND (o.day_before IS NULL OR o.day_before < c.month_start OR o.day_before = f.first_date)
        ) AS month_repeats
    FROM ordered AS o
    JOIN calendar AS c ON c.day = o.day
    JOIN mart.buyer_firsts AS f ON f.member_id = o.member_id AND f.source_id = o.source_id
    WHERE o.day_before IS DISTINCT FROM o.day
    GROUP BY o.source_id, c.day
)
SELECT
    d.source_id,
    p.grain,
    p.period_start,
    sum(CASE p.grain WHEN 'day' THEN d.day_buyers WHEN 'week' THEN d.week_buyers ELSE d.month_buyers END) AS buyer_count,
    sum(d.new_buyers) AS new_buyer_count,
    sum(CASE p.grain WHEN 'day' THEN d.day_repeats WHEN 'week' THEN d.week_repeats ELSE d.month_repeats END) AS repeat_buyer_count
FROM by_day AS d
JOIN scope_periods AS p ON d.day >= p.period_start AND d.day <= p.period_end
GROUP BY d.source_id, p.grain, p.period_start;
SET LOCAL enable_sort = on;

DELETE FROM mart.buyer_periods AS m
USING mark AS k
WHERE
    (k.is_full OR EXISTS (SELECT FROM scope_periods AS p WHERE p.grain = m.grain AND p.period_start = m.period_start))
    AND NOT EXISTS (
        SELECT FROM fresh AS f WHERE f.source_id = m.source_id AND f.grain = m.grain AND f.period_start = m.period_start
    );

INSERT INTO mart.buyer_periods AS m (source_id, grain, period_start, buyer_count, new_buyer_count, repeat_buyer_count)
SELECT f.source_id, f.grain, f.period_start, f.buyer_count, f.new_buyer_count, f.repeat_buyer_count
FROM fresh AS f
ON CONFLICT (source_id, grain, period_start) DO UPDATE SET
    buyer_count = excluded.buyer_count,
    new_buyer_count = excluded.new_buyer_count,
    repeat_buyer_count = excluded.repeat_buyer_count
WHERE
    (m.buyer_count, m.new_buyer_count, m.repeat_buyer_count)
    IS DISTINCT FROM (excluded.buyer_count, excluded.new_buyer_count, excluded.repeat_buyer_count);

INSERT INTO mart.marks (mart, business_date, batch_id)
SELECT 'buyer_periods', k.horizon, k.upto_batch_id FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, computed_at = clock_timestamp()
WHERE (marks.business_date, marks.batch_id) IS DISTINCT FROM (excluded.business_date, excluded.batch_id);
