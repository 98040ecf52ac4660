-- A member's points up to a date, newest first, with the balance after each entry.
-- Grain: one row per entry of the ledger.   Params: member_id (bigint), as_of (date).   Reads: mart.points_ledger
SELECT
    l.day, l.kind, l.lot_day, l.use_id, l.points,
    sum(l.points) OVER (
        ORDER BY
            l.day ASC, array_position(ARRAY['expire', 'earn', 'adjust', 'reverse', 'redeem'], l.kind) ASC, l.lot_day ASC, l.use_id ASC
        ROWS UNBOUNDED PRECEDING
    ) AS balance
FROM mart.points_ledger AS l
WHERE l.member_id = %(member_id)s::bigint AND l.day <= %(as_of)s::date
ORDER BY l.day DESC, balance ASC;
