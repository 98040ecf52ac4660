-- mart.member_tiers: every member's tier history, with the reason in words.
-- Grain: one row per member and stretch of days [valid_from, valid_to) in one tier; valid_to NULL = still.
-- Params: business_date (date).
-- Reads: mart.member_days, mart.tier_rules, mart.member_tiers
-- Rerun: safe; the history is computed again and only rows that differ are replaced, so late orders and late refunds
-- restate it. The history goes to the business date, or to the last day it already tells of: a run for an older date
-- takes nothing back (docs/decisions/0021-tiers-by-running-sum.md).
WITH
horizon AS (
    SELECT greatest(%(business_date)s::date, max(greatest(t.valid_from, t.valid_to))) AS last_day
    FROM mart.member_tiers AS t
),
tier_window AS (SELECT max(r.window_days) AS window_days FROM mart.tier_rules AS r),
movements AS (
    -- money enters the window on its day and leaves it window_days later
    SELECT d.member_id, d.day, d.net_amount
    FROM mart.member_days AS d
    UNION ALL
    SELECT d.member_id, d.day + w.window_days, -d.net_amount
    FROM mart.member_days AS d
    CROSS JOIN tier_window AS w
),
sums AS (
    SELECT
        m.member_id,
        m.day,
        sum(sum(m.net_amount)) OVER (PARTITION BY m.member_id ORDER BY m.day ASC) AS window_net_amount
    FROM movements AS m
    JOIN horizon AS h ON m.day <= h.last_day
    GROUP BY m.member_id, m.day
),
first_orders AS (
    -- a member has a tier from the day of the first paid order
    SELECT d.member_id, min(d.day) AS day FROM mart.member_days AS d WHERE d.order_count > 0 GROUP BY d.member_id
),
member_day_tiers AS (
    -- refunds of orders that have left the window, or lie before our history, can make the sum negative: that counts as 0
    SELECT
        s.member_id, s.day, s.window_net_amount, r.tier, r.rank, r.min_net_amount, r.max_net_amount,
        lag(r.tier) OVER w AS previous_tier,
        lag(r.rank) OVER w AS previous_rank
    FROM sums AS s
    JOIN first_orders AS f ON f.member_id = s.member_id AND f.day <= s.day
    JOIN mart.tier_rules AS r
        ON greatest(s.window_net_amount, 0) >= r.min_net_amount
        AND (r.max_net_amount IS NULL OR greatest(s.window_net_amount, 0) < r.max_net_amount)
    WINDOW w AS (PARTITION BY s.member_id ORDER BY s.day ASC)
),
stretches AS (
    SELECT
        t.member_id,
        t.day AS valid_from,
        lead(t.day) OVER (PARTITION BY t.member_id ORDER BY t.day ASC) AS valid_to,
        t.tier,
        t.previous_tier,
        t.window_net_amount,
        w.window_days || '-day spend ' || to_char(trunc(t.window_net_amount, 2), 'FM999,999,999,999,990.00')
        || CASE
            -- going down, the reason is the bound that was not kept; also for a first tier on less than nothing
            WHEN t.max_net_amount IS NOT NULL AND (t.rank < t.previous_rank OR t.window_net_amount < t.min_net_amount)
                THEN ' < ' || to_char(t.max_net_amount, 'FM999,999,999,999,990.00')
            ELSE ' ≥ ' || to_char(t.min_net_amount, 'FM999,999,999,999,990.00')
        END AS reason
    FROM member_day_tiers AS t
    CROSS JOIN tier_window AS w
    WHERE t.tier IS DISTINCT FROM t.previous_tier
),
vanished AS (
    DELETE FROM mart.member_tiers AS m
    WHERE NOT EXISTS (SELECT 1 FROM stretches AS s WHERE s.member_id = m.member_id AND s.valid_from = m.valid_from)
)
INSERT INTO mart.member_tiers (member_id, valid_from, valid_to, tier, previous_tier, window_net_amount, reason)
SELECT s.member_id, s.valid_from, s.valid_to, s.tier, s.previous_tier, s.window_net_amount, s.reason
FROM stretches AS s
ON CONFLICT (member_id, valid_from) DO UPDATE SET
    valid_to = excluded.valid_to,
    tier = excluded.tier,
    previous_tier = excluded.previous_tier,
    window_net_amount = excluded.window_net_amount,
    reason = excluded.reason
WHERE
    (
        member_tiers.valid_to, member_tiers.tier, member_tiers.previous_tier, member_tiers.window_net_amount,
        member_tiers.reason
    )
    IS DISTINCT FROM (
        excluded.valid_to, excluded.tier, excluded.previous_tier, excluded.window_net_amount, excluded.reason
    );
