-- What a run may cost beyond its first channels, when messages go on over the next ones.
-- Grain: one row.   Params: run_id, channels, costs (arrays, same order; yuan for the longest message), is_second (boolean: a second
--   message may follow an accepted one, so both are paid; else only the one that is not refused).
-- Reads: push.audiences.   Rerun: reads only.
WITH
price AS (
    SELECT p.channel, p.cost FROM unnest(%(channels)s::text[], %(costs)s::numeric[]) AS p (channel, cost)
)
SELECT
    coalesce(sum(greatest(dearest.cost - CASE WHEN %(is_second)s::boolean THEN 0 ELSE f.cost END, 0)), 0) AS amount
FROM push.audiences AS a
JOIN price AS f ON f.channel = a.channel
CROSS JOIN LATERAL (
    SELECT max(p.cost) AS cost
    FROM jsonb_array_elements(a.routes) AS r (route)
    JOIN price AS p ON p.channel = r.route ->> 'channel'
) AS dearest
WHERE a.run_id = %(run_id)s::text AND a.state = 'targeted';
