-- Messages a person should look at: unknown outcome, failed, stuck in sending, waiting for staff.
-- Grain: one row per campaign, channel, state and last error.   Params: business_date (date).
-- Reads: push.messages, push.campaign_runs
-- Counts messages queued up to the end of the night; 'sending' only when its lease had run out by then.
SELECT
    r.campaign,
    m.channel,
    m.state,
    coalesce(m.last_error, '') AS last_error,
    count(*) AS message_count,
    count(*) FILTER (WHERE m.queued_at >= (%(business_date)s::date + 1)::timestamptz) AS new_count,
    max(m.updated_at) AS updated_at
FROM push.messages AS m
INNER JOIN push.campaign_runs AS r ON m.run_id = r.run_id
WHERE
    m.queued_at < (%(business_date)s::date + 2)::timestamptz
    AND (
        m.state IN ('unknown', 'failed', 'waiting_staff')
        OR (m.state = 'sending' AND m.lease_until < (%(business_date)s::date + 2)::timestamptz)
    )
GROUP BY r.campaign, m.channel, m.state, coalesce(m.last_error, '')
ORDER BY message_count DESC, r.campaign ASC, m.channel ASC;
