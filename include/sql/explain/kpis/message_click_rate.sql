-- message_click_rate: messages with a click / accepted, of those sent in the period.
-- Grain: one row.
-- Params: business_date (date), from_day (date), source_id (text), until_day (date).
-- Reads: core.exposures, core.message_events
-- Rerun: only reads. Recomputes from core what mart.kpi_values holds; source_id '' = all of them.
SELECT count(*) FILTER (WHERE m.is_clicked) AS numerator, count(*) FILTER (WHERE m.is_accepted) AS denominator
FROM (
    -- the platform answers for a mass send as a whole
    SELECT
        x.message_key,
        bool_or(e.kind = 'accepted') AS is_accepted,
        bool_or(e.kind = 'delivered') AS is_delivered,
        bool_or(e.kind = 'clicked') AS is_clicked,
        bool_or(e.kind = 'unsubscribed') AS is_unsubscribed
    FROM core.exposures AS x
    JOIN core.message_events AS e
        ON e.message_key = x.message_key OR (e.message_key = x.group_key AND e.kind IN ('accepted', 'delivered', 'failed'))
    WHERE %(source_id)s::text IN ('', x.channel) AND e.occurred_at < (%(business_date)s::date + 1)::timestamptz
      AND x.exposed_at >= %(from_day)s::date::timestamptz AND x.exposed_at < (%(until_day)s::date + 1)::timestamptz
    GROUP BY x.message_key
) AS m;
