-- push.messages and core.suppression_events: what the platforms and the people reported about messages.
-- Params: now_at, accepted_since, channels, families (arrays, same order).   Reads: core.message_events, push.messages,
--   push.attempts, core.suppression_events.   Rerun: safe.   Grain of the answer: one row with the counts.
-- Some channels never report anything, so accepted messages pile up: those from before `accepted_since` are not looked at any more.
-- A click or an opening proves delivery, also of a message whose answer was lost, or that was reported as failed before.
-- A failure counts only against the account the message is with: what it had from a channel it has left is over.
WITH
open_message AS MATERIALIZED (
    SELECT m.message_key, m.group_key
    FROM push.messages AS m
    WHERE m.state IN ('accepted', 'failed') AND m.accepted_at >= %(accepted_since)s::timestamptz
    UNION ALL
    SELECT m.message_key, m.group_key FROM push.messages AS m WHERE m.state = 'unknown'
),
open_key AS (
    SELECT o.message_key AS key FROM open_message AS o
    UNION ALL
    SELECT o.group_key FROM open_message AS o
),
proof AS (
    SELECT e.message_key, min(e.occurred_at) AS delivered_at
    FROM core.message_events AS e
    WHERE e.kind IN ('delivered', 'opened', 'clicked')
      AND e.message_key IN (SELECT k.key FROM open_key AS k)
    GROUP BY e.message_key
),
refusal AS (
    SELECT DISTINCT ON (e.source_id, e.message_key) e.source_id, e.message_key, e.kind, e.detail, e.occurred_at
    FROM core.message_events AS e
    WHERE e.kind IN ('failed', 'bounced')
      AND e.message_key IN (SELECT k.key FROM open_key AS k)
    ORDER BY e.source_id ASC, e.message_key ASC, e.occurred_at ASC, e.event_id ASC
),
delivered AS (
    UPDATE push.messages AS m
    SET state = 'delivered', delivered_at = p.delivered_at, updated_at = %(now_at)s::timestamptz, last_error = NULL,
        accepted_at = coalesce(   -- of a doubted message when the call was made, not when somebody opened it
            m.accepted_at,
            (SELECT max(a.started_at) FROM push.attempts AS a WHERE a.message_id = m.message_id AND a.outcome = 'unknown'),
            least(p.delivered_at, m.expires_at)
        )
    FROM proof AS p
    WHERE m.message_key = p.message_key
      AND (m.state IN ('accepted', 'unknown') OR (m.state = 'failed' AND m.accepted_at IS NOT NULL))
    RETURNING m.message_id
),
job_delivered AS (   -- a mass send is reported once for all its receivers; one click says nothing about the others
    UPDATE push.messages AS m
    SET state = 'delivered', delivered_at = e.occurred_at, updated_at = %(now_at)s::timestamptz, last_error = NULL
    FROM core.message_events AS e
    WHERE e.message_key = m.group_key AND e.kind = 'delivered'
      AND m.state = 'accepted' AND m.accepted_at >= %(accepted_since)s::timestamptz
    RETURNING m.message_id
),
failed AS (
    UPDATE push.messages AS m
    SET state = 'failed', last_error = left(coalesce(r.detail, r.kind), 300), updated_at = %(now_at)s::timestamptz
    FROM refusal AS r
    WHERE r.source_id = m.account AND (
        (r.message_key IN (m.message_key, m.group_key) AND m.state = 'accepted')
        OR (r.message_key = m.message_key AND m.state = 'unknown')   -- it had gone out after all
    )
      AND NOT EXISTS (SELECT 1 FROM proof AS p WHERE p.message_key = r.message_key)  -- noqa: RF01
    RETURNING m.message_id
),
suppressed AS (   -- a dead mailbox, a person who blocked us, a person who complained: from when they said so
    INSERT INTO core.suppression_events (
        source_id, event_id, channel, kind, address, is_suppressed, reason, origin, evidence, occurred_at
    )
    SELECT DISTINCT ON (e.source_id, e.event_id, f.family, m.address)
        e.source_id, e.event_id || '/' || m.address, f.family, core.address_kind(f.family), m.address, TRUE, e.kind,
        CASE e.kind WHEN 'complained' THEN 'person' ELSE 'platform' END,
        concat_ws(': ', 'message ' || m.message_key, left(e.detail, 200)), e.occurred_at
    FROM core.message_events AS e
    -- not the group's: one mailbox says nothing about the others
    JOIN push.messages AS m ON m.message_key = e.message_key AND m.account = e.source_id
    JOIN unnest(%(channels)s::text[], %(families)s::text[]) AS f (channel, family) ON f.channel = m.channel
    WHERE (e.kind IN ('bounced', 'complained') OR (e.kind = 'failed' AND e.detail LIKE '%%user block%%'))
      AND (e.kind = 'complained' OR NOT EXISTS (  -- noqa: CP03,LT01,LT06
          SELECT 1 FROM core.message_events AS p WHERE p.message_key = e.message_key AND p.kind IN ('delivered', 'opened', 'clicked')
      ))
      AND NOT EXISTS (
          SELECT 1 FROM core.suppression_events AS s
          WHERE s.source_id = e.source_id AND s.event_id = e.event_id || '/' || m.address
      )
    ON CONFLICT (source_id, event_id, channel) DO NOTHING
    RETURNING address
)
SELECT
    (SELECT count(*) FROM delivered) + (SELECT count(*) FROM job_delivered) AS delivered,
    (SELECT count(*) FROM failed) AS failed,
    (SELECT count(*) FROM suppressed) AS suppressed;
