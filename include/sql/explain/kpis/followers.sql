-- followers: followers at the end of the period, as the platforms tell.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.social_stats_daily
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT sum(t.value) AS numerator, NULL::numeric AS denominator
FROM (
    SELECT DISTINCT ON (s.source_id) s.source_id, s.value
    FROM core.social_stats_daily AS s
    WHERE s.metric IN ('cumulate_user', 'followers_count') AND %(source_id)s::text IN ('', s.source_id)
      AND s.stat_date >= %(from_day)s::date AND s.stat_date <= %(until_day)s::date
    ORDER BY s.source_id ASC, s.stat_date DESC
) AS t;
