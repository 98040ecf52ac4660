-- What nights have corrected in a KPI's past: of the days of a period.
-- Grain: one row per correction, the newest first.
-- Params: kpi (text), source_id (text), from_day (date), until_day (date).
-- Reads: mart.restatements
SELECT r.business_date, r.day_from AS day, r.before, r.after
FROM mart.restatements AS r
WHERE
    r.about = 'kpi' AND r.subject = %(kpi)s::text AND r.source_id = %(source_id)s::text
    AND r.day_from >= %(from_day)s::date AND r.day_from <= %(until_day)s::date
ORDER BY r.business_date DESC, r.day_from DESC, r.restatement_id DESC
LIMIT 20;
