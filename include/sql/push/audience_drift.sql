-- What the same question gives today, against the frozen audience: who is in the campaign, held out, on another channel or in another arm.
-- Grain: one row. Excluded and not in the segment is the same here: no message either way.
-- Params: run_id.   Reads: push.audiences, audience_again (temporary, as push.audiences)
WITH
then_in AS (
    SELECT a.member_id, a.state, a.channel, a.variant, a.language
    FROM push.audiences AS a
    WHERE a.run_id = %(run_id)s::text AND a.state <> 'excluded'
),
now_in AS (
    SELECT a.member_id, a.state, a.channel, a.variant, a.language
    FROM audience_again AS a
    WHERE a.state <> 'excluded'
)
SELECT
    count(*) AS member_count,
    count(*) FILTER (WHERE t.member_id IS NULL) AS entered_count,
    count(*) FILTER (WHERE n.member_id IS NULL) AS left_count,
    count(*) FILTER (
        WHERE t.member_id IS NOT NULL AND n.member_id IS NOT NULL
          AND (t.state, t.channel, t.variant, t.language) IS DISTINCT FROM (n.state, n.channel, n.variant, n.language)
    ) AS moved_count
FROM then_in AS t
FULL JOIN now_in AS n ON n.member_id = t.member_id;
