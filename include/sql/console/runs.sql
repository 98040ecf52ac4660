-- Runs of campaigns and journeys: those of the nights asked for, and live ones whose effect was still being counted then.
-- Grain: one row per run.   Params: first_day, last_day (business dates, inclusive), limit_rows (int).
-- Reads: push.campaign_runs, push.audiences, push.messages, core.exposures
SELECT
    r.run_id,
    r.campaign,
    coalesce(r.config #>> '{campaign,title,zh}', r.campaign) AS title_zh,
    coalesce(r.config #>> '{campaign,title,en}', r.campaign) AS title_en,
    CASE WHEN r.config -> 'campaign' ? 'journey' THEN 'journey' ELSE 'campaign' END AS kind,
    r.mode, r.as_of, r.state, r.needs_approval, r.approved_by, r.approved_at, r.decision_reason,
    r.size_limit, r.created_by, r.created_at, r.expires_at, r.finished_at, r.paused_at, r.audience_checksum, r.content_hash,
    c.attribution_until,
    (SELECT count(*) FROM push.audiences AS a WHERE a.run_id = r.run_id) AS segment_count,
    (SELECT count(*) FROM push.audiences AS a WHERE a.run_id = r.run_id AND a.state = 'targeted') AS targeted_count,
    (SELECT count(*) FROM push.messages AS m WHERE m.run_id = r.run_id) AS message_count,
    (
        SELECT count(*) FROM push.messages AS m
        WHERE m.run_id = r.run_id AND m.state IN ('accepted', 'delivered')
    ) AS accepted_count
FROM push.campaign_runs AS r
LEFT JOIN LATERAL (
    SELECT max(e.attribution_until) AS attribution_until FROM core.exposures AS e
    WHERE e.run_id = r.run_id AND r.mode = 'live'
) AS c ON TRUE
WHERE
    r.created_at < (%(last_day)s::date + 2)::timestamptz
    AND (
        r.created_at >= (%(first_day)s::date + 1)::timestamptz
        OR (r.mode = 'live' AND c.attribution_until >= %(first_day)s::date::timestamptz)
    )
ORDER BY r.created_at DESC, r.run_id ASC
LIMIT %(limit_rows)s::int;
