-- lost_followers: followers who left in the period.
-- Grain: one row.
-- Params: from_day (date), source_id (text), until_day (date).
-- Reads: core.social_stats_daily, core.follow_events, core.accounts
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT coalesce(sum(c.people), 0) AS numerator, NULL::numeric AS denominator
FROM (
    SELECT s.value AS people
    FROM core.social_stats_daily AS s
    WHERE s.report = 'user_summary' AND s.metric = 'cancel_user' AND %(source_id)s::text IN ('', s.source_id)
      AND s.stat_date >= %(from_day)s::date AND s.stat_date <= %(until_day)s::date
    UNION ALL
    -- of accounts whose platform does not say
    SELECT 1
    FROM core.follow_events AS e
    JOIN core.accounts AS a ON a.source_id = e.source_id AND a.kind = 'social'
    WHERE e.kind = 'unfollow' AND %(source_id)s::text IN ('', e.source_id)
      AND e.occurred_at >= %(from_day)s::date::timestamptz AND e.occurred_at < (%(until_day)s::date + 1)::timestamptz
      AND NOT EXISTS (SELECT FROM core.social_stats_daily AS s WHERE s.source_id = e.source_id AND s.report = 'user_summary')
) AS c;
