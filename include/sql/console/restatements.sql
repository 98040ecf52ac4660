-- What the night of a business date found out about earlier days, and whom messages had reached on what was wrong.
-- Grain: one row per kind and subject.   Params: business_date (date).   Reads: mart.restatements, core.exposures
SELECT
    r.about, r.subject, count(*) AS row_count, count(DISTINCT r.member_id) AS member_count, min(r.day_from) AS day_from,
    max(r.day_to) AS day_to,
    count(DISTINCT x.member_id) AS messaged_count
FROM mart.restatements AS r
LEFT JOIN core.exposures AS x
    ON x.member_id = r.member_id AND r.about = 'tier' AND x.arm = 'treatment'
    AND x.as_of >= r.day_from AND (r.day_to IS NULL OR x.as_of < r.day_to)
WHERE r.business_date = %(business_date)s::date
GROUP BY r.about, r.subject
ORDER BY row_count DESC, r.about ASC, r.subject ASC;
