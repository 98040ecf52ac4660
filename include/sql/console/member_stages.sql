-- A member's way through the lifecycle stages up to a date, newest first.
-- Grain: one row per stretch.   Params: member_id (bigint), as_of (date).   Reads: mart.member_stages
SELECT s.valid_from, s.valid_to, s.stage, s.previous_stage, s.reason, s.valid_to IS NULL OR s.valid_to > %(as_of)s::date AS is_standing
FROM mart.member_stages AS s
WHERE s.member_id = %(member_id)s::bigint AND s.valid_from <= %(as_of)s::date
ORDER BY s.valid_from DESC;
