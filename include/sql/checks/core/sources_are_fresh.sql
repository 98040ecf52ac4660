-- Every source that is read has told us something new within the days that are usual for it.
-- Table: core.accounts. Severity: warn.
-- Params: business_date (date), silence (jsonb: source_id, warn_days).
-- Reads: core.accounts, core.source_news
-- By event times up to the business date: of a shop its newest order (where no orders are read, refund or review), of a social account
-- a follower who came or left, a post, a comment or a daily figure, of our pages a click or a consent.
-- `silence` stands in the block of the source; sources_are_not_silent stops the night later.
WITH
watched AS (
    SELECT
        a.source_id, a.kind, w.warn_days, coalesce(a.streams && '{orders,trades}', TRUE) AS has_orders
    FROM core.accounts AS a
    JOIN jsonb_to_recordset(%(silence)s::jsonb) AS w (source_id text, warn_days integer) ON w.source_id = a.source_id
    WHERE a.is_active AND w.warn_days IS NOT NULL
),
span AS (SELECT (%(business_date)s::date - max(w.warn_days))::timestamptz AS since_at FROM watched AS w),
newest AS (
    SELECT n.source_id, n.kind, n.is_order, n.told_at
    FROM span AS s
    CROSS JOIN LATERAL core.source_news(s.since_at, (%(business_date)s::date + 1)::timestamptz) AS n
),
judged AS (
    SELECT w.source_id, w.warn_days, max(n.told_at)::date AS told_date
    FROM watched AS w
    LEFT JOIN newest AS n ON n.source_id = w.source_id AND n.kind = w.kind AND (n.is_order OR w.kind <> 'shop' OR NOT w.has_orders)
    GROUP BY w.source_id, w.warn_days
)
SELECT
    coalesce(bool_and(%(business_date)s::date - j.told_date <= j.warn_days AND j.told_date IS NOT NULL), TRUE) AS is_passed,
    coalesce(
        string_agg(
            j.source_id || ': newest is ' || coalesce('of ' || j.told_date, 'too long ago')
            || ', usual is ' || j.warn_days || ' days', ', ' ORDER BY j.source_id
        ) FILTER (WHERE j.told_date IS NULL OR %(business_date)s::date - j.told_date > j.warn_days),
        count(*) || ' sources are fresh'
    ) AS observed
FROM judged AS j;
