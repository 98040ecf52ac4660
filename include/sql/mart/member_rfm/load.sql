-- mart.member_rfm: recency, frequency and money of every member, scores, segment, as history.
-- Grain: one row per member and stretch of days [valid_from, valid_to) in which nothing of it moved; valid_to NULL = still.
-- Params: business_date (date), rfm_window_days (integer), rfm_high_from_score (integer).
-- Reads: mart.member_days, mart.touched_members, mart.marks, mart.member_rfm
-- Rerun: safe; a business date's state is laid over the history: the newest one lasts until the next night, an older one for its own
-- day, so nights may be run again or filled in in any order. A night counts again whom it touched or whose orders left the window; the
-- cut points are everybody's (docs/decisions/0020-rfm.md).
-- Scores are quintiles by cut points, so equal behaviour gets equal scores and no member id breaks a tie.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    %(business_date)s::date AS day,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), m.batch_id, 0) AS upto_batch_id,
    w.settings,
    m.mart IS NULL OR m.settings <> w.settings OR %(business_date)s::date < m.business_date AS is_full,
    coalesce(%(business_date)s::date >= m.business_date, TRUE) AS is_newest
FROM (SELECT 'member_rfm' AS mart, %(rfm_window_days)s::integer || '/' || %(rfm_high_from_score)s::integer AS settings) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT DISTINCT x.member_id
FROM (
    SELECT t.member_id
    FROM mart.touched_members AS t
    CROSS JOIN mark AS k
    WHERE t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id
    UNION ALL
    SELECT d.member_id FROM mark AS k JOIN mart.member_days AS d ON d.day > k.since AND d.day <= k.day
    UNION ALL
    SELECT d.member_id
    FROM mark AS k
    JOIN mart.member_days AS d
        ON d.day > k.since - %(rfm_window_days)s::integer AND d.day <= k.day - %(rfm_window_days)s::integer
) AS x
CROSS JOIN mark AS q
WHERE NOT q.is_full;
CREATE UNIQUE INDEX ON scope (member_id);
ANALYZE scope;

DROP TABLE IF EXISTS pg_temp.behaviour;
CREATE TEMPORARY TABLE behaviour ON COMMIT DROP AS
SELECT d.member_id, max(d.day) AS last_order_date, sum(d.order_count)::integer AS frequency_count, sum(d.gross_amount) AS monetary_amount
FROM mark AS k
JOIN mart.member_days AS d ON d.order_count > 0 AND d.day > k.day - %(rfm_window_days)s::integer AND d.day <= k.day
WHERE k.is_full
GROUP BY d.member_id
UNION ALL
SELECT d.member_id, max(d.day), sum(d.order_count)::integer, sum(d.gross_amount)
FROM mark AS k
CROSS JOIN scope AS s
JOIN mart.member_days AS d
    ON d.member_id = s.member_id AND d.order_count > 0 AND d.day > k.day - %(rfm_window_days)s::integer AND d.day <= k.day
WHERE NOT k.is_full
GROUP BY d.member_id
UNION ALL
-- nobody moved them since the last night, and they stand as they stood
SELECT m.member_id, m.last_order_date, m.frequency_count, m.monetary_amount
FROM mark AS k
JOIN mart.member_rfm AS m ON m.valid_to IS NULL
WHERE NOT k.is_full AND NOT EXISTS (SELECT 1 FROM scope AS s WHERE s.member_id = m.member_id);
ANALYZE behaviour;

DROP TABLE IF EXISTS pg_temp.placed;
CREATE TEMPORARY TABLE placed ON COMMIT DROP AS
WITH
cuts AS (
    SELECT
        percentile_disc(ARRAY[0.2, 0.4, 0.6, 0.8]) WITHIN GROUP (ORDER BY last_order_date ASC) AS r_cuts,
        percentile_disc(ARRAY[0.2, 0.4, 0.6, 0.8]) WITHIN GROUP (ORDER BY frequency_count ASC) AS f_cuts,
        percentile_disc(ARRAY[0.2, 0.4, 0.6, 0.8]) WITHIN GROUP (ORDER BY monetary_amount ASC) AS m_cuts
    FROM behaviour
),
scored AS (
    -- 1 + how many of the four cut points lie strictly below the member
    SELECT
        b.member_id, b.last_order_date, b.frequency_count, b.monetary_amount,
        1 + (c.r_cuts[1] < b.last_order_date)::integer + (c.r_cuts[2] < b.last_order_date)::integer
        + (c.r_cuts[3] < b.last_order_date)::integer + (c.r_cuts[4] < b.last_order_date)::integer AS r_score,
        1 + (c.f_cuts[1] < b.frequency_count)::integer + (c.f_cuts[2] < b.frequency_count)::integer
        + (c.f_cuts[3] < b.frequency_count)::integer + (c.f_cuts[4] < b.frequency_count)::integer AS f_score,
        1 + (c.m_cuts[1] < b.monetary_amount)::integer + (c.m_cuts[2] < b.monetary_amount)::integer
        + (c.m_cuts[3] < b.monetary_amount)::integer + (c.m_cuts[4] < b.monetary_amount)::integer AS m_score
    FROM behaviour AS b
    CROSS JOIN cuts AS c
)
SELECT
    s.member_id, s.last_order_date, s.frequency_count, s.monetary_amount, s.r_score, s.f_score, s.m_score,
    CASE WHEN s.m_score >= %(rfm_high_from_score)s::integer THEN '重要' ELSE '一般' END
    || CASE
        WHEN s.r_score >= %(rfm_high_from_score)s::integer AND s.f_score >= %(rfm_high_from_score)s::integer THEN '价值'
        WHEN s.r_score >= %(rfm_high_from_score)s::integer THEN '发展'
        WHEN s.f_score >= %(rfm_high_from_score)s::integer THEN '保持'
        ELSE '挽留'
    END
    || '客户' AS rfm_segment
FROM scored AS s;
ANALYZE placed;

-- Whose state on this date is not what the history says; their whole history is put together again: what stood before, this date,
-- and, for an older date, what stood after it. Neighbours that are alike are one row.
DROP TABLE IF EXISTS pg_temp.moved;
CREATE TEMPORARY TABLE moved ON COMMIT DROP AS
SELECT coalesce(p.member_id, h.member_id) AS member_id
FROM placed AS p
FULL JOIN (
    SELECT m.member_id, m.valid_to, m.last_order_date, m.frequency_count, m.monetary_amount, m.r_score, m.f_score, m.m_score, m.rfm_segment
    FROM mart.member_rfm AS m
    CROSS JOIN mark AS k
    WHERE m.valid_from <= k.day AND (m.valid_to IS NULL OR m.valid_to > k.day)
) AS h ON h.member_id = p.member_id
WHERE
    (p.last_order_date, p.frequency_count, p.monetary_amount, p.r_score, p.f_score, p.m_score, p.rfm_segment)
    IS DISTINCT FROM (h.last_order_date, h.frequency_count, h.monetary_amount, h.r_score, h.f_score, h.m_score, h.rfm_segment);
CREATE UNIQUE INDEX ON moved (member_id);
ANALYZE moved;

DROP TABLE IF EXISTS pg_temp.told;
CREATE TEMPORARY TABLE told ON COMMIT DROP AS
WITH
pieces AS (
    SELECT
        m.member_id, x.valid_from, x.valid_to, m.last_order_date, m.frequency_count, m.monetary_amount, m.r_score, m.f_score, m.m_score,
        m.rfm_segment
    FROM moved AS v
    JOIN mart.member_rfm AS m ON m.member_id = v.member_id
    CROSS JOIN mark AS k
    CROSS JOIN LATERAL (
        SELECT m.valid_from, least(m.valid_to, k.day) AS valid_to WHERE m.valid_from < k.day
        UNION ALL
        SELECT greatest(m.valid_from, k.day + 1), m.valid_to
        WHERE NOT k.is_newest AND (m.valid_to IS NULL OR m.valid_to > k.day + 1)
    ) AS x
    UNION ALL
    SELECT
        p.member_id, k.day, CASE WHEN k.is_newest THEN NULL::date ELSE k.day + 1 END, p.last_order_date, p.frequency_count,
        p.monetary_amount, p.r_score, p.f_score, p.m_score, p.rfm_segment
    FROM placed AS p
    JOIN moved AS v ON v.member_id = p.member_id
    CROSS JOIN mark AS k
),
marked AS (
    SELECT
        p.member_id, p.valid_from, p.valid_to, p.last_order_date, p.frequency_count, p.monetary_amount, p.r_score, p.f_score, p.m_score,
        p.rfm_segment,
        coalesce(
            lag(p.valid_to) OVER w = p.valid_from
            AND lag(row(p.last_order_date, p.frequency_count, p.monetary_amount, p.r_score, p.f_score, p.m_score)) OVER w
            = row(p.last_order_date, p.frequency_count, p.monetary_amount, p.r_score, p.f_score, p.m_score),
            FALSE
        ) AS is_alike
    FROM pieces AS p
    WINDOW w AS (PARTITION BY p.member_id ORDER BY p.valid_from ASC)
),
grouped AS (
    SELECT
        m.member_id, m.valid_from, m.valid_to, m.last_order_date, m.frequency_count, m.monetary_amount, m.r_score, m.f_score, m.m_score,
        m.rfm_segment,
        count(*) FILTER (WHERE NOT m.is_alike) OVER (PARTITION BY m.member_id ORDER BY m.valid_from ASC) AS stretch
    FROM marked AS m
)
SELECT
    g.member_id, min(g.valid_from) AS valid_from, nullif(max(coalesce(g.valid_to, 'infinity')), 'infinity') AS valid_to,
    min(g.last_order_date) AS last_order_date, min(g.frequency_count) AS frequency_count, min(g.monetary_amount) AS monetary_amount,
    min(g.r_score) AS r_score, min(g.f_score) AS f_score, min(g.m_score) AS m_score, min(g.rfm_segment) AS rfm_segment
FROM grouped AS g
GROUP BY g.member_id, g.stretch;
CREATE INDEX ON told (member_id, valid_from);
ANALYZE told;

DELETE FROM mart.member_rfm AS m
USING moved AS v
WHERE
    m.member_id = v.member_id
    AND NOT EXISTS (SELECT 1 FROM told AS t WHERE t.member_id = m.member_id AND t.valid_from = m.valid_from);

UPDATE mart.member_rfm AS m SET
    valid_to = t.valid_to,
    last_order_date = t.last_order_date,
    frequency_count = t.frequency_count,
    monetary_amount = t.monetary_amount,
    r_score = t.r_score,
    f_score = t.f_score,
    m_score = t.m_score,
    rfm_segment = t.rfm_segment
FROM told AS t
WHERE
    m.member_id = t.member_id AND m.valid_from = t.valid_from
    AND (
        m.valid_to, m.last_order_date, m.frequency_count, m.monetary_amount, m.r_score,
        m.f_score, m.m_score, m.rfm_segment
    )
    IS DISTINCT FROM (
        t.valid_to, t.last_order_date, t.frequency_count, t.monetary_amount, t.r_score,
        t.f_score, t.m_score, t.rfm_segment
    );

INSERT INTO mart.member_rfm (
    member_id, valid_from, valid_to, last_order_date, frequency_count, monetary_amount, r_score, f_score, m_score, rfm_segment
)
SELECT
    t.member_id, t.valid_from, t.valid_to, t.last_order_date, t.frequency_count, t.monetary_amount, t.r_score, t.f_score, t.m_score,
    t.rfm_segment
FROM told AS t
WHERE NOT EXISTS (SELECT 1 FROM mart.member_rfm AS m WHERE m.member_id = t.member_id AND m.valid_from = t.valid_from)
ORDER BY t.member_id ASC, t.valid_from ASC;

-- An older date looked at its own day only: what the newest night knows is not its business.
INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'member_rfm', k.day, k.upto_batch_id, k.settings
FROM mark AS k
WHERE k.is_newest
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id), excluded.settings);
