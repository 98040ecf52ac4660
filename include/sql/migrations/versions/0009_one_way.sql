-- What was written twice is said once: what every source told last, and the light of a KPI.

-- The newest event of each source between two instants, until_at left out. Grain: one row per source_id, kind and is_order.
-- kind: what such news counts for (shop, social, pages); is_order: orders, which a shop that reads them is judged by.
CREATE FUNCTION core.source_news(since_at timestamptz, until_at timestamptz)
RETURNS TABLE (kind text, is_order boolean, source_id text, told_at timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT 'shop', TRUE, o.source_id, max(o.created_at)
    FROM core.orders AS o WHERE o.created_at >= since_at AND o.created_at < until_at
    GROUP BY o.source_id
    UNION ALL
    SELECT 'shop', FALSE, r.source_id, max(r.created_at)
    FROM core.refunds AS r WHERE r.created_at >= since_at AND r.created_at < until_at
    GROUP BY r.source_id
    UNION ALL
    SELECT 'shop', FALSE, v.source_id, max(v.created_at)
    FROM core.reviews AS v WHERE v.created_at >= since_at AND v.created_at < until_at
    GROUP BY v.source_id
    UNION ALL
    SELECT 'social', FALSE, d.source_id, max(d.stat_date)::timestamptz
    FROM core.social_stats_daily AS d WHERE d.stat_date >= since_at::date AND d.stat_date < until_at::date
    GROUP BY d.source_id
    UNION ALL
    SELECT 'social', FALSE, f.source_id, max(f.occurred_at)
    FROM core.follow_events AS f WHERE f.occurred_at >= since_at AND f.occurred_at < until_at
    GROUP BY f.source_id
    UNION ALL
    SELECT 'social', FALSE, p.source_id, max(p.published_at)
    FROM core.social_posts AS p WHERE p.published_at >= since_at AND p.published_at < until_at
    GROUP BY p.source_id
    UNION ALL
    SELECT 'social', FALSE, c.source_id, max(c.created_at)
    FROM core.social_comments AS c WHERE c.created_at >= since_at AND c.created_at < until_at
    GROUP BY c.source_id
    UNION ALL
    SELECT 'pages', FALSE, i.source_id, max(i.occurred_at)
    FROM core.interactions AS i WHERE i.occurred_at >= since_at AND i.occurred_at < until_at
    GROUP BY i.source_id
    UNION ALL
    SELECT 'pages', FALSE, q.source_id, max(q.occurred_at)
    FROM core.consents AS q WHERE q.occurred_at >= since_at AND q.occurred_at < until_at
    GROUP BY q.source_id
$$;

-- The light of a figure against its target. direction: up (more is better), down. 'none' where nothing is wanted or known.
CREATE FUNCTION mart.kpi_light(value numeric, target numeric, amber_margin numeric, direction text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN value IS NULL OR target IS NULL THEN 'none'
        WHEN direction = 'up' AND value >= target OR direction = 'down' AND value <= target THEN 'green'
        WHEN direction = 'up' AND value >= target - amber_margin OR direction = 'down' AND value <= target + amber_margin THEN 'amber'
        ELSE 'red'
    END
$$;
