-- mart.member_rfm: recency, frequency and money of every member at the end of a business date, scores, segment.
-- Grain: one row per business date and member with a paid order in the window.
-- Params: business_date (date), rfm_window_days (integer), rfm_high_from_score (integer).
-- Reads: mart.member_days
-- Rerun: safe; replaces exactly one business date, rows that do not differ are not rewritten.
-- Scores are quintiles by cut points, so equal behaviour gets equal scores and no member id breaks a tie
-- (docs/decisions/0020-rfm.md).
WITH
behaviour AS (
    SELECT
        d.member_id,
        max(d.day) AS last_order_date,
        sum(d.order_count) AS frequency_count,
        sum(d.gross_amount) AS monetary_amount
    FROM mart.member_days AS d
    WHERE
        d.order_count > 0
        AND d.day > %(business_date)s::date - %(rfm_window_days)s::integer
        AND d.day <= %(business_date)s::date
    GROUP BY d.member_id
),
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
        b.member_id,
        b.last_order_date,
        b.frequency_count,
        b.monetary_amount,
        1 + (c.r_cuts[1] < b.last_order_date)::integer + (c.r_cuts[2] < b.last_order_date)::integer
        + (c.r_cuts[3] < b.last_order_date)::integer + (c.r_cuts[4] < b.last_order_date)::integer AS r_score,
        1 + (c.f_cuts[1] < b.frequency_count)::integer + (c.f_cuts[2] < b.frequency_count)::integer
        + (c.f_cuts[3] < b.frequency_count)::integer + (c.f_cuts[4] < b.frequency_count)::integer AS f_score,
        1 + (c.m_cuts[1] < b.monetary_amount)::integer + (c.m_cuts[2] < b.monetary_amount)::integer
        + (c.m_cuts[3] < b.monetary_amount)::integer + (c.m_cuts[4] < b.monetary_amount)::integer AS m_score
    FROM behaviour AS b
    CROSS JOIN cuts AS c
),
placed AS (
    SELECT
        s.member_id,
        s.last_order_date,
        s.frequency_count,
        s.monetary_amount,
        s.r_score,
        s.f_score,
        s.m_score,
        CASE WHEN s.m_score >= %(rfm_high_from_score)s::integer THEN '重要' ELSE '一般' END
        || CASE
            WHEN s.r_score >= %(rfm_high_from_score)s::integer AND s.f_score >= %(rfm_high_from_score)s::integer THEN '价值'
            WHEN s.r_score >= %(rfm_high_from_score)s::integer THEN '发展'
            WHEN s.f_score >= %(rfm_high_from_score)s::integer THEN '保持'
            ELSE '挽留'
        END
        || '客户' AS rfm_segment
    FROM scored AS s
),
vanished AS (
    DELETE FROM mart.member_rfm AS m
    WHERE
        m.business_date = %(business_date)s::date
        AND NOT EXISTS (SELECT 1 FROM placed AS p WHERE p.member_id = m.member_id)
)
INSERT INTO mart.member_rfm (
    business_date, member_id, last_order_date, recency_days, frequency_count, monetary_amount, r_score, f_score, m_score,
    rfm_segment
)
SELECT
    %(business_date)s::date,
    p.member_id,
    p.last_order_date,
    %(business_date)s::date + 1 - p.last_order_date,
    p.frequency_count,
    p.monetary_amount,
    p.r_score,
    p.f_score,
    p.m_score,
    p.rfm_segment
FROM placed AS p
ON CONFLICT (business_date, member_id) DO UPDATE SET
    last_order_date = excluded.last_order_date,
    recency_days = excluded.recency_days,
    frequency_count = excluded.frequency_count,
    monetary_amount = excluded.monetary_amount,
    r_score = excluded.r_score,
    f_score = excluded.f_score,
    m_score = excluded.m_score,
    rfm_segment = excluded.rfm_segment
WHERE
    (
        member_rfm.last_order_date, member_rfm.frequency_count, member_rfm.monetary_amount, member_rfm.r_score,
        member_rfm.f_score, member_rfm.m_score, member_rfm.rfm_segment
    )
    IS DISTINCT FROM (
        excluded.last_order_date, excluded.frequency_count, excluded.monetary_amount, excluded.r_score,
        excluded.f_score, excluded.m_score, excluded.rfm_segment
    );
