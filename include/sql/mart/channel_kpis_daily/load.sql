-- mart.channel_kpis_daily: what became of the messages of each channel, by the day of sending, as known at the end of the business date.
-- Grain: one row per channel and day of sending (Asia/Shanghai) with at least one message.
-- Params: business_date (date).
-- Reads: core.exposures, core.message_events, mart.touched_days, mart.touched_facts, mart.channel_kpis_daily, mart.marks
-- Rerun: safe; rows that do not differ are not rewritten. A night computes the days that were touched, are new, or whose messages
-- were answered since; without a mark, all. All figures ripen; a run for an older date computes with what the newest night knew
-- (docs/decisions/0064-kpi-days.md).
-- The day of sending is the day the run's first message was accepted (docs/decisions/0037-exposures.md). The platform answers for
-- a mass send as a whole: its answer is every receiver's.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    (greatest(%(business_date)s::date, m.business_date) + 1)::timestamptz AS ends_at,
    m.business_date AS since,
    (m.business_date + 1)::timestamptz AS since_at,
    coalesce(m.batch_id, 0) AS after_batch_id,
    greatest(
        m.batch_id, coalesce((SELECT max(t.batch_id) FROM mart.touched_days AS t), 0),
        (SELECT max(t.batch_id) FROM mart.touched_facts AS t)
    ) AS upto_batch_id,
    m.mart IS NULL AS is_full
FROM (SELECT 'channel_kpis_daily' AS mart) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;
ANALYZE mark;

DROP TABLE IF EXISTS pg_temp.scope_days;
CREATE TEMPORARY TABLE scope_days ON COMMIT DROP AS
SELECT s.day
FROM (
    SELECT t.day
    FROM mart.touched_facts AS t
    CROSS JOIN mark AS k
    WHERE t.about = 'message' AND t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id
    UNION
    SELECT d::date
    FROM mark AS k
    CROSS JOIN generate_series(k.since + 1, k.horizon, interval '1 day') AS d
    UNION
    SELECT x.exposed_at::date
    FROM mark AS k
    JOIN core.message_events AS e ON e.occurred_at >= k.since_at AND e.occurred_at < k.ends_at
    JOIN core.exposures AS x ON x.message_key = e.message_key
    UNION
    SELECT x.exposed_at::date
    FROM mark AS k
    JOIN core.message_events AS e ON e.occurred_at >= k.since_at AND e.occurred_at < k.ends_at
    JOIN core.exposures AS x ON x.group_key = e.message_key
) AS s
CROSS JOIN mark AS h
WHERE s.day <= h.horizon;

DROP TABLE IF EXISTS pg_temp.ranges;
CREATE TEMPORARY TABLE ranges ON COMMIT DROP AS
SELECT min(i.day)::timestamptz AS from_at, (max(i.day) + 1)::timestamptz AS until_at
FROM (SELECT d.day, d.day - row_number() OVER (ORDER BY d.day ASC)::integer AS island FROM scope_days AS d) AS i
CROSS JOIN mark AS k
WHERE NOT k.is_full
GROUP BY i.island
UNION ALL
SELECT '-infinity'::timestamptz, k.ends_at FROM mark AS k WHERE k.is_full;
ANALYZE ranges;

DROP TABLE IF EXISTS pg_temp.sent;
CREATE TEMPORARY TABLE sent ON COMMIT DROP AS
SELECT x.channel, x.exposed_at::date AS day, x.message_key, x.group_key, x.cost_amount
FROM ranges AS r
JOIN core.exposures AS x ON x.exposed_at >= r.from_at AND x.exposed_at < r.until_at
WHERE x.channel IS NOT NULL AND x.message_key IS NOT NULL;
ANALYZE sent;

DROP TABLE IF EXISTS pg_temp.fresh;
CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
WITH
answers AS (
    SELECT s.message_key, e.kind, max(e.occurred_at) AS occurred_at
    FROM sent AS s
    JOIN core.message_events AS e ON e.message_key = s.message_key
    JOIN mark AS k ON e.occurred_at < k.ends_at
    GROUP BY s.message_key, e.kind
    UNION ALL
    SELECT s.message_key, e.kind, max(e.occurred_at)
    FROM sent AS s
    JOIN core.message_events AS e ON e.message_key = s.group_key AND e.kind IN ('accepted', 'delivered', 'failed')
    JOIN mark AS k ON e.occurred_at < k.ends_at
    GROUP BY s.message_key, e.kind
),
messages AS (
    SELECT
        message_key,
        bool_or(kind = 'accepted') AS is_accepted,
        bool_or(kind = 'delivered') AS is_delivered,
        bool_or(kind IN ('failed', 'bounced')) AS is_failed,
        bool_or(kind = 'opened') AS is_opened,
        bool_or(kind = 'clicked') AS is_clicked,
        bool_or(kind = 'unsubscribed') AS is_unsubscribed,
        max(occurred_at) AS last_at
    FROM answers
    GROUP BY message_key
)
SELECT
    s.channel,
    s.day,
    greatest(s.day, max(m.last_at)::date) AS business_date,
    count(*) AS message_count,
    count(*) FILTER (WHERE m.is_accepted) AS accepted_count,
    count(*) FILTER (WHERE m.is_delivered) AS delivered_count,
    count(*) FILTER (WHERE m.is_failed) AS failed_count,
    count(*) FILTER (WHERE m.is_opened) AS opened_count,
    count(*) FILTER (WHERE m.is_clicked) AS clicked_count,
    count(*) FILTER (WHERE m.is_unsubscribed) AS unsubscribed_count,
    trim_scale(sum(s.cost_amount)) AS cost_amount
FROM sent AS s
LEFT JOIN messages AS m ON m.message_key = s.message_key
GROUP BY s.channel, s.day;

DELETE FROM mart.channel_kpis_daily AS m
USING mark AS k
WHERE
    (k.is_full OR EXISTS (SELECT FROM scope_days AS d WHERE d.day = m.day))
    AND NOT EXISTS (SELECT FROM fresh AS f WHERE f.channel = m.channel AND f.day = m.day);

INSERT INTO mart.channel_kpis_daily AS m (
    channel, day, business_date, message_count, accepted_count, delivered_count, failed_count, opened_count, clicked_count,
    unsubscribed_count, cost_amount
)
SELECT
    f.channel, f.day, f.business_date, f.message_count, f.accepted_count, f.delivered_count, f.failed_count, f.opened_count,
    f.clicked_count, f.unsubscribed_count, f.cost_amount
FROM fresh AS f
ON CONFLICT (channel, day) DO UPDATE SET
    business_date = excluded.business_date,
    message_count = excluded.message_count,
    accepted_count = excluded.accepted_count,
    delivered_count = excluded.delivered_count,
    failed_count = excluded.failed_count,
    opened_count = excluded.opened_count,
    clicked_count = excluded.clicked_count,
    unsubscribed_count = excluded.unsubscribed_count,
    cost_amount = excluded.cost_amount
WHERE
    (
        m.business_date, m.message_count, m.accepted_count, m.delivered_count, m.failed_count, m.opened_count, m.clicked_count,
        m.unsubscribed_count, m.cost_amount
    )
    IS DISTINCT FROM (
        excluded.business_date, excluded.message_count, excluded.accepted_count, excluded.delivered_count, excluded.failed_count,
        excluded.opened_count, excluded.clicked_count, excluded.unsubscribed_count, excluded.cost_amount
    );

INSERT INTO mart.marks (mart, business_date, batch_id)
SELECT 'channel_kpis_daily', k.horizon, k.upto_batch_id FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = excluded.batch_id, computed_at = clock_timestamp()
WHERE (marks.business_date, marks.batch_id) IS DISTINCT FROM (excluded.business_date, excluded.batch_id);
