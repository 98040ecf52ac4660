-- push.pace: reserve the next call slots of an account. One row, one statement: the lock comes first, the clock after it.
-- Grain: one row; `starts_in` is the seconds until the first slot, slot i begins i / rate later.
-- Params: account, slots, rate (calls per second).   The machine's clock on purpose: this is traffic, not business time.
-- A lost slot costs nothing, so nobody waits for the disk.
WITH hurry AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', TRUE) AS is_set
)
UPDATE push.pace
SET next_at = greatest(next_at, clock_timestamp()) + %(slots)s::integer * interval '1 s' / %(rate)s::double precision
FROM hurry
WHERE account = %(account)s::text AND hurry.is_set = 'off'
RETURNING extract(
    EPOCH FROM next_at - %(slots)s::integer * interval '1 s' / %(rate)s::double precision - clock_timestamp()
)::double precision AS starts_in;
