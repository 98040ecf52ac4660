-- What changed in core since the last night, so that a night computes what moved and not everybody
-- (docs/decisions/0060-nights-touch-what-moved.md);
-- tiers by programme, points, stages, RFM with history.

----------------------------------------------------------------------------------------------------------------- core
-- What somebody wrote in core and no night has taken notice of yet: which person, shop and day it moves. Written by triggers, so
-- it does not matter who writes core: a mapping, a correction by hand, a restore. mart/touched_members/load.sql takes the rows away.
-- kind: money (a paid order, or its buyer, day or amount), status (an order that moved on), refund, review, identity (a value that
-- became or stopped being a member's: all days of both), member (anything else about a person).
CREATE TABLE core.touches (
    kind text NOT NULL CHECK (kind IN ('money', 'status', 'refund', 'review', 'identity', 'member')),
    source_id text,
    identity_id bigint,
    member_id bigint,                                -- kind identity and member only: whose it was, or became
    day date                                         -- in the session's zone, as everywhere; NULL: all days
);

CREATE FUNCTION core.touch_orders() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO core.touches (kind, source_id, identity_id, day)
        SELECT DISTINCT t.kind, n.source_id, n.identity_id, t.at::date
        FROM after AS n
        CROSS JOIN LATERAL (VALUES ('money', CASE WHEN n.is_paid THEN n.paid_at END), ('status', n.created_at), ('status', n.signed_at)) AS t (kind, at)
        WHERE t.at IS NOT NULL;
        -- a refund that came before its order, and without a buyer, is the order's buyer's now
        INSERT INTO core.touches (kind, source_id, identity_id, day)
        SELECT 'refund', n.source_id, n.identity_id, r.settled_at::date
        FROM after AS n
        JOIN core.refunds AS r ON r.source_id = n.source_id AND r.order_id = n.order_id AND r.identity_id IS NULL
        WHERE r.settled_at IS NOT NULL AND n.identity_id IS NOT NULL;
    ELSE
        INSERT INTO core.touches (kind, source_id, identity_id, day)
        SELECT DISTINCT t.kind, t.source_id, t.identity_id, t.at::date
        FROM before AS o
        FULL JOIN after AS n ON n.source_id = o.source_id AND n.order_id = o.order_id
        CROSS JOIN LATERAL (
            SELECT (o.identity_id, o.is_paid, o.paid_at, o.goods_amount, o.unit_count)
                IS DISTINCT FROM (n.identity_id, n.is_paid, n.paid_at, n.goods_amount, n.unit_count) AS is_money
        ) AS d
        CROSS JOIN LATERAL (
            VALUES
            ('money', o.source_id, o.identity_id, CASE WHEN d.is_money AND o.is_paid THEN o.paid_at END),
            ('money', n.source_id, n.identity_id, CASE WHEN d.is_money AND n.is_paid THEN n.paid_at END),
            ('status', o.source_id, o.identity_id, o.created_at), ('status', n.source_id, n.identity_id, n.created_at),
            ('status', o.source_id, o.identity_id, o.paid_at), ('status', n.source_id, n.identity_id, n.paid_at),
            ('status', o.source_id, o.identity_id, o.signed_at), ('status', n.source_id, n.identity_id, n.signed_at)
        ) AS t (kind, source_id, identity_id, at)
        WHERE t.at IS NOT NULL;
        INSERT INTO core.touches (kind, source_id, identity_id, day)
        SELECT 'refund', t.source_id, t.identity_id, r.settled_at::date
        FROM (
            SELECT o.source_id, o.order_id, o.identity_id FROM before AS o
            EXCEPT
            SELECT n.source_id, n.order_id, n.identity_id FROM after AS n
            UNION ALL
            (SELECT n.source_id, n.order_id, n.identity_id FROM after AS n
             EXCEPT
             SELECT o.source_id, o.order_id, o.identity_id FROM before AS o)
        ) AS t
        JOIN core.refunds AS r ON r.source_id = t.source_id AND r.order_id = t.order_id AND r.identity_id IS NULL
        WHERE r.settled_at IS NOT NULL AND t.identity_id IS NOT NULL;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION core.touch_refunds() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        INSERT INTO core.touches (kind, source_id, identity_id, day)
        SELECT DISTINCT 'refund', n.source_id, coalesce(n.identity_id, o.identity_id), t.at::date
        FROM after AS n
        LEFT JOIN core.orders AS o ON n.identity_id IS NULL AND o.source_id = n.source_id AND o.order_id = n.order_id
        CROSS JOIN LATERAL (VALUES (n.created_at), (n.settled_at)) AS t (at)
        WHERE t.at IS NOT NULL;
    END IF;
    IF TG_OP IN ('DELETE', 'UPDATE') THEN
        INSERT INTO core.touches (kind, source_id, identity_id, day)
        SELECT DISTINCT 'refund', n.source_id, coalesce(n.identity_id, o.identity_id), t.at::date
        FROM before AS n
        LEFT JOIN core.orders AS o ON n.identity_id IS NULL AND o.source_id = n.source_id AND o.order_id = n.order_id
        CROSS JOIN LATERAL (VALUES (n.created_at), (n.settled_at)) AS t (at)
        WHERE t.at IS NOT NULL;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION core.touch_reviews() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        INSERT INTO core.touches (kind, source_id, identity_id, day)
        SELECT DISTINCT 'review', n.source_id, n.identity_id, n.created_at::date FROM after AS n;
    END IF;
    IF TG_OP IN ('DELETE', 'UPDATE') THEN
        INSERT INTO core.touches (kind, source_id, identity_id, day)
        SELECT DISTINCT 'review', n.source_id, n.identity_id, n.created_at::date FROM before AS n;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION core.touch_member_identities() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        INSERT INTO core.touches (kind, identity_id, member_id) SELECT 'identity', n.identity_id, n.member_id FROM after AS n;
    END IF;
    IF TG_OP IN ('DELETE', 'UPDATE') THEN
        INSERT INTO core.touches (kind, identity_id, member_id) SELECT 'identity', n.identity_id, n.member_id FROM before AS n;
    END IF;
    RETURN NULL;
END $$;

-- What a person did or said beside buying: follows, writes, clicks, scans, allows. Tables with an identity and an instant.
CREATE FUNCTION core.touch_persons() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO core.touches (kind, identity_id) SELECT DISTINCT 'member', n.identity_id FROM after AS n WHERE n.identity_id IS NOT NULL;
    RETURN NULL;
END $$;

DO $$
DECLARE
    spec record;
BEGIN
    FOR spec IN SELECT * FROM (VALUES ('orders'), ('refunds'), ('reviews'), ('member_identities')) AS t (name) LOOP
        EXECUTE format('CREATE TRIGGER touch_insert AFTER INSERT ON core.%I REFERENCING NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION core.touch_%s()', spec.name, spec.name);
        EXECUTE format('CREATE TRIGGER touch_update AFTER UPDATE ON core.%I REFERENCING OLD TABLE AS before NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION core.touch_%s()', spec.name, spec.name);
        CONTINUE WHEN spec.name = 'orders';  -- nobody deletes an order; member_identities and refunds only by hand
        EXECUTE format('CREATE TRIGGER touch_delete AFTER DELETE ON core.%I REFERENCING OLD TABLE AS before'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION core.touch_%s()', spec.name, spec.name);
    END LOOP;
    FOR spec IN SELECT * FROM (VALUES ('followers'), ('follow_events'), ('interactions'), ('consents'), ('customers'), ('social_comments'),
                                      ('profiles')) AS t (name) LOOP
        EXECUTE format('CREATE TRIGGER touch_insert AFTER INSERT ON core.%I REFERENCING NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION core.touch_persons()', spec.name);
        EXECUTE format('CREATE TRIGGER touch_update AFTER UPDATE ON core.%I REFERENCING NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION core.touch_persons()', spec.name);
    END LOOP;
END $$;

-- Tiers that a person gave, and members whose tier stands still. A row is never changed: it is revoked.
CREATE TABLE core.tier_grants (
    grant_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    programme text NOT NULL,
    member_id bigint NOT NULL REFERENCES core.members,
    kind text NOT NULL CHECK (kind IN ('grant', 'freeze')),
    tier text,                                       -- of a grant: at least this tier
    valid_from date NOT NULL,
    valid_to date,                                   -- exclusive; NULL: until it is revoked
    reason text NOT NULL,
    given_by text NOT NULL,
    given_at timestamptz NOT NULL,
    revoked_at timestamptz,
    CHECK ((kind = 'grant') = (tier IS NOT NULL)),
    CHECK (valid_to > valid_from)
);
CREATE INDEX ON core.tier_grants (member_id);

-- Points that were spent or corrected. Earning, reversal and expiry follow from orders, refunds and time, and stand in the mart only.
CREATE TABLE core.point_uses (
    use_id text PRIMARY KEY,                         -- the caller's own key: the same use twice is one row
    member_id bigint NOT NULL REFERENCES core.members,
    kind text NOT NULL CHECK (kind IN ('redeem', 'adjust')),
    points bigint NOT NULL CHECK (points <> 0),      -- a redemption is positive; an adjustment gives (positive) or takes (negative)
    reason text NOT NULL,
    used_at timestamptz NOT NULL,
    CHECK (kind = 'adjust' OR points > 0)
);
CREATE INDEX ON core.point_uses (member_id);

CREATE FUNCTION core.touch_members() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO core.touches (kind, member_id) SELECT DISTINCT 'member', coalesce(m.absorbed_by, m.member_id)
    FROM after AS n JOIN core.members AS m ON m.member_id = n.member_id;
    RETURN NULL;
END $$;
CREATE TRIGGER touch_insert AFTER INSERT ON core.tier_grants REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_members();
CREATE TRIGGER touch_update AFTER UPDATE ON core.tier_grants REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_members();
CREATE TRIGGER touch_insert AFTER INSERT ON core.point_uses REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_members();

CREATE INDEX ON core.reviews (identity_id);
CREATE INDEX ON core.follow_events (identity_id);
CREATE INDEX ON core.social_comments (identity_id);
CREATE INDEX ON core.identities (first_seen_at);
CREATE INDEX ON core.follow_events (occurred_at);
CREATE INDEX ON core.interactions (occurred_at);
CREATE INDEX ON core.consents (occurred_at);
CREATE INDEX refunds_without_buyer ON core.refunds (source_id, order_id) WHERE identity_id IS NULL;

----------------------------------------------------------------------------------------------------------------- mart
-- What a night has to look at, from core.touches. A batch is one taking; each mart remembers in mart.marks up to which one it is.
CREATE TABLE mart.touched_members (
    batch_id bigint NOT NULL,
    member_id bigint NOT NULL,
    day date NOT NULL,                               -- -infinity: all days of the member; infinity: no day, something else about the person
    PRIMARY KEY (batch_id, member_id, day)
);
CREATE TABLE mart.touched_days (
    batch_id bigint NOT NULL,
    source_id text NOT NULL,
    day date NOT NULL,
    PRIMARY KEY (batch_id, source_id, day)
);
CREATE SEQUENCE mart.touch_batches;

-- How far each mart table is: the newest business date it tells of, the batches it knows, the thresholds it was computed with.
-- Deleting a row makes the next night compute the whole table.
CREATE TABLE mart.marks (
    mart text PRIMARY KEY,
    business_date date NOT NULL,
    batch_id bigint NOT NULL,
    settings text NOT NULL DEFAULT '',
    computed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Figures of the past that came out differently later: late orders and refunds, people who turned out to be one.
CREATE TABLE mart.restatements (
    restatement_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    business_date date NOT NULL,                     -- the night that found out
    about text NOT NULL CHECK (about IN ('tier', 'kpi')),
    subject text NOT NULL,                           -- programme or KPI
    source_id text NOT NULL DEFAULT '',
    member_id bigint,
    day_from date NOT NULL,
    day_to date,                                     -- exclusive
    before text NOT NULL,
    after text NOT NULL
);
CREATE INDEX ON mart.restatements (business_date);

-- Several programmes, each with its own measure; enter and keep may differ.
CREATE TABLE mart.tier_programmes (
    programme text PRIMARY KEY,
    position smallint NOT NULL UNIQUE,               -- 1: the one that messages and reports speak of
    name_zh text NOT NULL,
    name_en text NOT NULL,
    measure text NOT NULL CHECK (measure IN ('net_amount', 'order_count', 'points')),
    window_days integer,                             -- NULL: everything since the first order
    review_days integer,                             -- NULL: a tier is never lost; 0: lost on the day the measure falls below keep
    grace_days integer NOT NULL DEFAULT 0,
    downgrade text NOT NULL CHECK (downgrade IN ('one_step', 'by_balance'))
);
DROP TABLE mart.tier_rules;
CREATE TABLE mart.tier_rules (
    programme text NOT NULL REFERENCES mart.tier_programmes ON DELETE CASCADE,
    tier text NOT NULL,
    rank smallint NOT NULL,
    name_zh text NOT NULL,
    name_en text NOT NULL,
    enter_value numeric NOT NULL,                    -- the measure that brings a member here
    keep_value numeric NOT NULL,                     -- the measure that a review wants to see
    points_multiplier numeric NOT NULL DEFAULT 1,
    upgrade_coupon_amount numeric NOT NULL DEFAULT 0,   -- face value of what a member gets on rising to it: what-if counts it
    PRIMARY KEY (programme, tier),
    UNIQUE (programme, rank)
);

DROP TABLE mart.member_tiers;
CREATE TABLE mart.member_tiers (
    member_id bigint NOT NULL,
    programme text NOT NULL,
    valid_from date NOT NULL,
    valid_to date,
    tier text NOT NULL,
    previous_tier text,
    kind text NOT NULL CHECK (kind IN ('first', 'up', 'down', 'grant', 'grant_end')),
    measure_value numeric NOT NULL,                  -- on valid_from, in the programme's measure
    review_date date,                                -- when the tier is looked at next; NULL: it cannot be lost
    reason text NOT NULL,                            -- in words: "365-day spend 5,210.00 ≥ 5,000.00"
    PRIMARY KEY (member_id, programme, valid_from)
);
CREATE INDEX ON mart.member_tiers (review_date) WHERE valid_to IS NULL;
CREATE INDEX ON mart.member_tiers (valid_from);

-- The points rules in force, one row; from tiers.yaml.
CREATE TABLE mart.point_rules (
    programme text PRIMARY KEY REFERENCES mart.tier_programmes ON DELETE CASCADE,   -- whose multipliers count
    points_per_unit numeric NOT NULL,                -- per 1 of the shops' currency
    rounding text NOT NULL CHECK (rounding IN ('floor', 'half_up', 'ceil')),
    expire_days integer,                             -- NULL: points do not expire
    point_amount numeric NOT NULL DEFAULT 0          -- what a point costs us when it is spent
);
-- Points that are gone, as a running figure: used adds up, an expiry lifts to what was earned by then, never more than came in.
CREATE FUNCTION mart.points_gone(gone bigint, used bigint, floor bigint, ceiling bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN least(greatest(gone + used, floor), ceiling);
END $$;
CREATE AGGREGATE mart.running_points_gone (used bigint, floor bigint, ceiling bigint) (  -- noqa: all
    sfunc = mart.points_gone, stype = bigint, initcond = '0'
);
-- Every movement of points. Balance = sum of the ledger, at any date, and never below zero.
CREATE TABLE mart.points_ledger (
    member_id bigint NOT NULL,
    day date NOT NULL,
    kind text NOT NULL CHECK (kind IN ('earn', 'reverse', 'redeem', 'adjust', 'expire')),
    lot_day date NOT NULL,                           -- the day the points were earned; of a use, the day of the use
    use_id text NOT NULL DEFAULT '',                 -- core.point_uses, of redeem and adjust
    points bigint NOT NULL CHECK (points <> 0),      -- positive: comes in; negative: goes out
    PRIMARY KEY (member_id, day, kind, lot_day, use_id)
);

-- RFM as history: one row per member and stretch of days in which nothing about it moved.
DROP TABLE mart.member_rfm;
CREATE TABLE mart.member_rfm (
    member_id bigint NOT NULL,
    valid_from date NOT NULL,
    valid_to date,                                   -- exclusive; NULL: still
    last_order_date date NOT NULL,
    frequency_count integer NOT NULL,
    monetary_amount numeric NOT NULL,
    r_score smallint NOT NULL CHECK (r_score BETWEEN 1 AND 5),
    f_score smallint NOT NULL CHECK (f_score BETWEEN 1 AND 5),
    m_score smallint NOT NULL CHECK (m_score BETWEEN 1 AND 5),
    rfm_segment text NOT NULL,
    PRIMARY KEY (member_id, valid_from)
);
CREATE INDEX ON mart.member_rfm (valid_to);
CREATE INDEX member_rfm_open ON mart.member_rfm (member_id) WHERE valid_to IS NULL;

-- Lifecycle stages as history, from none to advocate.
CREATE TABLE mart.member_stages (
    member_id bigint NOT NULL,
    valid_from date NOT NULL,
    valid_to date,
    stage text NOT NULL CHECK (stage IN ('none', 'discovered', 'aware', 'considering', 'choosing', 'purchased', 'satisfied', 'loyal',
                                         'advocate')),
    previous_stage text,
    reason text NOT NULL,
    PRIMARY KEY (member_id, valid_from)
);
CREATE INDEX ON mart.member_stages (valid_from);

-- How many members went from which state to which in a month.
CREATE TABLE mart.stage_transitions (
    month date NOT NULL,                             -- its first day
    about text NOT NULL CHECK (about IN ('stage', 'tier', 'rfm')),
    state_from text NOT NULL,                        -- at the end of the month before; '' = not known to us yet
    state_to text NOT NULL,                          -- at the end of the month, or of the business date in the running one
    member_count integer NOT NULL,
    member_rate numeric,                             -- of the members of state_from
    PRIMARY KEY (month, about, state_from, state_to)
);

-- What a member's orders say about the member in one row: what portraits, activity and predictions stand on.
CREATE TABLE mart.member_facts (
    member_id bigint PRIMARY KEY,
    first_order_date date NOT NULL,
    last_order_date date NOT NULL,
    order_day_count integer NOT NULL,                -- days with a paid order
    order_count integer NOT NULL,
    gross_amount numeric NOT NULL,
    net_amount numeric NOT NULL,
    median_gap_days numeric,                         -- between order days; NULL with one
    expected_next_order_date date,                   -- last order + the member's median gap; NULL with one
    favourite_source_id text,
    favourite_category text,
    city text,
    last_rating smallint,
    last_rated_date date
);
CREATE INDEX ON mart.member_facts (last_order_date);

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA core, mart TO nightmarket_etl;
GRANT SELECT ON ALL TABLES IN SCHEMA core, mart TO nightmarket_reader;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA core, mart TO nightmarket_etl;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON ALL TABLES IN SCHEMA core, mart TO nightmarket_etl';
    END IF;
END $$;
