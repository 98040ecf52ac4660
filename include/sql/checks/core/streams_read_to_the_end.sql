-- Every stream of an active source has been read to the end of the business date.
-- Table: raw.cursors. Severity: fail.
-- Params: business_date (date).
-- Reads: raw.cursors, core.accounts
-- Half a day of orders makes wrong tiers and wrong segments, and nobody would see it.
SELECT
    count(*) = 0 AS is_passed,
    coalesce(
        string_agg(
            c.source_id || ' ' || c.stream || ' was read to ' || to_char(c.watermark, 'YYYY-MM-DD HH24:MI'),
            ', ' ORDER BY c.source_id, c.stream
        ),
        'all read'
    ) AS observed
FROM raw.cursors AS c
LEFT JOIN core.accounts AS a ON a.source_id = c.source_id
WHERE coalesce(a.is_active, TRUE) AND c.watermark < (%(business_date)s::date + 1)::timestamptz;
