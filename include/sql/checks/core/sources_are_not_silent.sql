-- No source that has been read for long enough has been silent for longer than we can act without it.
-- Table: core.accounts. Severity: fail.
-- Params: business_date (date), silence (jsonb: source_id, fail_days).
-- Reads: core.accounts, core.orders, core.refunds, core.reviews, core.interactions, core.consents, core.follow_events,
--   core.social_posts, core.social_comments, core.social_stats_daily, raw.batches
-- By event times up to the business date: of a shop its newest order (where no orders are read, refund or review), of a social account
-- a follower who came or left, a post, a comment or a daily figure, of our pages a click or a consent.
-- `silence` stands in the block of the source; sources_are_fresh tells of it earlier. A new source has time to begin.
WITH
watched AS (
    SELECT
        a.source_id, a.kind, w.fail_days, coalesce(a.streams && '{orders,trades}', TRUE) AS has_orders,
        (%(business_date)s::date + 1)::timestamptz AS until_at,
        (%(business_date)s::date - max(w.fail_days) OVER ())::timestamptz AS from_at
    FROM core.accounts AS a
    JOIN jsonb_to_recordset(%(silence)s::jsonb) AS w (source_id text, fail_days integer) ON w.source_id = a.source_id
    WHERE a.is_active AND w.fail_days IS NOT NULL
),
span AS (SELECT min(w.from_at) AS from_at, min(w.until_at) AS until_at FROM watched AS w),
newest AS (
    SELECT 'shop' AS kind, TRUE AS is_order, o.source_id, max(o.created_at) AS told_at
    FROM span AS s JOIN core.orders AS o ON o.created_at >= s.from_at AND o.created_at < s.until_at
    GROUP BY o.source_id
    UNION ALL
    SELECT 'shop', FALSE, r.source_id, max(r.created_at)
    FROM span AS s JOIN core.refunds AS r ON r.created_at >= s.from_at AND r.created_at < s.until_at
    GROUP BY r.source_id
    UNION ALL
    SELECT 'shop', FALSE, v.source_id, max(v.created_at)
    FROM span AS s JOIN core.reviews AS v ON v.created_at >= s.from_at AND v.created_at < s.until_at
    GROUP BY v.source_id
    UNION ALL
    SELECT 'social', FALSE, d.source_id, max(d.stat_date)::timestamptz
    FROM span AS s JOIN core.social_stats_daily AS d ON d.stat_date >= s.from_at::date AND d.stat_date < s.until_at::date
    GROUP BY d.source_id
    UNION ALL
    SELECT 'social', FALSE, f.source_id, max(f.occurred_at)
    FROM span AS s JOIN core.follow_events AS f ON f.occurred_at >= s.from_at AND f.occurred_at < s.until_at
    GROUP BY f.source_id
    UNION ALL
    SELECT 'social', FALSE, p.source_id, max(p.published_at)
    FROM span AS s JOIN core.social_posts AS p ON p.published_at >= s.from_at AND p.published_at < s.until_at
    GROUP BY p.source_id
    UNION ALL
    SELECT 'social', FALSE, c.source_id, max(c.created_at)
    FROM span AS s JOIN core.social_comments AS c ON c.created_at >= s.from_at AND c.created_at < s.until_at
    GROUP BY c.source_id
    UNION ALL
    SELECT 'pages', FALSE, i.source_id, max(i.occurred_at)
    FROM span AS s JOIN core.interactions AS i ON i.occurred_at >= s.from_at AND i.occurred_at < s.until_at
    GROUP BY i.source_id
    UNION ALL
    SELECT 'pages', FALSE, q.source_id, max(q.occurred_at)
    FROM span AS s JOIN core.consents AS q ON q.occurred_at >= s.from_at AND q.occurred_at < s.until_at
    GROUP BY q.source_id
),
judged AS (
    SELECT w.source_id, w.fail_days, max(n.told_at)::date AS told_date
    FROM watched AS w
    LEFT JOIN newest AS n ON n.source_id = w.source_id AND n.kind = w.kind AND (n.is_order OR w.kind <> 'shop' OR NOT w.has_orders)
    WHERE EXISTS (
        SELECT FROM raw.batches AS b
        WHERE b.source_id = w.source_id AND b.loaded_at < (%(business_date)s::date - w.fail_days)::timestamptz
    )
    GROUP BY w.source_id, w.fail_days
)
SELECT
    coalesce(bool_and(%(business_date)s::date - j.told_date <= j.fail_days AND j.told_date IS NOT NULL), TRUE) AS is_passed,
    coalesce(
        string_agg(
            j.source_id || ': newest is ' || coalesce('of ' || j.told_date, 'too long ago')
            || ', the night stops after ' || j.fail_days || ' days', ', ' ORDER BY j.source_id
        ) FILTER (WHERE j.told_date IS NULL OR %(business_date)s::date - j.told_date > j.fail_days),
        count(*) || ' sources are heard'
    ) AS observed
FROM judged AS j;
