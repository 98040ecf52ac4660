-- follower_growth_rate: change of the followers over the days with a known beginning / followers at the first of these beginnings.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.social_stats_daily
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT sum(g.net) AS numerator, sum(g.start) AS denominator
FROM (
    SELECT
        t.source_id,
        sum(coalesce(n.net, t.value - b.value)) AS net,
        (array_agg(b.value ORDER BY t.stat_date ASC))[1] AS start
    FROM core.social_stats_daily AS t
    JOIN core.social_stats_daily AS b
        ON b.source_id = t.source_id AND b.report = t.report AND b.metric = t.metric AND b.stat_date = t.stat_date - 1
    LEFT JOIN LATERAL (
        -- a report that leaves a day out means zero
        SELECT coalesce(sum(CASE WHEN s.metric = 'new_user' THEN s.value ELSE -s.value END) FILTER (WHERE s.stat_date = t.stat_date), 0)
            AS net
        FROM core.social_stats_daily AS s
        WHERE s.source_id = t.source_id AND s.report = 'user_summary' AND s.metric IN ('new_user', 'cancel_user')
        HAVING count(*) > 0
    ) AS n ON TRUE
    WHERE t.metric IN ('cumulate_user', 'followers_count') AND %(source_id)s::text IN ('', t.source_id)
      AND t.stat_date >= %(from_day)s::date AND t.stat_date <= %(until_day)s::date
    GROUP BY t.source_id
) AS g;
