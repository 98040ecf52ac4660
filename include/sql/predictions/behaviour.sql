-- What the model of expected orders is fitted on: how often, how lately, for how long and for how much each member bought.
-- Grain: one row per member with a paid order up to model_date.
-- Params: model_date (date; what the model sees ends with it), until_date (date; how far later order days are counted),
--   sample_every (integer; 1: everybody).
-- Reads: mart.member_days
-- Rerun: safe; it only reads.
-- A day with paid orders is one purchase. The first one makes the customer, so it is not counted: docs/decisions/0070-predictions.md
WITH
known AS (
    SELECT
        d.member_id,
        min(d.day) AS first_date,
        max(d.day) AS last_date,
        count(*) - 1 AS repeat_count,
        sum(d.gross_amount) AS gross_amount
    FROM mart.member_days AS d
    WHERE d.order_count > 0 AND d.day <= %(model_date)s::date AND mod(d.member_id, %(sample_every)s::integer) = 0
    GROUP BY d.member_id
),
later AS (
    SELECT d.member_id, count(*) AS order_day_count
    FROM mart.member_days AS d
    WHERE
        d.order_count > 0 AND d.day > %(model_date)s::date AND d.day <= %(until_date)s::date
        AND mod(d.member_id, %(sample_every)s::integer) = 0
    GROUP BY d.member_id
)
SELECT
    k.member_id,
    k.repeat_count,
    k.last_date - k.first_date AS recency_days,
    %(model_date)s::date - k.first_date AS age_days,
    coalesce((k.gross_amount - f.gross_amount) / nullif(k.repeat_count, 0), 0)::double precision AS repeat_amount,
    coalesce(l.order_day_count, 0) AS later_count
FROM known AS k
JOIN mart.member_days AS f ON f.member_id = k.member_id AND f.day = k.first_date
LEFT JOIN later AS l ON l.member_id = k.member_id;
