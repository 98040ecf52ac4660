-- The KPIs of a business date with their lights, what is unusual first: of all sources together, and of each where it is unusual or red.
-- Grain: one row per KPI, source ('' = all of them) and grain (day, week, month).
-- Params: business_date (date).
-- Reads: mart.kpi_signals, mart.kpi_definitions, core.accounts
SELECT
    s.kpi, d.name_zh, d.name_en, s.source_id, coalesce(a.name, s.source_id) AS source_name, s.grain, s.period_start, d.position, d.unit,
    d.direction,
    s.numerator, s.denominator, s.value, s.previous_value, s.last_year_value, s.target, s.light, s.usual_value, s.robust_z, s.is_anomaly,
    s.sentence_zh, s.sentence_en
FROM mart.kpi_signals AS s
JOIN mart.kpi_definitions AS d ON d.kpi = s.kpi
LEFT JOIN core.accounts AS a ON a.source_id = s.source_id
WHERE s.business_date = %(business_date)s::date AND (s.source_id = '' OR s.is_anomaly OR s.light = 'red')
ORDER BY
    s.is_anomaly DESC,
    array_position('{red,amber,green,none}'::text[], s.light) ASC,
    array_position('{day,week,month}'::text[], s.grain) ASC,
    d.position ASC,
    s.source_id ASC;
