-- Of every KPI but those of people the sources add up to all of them, and days to the weeks and months they lie in; of the last 70 days.
-- Table: mart.kpi_values. Severity: fail.
-- Params: business_date (date).
-- Reads: mart.kpi_values, mart.kpi_definitions
WITH
recent AS (
    SELECT
        v.kpi, d.kind, v.source_id, v.grain, v.period_start,
        coalesce(v.numerator, 0) AS numerator, coalesce(v.denominator, 0) AS denominator
    FROM mart.kpi_values AS v
    JOIN mart.kpi_definitions AS d ON d.kpi = v.kpi
    WHERE d.kind <> 'people' AND v.period_start > %(business_date)s::date - 70 AND v.period_start <= %(business_date)s::date
),
sources AS (
    SELECT r.kpi, 'sources' AS what
    FROM recent AS r
    GROUP BY r.kpi, r.grain, r.period_start
    HAVING
        sum(r.numerator) FILTER (WHERE r.source_id = '') IS DISTINCT FROM sum(r.numerator) FILTER (WHERE r.source_id <> '')
        OR sum(r.denominator) FILTER (WHERE r.source_id = '') IS DISTINCT FROM sum(r.denominator) FILTER (WHERE r.source_id <> '')
),
days AS (
    SELECT w.kpi, w.grain || 's' AS what
    FROM recent AS w
    JOIN recent AS d
        ON d.kpi = w.kpi AND d.source_id = w.source_id AND d.grain = 'day' AND date_trunc(w.grain, d.period_start) = w.period_start
    WHERE w.grain IN ('week', 'month') AND w.kind IN ('sum', 'rate')
    GROUP BY w.kpi, w.source_id, w.grain, w.period_start, w.numerator, w.denominator
    HAVING sum(d.numerator) <> w.numerator OR sum(d.denominator) <> w.denominator
),
wrong AS (
    SELECT s.kpi, s.what FROM sources AS s
    UNION ALL
    SELECT d.kpi, d.what FROM days AS d
)
SELECT
    count(*) = 0 AS is_passed,
    CASE
        WHEN count(*) = 0 THEN 'sources and days add up'
        ELSE count(*) || ' sums differ: ' || string_agg(DISTINCT w.kpi || ' (' || w.what || ')', ', ')
    END AS observed
FROM wrong AS w;
