-- The retrospective report of a run as it was made: its figures and its page.
-- Grain: one row, or none.   Params: run_id (text).   Reads: push.retrospectives
SELECT p.business_date, p.made_at, p.facts, p.html
FROM push.retrospectives AS p
WHERE p.run_id = %(run_id)s::text;
