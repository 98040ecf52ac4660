-- No platform's pushes were refused for their signature since the business date began.
-- Table: raw.push_refusals. Severity: warn.
-- Params: business_date (date).
-- Reads: raw.push_refusals
-- A few are somebody who tries; many are a token that was changed on one side only, and then events are being lost.
WITH
refused AS (
    SELECT r.source_id, sum(r.refused_count) AS refused_count
    FROM raw.push_refusals AS r
    WHERE r.counted_at >= %(business_date)s::date::timestamptz AND r.counted_at < (%(business_date)s::date + 2)::timestamptz
    GROUP BY r.source_id
)
SELECT
    count(*) = 0 AS is_passed,
    coalesce(string_agg(r.source_id || ': ' || r.refused_count || ' refused', ', ' ORDER BY r.source_id), 'none refused') AS observed
FROM refused AS r;
