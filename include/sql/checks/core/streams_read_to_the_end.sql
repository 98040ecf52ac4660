-- Every stream of an active source has been read to the end of the business date, its history completely.
-- Table: raw.cursors. Severity: fail.
-- Params: business_date (date).
-- Reads: raw.batches, raw.cursors, core.accounts
-- Half a day of orders makes wrong tiers and wrong segments, and nobody would see it. While a first load is under way its
-- stream has no cursor of its own name yet, and a mark such as trades:created lies in the past. A stream that is not
-- configured any more keeps its history and holds up nobody.
WITH
streams AS (
    SELECT b.source_id, b.stream FROM raw.batches AS b
    UNION
    SELECT c.source_id, c.stream FROM raw.cursors AS c
    WHERE c.stream NOT LIKE '%%:final'  -- how far a platform's own figures are final, which it decides
),
behind AS (
    SELECT s.source_id, s.stream, c.watermark
    FROM streams AS s
    LEFT JOIN raw.cursors AS c ON c.source_id = s.source_id AND c.stream = s.stream
    LEFT JOIN core.accounts AS a ON a.source_id = s.source_id
    WHERE
        coalesce(a.is_active, TRUE)
        AND coalesce(split_part(s.stream, ':', 1) = any(a.streams), TRUE)
        AND (c.watermark IS NULL OR c.watermark < (%(business_date)s::date + 1)::timestamptz)
)
SELECT
    count(*) = 0 AS is_passed,
    coalesce(
        string_agg(
            b.source_id || ' ' || b.stream
            || coalesce(' was read to ' || to_char(b.watermark, 'YYYY-MM-DD HH24:MI'), ' was not read to its end'),
            ', ' ORDER BY b.source_id, b.stream
        ),
        'all read'
    ) AS observed
FROM behind AS b;
