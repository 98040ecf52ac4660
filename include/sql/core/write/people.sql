-- core.identities, core.identity_links, core.profiles: the people whom the new rows of a mapping name.
-- Grain: one identity per kind and value; one link per pair and source; one profile per person's first identity.
-- Params: source_id (text).   Reads: core.identities
-- Rerun: safe. row_people tells the writers that follow which identity a row belongs to: the first of its usable ones.
-- Two sources that meet the same new people at the same time would wait for each other for ever: one after the other.
SELECT pg_advisory_xact_lock(hashtextextended('core.identities', 0));

DROP TABLE IF EXISTS pg_temp.new_sightings;
CREATE TEMPORARY TABLE new_sightings ON COMMIT DROP AS
SELECT
    n.record_id, e.item ->> 'kind' AS kind, e.item ->> 'value' AS value,
    row_number() OVER (PARTITION BY n.record_id ORDER BY e.position) AS position,
    CASE WHEN n.name LIKE 'name:%%' THEN n.name END AS name, n.language, n.evidence, coalesce(n.seen_at, n.observed_at) AS seen_at
FROM new_rows AS n
CROSS JOIN LATERAL jsonb_array_elements(n.identities) WITH ORDINALITY AS e (item, position)
WHERE e.item ->> 'value' <> ''
  -- a masked or missing phone is no evidence: only a token is
  AND (e.item ->> 'kind' NOT IN ('phone', 'email') OR starts_with(e.item ->> 'value', (e.item ->> 'kind') || ':'));

INSERT INTO core.identities AS i (kind, value, source_id, first_seen_at)
SELECT s.kind, s.value, %(source_id)s::text, s.seen_at
FROM (SELECT n.kind, n.value, min(n.seen_at) AS seen_at FROM new_sightings AS n GROUP BY n.kind, n.value) AS s
LEFT JOIN core.identities AS k ON k.kind = s.kind AND k.value = s.value
WHERE k.identity_id IS NULL OR s.seen_at < k.first_seen_at  -- most people are known: a conflict that changes nothing locks and logs
ORDER BY s.seen_at ASC, s.kind DESC, s.value ASC
ON CONFLICT (kind, value) DO UPDATE SET first_seen_at = excluded.first_seen_at
WHERE excluded.first_seen_at < i.first_seen_at;

DROP TABLE IF EXISTS pg_temp.row_people;
CREATE TEMPORARY TABLE row_people ON COMMIT DROP AS
SELECT s.record_id, i.identity_id, s.name, s.language, s.seen_at
FROM new_sightings AS s
JOIN core.identities AS i ON i.kind = s.kind AND i.value = s.value
WHERE s.position = 1;

-- What one record says of one buyer, one profile, one form: evidence that they are one person.
INSERT INTO core.identity_links AS l (identity_a, identity_b, source_id, evidence, observed_at)
SELECT x.identity_a, x.identity_b, %(source_id)s::text, x.evidence, x.seen_at
FROM (
    SELECT
        least(p.identity_id, i.identity_id) AS identity_a, greatest(p.identity_id, i.identity_id) AS identity_b, s.evidence,
        min(s.seen_at) AS seen_at
    FROM new_sightings AS s
    JOIN row_people AS p ON p.record_id = s.record_id
    JOIN core.identities AS i ON i.kind = s.kind AND i.value = s.value
    WHERE s.position > 1 AND i.identity_id <> p.identity_id
    GROUP BY least(p.identity_id, i.identity_id), greatest(p.identity_id, i.identity_id), s.evidence
) AS x
LEFT JOIN core.identity_links AS k
    ON k.identity_a = x.identity_a AND k.identity_b = x.identity_b AND k.source_id = %(source_id)s::text AND k.evidence = x.evidence
WHERE k.identity_a IS NULL OR x.seen_at < k.observed_at
ON CONFLICT (identity_a, identity_b, source_id, evidence) DO UPDATE SET observed_at = excluded.observed_at
WHERE excluded.observed_at < l.observed_at;

INSERT INTO core.profiles AS f (identity_id, source_id, name, language, observed_at)
SELECT DISTINCT ON (p.identity_id) p.identity_id, %(source_id)s::text, p.name, p.language, p.seen_at
FROM row_people AS p
WHERE p.name IS NOT NULL OR p.language IS NOT NULL
ORDER BY p.identity_id ASC, p.seen_at DESC, p.name ASC, p.language ASC
ON CONFLICT (identity_id) DO UPDATE SET
    name = coalesce(excluded.name, f.name), language = coalesce(excluded.language, f.language), observed_at = excluded.observed_at,
    source_id = excluded.source_id
WHERE excluded.observed_at >= f.observed_at
  AND (f.name, f.language, f.observed_at)
      IS DISTINCT FROM (coalesce(excluded.name, f.name), coalesce(excluded.language, f.language), excluded.observed_at);
