-- One KPI of one period and source: its figure and parts, what it is compared with, what is wanted of it, how far the marts are.
-- Grain: one row, or none for a KPI that has no definition.
-- Params: kpi (text), source_id (text), grain (text), period_start (date).
-- Reads: mart.kpi_definitions, mart.kpi_values, mart.marks
WITH
period AS (
    SELECT
        p.period_start,
        CASE p.grain
            WHEN 'day' THEN p.period_start - 1
            WHEN 'week' THEN p.period_start - 7
            ELSE (p.period_start - interval '1 month')::date
        END AS previous_start,
        CASE p.grain WHEN 'week' THEN p.period_start - 364 ELSE (p.period_start - interval '1 year')::date END AS last_year_start
    FROM (SELECT %(period_start)s::date AS period_start, %(grain)s::text AS grain) AS p
)
SELECT
    d.kpi, d.name_zh, d.name_en, d.direction, d.ripens_days, v.numerator, v.denominator, v.value,
    mart.kpi_text(v.value, d.unit) AS value_text,
    mart.kpi_text(w.target, d.unit) AS target_text,
    mart.kpi_text(d.amber_margin, d.unit) AS margin_text,
    mart.kpi_text(b.value, d.unit) AS previous_text,
    mart.kpi_text(y.value, d.unit) AS last_year_text,
    mart.kpi_light(v.value, w.target, d.amber_margin, d.direction) AS light,
    p.previous_start,
    p.last_year_start,
    m.business_date AS known_to
FROM mart.kpi_definitions AS d
CROSS JOIN period AS p
CROSS JOIN LATERAL (
    SELECT
        CASE
            WHEN array_position(d.target_grains, %(grain)s::text) IS NOT NULL
                THEN coalesce((d.source_targets ->> %(source_id)s::text)::numeric, d.target)
        END AS target
) AS w
LEFT JOIN mart.kpi_values AS v
    ON v.kpi = d.kpi AND v.source_id = %(source_id)s::text AND v.grain = %(grain)s::text AND v.period_start = p.period_start
LEFT JOIN mart.kpi_values AS b
    ON b.kpi = d.kpi AND b.source_id = %(source_id)s::text AND b.grain = %(grain)s::text AND b.period_start = p.previous_start
LEFT JOIN mart.kpi_values AS y
    ON y.kpi = d.kpi AND y.source_id = %(source_id)s::text AND y.grain = %(grain)s::text AND y.period_start = p.last_year_start
LEFT JOIN mart.marks AS m ON m.mart = 'kpi_values'
WHERE d.kpi = %(kpi)s::text;
