-- push.messages and push.suppressions: what the platforms and the people reported about messages.
-- Params: now_at.   Reads: core.message_events.   Rerun: safe.   Grain of the answer: one row with the counts.
-- A click or an opening proves delivery, also of a message whose answer was lost.
WITH
proof AS (
    SELECT e.message_key, min(e.occurred_at) AS delivered_at
    FROM core.message_events AS e
    WHERE e.kind IN ('delivered', 'opened', 'clicked')
    GROUP BY e.message_key
),
refusal AS (
    SELECT DISTINCT ON (e.message_key) e.message_key, e.kind, e.detail, e.occurred_at
    FROM core.message_events AS e
    WHERE e.kind IN ('failed', 'bounced')
    ORDER BY e.message_key ASC, e.occurred_at ASC, e.event_id ASC
),
delivered AS (
    UPDATE push.messages AS m
    SET state = 'delivered', delivered_at = p.delivered_at, updated_at = %(now_at)s::timestamptz, last_error = NULL,
        accepted_at = coalesce(m.accepted_at, p.delivered_at)
    FROM proof AS p
    WHERE m.message_key = p.message_key AND m.state IN ('accepted', 'unknown')
    RETURNING m.message_id
),
job_delivered AS (   -- a mass send is reported once for all its receivers; one click says nothing about the others
    UPDATE push.messages AS m
    SET state = 'delivered', delivered_at = e.occurred_at, updated_at = %(now_at)s::timestamptz, last_error = NULL
    FROM core.message_events AS e
    WHERE e.message_key = m.group_key AND e.kind = 'delivered' AND m.state = 'accepted'
    RETURNING m.message_id
),
failed AS (
    UPDATE push.messages AS m
    SET state = 'failed', last_error = left(coalesce(r.detail, r.kind), 300), updated_at = %(now_at)s::timestamptz
    FROM refusal AS r
    WHERE r.message_key IN (m.message_key, m.group_key) AND m.state = 'accepted'
      AND NOT EXISTS (SELECT 1 FROM proof AS p WHERE p.message_key = r.message_key)  -- noqa: RF01
    RETURNING m.channel, m.address, r.kind, r.detail
),
suppressed AS (   -- a dead mailbox, or a person who blocked us
    INSERT INTO push.suppressions (channel, address, reason, source, since)
    SELECT CASE WHEN f.channel = 'email' THEN 'email' ELSE 'wechat' END, f.address, f.kind, 'receipt', %(now_at)s::timestamptz
    FROM failed AS f
    WHERE f.kind = 'bounced' OR f.detail LIKE '%%user block%%'
    ON CONFLICT (channel, address, reason) DO NOTHING
    RETURNING address
)
SELECT
    (SELECT count(*) FROM delivered) + (SELECT count(*) FROM job_delivered) AS delivered,
    (SELECT count(*) FROM failed) AS failed,
    (SELECT count(*) FROM suppressed) AS suppressed;
