-- Members per lifecycle stage at the end of a business date, and who came and went that day.
-- Grain: one row per stage, from none to advocate.   Params: business_date (date).   Reads: mart.member_stages
WITH
names AS (
    SELECT u.stage, u.position
    FROM unnest(ARRAY['none', 'discovered', 'aware', 'considering', 'choosing', 'purchased', 'satisfied', 'loyal', 'advocate'])
        WITH ORDINALITY AS u (stage, position)
),
standing AS (
    SELECT s.stage, count(*) AS member_count, count(*) FILTER (WHERE s.valid_from = %(business_date)s::date) AS entered_count
    FROM mart.member_stages AS s
    WHERE s.valid_from <= %(business_date)s::date AND (s.valid_to IS NULL OR s.valid_to > %(business_date)s::date)
    GROUP BY s.stage
),
departed AS (
    SELECT s.previous_stage AS stage, count(*) AS left_count
    FROM mart.member_stages AS s
    WHERE s.valid_from = %(business_date)s::date
    GROUP BY s.previous_stage
)
SELECT
    n.stage, n.position, coalesce(s.member_count, 0) AS member_count,
    coalesce(s.member_count, 0)::numeric / nullif(sum(s.member_count) OVER (), 0) AS member_share_rate,
    coalesce(s.entered_count, 0) AS entered_count, coalesce(d.left_count, 0) AS left_count
FROM names AS n
LEFT JOIN standing AS s ON s.stage = n.stage
LEFT JOIN departed AS d ON d.stage = n.stage
ORDER BY n.position ASC;
