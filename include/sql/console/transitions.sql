-- Where the members of each state at the end of a month stood at the end of the next: the monthly transition matrix.
-- Grain: one row per pair of states.   Params: month (date, its first day), about (text: stage, tier or rfm).
-- Reads: mart.stage_transitions
SELECT t.state_from, t.state_to, t.member_count, t.member_rate
FROM mart.stage_transitions AS t
WHERE t.month = %(month)s::date AND t.about = %(about)s::text
ORDER BY t.state_from ASC, t.member_count DESC, t.state_to ASC;
