-- Members that turned out to be one person, newest first: by which evidence, and whether it was taken back.
-- Grain: one row per merge.   Params: member_id (bigint; NULL = everybody), row_limit (integer).
-- Reads: core.member_merges, core.identities
SELECT
    g.merge_id, g.survivor_id, g.absorbed_id, g.merged_at,
    (
        SELECT string_agg(
            DISTINCT a.kind || ' – ' || b.kind || ' (' || (l.link ->> 'evidence') || ', ' || (l.link ->> 'source_id') || ')', '; '
        )
        FROM jsonb_array_elements(nullif(g.evidence -> 'links', 'null')) AS l (link)
        JOIN core.identities AS a ON a.identity_id = (l.link ->> 'identity_a')::bigint
        JOIN core.identities AS b ON b.identity_id = (l.link ->> 'identity_b')::bigint
    ) AS evidence,
    g.undone_at, g.undone_by, g.undone_reason
FROM core.member_merges AS g
WHERE %(member_id)s::bigint IS NULL OR %(member_id)s::bigint IN (g.survivor_id, g.absorbed_id)
ORDER BY g.merge_id DESC
LIMIT %(row_limit)s::integer;
