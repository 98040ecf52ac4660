-- Messages queued in the nights asked for, by campaign, step, channel and the state they are in now.
-- Grain: one row per campaign, mode, step, channel and state.   Params: first_day, last_day (business dates, inclusive).
-- Reads: push.messages, push.campaign_runs
SELECT
    r.campaign, r.mode, m.step, m.channel, m.purpose, m.state, count(*) AS message_count
FROM push.messages AS m
INNER JOIN push.campaign_runs AS r ON m.run_id = r.run_id
WHERE
    m.queued_at >= (%(first_day)s::date + 1)::timestamptz
    AND m.queued_at < (%(last_day)s::date + 2)::timestamptz
GROUP BY r.campaign, r.mode, m.step, m.channel, m.purpose, m.state
ORDER BY r.campaign ASC, m.step ASC, m.channel ASC, m.state ASC;
