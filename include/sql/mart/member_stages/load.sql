-- mart.member_stages: where every member stands on the way from unknown to advocate, as history.
-- Grain: one row per member and stretch of days [valid_from, valid_to) in one stage; valid_to NULL = still.
-- Params: business_date (date), positive_from_rating (integer), loyal_order_days (integer), loyal_window_days (integer),
--   advocate_review_count (integer).
-- Reads: core.members, core.member_identities, core.identities, core.customers, core.followers, core.follow_events, core.consents,
--   core.interactions, core.social_comments, core.orders, core.reviews, mart.member_days, mart.touched_members, mart.marks,
--   mart.member_stages
-- Rerun: safe; the way of members who were touched, or whose stretch as loyal ends, is told again from the beginning; rows that do not
-- differ stay. A run for an older date takes nothing back (docs/decisions/0072-stages.md).
-- The stage of a day is the highest one whose condition holds on it. Most conditions, once met, stay met; satisfied ends with a bad
-- review, loyal when the order days leave the window.
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    greatest(%(business_date)s::date, m.business_date) AS horizon,
    m.business_date AS since,
    coalesce(m.batch_id, 0) AS after_batch_id,
    coalesce((SELECT max(t.batch_id) FROM mart.touched_members AS t), m.batch_id, 0) AS upto_batch_id,
    w.settings,
    m.mart IS NULL OR m.settings <> w.settings AS is_full
FROM (
    SELECT
        'member_stages' AS mart,
        concat_ws(
            '/', %(positive_from_rating)s::integer, %(loyal_order_days)s::integer, %(loyal_window_days)s::integer,
            %(advocate_review_count)s::integer
        ) AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

-- Whoever did anything since the last night was touched; beside that only the end of a loyal stretch comes by itself.
DROP TABLE IF EXISTS pg_temp.scope;
CREATE TEMPORARY TABLE scope ON COMMIT DROP AS
SELECT DISTINCT x.member_id
FROM (
    SELECT t.member_id
    FROM mart.touched_members AS t
    CROSS JOIN mark AS k
    WHERE NOT k.is_full AND t.batch_id > k.after_batch_id AND t.batch_id <= k.upto_batch_id
    UNION ALL
    SELECT d.member_id
    FROM mark AS k
    JOIN mart.member_days AS d
        ON (d.day > k.since AND d.day <= k.horizon)
        OR (d.day > k.since - %(loyal_window_days)s::integer AND d.day <= k.horizon - %(loyal_window_days)s::integer)
    WHERE NOT k.is_full
    UNION ALL
    -- what came in before the last night was over, and belongs to a day after it
    SELECT mi.member_id
    FROM mark AS k
    CROSS JOIN LATERAL (
        SELECT i.identity_id FROM core.identities AS i WHERE i.first_seen_at >= (k.since + 1)::timestamptz
        UNION ALL
        SELECT f.identity_id FROM core.follow_events AS f WHERE f.occurred_at >= (k.since + 1)::timestamptz
        UNION ALL
        SELECT a.identity_id FROM core.interactions AS a WHERE a.occurred_at >= (k.since + 1)::timestamptz
        UNION ALL
        SELECT c.identity_id FROM core.consents AS c WHERE c.occurred_at >= (k.since + 1)::timestamptz
        UNION ALL
        SELECT f.identity_id FROM core.followers AS f WHERE f.followed_at >= (k.since + 1)::timestamptz
        UNION ALL
        SELECT c.identity_id FROM core.social_comments AS c WHERE c.created_at >= (k.since + 1)::timestamptz
        UNION ALL
        SELECT c.identity_id FROM core.customers AS c WHERE c.joined_at >= (k.since + 1)::timestamptz
    ) AS late
    JOIN core.member_identities AS mi ON mi.identity_id = late.identity_id
    WHERE NOT k.is_full
    UNION ALL
    SELECT m.member_id FROM core.members AS m WHERE (SELECT k.is_full FROM mark AS k)
    UNION ALL
    SELECT s.member_id FROM mart.member_stages AS s WHERE (SELECT k.is_full FROM mark AS k)
) AS x;
CREATE UNIQUE INDEX ON scope (member_id);
ANALYZE scope;

DROP TABLE IF EXISTS pg_temp.persons;
CREATE TEMPORARY TABLE persons ON COMMIT DROP AS
SELECT mi.identity_id, s.member_id
FROM scope AS s
JOIN core.member_identities AS mi ON mi.member_id = s.member_id;
CREATE UNIQUE INDEX ON persons (identity_id);
ANALYZE persons;

-- From which day, and to which where it ends, each condition holds. A long stretch may stand in two rows: its beginning, its end.
DROP TABLE IF EXISTS pg_temp.conditions;
CREATE TEMPORARY TABLE conditions ON COMMIT DROP AS
WITH
rated AS (
    SELECT
        r.member_id, r.day, r.is_good, r.number,
        lag(r.is_good) OVER w AS before_is_good,
        min(CASE WHEN NOT r.is_good THEN r.day END) OVER (
            PARTITION BY r.member_id ORDER BY r.place ASC ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
        ) AS bad_day
    FROM (
        SELECT
            p.member_id, v.created_at::date AS day, v.rating >= %(positive_from_rating)s::integer AS is_good,
            row_number() OVER (PARTITION BY p.member_id ORDER BY v.created_at ASC, v.source_id ASC, v.review_id ASC) AS place,
            count(*) FILTER (WHERE v.rating >= %(positive_from_rating)s::integer) OVER (
                PARTITION BY p.member_id ORDER BY v.created_at ASC, v.source_id ASC, v.review_id ASC
            ) AS number
        FROM core.reviews AS v
        JOIN persons AS p ON p.identity_id = v.identity_id
    ) AS r
    WINDOW w AS (PARTITION BY r.member_id ORDER BY r.place ASC)
),
bought AS (
    SELECT
        d.member_id, d.day,
        lag(d.day, %(loyal_order_days)s::integer - 1) OVER (PARTITION BY d.member_id ORDER BY d.day ASC)
        + %(loyal_window_days)s::integer AS end_day
    FROM scope AS s
    JOIN mart.member_days AS d ON d.member_id = s.member_id AND d.order_count > 0
),
loyal AS (
    -- stretches that touch or overlap are one: it begins where none before reaches, and ends where none behind begins in time
    SELECT
        b.member_id, b.day, b.end_day,
        lag(b.end_day) OVER w >= b.day AS is_continued,
        lead(b.day) OVER w <= b.end_day AS is_followed
    FROM bought AS b
    WHERE b.day < b.end_day
    WINDOW w AS (PARTITION BY b.member_id ORDER BY b.day ASC)
)
SELECT s.member_id, 1 AS rank, min(i.first_seen_at)::date AS day_from, NULL::date AS day_to
FROM persons AS s
JOIN core.identities AS i ON i.identity_id = s.identity_id
GROUP BY s.member_id
UNION ALL
SELECT p.member_id, 2, min(x.day), NULL
FROM (
    -- a shop that does not say since when: since the person was first seen
    SELECT c.identity_id, coalesce(c.joined_at, i.first_seen_at)::date AS day
    FROM core.customers AS c
    JOIN core.identities AS i ON i.identity_id = c.identity_id
    UNION ALL
    SELECT a.identity_id, a.occurred_at::date FROM core.interactions AS a WHERE a.kind = 'scan'
    UNION ALL
    SELECT c.identity_id, c.created_at::date FROM core.social_comments AS c
) AS x
JOIN persons AS p ON p.identity_id = x.identity_id
GROUP BY p.member_id
UNION ALL
SELECT p.member_id, 3, min(x.day), NULL
FROM (
    SELECT f.identity_id, f.followed_at::date AS day FROM core.followers AS f WHERE f.followed_at IS NOT NULL
    UNION ALL
    SELECT e.identity_id, e.occurred_at::date FROM core.follow_events AS e WHERE e.kind = 'follow'
    UNION ALL
    SELECT c.identity_id, c.occurred_at::date FROM core.consents AS c WHERE c.is_granted
) AS x
JOIN persons AS p ON p.identity_id = x.identity_id
GROUP BY p.member_id
UNION ALL
SELECT p.member_id, 4, min(a.occurred_at)::date, NULL
FROM core.interactions AS a
JOIN persons AS p ON p.identity_id = a.identity_id
WHERE a.kind IN ('message', 'menu', 'click', 'visit')
GROUP BY p.member_id
UNION ALL
-- an order that was never paid, or not on the day it was made; of the others the day of payment says enough
SELECT p.member_id, 5, min(o.created_at)::date, NULL
FROM core.orders AS o
JOIN persons AS p ON p.identity_id = o.identity_id
WHERE o.paid_at IS NULL OR o.created_at::date < o.paid_at::date
GROUP BY p.member_id
UNION ALL
SELECT b.member_id, 6, min(b.day), NULL
FROM bought AS b
GROUP BY b.member_id
UNION ALL
-- a run of good reviews: from its first one to the bad one that ends it
SELECT r.member_id, 7, r.day, r.bad_day
FROM rated AS r
WHERE r.is_good AND r.before_is_good IS DISTINCT FROM TRUE
UNION ALL
SELECT l.member_id, 8, CASE WHEN l.is_continued THEN NULL ELSE l.day END, CASE WHEN l.is_followed THEN NULL ELSE l.end_day END
FROM loyal AS l
WHERE NOT coalesce(l.is_continued, FALSE) OR NOT coalesce(l.is_followed, FALSE)
UNION ALL
SELECT x.member_id, 9, min(x.day), NULL
FROM (
    SELECT r.member_id, r.day FROM rated AS r WHERE r.is_good AND r.number = %(advocate_review_count)s::integer
    UNION ALL
    SELECT p.member_id, c.created_at::date
    FROM core.social_comments AS c
    JOIN persons AS p ON p.identity_id = c.identity_id
    WHERE c.kind = 'mention'
) AS x
GROUP BY x.member_id;

DROP TABLE IF EXISTS pg_temp.told;
CREATE TEMPORARY TABLE told ON COMMIT DROP AS
WITH
edges AS (
    SELECT
        c.member_id, c.day_from AS day, CASE WHEN c.rank NOT IN (7, 8) THEN c.rank ELSE 0 END AS rank,
        (c.rank = 7)::integer AS satisfied, (c.rank = 8)::integer AS loyal
    FROM conditions AS c
    WHERE c.day_from IS NOT NULL
    UNION ALL
    SELECT c.member_id, c.day_to, 0, -(c.rank = 7)::integer, -(c.rank = 8)::integer
    FROM conditions AS c
    WHERE c.day_to IS NOT NULL
),
running AS (
    SELECT
        e.member_id, e.day,
        greatest(
            max(e.rank) OVER w,
            CASE WHEN sum(e.satisfied) OVER w > 0 THEN 7 ELSE 0 END,
            CASE WHEN sum(e.loyal) OVER w > 0 THEN 8 ELSE 0 END
        ) AS rank
    FROM edges AS e
    WHERE e.day <= (SELECT k.horizon FROM mark AS k)
    WINDOW w AS (PARTITION BY e.member_id ORDER BY e.day ASC)
),
changes AS (
    SELECT r.member_id, r.day, r.rank, lag(r.rank) OVER (PARTITION BY r.member_id ORDER BY r.day ASC) AS previous_rank
    FROM running AS r
),
names (rank, stage, reason) AS (
    VALUES
    (1, 'none', 'an identity is known, and nothing else'),
    (2, 'discovered', 'a shop lists the person, or the person scanned a code of ours or wrote under a post'),
    (3, 'aware', 'follows an account of ours, or allowed messages'),
    (4, 'considering', 'wrote to us, clicked a link, a menu or a page of ours'),
    (5, 'choosing', 'made an order that was not paid the same day'),
    (6, 'purchased', 'paid an order'),
    (7, 'satisfied', 'the last word in a review is good: ' || %(positive_from_rating)s::integer || ' or better of 5'),
    (8, 'loyal', 'orders on ' || %(loyal_order_days)s::integer || ' days or more within ' || %(loyal_window_days)s::integer || ' days'),
    (9, 'advocate', 'wrote ' || %(advocate_review_count)s::integer || ' good reviews, or about us on a social account')
)
SELECT
    c.member_id, c.day AS valid_from, lead(c.day) OVER (PARTITION BY c.member_id ORDER BY c.day ASC) AS valid_to,
    n.stage, b.stage AS previous_stage,
    CASE WHEN c.rank < c.previous_rank THEN 'no longer ' || b.stage || '; ' ELSE '' END || n.reason AS reason
FROM changes AS c
JOIN names AS n ON n.rank = c.rank
LEFT JOIN names AS b ON b.rank = c.previous_rank
WHERE c.rank IS DISTINCT FROM c.previous_rank;
CREATE INDEX ON told (member_id, valid_from);
ANALYZE told;

DELETE FROM mart.member_stages AS m
USING scope AS s
WHERE
    m.member_id = s.member_id
    AND NOT EXISTS (SELECT 1 FROM told AS t WHERE t.member_id = m.member_id AND t.valid_from = m.valid_from);

UPDATE mart.member_stages AS m SET
    valid_to = t.valid_to, stage = t.stage, previous_stage = t.previous_stage, reason = t.reason
FROM told AS t
WHERE
    m.member_id = t.member_id AND m.valid_from = t.valid_from
    AND (m.valid_to, m.stage, m.previous_stage, m.reason)
    IS DISTINCT FROM (t.valid_to, t.stage, t.previous_stage, t.reason);

INSERT INTO mart.member_stages (
member_id, valid_from, valid_to, stage, previous_stage, reason)
SELECT t.member_id, t.valid_from, t.valid_to, t.stage, t.previous_stage, t.reason
FROM told AS t
WHERE NOT EXISTS (SELECT 1 FROM mart.member_stages AS m WHERE m.member_id = t.member_id AND m.valid_from = t.valid_from)
ORDER BY t.member_id ASC, t.valid_from ASC;

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'member_stages', k.horizon, k.upto_batch_id, k.settings FROM mark AS k
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, batch_id = greatest(marks.batch_id, excluded.batch_id), settings = excluded.settings,
    computed_at = clock_timestamp()
WHERE
    (marks.business_date, marks.batch_id, marks.settings)
    IS DISTINCT FROM (excluded.business_date, greatest(marks.batch_id, excluded.batch_id), excluded.settings);
