-- mart.stage_transitions: how many members went from which stage, tier or RFM segment to which in a month.
-- Grain: one row per month, what it is about, and pair of states: at the end of the month before, and at the end of the month (of the
-- business date in the running one). '' = the member had no state.
-- Params: business_date (date).
-- Reads: mart.member_stages, mart.member_tiers, mart.member_rfm, mart.tier_programmes, mart.moved_days, mart.touched_members, mart.marks,
--   mart.stage_transitions
-- Rerun: safe; the months since the earliest day that moved are counted again, rows that do not differ stay. A run for an older date
-- takes nothing back.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), m.batch_id, 0) AS upto_batch_id,
    w.settings,
    m.mart IS NULL OR m.settings <> w.settings AS is_full
FROM (
    -- whatever makes histories be told anew makes them be counted anew
    SELECT
        'stage_transitions' AS mart,
        (
            SELECT string_agg(c.settings, '/' ORDER BY c.mart)
            FROM mart.marks AS c
            WHERE c.mart IN ('member_tiers', 'member_stages')
        ) AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

-- The first month to count again: of the earliest day on which a history came out differently (noted by triggers on the two tables).
DROP TABLE IF EXISTS pg_temp.moved_histories;
CREATE TEMPORARY TABLE moved_histories (day date) ON COMMIT DROP;
WITH gone AS (DELETE FROM mart.moved_days AS d WHERE d.source_table IN ('member_stages', 'member_tiers') RETURNING d.day)
INSERT INTO moved_histories (day) SELECT g.day FROM gone AS g;

DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT
    a.about, k.horizon,
    CASE
        WHEN k.is_full THEN '-infinity'::date
        ELSE date_trunc('month', least(k.since + 1, %(business_date)s::date, CASE WHEN a.about <> 'rfm' THEN t.day END)::timestamp)::date
    END AS month_from
FROM mark AS k
CROSS JOIN (VALUES ('stage'), ('tier'), ('rfm')) AS a (about)
CROSS JOIN (SELECT min(m.day) AS day FROM moved_histories AS m) AS t;

DROP TABLE IF EXISTS pg_temp.counted;
CREATE TEMPORARY TABLE counted ON COMMIT DROP AS
WITH
histories AS (
    SELECT 'stage' AS about, s.member_id, s.valid_from, s.valid_to, s.stage AS state FROM mart.member_stages AS s
    UNION ALL
    SELECT 'tier', t.member_id, t.valid_from, t.valid_to, t.tier
    FROM mart.member_tiers AS t
    WHERE t.programme = (SELECT p.programme FROM mart.tier_programmes AS p ORDER BY p.position ASC LIMIT 1)
    UNION ALL
    SELECT 'rfm', r.member_id, r.valid_from, r.valid_to, r.rfm_segment FROM mart.member_rfm AS r
),
edges AS (
    -- a row begins; and a row ends where none begins
    SELECT h.about, h.member_id, h.valid_from AS day, h.state
    FROM histories AS h
    JOIN scope AS k ON k.about = h.about
    WHERE h.valid_from >= k.month_from AND h.valid_from <= k.horizon
    UNION ALL
    SELECT h.about, h.member_id, h.valid_to, ''
    FROM histories AS h
    JOIN scope AS k ON k.about = h.about
    WHERE
        h.about = 'rfm' AND h.valid_to >= k.month_from AND h.valid_to <= k.horizon
        AND NOT EXISTS (SELECT 1 FROM mart.member_rfm AS n WHERE n.member_id = h.member_id AND n.valid_from = h.valid_to)
),
month_ends AS (
    -- what each member who moved in a month was at its end
    SELECT DISTINCT ON (e.about, e.member_id, x.month) e.about, e.member_id, x.month, e.state
    FROM edges AS e
    CROSS JOIN LATERAL (SELECT date_trunc('month', e.day::timestamp)::date AS month) AS x
    ORDER BY e.about ASC, e.member_id ASC, x.month ASC, e.day DESC
),
stock AS (
    -- and what everybody was before the first of these months
    SELECT h.about, h.member_id, h.state
    FROM histories AS h
    JOIN scope AS k ON k.about = h.about
    WHERE h.valid_from < k.month_from AND (h.valid_to IS NULL OR h.valid_to >= k.month_from)
),
moves AS (
    SELECT
        m.about, m.month, m.state AS state_to,
        coalesce(lag(m.state) OVER (PARTITION BY m.about, m.member_id ORDER BY m.month ASC), s.state, '') AS state_from
    FROM month_ends AS m
    LEFT JOIN stock AS s ON s.about = m.about AND s.member_id = m.member_id
),
moved AS (
    SELECT m.about, m.month, m.state_from, m.state_to, count(*) AS member_count
    FROM moves AS m
    GROUP BY m.about, m.month, m.state_from, m.state_to
),
months AS (
    SELECT a.about, g::date AS month
    FROM (
        SELECT x.about, min(x.month) AS first_month
        FROM (
            SELECT m.about, m.month FROM moved AS m
            UNION ALL
            SELECT DISTINCT s.about, k.month_from FROM stock AS s JOIN scope AS k ON k.about = s.about
        ) AS x
        GROUP BY x.about
    ) AS a
    CROSS JOIN mark AS k
    CROSS JOIN generate_series(a.first_month::timestamp, date_trunc('month', k.horizon::timestamp), interval '1 month') AS g
),
states AS (
    SELECT m.about, m.state_from AS state FROM moved AS m
    UNION
    SELECT m.about, m.state_to FROM moved AS m
    UNION
    SELECT s.about, s.state FROM stock AS s
),
opening AS (
    -- how many were in a state when the month began
    SELECT
        m.about, m.month, t.state,
        coalesce(b.member_count, 0) + coalesce(sum(d.delta) OVER (
            PARTITION BY m.about, t.state ORDER BY m.month ASC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), 0) AS member_count
    FROM months AS m
    JOIN states AS t ON t.about = m.about AND t.state <> ''
    LEFT JOIN (SELECT s.about, s.state, count(*) AS member_count FROM stock AS s GROUP BY s.about, s.state) AS b
        ON b.about = m.about AND b.state = t.state
    LEFT JOIN (
        SELECT x.about, x.month, x.state, sum(x.delta) AS delta
        FROM (
            SELECT v.about, v.month, v.state_to AS state, v.member_count AS delta FROM moved AS v
            UNION ALL
            SELECT v.about, v.month, v.state_from, -v.member_count FROM moved AS v
        ) AS x
        GROUP BY x.about, x.month, x.state
    ) AS d ON d.about = m.about AND d.month = m.month AND d.state = t.state
)
SELECT x.about, x.month, x.state_from, x.state_to, sum(x.member_count)::integer AS member_count
FROM (
    SELECT v.about, v.month, v.state_from, v.state_to, v.member_count FROM moved AS v
    UNION ALL
    -- who is not in a move stayed
    SELECT
        o.about, o.month, o.state AS state_from, o.state AS state_to,
        o.member_count - coalesce((
            SELECT sum(v.member_count) FROM moved AS v WHERE v.about = o.about AND v.month = o.month AND v.state_from = o.state
        ), 0)
    FROM opening AS o
) AS x
WHERE x.state_from <> '' OR x.state_to <> ''
GROUP BY x.about, x.month, x.state_from, x.state_to
HAVING sum(x.member_count) > 0;

DELETE FROM mart.stage_transitions AS t
USING scope AS k
WHERE
    t.about = k.about AND t.month >= k.month_from
    AND NOT EXISTS (
        SELECT 1 FROM counted AS c
        WHERE c.about = t.about AND c.month = t.month AND c.state_from = t.state_from AND c.state_to = t.state_to
    );

INSERT INTO mart.stage_transitions (month, about, state_from, state_to, member_count, member_rate)
SELECT
    c.month, c.about, c.state_from, c.state_to, c.member_count,
    CASE WHEN c.state_from <> '' THEN c.member_count::numeric / sum(c.member_count) OVER (PARTITION BY c.month, c.about, c.state_from) END
FROM counted AS c
ON CONFLICT (month, about, state_from, state_to) DO UPDATE SET
    member_count = excluded.member_count, member_rate = excluded.member_rate
WHERE (stage_transitions.member_count, stage_transitions.member_rate) IS DISTINCT FROM (excluded.member_count, excluded.member_rate);

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'stage_transitions', k.horizon, k.upto_batch_id, coalesce(k.settings, '') FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id), excluded.settings);
