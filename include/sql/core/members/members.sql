-- core.members, core.member_identities, core.member_merges: identities that shared evidence ties together are one person.
-- Grain: one member per connected group of identities; one row of member_identities per identity; one merge per absorbed member.
-- Params: as_of_at (timestamptz; stamps links and merges).
-- Reads: core.identities, core.identity_links, core.members, core.member_identities
-- Rerun: safe; solves only groups that new evidence touches, and a full rebuild gives the same groups.
-- Guard: a value that more than 10 identities of one other kind share (a courier's phone) links nothing; a group that such a
-- value had held together is taken apart again, and so is one whose link was revoked (docs/decisions/0014-members.md).
SELECT pg_advisory_xact_lock(hashtextextended('core.members', 0));  -- one after the other

DROP TABLE IF EXISTS pg_temp.valid_links;
CREATE TEMPORARY TABLE valid_links ON COMMIT DROP AS
WITH
limits AS (SELECT 10 AS identities_per_kind),
ends AS (
    SELECT l.identity_a AS identity_id, l.identity_b AS other_id FROM core.identity_links AS l WHERE l.revoked_at IS NULL
    UNION
    SELECT l.identity_b, l.identity_a FROM core.identity_links AS l WHERE l.revoked_at IS NULL
),
hubs AS (
    SELECT e.identity_id
    FROM ends AS e
    JOIN core.identities AS i ON i.identity_id = e.identity_id
    JOIN core.identities AS o ON o.identity_id = e.other_id AND o.kind <> i.kind
    GROUP BY e.identity_id, o.kind
    HAVING count(*) > (SELECT identities_per_kind FROM limits)
)
SELECT e.identity_id, e.other_id
FROM ends AS e
WHERE NOT EXISTS (SELECT FROM hubs AS h WHERE h.identity_id IN (e.identity_id, e.other_id));
CREATE INDEX ON valid_links (identity_id);
ANALYZE valid_links;

-- Members whose group may change: a link leads out of the group, or a link inside it is not valid any more.
DROP TABLE IF EXISTS pg_temp.touched_members;
CREATE TEMPORARY TABLE touched_members ON COMMIT DROP AS
SELECT mi.member_id
FROM valid_links AS v
JOIN core.member_identities AS mi ON mi.identity_id = v.identity_id
LEFT JOIN core.member_identities AS other ON other.identity_id = v.other_id
WHERE mi.member_id IS DISTINCT FROM other.member_id
UNION
SELECT a.member_id
FROM core.identity_links AS l
JOIN core.member_identities AS a ON a.identity_id = l.identity_a
JOIN core.member_identities AS b ON b.identity_id = l.identity_b AND b.member_id = a.member_id
WHERE NOT EXISTS (SELECT FROM valid_links AS v WHERE v.identity_id = l.identity_a AND v.other_id = l.identity_b);

DROP TABLE IF EXISTS pg_temp.touched_identities;
CREATE TEMPORARY TABLE touched_identities ON COMMIT DROP AS
SELECT mi.identity_id, mi.member_id
FROM touched_members AS t
JOIN core.member_identities AS mi ON mi.member_id = t.member_id
UNION ALL
SELECT i.identity_id, NULL
FROM core.identities AS i
WHERE NOT EXISTS (SELECT FROM core.member_identities AS mi WHERE mi.identity_id = i.identity_id);
ANALYZE touched_identities;

-- The group of an identity is named by its smallest identity. From each identity the walk goes only to larger ones: the
-- smallest one of a group reaches all of it, and nobody walks a group twice from its far end.
DROP TABLE IF EXISTS pg_temp.solved;
CREATE TEMPORARY TABLE solved ON COMMIT DROP AS
WITH RECURSIVE walk (start_id, identity_id) AS (
    SELECT t.identity_id AS start_id, t.identity_id FROM touched_identities AS t
    UNION
    SELECT w.start_id, v.other_id
    FROM walk AS w
    JOIN valid_links AS v ON v.identity_id = w.identity_id AND v.other_id > w.start_id
),
groups AS (SELECT w.identity_id, min(w.start_id) AS group_id FROM walk AS w GROUP BY w.identity_id)
SELECT g.identity_id, g.group_id, t.member_id AS former_id
FROM groups AS g
JOIN touched_identities AS t ON t.identity_id = g.identity_id;
ANALYZE solved;

-- Which member each group is: the smallest of those it held before. When a member's identities fall apart, the group with
-- the smallest identity keeps the member; a group that holds none gets a new one.
DROP TABLE IF EXISTS pg_temp.claims;
CREATE TEMPORARY TABLE claims ON COMMIT DROP AS
SELECT DISTINCT ON (s.former_id) s.former_id AS member_id, s.group_id
FROM solved AS s
WHERE s.former_id IS NOT NULL
ORDER BY s.former_id, s.group_id;

DROP TABLE IF EXISTS pg_temp.group_members;
CREATE TEMPORARY TABLE group_members (group_id bigint PRIMARY KEY, member_id bigint NOT NULL) ON COMMIT DROP;
INSERT INTO group_members (group_id, member_id)
SELECT c.group_id, min(c.member_id) FROM claims AS c GROUP BY c.group_id;

INSERT INTO group_members (group_id, member_id)
SELECT n.group_id, nextval(pg_get_serial_sequence('core.members', 'member_id'))
FROM (
    SELECT DISTINCT s.group_id FROM solved AS s
    WHERE NOT EXISTS (SELECT FROM group_members AS g WHERE g.group_id = s.group_id)
    ORDER BY s.group_id
) AS n;

INSERT INTO core.members (member_id, first_seen_at) OVERRIDING SYSTEM VALUE
SELECT g.member_id, min(i.first_seen_at)
FROM group_members AS g
JOIN solved AS s ON s.group_id = g.group_id
JOIN core.identities AS i ON i.identity_id = s.identity_id
WHERE NOT EXISTS (SELECT FROM core.members AS m WHERE m.member_id = g.member_id)
GROUP BY g.member_id
ORDER BY g.member_id;

INSERT INTO core.member_merges (survivor_id, absorbed_id, evidence, merged_at)
SELECT g.member_id AS survivor_id, c.member_id AS absorbed_id,
       jsonb_build_object('links', (
           -- what ties the absorbed member's identities to the rest of the group
           SELECT jsonb_agg(DISTINCT jsonb_build_object('identity_a', l.identity_a, 'identity_b', l.identity_b,
                                                        'evidence', l.evidence, 'source_id', l.source_id))
           FROM solved AS s
           JOIN core.identity_links AS l ON s.identity_id IN (l.identity_a, l.identity_b)
           JOIN solved AS o ON o.identity_id IN (l.identity_a, l.identity_b) AND o.identity_id <> s.identity_id
           WHERE s.former_id = c.member_id AND s.group_id = c.group_id AND o.group_id = c.group_id
             AND o.former_id IS DISTINCT FROM s.former_id
       )),
       %(as_of_at)s::timestamptz
FROM claims AS c
JOIN group_members AS g ON g.group_id = c.group_id AND g.member_id <> c.member_id;

-- Absorbed members point at the survivor, and so do those that they had absorbed before.
UPDATE core.members AS m SET absorbed_by = g.member_id
FROM claims AS c
JOIN group_members AS g ON g.group_id = c.group_id AND g.member_id <> c.member_id
WHERE m.member_id = c.member_id;

UPDATE core.members AS m SET absorbed_by = g.member_id
FROM claims AS c
JOIN group_members AS g ON g.group_id = c.group_id AND g.member_id <> c.member_id
WHERE m.absorbed_by = c.member_id;

INSERT INTO core.member_identities AS mi (identity_id, member_id, linked_at)
SELECT s.identity_id, g.member_id, %(as_of_at)s::timestamptz
FROM solved AS s
JOIN group_members AS g ON g.group_id = s.group_id
ON CONFLICT (identity_id) DO UPDATE SET member_id = excluded.member_id, linked_at = excluded.linked_at
WHERE mi.member_id <> excluded.member_id;

-- Older evidence may turn up later: a member was first seen when the earliest of its identities was.
UPDATE core.members AS m SET first_seen_at = e.first_seen_at
FROM (
    SELECT mi.member_id, min(i.first_seen_at) AS first_seen_at
    FROM core.members AS k
    JOIN core.member_identities AS mi ON mi.member_id = k.member_id
    JOIN core.identities AS i ON i.identity_id = mi.identity_id AND i.first_seen_at < k.first_seen_at
    GROUP BY mi.member_id
) AS e
WHERE m.member_id = e.member_id;
