-- Who began and who stopped to follow a WeChat account adds up to how many follow it, day by day.
-- Table: core.social_stats_daily. Severity: warn.
-- Params: business_date (date).
-- Reads: core.social_stats_daily
-- The last 14 days for which the platform gave both sums. The platform takes fake accounts away without counting them as
-- leavers, so up to 5 people or one in a thousand may be missing.
WITH
totals AS (
    SELECT s.source_id, s.stat_date, max(s.value) AS follower_count
    FROM core.social_stats_daily AS s
    WHERE s.report = 'user_cumulate' AND s.metric = 'cumulate_user'
      AND s.stat_date > %(business_date)s::date - 15 AND s.stat_date <= %(business_date)s::date
    GROUP BY s.source_id, s.stat_date
),
changes AS (
    SELECT s.source_id, s.stat_date, sum(CASE s.metric WHEN 'new_user' THEN s.value ELSE -s.value END) AS change_count
    FROM core.social_stats_daily AS s
    WHERE s.report = 'user_summary' AND s.metric IN ('new_user', 'cancel_user')
    GROUP BY s.source_id, s.stat_date
),
compared AS (
    SELECT
        t.source_id, t.stat_date, t.follower_count - b.follower_count AS total_change_count,
        coalesce(c.change_count, 0) AS change_count, greatest(5, t.follower_count / 1000) AS tolerated_count
    FROM totals AS t
    INNER JOIN totals AS b ON b.source_id = t.source_id AND b.stat_date = t.stat_date - 1
    LEFT JOIN changes AS c ON c.source_id = t.source_id AND c.stat_date = t.stat_date
)
SELECT
    coalesce(bool_and(abs(c.total_change_count - c.change_count) <= c.tolerated_count), TRUE) AS is_passed,
    coalesce(
        string_agg(
            c.source_id || ' ' || c.stat_date || ': ' || c.total_change_count || ' in total, ' || c.change_count || ' counted', ', '
            ORDER BY c.source_id, c.stat_date
        ) FILTER (WHERE abs(c.total_change_count - c.change_count) > c.tolerated_count),
        count(*) || ' days agree'
    ) AS observed
FROM compared AS c;
