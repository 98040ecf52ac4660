-- How many members are known by how many identities, and by which kinds, at the end of a business date (by who is who today).
-- Grain: one row per number of identities and set of kinds; most members first.   Params: business_date (date).
-- Reads: core.members, core.member_identities, core.identities
-- Units: member_count members; member_rate share of all members (0..1).
WITH
known AS (
    SELECT
        mi.member_id, count(*) AS identity_count,
        array_agg(DISTINCT i.kind ORDER BY i.kind) AS kinds
    FROM core.members AS m
    JOIN core.member_identities AS mi ON mi.member_id = m.member_id
    JOIN core.identities AS i ON i.identity_id = mi.identity_id AND i.first_seen_at < (%(business_date)s::date + 1)::timestamptz
    WHERE m.absorbed_by IS NULL
    GROUP BY mi.member_id
),
counted AS (SELECT k.identity_count, k.kinds, count(*) AS member_count FROM known AS k GROUP BY k.identity_count, k.kinds)
SELECT
    c.identity_count, array_to_string(c.kinds, ' + ') AS kinds, c.member_count,
    round(c.member_count / sum(c.member_count) OVER (), 4) AS member_rate
FROM counted AS c
ORDER BY c.member_count DESC, c.identity_count ASC, c.kinds ASC;
