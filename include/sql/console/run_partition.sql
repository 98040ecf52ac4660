-- Where every member of a run's segment stands: exactly one line each, so the counts add up to the segment.
-- Grain: one row per state and reason.   Params: run_id (text).   Reads: push.audiences, push.messages
-- A targeted member stands where its message stands ('planned' before there is one); with several steps, the first one.
WITH
first_message AS (
    SELECT DISTINCT ON (m.member_id) m.member_id, m.state
    FROM push.messages AS m
    WHERE m.run_id = %(run_id)s::text
    ORDER BY m.member_id ASC, m.message_id ASC
),
placed AS (
    SELECT
        CASE a.state WHEN 'targeted' THEN coalesce(m.state, 'planned') ELSE a.state END AS state,
        a.reason,
        a.state AS audience_state
    FROM push.audiences AS a
    LEFT JOIN first_message AS m ON a.member_id = m.member_id
    WHERE a.run_id = %(run_id)s::text
)
SELECT
    p.audience_state,
    p.state,
    p.reason,
    count(*) AS member_count,
    count(*)::numeric / sum(count(*)) OVER () AS member_share_rate
FROM placed AS p
GROUP BY p.audience_state, p.state, p.reason
ORDER BY array_position(ARRAY['targeted', 'holdout', 'excluded'], p.audience_state) ASC, member_count DESC,
    p.state ASC, p.reason ASC;
