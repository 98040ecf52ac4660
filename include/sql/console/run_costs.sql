-- What the messages of a run cost, by channel; the face value of redeemed coupons is in the funnel's cost.
-- Grain: one row per channel.   Params: run_id (text).   Reads: core.exposures
SELECT x.channel, count(*) AS message_count, sum(x.cost_amount) AS cost_amount
FROM core.exposures AS x
WHERE x.run_id = %(run_id)s::text AND x.channel IS NOT NULL
GROUP BY x.channel
ORDER BY message_count DESC, x.channel ASC;
