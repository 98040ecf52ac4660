-- Whose prediction may have moved since the last night, and what the model has to know of them.
-- Grain: one row per member with a paid order up to horizon, who was touched or ordered since; everybody when is_full.
-- Params: model_date (date; the Sunday of the model), horizon (date), since (date; the night before, NULL: none),
--   after_batch_id (bigint), is_full (boolean).
-- Reads: mart.member_days, mart.touched_members
-- Rerun: safe; it only reads, and leaves the members of a night in the temporary table scope.
DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT t.member_id FROM mart.touched_members AS t WHERE NOT %(is_full)s::boolean AND t.batch_id > %(after_batch_id)s::bigint
UNION
SELECT d.member_id
FROM mart.member_days AS d
WHERE NOT %(is_full)s::boolean AND d.day > %(since)s::date AND d.day <= %(horizon)s::date;
ANALYZE scope;

-- A member is looked at from the model's Sunday, or from the last order day after it: nothing here moves from day to day.
WITH
known AS (
    SELECT
        d.member_id,
        min(d.day) AS first_date,
        max(d.day) AS last_date,
        count(*) - 1 AS repeat_count,
        sum(d.gross_amount) AS gross_amount
    FROM mart.member_days AS d
    WHERE %(is_full)s::boolean AND d.order_count > 0 AND d.day <= %(horizon)s::date
    GROUP BY d.member_id
    UNION ALL
    SELECT d.member_id, min(d.day), max(d.day), count(*) - 1, sum(d.gross_amount)
    FROM scope AS s
    JOIN mart.member_days AS d ON d.member_id = s.member_id
    WHERE NOT %(is_full)s::boolean AND d.order_count > 0 AND d.day <= %(horizon)s::date
    GROUP BY d.member_id
)
SELECT
    k.member_id,
    k.repeat_count,
    k.last_date - k.first_date AS recency_days,
    greatest(k.last_date, %(model_date)s::date) - k.first_date AS age_days,
    coalesce((k.gross_amount - f.gross_amount) / nullif(k.repeat_count, 0), 0)::double precision AS repeat_amount,
    greatest(k.last_date, %(model_date)s::date) - %(model_date)s::date AS days_after_model
FROM known AS k
JOIN mart.member_days AS f ON f.member_id = k.member_id AND f.day = k.first_date;
