-- Portraits: one row per member, for people who look somebody up and for the templates of messages (docs/portrait.md).

-- The day people told us in a form; the year is not asked for and not kept.
ALTER TABLE core.profiles ADD COLUMN birth_month smallint CHECK (birth_month BETWEEN 1 AND 12);
ALTER TABLE core.profiles ADD COLUMN birth_day smallint CHECK (birth_day BETWEEN 1 AND 31);

-- From kpis.yaml: how long after the last order a member is active, and then sleeping; later: lost. One row.
CREATE TABLE mart.portrait_rules (
    is_only boolean PRIMARY KEY DEFAULT TRUE CHECK (is_only),
    active_days integer NOT NULL,
    sleeping_days integer NOT NULL CHECK (sleeping_days > active_days)
);
INSERT INTO mart.portrait_rules (active_days, sleeping_days) VALUES (90, 365);

-- A view: it is never older than the tables it is made of. As of the newest business date.
CREATE VIEW mart.member_portraits AS
SELECT
    m.member_id,
    (SELECT k.business_date FROM mart.marks AS k WHERE k.mart = 'member_facts') AS business_date,
    m.first_seen_at::date AS known_since_date,
    t.tier, r.name_zh AS tier_zh, r.name_en AS tier_en, t.valid_from AS tier_since_date, t.review_date AS tier_review_date,
    coalesce((SELECT sum(l.points) FROM mart.points_ledger AS l WHERE l.member_id = m.member_id), 0)::bigint AS points_balance,
    s.stage, s.valid_from AS stage_since_date,
    f.rfm_segment, f.r_score, f.f_score, f.m_score,
    CASE
        WHEN b.member_id IS NULL THEN NULL
        WHEN d.business_date - b.last_order_date < p.active_days THEN 'active'
        WHEN d.business_date - b.last_order_date < p.sleeping_days THEN 'sleeping'
        ELSE 'lost'
    END AS activity,
    b.first_order_date, b.last_order_date, b.order_count, b.gross_amount, b.net_amount, b.median_gap_days, b.expected_next_order_date,
    b.favourite_source_id, a.name AS favourite_source_name,
    b.favourite_category, c.name_zh AS favourite_category_zh, c.name_en AS favourite_category_en,
    b.city, b.last_rating, b.last_rated_date,
    v.alive_probability, v.expected_order_count, v.expected_amount, v.horizon_days AS expected_days,
    y.birth_month, y.birth_day,
    x.last_contact_at,
    i.identity_count, i.has_wechat, i.has_email, i.has_phone
FROM core.members AS m
CROSS JOIN mart.portrait_rules AS p
LEFT JOIN (SELECT max(k.business_date) AS business_date FROM mart.marks AS k WHERE k.mart = 'member_facts') AS d ON TRUE
LEFT JOIN mart.member_tiers AS t
    ON t.member_id = m.member_id AND t.valid_to IS NULL
    AND t.programme = (SELECT g.programme FROM mart.tier_programmes AS g WHERE g.position = 1)
LEFT JOIN mart.tier_rules AS r ON r.programme = t.programme AND r.tier = t.tier
LEFT JOIN mart.member_stages AS s ON s.member_id = m.member_id AND s.valid_to IS NULL
LEFT JOIN mart.member_rfm AS f ON f.member_id = m.member_id AND f.valid_to IS NULL
LEFT JOIN mart.member_facts AS b ON b.member_id = m.member_id
LEFT JOIN core.accounts AS a ON a.source_id = b.favourite_source_id
LEFT JOIN mart.category_rules AS c ON c.category = b.favourite_category
LEFT JOIN mart.member_predictions AS v ON v.member_id = m.member_id
LEFT JOIN LATERAL (
    SELECT q.birth_month, q.birth_day
    FROM core.member_identities AS mi
    JOIN core.profiles AS q ON q.identity_id = mi.identity_id
    WHERE mi.member_id = m.member_id AND q.birth_month IS NOT NULL
    ORDER BY q.observed_at DESC, q.identity_id ASC
    LIMIT 1
) AS y ON TRUE
LEFT JOIN LATERAL (
    SELECT max(e.exposed_at) AS last_contact_at
    FROM core.exposures AS e
    WHERE
        e.arm = 'treatment'
        AND e.member_id IN (
            SELECT m.member_id
            UNION ALL
            SELECT o.member_id FROM core.members AS o WHERE o.absorbed_by = m.member_id
        )
) AS x ON TRUE
LEFT JOIN LATERAL (
    SELECT
        count(*) AS identity_count,
        coalesce(bool_or(k.kind = 'wechat_openid'), FALSE) AS has_wechat,
        coalesce(bool_or(k.kind = 'email'), FALSE) AS has_email,
        coalesce(bool_or(k.kind = 'phone'), FALSE) AS has_phone
    FROM core.member_identities AS mi
    JOIN core.identities AS k ON k.identity_id = mi.identity_id
    WHERE mi.member_id = m.member_id
) AS i ON TRUE
WHERE m.absorbed_by IS NULL;

-- What a template may say about a member beside name and tier (plugins/nightmarket/campaigns/rendering.py: VARIABLES), as of a business
-- date; favourites and city as they are today. Only called for messages that say any of it.
CREATE FUNCTION mart.template_facts(member bigint, language text, as_of date) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'points', (SELECT coalesce(sum(l.points), 0) FROM mart.points_ledger AS l WHERE l.member_id = member AND l.day <= as_of),
        'last_order_date', (SELECT max(d.day) FROM mart.member_days AS d WHERE d.member_id = member AND d.day <= as_of AND d.order_count > 0),
        'order_count', (SELECT coalesce(sum(d.order_count), 0) FROM mart.member_days AS d WHERE d.member_id = member AND d.day <= as_of),
        'favourite_category', (
            SELECT CASE language WHEN 'zh' THEN c.name_zh ELSE c.name_en END
            FROM mart.member_facts AS f JOIN mart.category_rules AS c ON c.category = f.favourite_category WHERE f.member_id = member
        ),
        'city', (SELECT f.city FROM mart.member_facts AS f WHERE f.member_id = member)
    )
$$;

GRANT SELECT ON mart.member_portraits TO nightmarket_etl, nightmarket_reader;
-- The earliest day on which a history of stages or tiers came out differently: stage_transitions counts from its month on.
CREATE FUNCTION mart.note_moved_histories() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        EXECUTE format(
            'INSERT INTO mart.moved_days (source_table, day) SELECT %L, m.day FROM ('
            ' SELECT min(CASE WHEN n.%I IS DISTINCT FROM o.%I THEN n.valid_from'
            '  WHEN n.valid_to IS DISTINCT FROM o.valid_to THEN least(n.valid_to, o.valid_to) END) AS day'
            ' FROM before AS o JOIN after AS n ON n.member_id = o.member_id AND n.valid_from = o.valid_from %s) AS m WHERE m.day IS NOT NULL',
            TG_TABLE_NAME, TG_ARGV[0], TG_ARGV[0], TG_ARGV[1]
        );
    ELSE
        EXECUTE format('INSERT INTO mart.moved_days (source_table, day) SELECT %L, m.day FROM (SELECT min(x.valid_from) AS day FROM %s AS x) AS m'
                       ' WHERE m.day IS NOT NULL', TG_TABLE_NAME, CASE TG_OP WHEN 'INSERT' THEN 'after' ELSE 'before' END);
    END IF;
    RETURN NULL;
END $$;
DO $$
DECLARE
    spec record;
BEGIN
    FOR spec IN SELECT * FROM (VALUES ('member_stages', 'stage', ''), ('member_tiers', 'tier', 'AND n.programme = o.programme')) AS t (name, state, more) LOOP
        EXECUTE format('CREATE TRIGGER moved_insert AFTER INSERT ON mart.%I REFERENCING NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION mart.note_moved_histories(%L, %L)', spec.name, spec.state, spec.more);
        EXECUTE format('CREATE TRIGGER moved_update AFTER UPDATE ON mart.%I REFERENCING OLD TABLE AS before NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION mart.note_moved_histories(%L, %L)', spec.name, spec.state, spec.more);
        EXECUTE format('CREATE TRIGGER moved_delete AFTER DELETE ON mart.%I REFERENCING OLD TABLE AS before'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION mart.note_moved_histories(%L, %L)', spec.name, spec.state, spec.more);
    END LOOP;
END $$;

GRANT TRUNCATE ON mart.portrait_rules TO nightmarket_etl;
GRANT SELECT, INSERT, UPDATE, DELETE ON mart.portrait_rules TO nightmarket_etl;
GRANT SELECT ON mart.portrait_rules TO nightmarket_reader;
