-- mart.social_kpis_daily: followers, reads, messages and posts of each social account by day, up to the business date.
-- Grain: one row per account and day (Asia/Shanghai) of which something is known.
-- Params: business_date (date).
-- Reads: core.accounts, core.social_stats_daily, core.followers, core.follow_events, core.interactions, core.social_comments,
--   mart.content_kpis, mart.touched_days, mart.touched_facts, mart.social_kpis_daily, mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. A night computes the days that were touched or are new, and those whose
-- posts gathered more; without a mark, all. A run for an older date computes with what the newest night knew.
-- The platform's own figures count; where it gives none: follow_events for who came and went, core.followers for how many there are.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    greatest(
        m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), 0),
        (SELECT max(t.batch_id) FROM mart.touched_facts AS t)
    ) AS upto_batch_id,
    m.mart IS NULL AS is_full
FROM (SELECT 'social_kpis_daily' AS mart) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

-- How many follow, by day: what the platform says, or else the people we know of, added up.
DROP TABLE IF EXISTS pg_temp.totals;
CREATE TEMPORARY TABLE totals ON COMMIT DROP AS
WITH
told AS (
    SELECT s.source_id, s.stat_date AS day, max(s.value) AS follower_count
    FROM core.social_stats_daily AS s
    JOIN mark AS k ON s.stat_date <= k.horizon
    WHERE s.metric IN ('cumulate_user', 'followers_count') AND s.report IN ('user_cumulate', 'account')
    GROUP BY s.source_id, s.stat_date
),
changes AS (
    SELECT c.source_id, c.day, sum(c.change) AS change
    FROM (
        SELECT f.source_id, f.followed_at::date AS day, 1 AS change FROM core.followers AS f WHERE f.followed_at IS NOT NULL
        UNION ALL
        SELECT f.source_id, f.unfollowed_at::date, -1
        FROM core.followers AS f
        WHERE f.followed_at IS NOT NULL AND f.unfollowed_at >= f.followed_at
    ) AS c
    JOIN mark AS k ON c.day <= k.horizon
    WHERE NOT EXISTS (SELECT FROM told AS t WHERE t.source_id = c.source_id)
    GROUP BY c.source_id, c.day
),
counted AS (
    SELECT s.source_id, d::date AS day, sum(c.change) OVER (PARTITION BY s.source_id ORDER BY d ASC)::bigint AS follower_count
    FROM (SELECT source_id, min(day) AS first_day FROM changes GROUP BY source_id) AS s
    CROSS JOIN mark AS k
    CROSS JOIN generate_series(s.first_day, k.horizon, interval '1 day') AS d
    LEFT JOIN changes AS c ON c.source_id = s.source_id AND c.day = d::date
)
SELECT source_id, day, follower_count FROM told
UNION ALL
SELECT source_id, day, follower_count FROM counted;

DROP TABLE IF EXISTS pg_temp.published;
CREATE TEMPORARY TABLE published ON COMMIT DROP AS
SELECT
    c.source_id,
    c.published_date AS day,
    count(*) AS post_count,
    count(*) FILTER (WHERE c.content_kind = 'brand') AS brand_post_count,
    max(c.reached_count) AS reached_count,
    sum(c.reached_count) FILTER (WHERE c.reader_count IS NOT NULL)::bigint AS delivered_count,
    sum(c.reader_count) FILTER (WHERE c.reached_count IS NOT NULL)::bigint AS reader_count,
    sum(c.participation_count) FILTER (WHERE c.audience_count IS NOT NULL)::bigint AS participation_count,
    sum(c.audience_count)::bigint AS audience_count
FROM mart.content_kpis AS c
JOIN mark AS k ON c.published_date <= k.horizon
GROUP BY c.source_id, c.published_date;

DROP TABLE IF EXISTS pg_temp.scope_days;
CREATE TEMPORARY TABLE scope_days ON COMMIT DROP AS
SELECT d.source_id, d.day
FROM (
    -- the day after begins with the followers of the day
    SELECT t.source_id, t.day + n.number AS day
    FROM mart.touched_facts AS t
    CROSS JOIN mark AS k
    CROSS JOIN (VALUES (0), (1)) AS n (number)
    WHERE NOT k.is_full AND t.about = 'social' AND t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id
    UNION
    SELECT a.source_id, d::date
    FROM core.accounts AS a
    CROSS JOIN mark AS k
    CROSS JOIN generate_series(k.since + 1, k.horizon, interval '1 day') AS d
    WHERE NOT k.is_full
    UNION
    SELECT coalesce(p.source_id, m.source_id), coalesce(p.day, m.day)
    FROM published AS p
    FULL JOIN mart.social_kpis_daily AS m ON m.source_id = p.source_id AND m.day = p.day
    WHERE
        (
            coalesce(p.post_count, 0), coalesce(p.brand_post_count, 0), p.reached_count, p.delivered_count, p.reader_count,
            coalesce(p.participation_count, 0), coalesce(p.audience_count, 0)
        )
        IS DISTINCT FROM (
            m.post_count, m.brand_post_count, m.reached_count, m.delivered_count, m.reader_count, m.participation_count,
            m.audience_count
        )
    UNION
    SELECT coalesce(t.source_id, m.source_id), coalesce(t.day, m.day) + n.number
    FROM totals AS t
    FULL JOIN mart.social_kpis_daily AS m ON m.source_id = t.source_id AND m.day = t.day
    CROSS JOIN (VALUES (0), (1)) AS n (number)
    WHERE t.follower_count IS DISTINCT FROM m.follower_count
    UNION
    SELECT f.source_id, f.day
    FROM (
        SELECT s.source_id, s.stat_date AS day FROM core.social_stats_daily AS s
        UNION
        SELECT e.source_id, e.occurred_at::date FROM core.follow_events AS e
        UNION
        SELECT i.source_id, i.occurred_at::date FROM core.interactions AS i WHERE i.kind = 'message'
        UNION
        SELECT c.source_id, c.created_at::date FROM core.social_comments AS c
        UNION
        SELECT p.source_id, p.day FROM published AS p
        UNION
        SELECT t.source_id, t.day FROM totals AS t
    ) AS f
    WHERE (SELECT k.is_full FROM mark AS k)
) AS d
JOIN core.accounts AS w ON w.source_id = d.source_id AND w.kind = 'social'
CROSS JOIN mark AS h
WHERE d.day <= h.horizon;
ANALYZE scope_days;

DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
days AS (SELECT DISTINCT s.day, s.day::timestamptz AS from_at, (s.day + 1)::timestamptz AS until_at FROM scope_days AS s),
told AS (
    SELECT
        s.source_id,
        s.stat_date AS day,
        sum(s.value) FILTER (WHERE s.report = 'user_summary' AND s.metric = 'new_user')::bigint AS new_count,
        sum(s.value) FILTER (WHERE s.report = 'user_summary' AND s.metric = 'cancel_user')::bigint AS lost_count,
        -- 99999999 is the sum over all ways to a text
        coalesce(
            max(s.value) FILTER (
                WHERE s.report = 'user_read' AND s.metric = 'int_page_read_count' AND s.dimension = 'user_source=99999999'
            ),
            sum(s.value) FILTER (WHERE s.report = 'user_read' AND s.metric = 'int_page_read_count')
        )::bigint AS read_count
    FROM core.social_stats_daily AS s
    WHERE s.report IN ('user_summary', 'user_read')
    GROUP BY s.source_id, s.stat_date
),
tellers AS (SELECT DISTINCT s.source_id FROM core.social_stats_daily AS s WHERE s.report = 'user_summary'),
events AS (
    SELECT
        e.source_id,
        d.day,
        count(*) FILTER (WHERE e.kind = 'follow') AS new_count,
        count(*) FILTER (WHERE e.kind = 'unfollow') AS lost_count
    FROM days AS d
    JOIN core.follow_events AS e ON e.occurred_at >= d.from_at AND e.occurred_at < d.until_at
    GROUP BY e.source_id, d.day
),
messages AS (
    SELECT i.source_id, d.day, count(*) AS message_count
    FROM days AS d
    JOIN core.interactions AS i ON i.occurred_at >= d.from_at AND i.occurred_at < d.until_at
    WHERE i.kind = 'message'
    GROUP BY i.source_id, d.day
),
comments AS (
    SELECT c.source_id, d.day, count(*) AS comment_count
    FROM days AS d
    JOIN core.social_comments AS c ON c.created_at >= d.from_at AND c.created_at < d.until_at
    GROUP BY c.source_id, d.day
),
joined AS (
    SELECT
        s.source_id, s.day, t.follower_count, b.follower_count AS start_follower_count, w.read_count,
        -- a report that leaves a day out means zero, as soon as the day is closed
        CASE
            WHEN r.source_id IS NULL THEN e.new_count
            WHEN t.day IS NOT NULL OR w.new_count IS NOT NULL THEN coalesce(w.new_count, 0)
        END AS new_count,
        CASE
            WHEN r.source_id IS NULL THEN e.lost_count
            WHEN t.day IS NOT NULL OR w.new_count IS NOT NULL THEN coalesce(w.lost_count, 0)
        END AS lost_count,
        coalesce(m.message_count, 0) AS message_count, coalesce(c.comment_count, 0) AS comment_count,
        coalesce(p.post_count, 0) AS post_count, coalesce(p.brand_post_count, 0) AS brand_post_count, p.reached_count, p.delivered_count,
        p.reader_count, coalesce(p.participation_count, 0) AS participation_count, coalesce(p.audience_count, 0) AS audience_count,
        num_nonnulls(t.day, w.day, e.day, m.day, c.day, p.day) > 0 AS is_known
    FROM scope_days AS s
    LEFT JOIN totals AS t ON t.source_id = s.source_id AND t.day = s.day
    LEFT JOIN totals AS b ON b.source_id = s.source_id AND b.day = s.day - 1
    LEFT JOIN told AS w ON w.source_id = s.source_id AND w.day = s.day
    LEFT JOIN tellers AS r ON r.source_id = s.source_id
    LEFT JOIN events AS e ON e.source_id = s.source_id AND e.day = s.day
    LEFT JOIN messages AS m ON m.source_id = s.source_id AND m.day = s.day
    LEFT JOIN comments AS c ON c.source_id = s.source_id AND c.day = s.day
    LEFT JOIN published AS p ON p.source_id = s.source_id AND p.day = s.day
)
SELECT j.*, coalesce(j.new_count - j.lost_count, j.follower_count - j.start_follower_count) AS net_count
FROM joined AS j
WHERE j.is_known;

DELETE FROM mart.social_kpis_daily AS m
USING mark AS k
WHERE
    (k.is_full OR EXISTS (SELECT FROM scope_days AS s WHERE s.source_id = m.source_id AND s.day = m.day))
    AND NOT EXISTS (SELECT FROM fresh AS f WHERE f.source_id = m.source_id AND f.day = m.day);

INSERT INTO mart.social_kpis_daily AS m (
    source_id, day, follower_count, start_follower_count, new_follower_count, lost_follower_count, net_follower_count, growth_rate,
    read_count, message_count, comment_count, post_count, brand_post_count, reached_count, reach_rate, delivered_count, reader_count,
    read_rate, participation_count, audience_count, participation_rate
)
SELECT
    f.source_id, f.day, f.follower_count, f.start_follower_count, f.new_count, f.lost_count, f.net_count,
    f.net_count::numeric / nullif(f.start_follower_count, 0),
    f.read_count, f.message_count, f.comment_count, f.post_count, f.brand_post_count, f.reached_count,
    f.reached_count::numeric / nullif(f.follower_count, 0),
    f.delivered_count, f.reader_count,
    f.reader_count::numeric / nullif(f.delivered_count, 0),
    f.participation_count, f.audience_count,
    f.participation_count::numeric / nullif(f.audience_count, 0)
FROM fresh AS f
ON CONFLICT (source_id, day) DO UPDATE SET
    follower_count = excluded.follower_count,
    start_follower_count = excluded.start_follower_count,
    new_follower_count = excluded.new_follower_count,
    lost_follower_count = excluded.lost_follower_count,
    net_follower_count = excluded.net_follower_count,
    growth_rate = excluded.growth_rate,
    read_count = excluded.read_count,
    message_count = excluded.message_count,
    comment_count = excluded.comment_count,
    post_count = excluded.post_count,
    brand_post_count = excluded.brand_post_count,
    reached_count = excluded.reached_count,
    reach_rate = excluded.reach_rate,
    delivered_count = excluded.delivered_count,
    reader_count = excluded.reader_count,
    read_rate = excluded.read_rate,
    participation_count = excluded.participation_count,
    audience_count = excluded.audience_count,
    participation_rate = excluded.participation_rate
WHERE
    (
        m.follower_count, m.start_follower_count, m.new_follower_count, m.lost_follower_count, m.net_follower_count, m.read_count,
        m.message_count, m.comment_count, m.post_count, m.brand_post_count, m.reached_count, m.delivered_count, m.reader_count,
        m.participation_count, m.audience_count
    )
    IS DISTINCT FROM (
        excluded.follower_count, excluded.start_follower_count, excluded.new_follower_count, excluded.lost_follower_count,
        excluded.net_follower_count, excluded.read_count, excluded.message_count, excluded.comment_count, excluded.post_count,
        excluded.brand_post_count, excluded.reached_count, excluded.delivered_count, excluded.reader_count,
        excluded.participation_count, excluded.audience_count
    );

INSERT INTO mart.marks (mart, business_date, batch_id)
SELECT 'social_kpis_daily', k.horizon, k.upto_batch_id FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, computed_at = clock_timestamp()
WHERE (marks.business_date, marks.batch_id) IS DISTINCT FROM (excluded.business_date, excluded.batch_id);
