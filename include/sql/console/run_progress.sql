-- How far a run is: what went out, what is left, how fast it went in the last minute, and when it will be done at that pace.
-- Grain: one row.   Params: run_id (text), now_at (timestamptz).   Reads: push.campaign_runs, push.messages
SELECT
    r.run_id, r.state, r.paused_at, r.paused_by, r.pause_reason, r.expires_at,
    m.message_count, m.sent_count, m.remaining_count, m.failed_count, m.unknown_count, m.cancelled_count,
    m.minute_count / 60.0 AS sent_per_second,
    CASE WHEN r.state = 'sending' AND r.paused_at IS NULL AND m.minute_count > 0
        THEN %(now_at)s::timestamptz + make_interval(secs => m.remaining_count * 60.0 / m.minute_count) END AS eta_at,
    m.next_at, m.last_sent_at
FROM push.campaign_runs AS r
CROSS JOIN LATERAL (
    SELECT
        count(*) AS message_count,
        count(*) FILTER (WHERE o.accepted_at IS NOT NULL) AS sent_count,
        count(*) FILTER (WHERE o.state IN ('queued', 'sending')) AS remaining_count,
        count(*) FILTER (WHERE o.state IN ('failed', 'expired', 'suppressed')) AS failed_count,
        count(*) FILTER (WHERE o.state = 'unknown') AS unknown_count,
        count(*) FILTER (WHERE o.state = 'cancelled') AS cancelled_count,
        count(*) FILTER (WHERE o.accepted_at > %(now_at)s::timestamptz - interval '1 minute') AS minute_count,
        min(o.not_before) FILTER (WHERE o.state = 'queued') AS next_at,
        max(o.accepted_at) AS last_sent_at
    FROM push.messages AS o
    WHERE o.run_id = r.run_id
) AS m
WHERE r.run_id = %(run_id)s::text;
