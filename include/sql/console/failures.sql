-- Tasks that failed for good in the night of a business date; a task that was cleared may have succeeded since.
-- Grain: one row per task, the latest failure.   Params: business_date (date).   Reads: push.audit_log
-- The subject is dag/run/task; the sentence is the one the alert gave.
SELECT
    a.subject,
    split_part(a.subject, '/', 1) AS dag_id,
    split_part(a.subject, '/', 3) AS task_id,
    (array_agg(a.detail ->> 'sentence' ORDER BY a.audit_id DESC))[1] AS sentence,
    count(*) AS failure_count,
    max(a.occurred_at) AS failed_at
FROM push.audit_log AS a
WHERE
    a.action = 'task_failed'
    AND a.occurred_at >= (%(business_date)s::date + 1)::timestamptz
    AND a.occurred_at < (%(business_date)s::date + 2)::timestamptz
GROUP BY a.subject
ORDER BY failed_at DESC, a.subject ASC;
