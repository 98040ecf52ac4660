-- How many of the members whom a segment gave in the past bought in the days after it: the base rate of an experiment.
-- Grain: one row.   Params: since, until (timestamptz, until is not included).
-- Reads: past_segment (temporary: member_id), core.member_identities, core.orders
SELECT
    count(*) AS member_count,
    count(*) FILTER (WHERE EXISTS (
        SELECT FROM core.member_identities AS mi
        JOIN core.orders AS o ON o.identity_id = mi.identity_id
        WHERE mi.member_id = s.member_id AND o.is_paid
          AND o.paid_at >= %(since)s::timestamptz AND o.paid_at < %(until)s::timestamptz
    )) AS buyer_count
FROM past_segment AS s;
