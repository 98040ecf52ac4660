-- mart.kpi_signals: what a business date says of each KPI: against target, the period before, the year before, and what is usual.
-- Grain: one row per business date, KPI, source ('' = all of them) and grain, where the KPI has a value.
-- Params: business_date (date), kpi_usual_periods (integer), kpi_usual_min_periods (integer), kpi_anomaly_z (numeric),
--   kpi_min_spread (numeric).
-- Reads: mart.kpi_definitions, mart.kpi_values, mart.kpi_signals
-- Rerun: safe; replaces exactly this business date, and only where something differs. Of a past date it says what is known now.
-- The period is the newest one that is over and at rest: the day itself, or as many days before as the KPI ripens; the last whole
-- week and month. Year before: the same calendar day (of 29 February the 28th), the week 52 weeks before, the same month.
-- Usual is the median of the same weekday in the weeks before (of a week: of the weeks before); the robust z is the distance from it in
-- units of 1.4826 times the median absolute deviation, but never less than chance alone would give (docs/decisions/0066-kpi-signals.md).
DROP TABLE IF EXISTS pg_temp.picked;
CREATE TEMPORARY TABLE picked ON COMMIT DROP AS
SELECT
    v.kpi, v.source_id, v.grain, v.period_start, v.numerator, v.denominator, v.value, d.name_zh, d.name_en, d.unit, d.direction,
    CASE
        WHEN array_position(d.target_grains, g.grain) IS NOT NULL THEN coalesce((d.source_targets ->> v.source_id)::numeric, d.target)
    END AS target,
    d.amber_margin, g.previous_start, g.last_year_start
FROM mart.kpi_definitions AS d
CROSS JOIN LATERAL (SELECT %(business_date)s::date - d.ripens_days AS day) AS r
CROSS JOIN LATERAL (
    VALUES
    ('day', r.day, r.day - 1, (r.day - interval '1 year')::date),
    ('week', date_trunc('week', r.day + 1)::date - 7, date_trunc('week', r.day + 1)::date - 14, date_trunc('week', r.day + 1)::date - 371),
    (
        'month', (date_trunc('month', r.day + 1) - interval '1 month')::date, (date_trunc('month', r.day + 1) - interval '2 months')::date,
        (date_trunc('month', r.day + 1) - interval '13 months')::date
    )
) AS g (grain, period_start, previous_start, last_year_start)
JOIN mart.kpi_values AS v ON v.kpi = d.kpi AND v.grain = g.grain AND v.period_start = g.period_start
WHERE v.value IS NOT NULL;
ANALYZE picked;

DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
history AS (
    SELECT p.kpi, p.source_id, p.grain, h.value
    FROM picked AS p
    CROSS JOIN generate_series(1, %(kpi_usual_periods)s::integer) AS n (number)
    JOIN mart.kpi_values AS h
        ON h.kpi = p.kpi AND h.source_id = p.source_id AND h.grain = p.grain AND h.period_start = p.period_start - 7 * n.number
    WHERE p.grain IN ('day', 'week') AND h.value IS NOT NULL
),
medians AS (
    SELECT kpi, source_id, grain, percentile_cont(0.5) WITHIN GROUP (ORDER BY value ASC)::numeric AS usual_value, count(*) AS usual_count
    FROM history
    GROUP BY kpi, source_id, grain
),
spreads AS (
    SELECT
        h.kpi, h.source_id, h.grain,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(h.value - m.usual_value) ASC)::numeric AS usual_spread
    FROM history AS h
    JOIN medians AS m ON m.kpi = h.kpi AND m.source_id = h.source_id AND m.grain = h.grain
    GROUP BY h.kpi, h.source_id, h.grain
),
compared AS (
    SELECT
        p.*,
        b.value AS previous_value,
        y.value AS last_year_value,
        round(m.usual_value, 6) AS usual_value,
        round(s.usual_spread, 6) AS usual_spread,
        coalesce(m.usual_count, 0) AS usual_count,
        -- what chance alone would give: of a count its root, of a share out of few cases more than of many
        greatest(
            1.4826 * s.usual_spread, %(kpi_min_spread)s::numeric * abs(m.usual_value),
            CASE
                WHEN p.unit = 'count' AND p.denominator IS NULL THEN sqrt(greatest(m.usual_value, 1))
                WHEN p.unit = 'rate' AND p.denominator > 0
                    THEN sqrt(greatest(m.usual_value * (1 - m.usual_value), 1 / (p.denominator + 2)) / p.denominator)
            END
        ) AS spread
    FROM picked AS p
    LEFT JOIN mart.kpi_values AS b
        ON b.kpi = p.kpi AND b.source_id = p.source_id AND b.grain = p.grain AND b.period_start = p.previous_start
    LEFT JOIN mart.kpi_values AS y
        ON y.kpi = p.kpi AND y.source_id = p.source_id AND y.grain = p.grain AND y.period_start = p.last_year_start
    LEFT JOIN medians AS m ON m.kpi = p.kpi AND m.source_id = p.source_id AND m.grain = p.grain
    LEFT JOIN spreads AS s ON s.kpi = p.kpi AND s.source_id = p.source_id AND s.grain = p.grain
),
judged AS (
    SELECT
        c.*,
        CASE
            WHEN c.usual_count >= %(kpi_usual_min_periods)s::integer
                THEN round((c.value - c.usual_value) / nullif(c.spread, 0), 2)
        END AS robust_z,
        mart.kpi_light(c.value, c.target, c.amber_margin, c.direction) AS light
    FROM compared AS c
),
worded AS (
    SELECT
        j.*,
        mart.kpi_text(j.value, j.unit) AS value_text,
        mart.kpi_text(j.usual_value, j.unit) AS usual_text,
        mart.kpi_text(j.previous_value, j.unit) AS previous_text,
        mart.kpi_text(j.target, j.unit) AS target_text,
        CASE WHEN j.robust_z > 0 THEN '+' ELSE '' END || round(j.robust_z, 1) AS z_text,
        (ARRAY['一', '二', '三', '四', '五', '六', '日'])[extract(ISODOW FROM j.period_start)::integer] AS weekday_zh,
        trim(to_char(j.period_start, 'Day')) AS weekday_en
    FROM judged AS j
)
SELECT
    %(business_date)s::date AS business_date, w.kpi, w.source_id, w.grain, w.period_start, w.numerator, w.denominator, w.value,
    w.previous_value, w.last_year_value, w.target, w.light, w.usual_value, w.usual_spread, w.usual_count::integer, w.robust_z,
    coalesce(abs(w.robust_z) >= %(kpi_anomaly_z)s::numeric, FALSE) AS is_anomaly,
    concat(
        CASE w.grain
            WHEN 'day' THEN CASE WHEN w.period_start <> %(business_date)s::date THEN to_char(w.period_start, 'FMMM月FMDD日') END
            WHEN 'week' THEN to_char(w.period_start, 'FMMM月FMDD日') || '起一周'
            ELSE to_char(w.period_start, 'YYYY年FMMM月')
        END,
        w.name_zh, ' ', w.value_text,
        CASE
            WHEN w.z_text IS NOT NULL AND w.grain = 'day' THEN '，周' || w.weekday_zh || '通常 ' || w.usual_text || '（z ' || w.z_text || '）'
            WHEN w.z_text IS NOT NULL THEN '，通常一周 ' || w.usual_text || '（z ' || w.z_text || '）'
            WHEN w.previous_text IS NOT NULL
                THEN '，' || CASE w.grain WHEN 'day' THEN '前一天' WHEN 'week' THEN '前一周' ELSE '上月' END || ' ' || w.previous_text
        END,
        '；目标 ' || w.target_text
    ) AS sentence_zh,
    concat(
        w.name_en, ' ', w.value_text,
        CASE w.grain
            WHEN 'day' THEN CASE WHEN w.period_start <> %(business_date)s::date THEN ' on ' || w.period_start END
            WHEN 'week' THEN ' in the week of ' || w.period_start
            ELSE ' in ' || to_char(w.period_start, 'YYYY-MM')
        END,
        CASE
            WHEN w.z_text IS NOT NULL AND w.grain = 'day'
                THEN ', usually ' || w.usual_text || ' on a ' || w.weekday_en || ' (z ' || w.z_text || ')'
            WHEN w.z_text IS NOT NULL THEN ', usually ' || w.usual_text || ' a week (z ' || w.z_text || ')'
            WHEN w.previous_text IS NOT NULL THEN ', the ' || w.grain || ' before ' || w.previous_text
        END,
        '; target ' || w.target_text
    ) AS sentence_en
FROM worded AS w;

DELETE FROM mart.kpi_signals AS m
WHERE
    m.business_date = %(business_date)s::date
    AND NOT EXISTS (
        SELECT FROM fresh AS f
        WHERE
            f.kpi = m.kpi AND f.source_id = m.source_id AND f.grain = m.grain
            AND (
                f.period_start, f.numerator, f.denominator, f.value, f.previous_value, f.last_year_value, f.target, f.light, f.usual_value,
                f.usual_spread, f.usual_count, f.robust_z, f.is_anomaly, f.sentence_zh, f.sentence_en
            )
            IS NOT DISTINCT FROM (
                m.period_start, m.numerator, m.denominator, m.value, m.previous_value, m.last_year_value, m.target, m.light, m.usual_value,
                m.usual_spread, m.usual_count, m.robust_z, m.is_anomaly, m.sentence_zh, m.sentence_en
            )
    );

INSERT INTO mart.kpi_signals (
    business_date, kpi, source_id, grain, period_start, numerator, denominator, value, previous_value, last_year_value, target, light,
    usual_value, usual_spread, usual_count, robust_z, is_anomaly, sentence_zh, sentence_en
)
SELECT
    f.business_date, f.kpi, f.source_id, f.grain, f.period_start, f.numerator, f.denominator, f.value, f.previous_value, f.last_year_value,
    f.target, f.light, f.usual_value, f.usual_spread, f.usual_count, f.robust_z, f.is_anomaly, f.sentence_zh, f.sentence_en
FROM fresh AS f
ON CONFLICT (business_date, kpi, source_id, grain) DO NOTHING;
