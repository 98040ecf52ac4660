-- One run with the instant its attribution window closes.
-- Grain: one row, or none.   Params: run_id (text).   Reads: push.campaign_runs, core.exposures,
--   push.retrospectives
SELECT
    r.run_id,
    r.campaign,
    coalesce(r.config #>> '{campaign,title,zh}', r.campaign) AS title_zh,
    coalesce(r.config #>> '{campaign,title,en}', r.campaign) AS title_en,
    CASE WHEN r.config -> 'campaign' ? 'journey' THEN 'journey' ELSE 'campaign' END AS kind,
    r.mode, r.as_of, r.as_of_at, r.state, r.needs_approval, r.approved_by, r.approved_at,
    r.decision_reason, r.size_limit, r.created_by, r.created_at, r.expires_at, r.finished_at, r.audience_checksum,
    r.content_hash, r.config_hash,
    (SELECT max(e.attribution_until) FROM core.exposures AS e WHERE e.run_id = r.run_id) AS attribution_until,
    (SELECT p.made_at FROM push.retrospectives AS p WHERE p.run_id = r.run_id) AS reported_at
FROM push.campaign_runs AS r
WHERE r.run_id = %(run_id)s::text;
