-- mart.kpi_values: every KPI by day, ISO week and month, of each source and of all together, with the parts it is made of.
-- Grain: one row per KPI, source ('' = all of them; a channel for KPIs of messages), grain and first day of the period.
-- Params: business_date (date).
-- Reads: mart.kpi_definitions, mart.shop_kpis_daily, mart.fulfilment_kpis_daily, mart.review_kpis_daily, mart.service_kpis_daily,
--   mart.social_kpis_daily, mart.channel_kpis_daily, mart.buyer_periods, mart.moved_days, mart.touched_days, mart.touched_facts,
--   mart.kpi_values, mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. A night computes the periods of the days that came out differently in the
-- tables above; without a mark, or with another list of KPIs, all. What changes a day that should have been at rest is written to
-- mart.restatements (docs/decisions/0065-kpi-values.md).
-- A KPI is one line here and one row in include/config/kpis.yaml. Parts are added up, never rates; a period's level is that of its
-- last day, its growth is measured from its first; people are not added up but counted (mart.buyer_periods). Weeks begin on Monday.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    greatest(
        m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), 0),
        (SELECT max(t.batch_id) FROM mart.touched_facts AS t)
    ) AS upto_batch_id,
    w.settings,
    coalesce(m.settings <> w.settings, TRUE) AS is_full
FROM (
    SELECT 'kpi_values' AS mart, coalesce(md5(string_agg(d.kpi || ' ' || d.kind, ', ' ORDER BY d.kpi ASC)), '') AS settings
    FROM mart.kpi_definitions AS d
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

DROP TABLE IF EXISTS pg_temp.scope_days;
CREATE TEMPORARY TABLE scope_days (day date) ON COMMIT DROP;
WITH gone AS (DELETE FROM mart.moved_days WHERE source_table NOT IN ('member_stages', 'member_tiers') RETURNING day)
INSERT INTO scope_days (day) SELECT DISTINCT g.day FROM gone AS g;

DROP TABLE IF EXISTS pg_temp.scope_periods;
CREATE TEMPORARY TABLE scope_periods ON COMMIT DROP AS
SELECT DISTINCT p.grain, p.period_start, p.period_end
FROM (
    SELECT s.day FROM scope_days AS s
    UNION
    SELECT d.day
    FROM (
        SELECT m.day FROM mart.shop_kpis_daily AS m
        UNION
        SELECT m.day FROM mart.fulfilment_kpis_daily AS m
        UNION
        SELECT m.day FROM mart.review_kpis_daily AS m
        UNION
        SELECT m.day FROM mart.service_kpis_daily AS m
        UNION
        SELECT m.day FROM mart.social_kpis_daily AS m
        UNION
        SELECT m.day FROM mart.channel_kpis_daily AS m
        UNION
        SELECT b.period_start FROM mart.buyer_periods AS b
    ) AS d
    WHERE (SELECT k.is_full FROM mark AS k)
) AS s
CROSS JOIN LATERAL (
    VALUES
    ('day', s.day, s.day),
    ('week', date_trunc('week', s.day)::date, date_trunc('week', s.day)::date + 6),
    ('month', date_trunc('month', s.day)::date, (date_trunc('month', s.day) + interval '1 month')::date - 1)
) AS p (grain, period_start, period_end);
CREATE UNIQUE INDEX ON pg_temp.scope_periods (grain, period_start);
ANALYZE scope_periods;
DROP TABLE IF EXISTS pg_temp.period_days;
CREATE TEMPORARY TABLE period_days ON COMMIT DROP AS
SELECT p.grain, p.period_start, d::date AS day
FROM scope_periods AS p
CROSS JOIN generate_series(p.period_start, p.period_end, interval '1 day') AS d;
ANALYZE period_days;
DROP TABLE IF EXISTS pg_temp.calendar;
CREATE TEMPORARY TABLE calendar ON COMMIT DROP AS SELECT DISTINCT p.day FROM period_days AS p;
ANALYZE calendar;

-- The KPIs of a day: a line each. A ratio has a denominator.
DROP TABLE IF EXISTS pg_temp.day_parts;
CREATE TEMPORARY TABLE day_parts ON COMMIT DROP AS
SELECT v.kpi, m.source_id, m.day, v.numerator::numeric, v.denominator::numeric
FROM mart.shop_kpis_daily AS m
JOIN calendar AS c ON c.day = m.day
CROSS JOIN LATERAL (
    VALUES
    ('paid_orders', m.paid_order_count, NULL::numeric),
    ('gross_amount', m.gross_amount, NULL),
    ('refund_amount', m.refund_amount, NULL),
    ('net_amount', m.net_amount, NULL),
    ('units', m.unit_count, NULL),
    ('reviews', m.review_count, NULL),
    ('payment_conversion_rate', m.paid_of_created_count, m.created_order_count),
    ('order_success_rate', m.signed_of_created_count, m.created_order_count),
    ('average_order_value', m.gross_amount, m.paid_order_count),
    ('refund_rate', m.refund_amount, m.gross_amount),
    ('return_rate', m.refund_order_count, m.paid_order_count),
    ('positive_review_rate', m.positive_review_count, m.review_count)
) AS v (kpi, numerator, denominator)
UNION ALL
SELECT v.kpi, m.source_id, m.day, v.numerator::numeric, v.denominator::numeric
FROM mart.fulfilment_kpis_daily AS m
JOIN calendar AS c ON c.day = m.day
CROSS JOIN LATERAL (
    VALUES
    ('on_time_shipping_rate', m.shipped_on_time_count, m.due_order_count),
    ('on_time_delivery_rate', m.delivered_on_time_count, m.delivery_due_count)
) AS v (kpi, numerator, denominator)
UNION ALL
SELECT v.kpi, m.source_id, m.day, v.numerator::numeric, v.denominator::numeric
FROM mart.review_kpis_daily AS m
JOIN calendar AS c ON c.day = m.day
CROSS JOIN LATERAL (
    VALUES
    ('review_rate', m.reviewed_order_count, m.signed_order_count)
) AS v (kpi, numerator, denominator)
UNION ALL
SELECT v.kpi, m.source_id, m.day, v.numerator::numeric, v.denominator::numeric
FROM mart.service_kpis_daily AS m
JOIN calendar AS c ON c.day = m.day
CROSS JOIN LATERAL (
    VALUES
    ('negative_reviews', m.negative_review_count, NULL::numeric),
    ('reply_in_time_rate', m.replied_in_time_count, m.due_count),
    ('hours_to_first_reply', m.reply_hours, m.timed_reply_count)
) AS v (kpi, numerator, denominator)
UNION ALL
SELECT v.kpi, m.source_id, m.day, v.numerator::numeric, v.denominator::numeric
FROM mart.social_kpis_daily AS m
JOIN calendar AS c ON c.day = m.day
CROSS JOIN LATERAL (
    VALUES
    ('followers', m.follower_count, NULL::numeric),
    ('new_followers', m.new_follower_count, NULL),
    ('lost_followers', m.lost_follower_count, NULL),
    ('follower_growth_rate', m.net_follower_count, m.start_follower_count),
    ('reach_rate', m.reached_count, CASE WHEN m.reached_count IS NOT NULL THEN m.follower_count END),
    ('read_rate', m.reader_count, m.delivered_count),
    ('participation_rate', m.participation_count, m.audience_count),
    ('social_messages', m.message_count, NULL),
    ('posts', m.post_count, NULL),
    ('brand_content_rate', m.brand_post_count, m.post_count),
    ('useful_content_rate', m.post_count - m.brand_post_count, m.post_count)
) AS v (kpi, numerator, denominator)
UNION ALL
SELECT v.kpi, m.channel, m.day, v.numerator::numeric, v.denominator::numeric
FROM mart.channel_kpis_daily AS m
JOIN calendar AS c ON c.day = m.day
CROSS JOIN LATERAL (
    VALUES
    ('messages', m.accepted_count, NULL::numeric),
    ('message_delivery_rate', m.delivered_count, m.accepted_count),
    ('message_click_rate', m.clicked_count, m.accepted_count),
    ('message_unsubscribe_rate', m.unsubscribed_count, m.accepted_count),
    ('message_cost_amount', m.cost_amount, NULL)
) AS v (kpi, numerator, denominator);

ANALYZE day_parts;

-- The KPIs of people, who cannot be added up: a line each.
DROP TABLE IF EXISTS pg_temp.people_parts;
CREATE TEMPORARY TABLE people_parts ON COMMIT DROP AS
SELECT v.kpi, b.source_id, b.grain, b.period_start, v.numerator::numeric, v.denominator::numeric
FROM mart.buyer_periods AS b
JOIN scope_periods AS p ON p.grain = b.grain AND p.period_start = b.period_start
CROSS JOIN LATERAL (
    VALUES
    ('buyers', b.buyer_count, NULL::numeric),
    ('new_buyers', b.new_buyer_count, NULL),
    ('repeat_purchase_rate', b.repeat_buyer_count, b.buyer_count)
) AS v (kpi, numerator, denominator);

DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
by_source AS (
    SELECT
        d.kpi,
        t.source_id,
        p.grain,
        p.period_start,
        CASE d.kind WHEN 'level' THEN (array_agg(t.numerator ORDER BY t.day DESC))[1] ELSE sum(t.numerator) END AS numerator,
        CASE d.kind WHEN 'rate' THEN sum(t.denominator) WHEN 'growth' THEN (array_agg(t.denominator ORDER BY t.day ASC))[1] END
            AS denominator
    FROM day_parts AS t
    JOIN mart.kpi_definitions AS d ON d.kpi = t.kpi
    JOIN period_days AS p ON p.day = t.day
    WHERE t.numerator IS NOT NULL AND (d.kind IN ('sum', 'level') OR t.denominator IS NOT NULL)
    GROUP BY d.kpi, d.kind, t.source_id, p.grain, p.period_start
),
parts AS (
    SELECT kpi, source_id, grain, period_start, numerator, denominator FROM by_source
    UNION ALL
    SELECT kpi, '', grain, period_start, sum(numerator), sum(denominator) FROM by_source GROUP BY kpi, grain, period_start
    UNION ALL
    SELECT t.kpi, t.source_id, t.grain, t.period_start, t.numerator, t.denominator
    FROM people_parts AS t
    JOIN mart.kpi_definitions AS d ON d.kpi = t.kpi
)
SELECT
    a.kpi, a.source_id, a.grain, a.period_start, p.numerator, p.denominator,
    CASE WHEN p.denominator IS NULL THEN p.numerator ELSE p.numerator / nullif(p.denominator, 0) END AS value
FROM parts AS a
CROSS JOIN LATERAL (SELECT trim_scale(a.numerator) AS numerator, trim_scale(a.denominator) AS denominator) AS p;
CREATE UNIQUE INDEX ON pg_temp.fresh (kpi, source_id, grain, period_start);
ANALYZE fresh;

-- A day whose figure should have been at rest since before the last night, and was not.
INSERT INTO mart.restatements (business_date, about, subject, source_id, day_from, day_to, before, after)
SELECT
    k.horizon, 'kpi', c.kpi, c.source_id, c.period_start, c.period_start + 1,
    coalesce(mart.kpi_text(c.old_value, d.unit), 'none'), coalesce(mart.kpi_text(c.new_value, d.unit), 'none')
FROM (
    SELECT
        coalesce(f.kpi, m.kpi) AS kpi, coalesce(f.source_id, m.source_id) AS source_id,
        coalesce(f.period_start, m.period_start) AS period_start, m.value AS old_value, f.value AS new_value
    FROM (
        SELECT v.kpi, v.source_id, v.grain, v.period_start, v.numerator, v.denominator, v.value
        FROM scope_periods AS p
        JOIN mart.kpi_values AS v ON v.grain = p.grain AND v.period_start = p.period_start
        WHERE p.grain = 'day'
    ) AS m
    FULL JOIN (
        SELECT n.kpi, n.source_id, n.grain, n.period_start, n.numerator, n.denominator, n.value FROM fresh AS n WHERE n.grain = 'day'
    ) AS f ON f.kpi = m.kpi AND f.source_id = m.source_id AND f.period_start = m.period_start
    WHERE (m.numerator, m.denominator) IS DISTINCT FROM (f.numerator, f.denominator)
) AS c
JOIN mart.kpi_definitions AS d ON d.kpi = c.kpi
CROSS JOIN mark AS k
WHERE NOT k.is_full AND c.period_start + d.ripens_days <= least(k.since, k.horizon - 1);

DELETE FROM mart.kpi_values AS v
USING mark AS k
WHERE
    (k.is_full OR EXISTS (SELECT FROM scope_periods AS p WHERE p.grain = v.grain AND p.period_start = v.period_start))
    AND NOT EXISTS (
        SELECT FROM fresh AS f
        WHERE f.kpi = v.kpi AND f.source_id = v.source_id AND f.grain = v.grain AND f.period_start = v.period_start
    );

INSERT INTO mart.kpi_values AS v (kpi, source_id, grain, period_start, numerator, denominator, value)
SELECT f.kpi, f.source_id, f.grain, f.period_start, f.numerator, f.denominator, f.value
FROM fresh AS f
ON CONFLICT (kpi, source_id, grain, period_start) DO UPDATE SET
    numerator = excluded.numerator, denominator = excluded.denominator, value = excluded.value
WHERE (v.numerator, v.denominator, v.value) IS DISTINCT FROM (excluded.numerator, excluded.denominator, excluded.value);

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'kpi_values', k.horizon, k.upto_batch_id, k.settings FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, excluded.batch_id, excluded.settings);
