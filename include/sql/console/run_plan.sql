-- What a run set out to do, as it was frozen: arms with their shares, targets, the length of its window.
-- Grain: one row, or none.   Params: run_id (text).   Reads: push.campaign_runs
SELECT
    r.config #>> '{campaign,owner}' AS owner,
    r.config #> '{campaign,variants}' AS variants,
    (r.config #>> '{campaign,holdout_share}')::numeric AS holdout_share,
    (r.config #>> '{campaign,attribution_days}')::integer AS attribution_days,
    -- runs of before there were targets have the one of the uplift
    coalesce(
        r.config #> '{campaign,targets}', jsonb_build_object('uplift_rate', r.config #> '{campaign,target_uplift_rate}')
    ) AS targets,
    r.report #> '{experiment}' AS forecast
FROM push.campaign_runs AS r
WHERE r.run_id = %(run_id)s::text;
