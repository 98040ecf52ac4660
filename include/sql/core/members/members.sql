-- core.members, core.member_identities, core.member_merges: identities that shared evidence ties together are one person.
-- Grain: one member per connected group of identities; one row of member_identities per identity; one merge per absorbed member.
-- Params: as_of_at (timestamptz; stamps links and merges).
-- Reads: core.identity_changes, core.identity_rules, core.identities, core.identity_links, core.links_in_force, core.valid_links,
--   core.identity_hubs, core.members, core.member_identities, core.member_merges
-- Rerun: safe; looks only at what core.identity_changes names, and a full rebuild (nightmarket rebuild-members) gives the same rows.
-- Guard: a value that more identities of one other kind share than kpis.yaml allows (a courier's phone) links nothing; a group that such
-- a value had held together is taken apart, one whose link was revoked too, and both are put together again when the reason is gone.
-- Which member a group is: docs/decisions/0061-members-by-heads.md.
SELECT pg_advisory_xact_lock(hashtextextended('core.members', 0));  -- one after the other
SELECT set_config('random_page_cost', '1.1', TRUE);  -- a night touches a hundredth of tables that are in memory: not worth reading them

DROP TABLE IF EXISTS pg_temp.changed;
CREATE TEMPORARY TABLE changed (identity_id bigint NOT NULL, other_id bigint) ON COMMIT DROP;
WITH taken AS (DELETE FROM core.identity_changes RETURNING identity_id, other_id)
INSERT INTO changed (identity_id, other_id) SELECT DISTINCT t.identity_id, t.other_id FROM taken AS t;
ANALYZE changed;

-- == hubs ==  Only ends of changed links can have become one or stopped being one; with another limit everybody can.
DROP TABLE IF EXISTS pg_temp.crowded;
CREATE TEMPORARY TABLE crowded ON COMMIT DROP AS
WITH
rule AS (SELECT r.max_sharers, (r.max_sharers IS DISTINCT FROM r.counted_max_sharers) AS is_new FROM core.identity_rules AS r),
looked AS (
    SELECT c.identity_id FROM changed AS c WHERE c.other_id IS NOT NULL
    UNION
    SELECT c.other_id FROM changed AS c WHERE c.other_id IS NOT NULL
),
ends AS (
    SELECT l.identity_a AS identity_id FROM core.identity_links AS l WHERE (SELECT r.is_new FROM rule AS r) AND l.revoked_at IS NULL
    UNION ALL
    SELECT l.identity_b FROM core.identity_links AS l WHERE (SELECT r.is_new FROM rule AS r) AND l.revoked_at IS NULL
    UNION ALL
    SELECT l.identity_a
    FROM looked AS k JOIN core.identity_links AS l ON l.identity_a = k.identity_id
    WHERE (SELECT NOT r.is_new FROM rule AS r) AND l.revoked_at IS NULL
    UNION ALL
    SELECT l.identity_b
    FROM looked AS k JOIN core.identity_links AS l ON l.identity_b = k.identity_id
    WHERE (SELECT NOT r.is_new FROM rule AS r) AND l.revoked_at IS NULL
)
SELECT e.identity_id FROM ends AS e GROUP BY e.identity_id HAVING count(*) > (SELECT r.max_sharers FROM rule AS r)
UNION
SELECT h.identity_id
FROM core.identity_hubs AS h
WHERE (SELECT r.is_new FROM rule AS r) OR EXISTS (SELECT FROM looked AS k WHERE k.identity_id = h.identity_id);
ANALYZE crowded;

DROP TABLE IF EXISTS pg_temp.turned;
CREATE TEMPORARY TABLE turned ON COMMIT DROP AS
WITH
ends AS (
    SELECT c.identity_id, l.identity_b AS other_id FROM crowded AS c JOIN core.links_in_force AS l ON l.identity_a = c.identity_id
    UNION
    SELECT c.identity_id, l.identity_a FROM crowded AS c JOIN core.links_in_force AS l ON l.identity_b = c.identity_id
),
counted AS (
    SELECT e.identity_id, count(*) AS sharer_count
    FROM ends AS e
    JOIN core.identities AS i ON i.identity_id = e.identity_id
    JOIN core.identities AS o ON o.identity_id = e.other_id AND o.kind <> i.kind
    GROUP BY e.identity_id, o.kind
),
hubs AS (
    SELECT n.identity_id, max(n.sharer_count)::integer AS sharer_count
    FROM counted AS n
    WHERE n.sharer_count > (SELECT r.max_sharers FROM core.identity_rules AS r)
    GROUP BY n.identity_id
)
SELECT c.identity_id, n.sharer_count, h.identity_id IS NOT NULL AS was_hub    -- no count: not a hub any more
FROM crowded AS c
LEFT JOIN hubs AS n ON n.identity_id = c.identity_id
LEFT JOIN core.identity_hubs AS h ON h.identity_id = c.identity_id
WHERE n.sharer_count IS DISTINCT FROM h.sharer_count;
ANALYZE turned;

DELETE FROM core.identity_hubs AS h USING turned AS t WHERE t.identity_id = h.identity_id AND t.sharer_count IS NULL;
INSERT INTO core.identity_hubs AS h (identity_id, sharer_count, since)
SELECT t.identity_id, t.sharer_count, %(as_of_at)s::timestamptz FROM turned AS t WHERE t.sharer_count IS NOT NULL
ON CONFLICT (identity_id) DO UPDATE SET sharer_count = excluded.sharer_count;
UPDATE core.identity_rules AS r SET counted_max_sharers = r.max_sharers WHERE r.counted_max_sharers IS DISTINCT FROM r.max_sharers;

-- == find ==  Members that may fall apart: one of their values became a hub, or two of their identities lost a link.
DROP TABLE IF EXISTS pg_temp.dissolved;
CREATE TEMPORARY TABLE dissolved ON COMMIT DROP AS
SELECT mi.member_id
FROM turned AS t
JOIN core.member_identities AS mi ON mi.identity_id = t.identity_id
WHERE t.sharer_count IS NOT NULL AND NOT t.was_hub
UNION
SELECT a.member_id
FROM changed AS c
JOIN core.member_identities AS a ON a.identity_id = c.identity_id
JOIN core.member_identities AS b ON b.identity_id = c.other_id AND b.member_id = a.member_id
WHERE NOT EXISTS (SELECT FROM core.valid_links AS v WHERE v.identity_a = c.identity_id AND v.identity_b = c.other_id);
ANALYZE dissolved;

-- Identities that stand for themselves tonight; everybody else is their member.
DROP TABLE IF EXISTS pg_temp.loose;
CREATE TEMPORARY TABLE loose ON COMMIT DROP AS
SELECT mi.identity_id, mi.member_id
FROM dissolved AS d
JOIN core.member_identities AS mi ON mi.member_id = d.member_id
UNION ALL
SELECT i.identity_id, NULL
FROM (
    SELECT c.identity_id FROM changed AS c
    UNION
    SELECT c.other_id FROM changed AS c
) AS c
JOIN core.identities AS i ON i.identity_id = c.identity_id
WHERE NOT EXISTS (SELECT FROM core.member_identities AS mi WHERE mi.identity_id = i.identity_id);
CREATE UNIQUE INDEX ON loose (identity_id);
ANALYZE loose;

DROP TABLE IF EXISTS pg_temp.ties;
CREATE TEMPORARY TABLE ties ON COMMIT DROP AS
SELECT v.identity_a, v.identity_b FROM loose AS l JOIN core.valid_links AS v ON v.identity_a = l.identity_id
UNION
SELECT v.identity_a, v.identity_b FROM loose AS l JOIN core.valid_links AS v ON v.identity_b = l.identity_id
UNION
SELECT v.identity_a, v.identity_b
FROM changed AS c
JOIN core.valid_links AS v ON v.identity_a = c.identity_id AND v.identity_b = c.other_id
UNION
SELECT v.identity_a, v.identity_b
FROM turned AS t
JOIN core.valid_links AS v ON v.identity_a = t.identity_id
WHERE t.sharer_count IS NULL
UNION
SELECT v.identity_a, v.identity_b
FROM turned AS t
JOIN core.valid_links AS v ON v.identity_b = t.identity_id
WHERE t.sharer_count IS NULL;
ANALYZE ties;

-- The small graph: nodes are loose identities, and members by their negative id. What has no member yet and is not loose came in
-- meanwhile and is the next night's.
DROP TABLE IF EXISTS pg_temp.group_edges;
CREATE TEMPORARY TABLE group_edges ON COMMIT DROP AS
SELECT DISTINCT least(e.a, e.b) AS a, greatest(e.a, e.b) AS b
FROM (
    SELECT coalesce(la.identity_id, -ma.member_id) AS a, coalesce(lb.identity_id, -mb.member_id) AS b
    FROM ties AS t
    LEFT JOIN loose AS la ON la.identity_id = t.identity_a
    LEFT JOIN core.member_identities AS ma ON ma.identity_id = t.identity_a
    LEFT JOIN loose AS lb ON lb.identity_id = t.identity_b
    LEFT JOIN core.member_identities AS mb ON mb.identity_id = t.identity_b
) AS e
WHERE e.a <> e.b;
ANALYZE group_edges;
SELECT core.connect_groups();

-- A member made by hand has no head yet.
UPDATE core.members AS m SET head_id = h.head_id
FROM (
    SELECT mi.member_id, min(mi.identity_id) AS head_id
    FROM (
        SELECT d.member_id FROM dissolved AS d
        UNION
        SELECT -r.node FROM group_roots AS r WHERE r.node < 0
    ) AS d
    JOIN core.members AS k ON k.member_id = d.member_id AND k.head_id IS NULL
    JOIN core.member_identities AS mi ON mi.member_id = d.member_id
    WHERE NOT EXISTS (SELECT FROM core.members AS o WHERE o.head_id = mi.identity_id)
    GROUP BY mi.member_id
) AS h
WHERE h.member_id = m.member_id;

DROP TABLE IF EXISTS pg_temp.solved;
CREATE TEMPORARY TABLE solved ON COMMIT DROP AS
SELECT l.identity_id AS node, coalesce(r.root, l.identity_id) AS root
FROM loose AS l
LEFT JOIN group_roots AS r ON r.node = l.identity_id
UNION ALL
SELECT r.node, r.root FROM group_roots AS r WHERE r.node < 0;
ANALYZE solved;

-- The smallest member whose head a group holds; a group of new identities only is a new member, and its head the smallest of them.
DROP TABLE IF EXISTS pg_temp.group_members;
CREATE TEMPORARY TABLE group_members ON COMMIT DROP AS
SELECT s.root, min(coalesce(m.member_id, CASE WHEN s.node < 0 THEN -s.node END)) AS member_id
FROM solved AS s
LEFT JOIN core.members AS m ON m.head_id = s.node
GROUP BY s.root;

DROP TABLE IF EXISTS pg_temp.births;
CREATE TEMPORARY TABLE births (member_id bigint NOT NULL, head_id bigint NOT NULL) ON COMMIT DROP;
INSERT INTO births (member_id, head_id)
SELECT nextval((SELECT pg_get_serial_sequence('core.members', 'member_id')::regclass)), n.root
FROM (SELECT g.root FROM group_members AS g WHERE g.member_id IS NULL ORDER BY g.root) AS n;
UPDATE group_members AS g SET member_id = b.member_id FROM births AS b WHERE b.head_id = g.root AND g.member_id IS NULL;
ANALYZE group_members;

DROP TABLE IF EXISTS pg_temp.moves;
CREATE TEMPORARY TABLE moves (identity_id bigint NOT NULL, former_id bigint, member_id bigint NOT NULL) ON COMMIT DROP;
INSERT INTO moves (identity_id, former_id, member_id)
SELECT l.identity_id, l.member_id AS former_id, g.member_id
FROM loose AS l
JOIN solved AS s ON s.node = l.identity_id
JOIN group_members AS g ON g.root = s.root
WHERE l.member_id IS DISTINCT FROM g.member_id
UNION ALL
SELECT mi.identity_id, mi.member_id AS former_id, g.member_id
FROM solved AS s
JOIN group_members AS g ON g.root = s.root AND g.member_id <> -s.node
JOIN core.member_identities AS mi ON mi.member_id = -s.node
WHERE s.node < 0;

-- == write ==  From here on a full rebuild does the same (nightmarket.members), with births and moves of its own.
CREATE INDEX ON moves (identity_id);
ANALYZE moves;
ANALYZE births;

DROP TABLE IF EXISTS pg_temp.stirred;
CREATE TEMPORARY TABLE stirred ON COMMIT DROP AS    -- members whose head moved
SELECT k.member_id, v.member_id AS now_id, v.former_id
FROM core.members AS k
JOIN moves AS v ON v.identity_id = k.head_id;
ANALYZE stirred;

INSERT INTO core.members (member_id, first_seen_at, head_id) OVERRIDING SYSTEM VALUE
SELECT b.member_id, min(i.first_seen_at), b.head_id
FROM births AS b
JOIN moves AS v ON v.member_id = b.member_id
JOIN core.identities AS i ON i.identity_id = v.identity_id
GROUP BY b.member_id, b.head_id
ORDER BY b.member_id;

INSERT INTO core.member_identities (identity_id, member_id, linked_at)
SELECT v.identity_id, v.member_id, %(as_of_at)s::timestamptz FROM moves AS v WHERE v.former_id IS NULL ORDER BY v.identity_id;
UPDATE core.member_identities AS mi SET member_id = v.member_id, linked_at = %(as_of_at)s::timestamptz
FROM moves AS v
WHERE v.former_id IS NOT NULL AND mi.identity_id = v.identity_id;

-- Absorbed members point at the survivor, those they had absorbed before too; who holds a group of its own again points at nobody.
UPDATE core.members AS m SET absorbed_by = nullif(s.now_id, s.member_id)
FROM stirred AS s
WHERE m.member_id = s.member_id AND m.absorbed_by IS DISTINCT FROM nullif(s.now_id, s.member_id);
UPDATE core.members AS m SET absorbed_by = s.now_id
FROM stirred AS s
WHERE s.now_id <> s.member_id AND m.absorbed_by = s.member_id AND m.head_id IS NULL;

-- A merge is over when the heads of the two are not one group any more.
UPDATE core.member_merges AS g
SET undone_at = %(as_of_at)s::timestamptz, undone_by = 'night', undone_reason = 'the evidence does not tie them any more'
FROM core.members AS a, core.members AS s
WHERE a.member_id = g.absorbed_id AND s.member_id = g.survivor_id AND g.undone_at IS NULL
  AND EXISTS (SELECT FROM stirred AS t WHERE t.member_id IN (g.absorbed_id, g.survivor_id))
  AND coalesce(a.absorbed_by, a.member_id) <> coalesce(s.absorbed_by, s.member_id);

DROP TABLE IF EXISTS pg_temp.merged;
CREATE TEMPORARY TABLE merged ON COMMIT DROP AS
SELECT s.member_id AS absorbed_id, s.now_id AS survivor_id, s.former_id
FROM stirred AS s
WHERE s.now_id <> s.member_id
  AND NOT EXISTS (SELECT FROM core.member_merges AS g WHERE g.absorbed_id = s.member_id AND g.undone_at IS NULL);
ANALYZE merged;

INSERT INTO core.member_merges (survivor_id, absorbed_id, evidence, merged_at)
WITH
brought AS (   -- what the absorbed member's part of the group was
    SELECT g.absorbed_id, g.survivor_id, g.former_id, v.identity_id
    FROM merged AS g
    JOIN moves AS v ON v.former_id = g.former_id AND v.member_id = g.survivor_id
),
links AS (     -- and what ties it to the rest
    SELECT p.absorbed_id, p.identity_id, l.identity_a, l.identity_b, l.source_id, l.evidence, p.survivor_id, p.former_id
    FROM brought AS p JOIN core.valid_links AS l ON l.identity_a = p.identity_id
    UNION ALL
    SELECT p.absorbed_id, p.identity_id, l.identity_a, l.identity_b, l.source_id, l.evidence, p.survivor_id, p.former_id
    FROM brought AS p JOIN core.valid_links AS l ON l.identity_b = p.identity_id
),
told AS (
    SELECT l.absorbed_id, jsonb_agg(DISTINCT jsonb_build_object('identity_a', l.identity_a, 'identity_b', l.identity_b,
                                                                'evidence', l.evidence, 'source_id', l.source_id)) AS links
    FROM links AS l
    JOIN core.member_identities AS o
        ON o.identity_id = l.identity_a + l.identity_b - l.identity_id AND o.member_id = l.survivor_id    -- the other end
    WHERE NOT EXISTS (SELECT FROM moves AS v WHERE v.identity_id = o.identity_id AND v.former_id = l.former_id)
    GROUP BY l.absorbed_id
),
whose AS (SELECT p.absorbed_id, jsonb_agg(p.identity_id ORDER BY p.identity_id) AS identities FROM brought AS p GROUP BY p.absorbed_id)
SELECT g.survivor_id, g.absorbed_id,
       jsonb_build_object('links', coalesce(t.links, '[]'), 'identities', coalesce(w.identities, '[]')), %(as_of_at)s::timestamptz
FROM merged AS g
LEFT JOIN told AS t ON t.absorbed_id = g.absorbed_id
LEFT JOIN whose AS w ON w.absorbed_id = g.absorbed_id
ORDER BY g.absorbed_id;

-- A member was first seen when the earliest of its identities was.
UPDATE core.members AS m SET first_seen_at = e.first_seen_at
FROM (
    SELECT mi.member_id, min(i.first_seen_at) AS first_seen_at
    FROM (
        SELECT v.member_id FROM moves AS v WHERE NOT EXISTS (SELECT FROM births AS b WHERE b.member_id = v.member_id)
        UNION
        SELECT v.former_id FROM moves AS v WHERE v.former_id IS NOT NULL
        UNION
        SELECT k.member_id
        FROM changed AS c
        JOIN core.member_identities AS k ON k.identity_id = c.identity_id
        WHERE c.other_id IS NULL AND NOT EXISTS (SELECT FROM moves AS v WHERE v.identity_id = c.identity_id)
    ) AS n
    JOIN core.member_identities AS mi ON mi.member_id = n.member_id
    JOIN core.identities AS i ON i.identity_id = mi.identity_id
    GROUP BY mi.member_id
) AS e
WHERE m.member_id = e.member_id AND m.first_seen_at <> e.first_seen_at;
