-- KPIs of service, social accounts, content, channels and people; values by period, targets, signals.

----------------------------------------------------------------------------------------------------------------- core
-- What somebody wrote in core beside orders, refunds and reviews, and no night has taken notice of yet: which account and day it
-- moves. Written by triggers, like core.touches; mart/touched_facts/load.sql takes the rows away.
CREATE TABLE core.fact_touches (
    about text NOT NULL CHECK (about IN ('message', 'social')),
    source_id text NOT NULL,                         -- message: ''
    day date NOT NULL                                -- in the session's zone, as everywhere
);

CREATE FUNCTION core.touch_message_facts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'exposures' THEN
        IF TG_OP IN ('INSERT', 'UPDATE') THEN
            INSERT INTO core.fact_touches (about, source_id, day) SELECT DISTINCT 'message', '', n.exposed_at::date FROM after AS n;
        END IF;
        IF TG_OP IN ('DELETE', 'UPDATE') THEN
            INSERT INTO core.fact_touches (about, source_id, day) SELECT DISTINCT 'message', '', n.exposed_at::date FROM before AS n;
        END IF;
    ELSE
        -- an answer moves the day its message was sent on, and its own: the message may not be here yet
        IF TG_OP IN ('INSERT', 'UPDATE') THEN
            INSERT INTO core.fact_touches (about, source_id, day)
            SELECT 'message', '', n.occurred_at::date FROM after AS n
            UNION
            SELECT 'message', '', x.exposed_at::date FROM after AS n JOIN core.exposures AS x ON x.message_key = n.message_key
            UNION
            SELECT 'message', '', x.exposed_at::date FROM after AS n JOIN core.exposures AS x ON x.group_key = n.message_key;
        END IF;
        IF TG_OP IN ('DELETE', 'UPDATE') THEN
            INSERT INTO core.fact_touches (about, source_id, day)
            SELECT 'message', '', n.occurred_at::date FROM before AS n
            UNION
            SELECT 'message', '', x.exposed_at::date FROM before AS n JOIN core.exposures AS x ON x.message_key = n.message_key
            UNION
            SELECT 'message', '', x.exposed_at::date FROM before AS n JOIN core.exposures AS x ON x.group_key = n.message_key;
        END IF;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION core.touch_social_facts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- the tables differ in nothing but the name of their time
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        EXECUTE format('INSERT INTO core.fact_touches (about, source_id, day) SELECT DISTINCT ''social'', n.source_id, n.%I::date FROM after AS n', TG_ARGV[0]);
    END IF;
    IF TG_OP IN ('DELETE', 'UPDATE') THEN
        EXECUTE format('INSERT INTO core.fact_touches (about, source_id, day) SELECT DISTINCT ''social'', n.source_id, n.%I::date FROM before AS n', TG_ARGV[0]);
    END IF;
    RETURN NULL;
END $$;

DO $$
DECLARE
    spec record;
BEGIN
    FOR spec IN SELECT * FROM (VALUES
        ('exposures', 'touch_message_facts', ''), ('message_events', 'touch_message_facts', ''),
        ('social_stats_daily', 'touch_social_facts', 'stat_date'), ('social_comments', 'touch_social_facts', 'created_at'),
        ('follow_events', 'touch_social_facts', 'occurred_at'), ('interactions', 'touch_social_facts', 'occurred_at')
    ) AS t (name, function, argument) LOOP
        EXECUTE format('CREATE TRIGGER touch_fact_insert AFTER INSERT ON core.%I REFERENCING NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION core.%I(%L)', spec.name, spec.function, spec.argument);
        EXECUTE format('CREATE TRIGGER touch_fact_update AFTER UPDATE ON core.%I REFERENCING OLD TABLE AS before NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION core.%I(%L)', spec.name, spec.function, spec.argument);
        EXECUTE format('CREATE TRIGGER touch_fact_delete AFTER DELETE ON core.%I REFERENCING OLD TABLE AS before'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION core.%I(%L)', spec.name, spec.function, spec.argument);
    END LOOP;
END $$;

-- A night reads the days it has to look at again, and what happened in the days since the last one: by index, not by reading all orders.
CREATE INDEX ON core.orders (created_at);
CREATE INDEX ON core.orders (shipped_at);
CREATE INDEX ON core.reviews (replied_at) WHERE replied_at IS NOT NULL;
CREATE INDEX ON core.refunds (created_at);
CREATE INDEX ON core.exposures (exposed_at);
CREATE INDEX ON core.exposures (message_key);
CREATE INDEX ON core.exposures (group_key) WHERE group_key IS NOT NULL;
CREATE INDEX ON core.message_events (occurred_at);
CREATE INDEX ON core.interactions (occurred_at);
CREATE INDEX ON core.follow_events (occurred_at);
CREATE INDEX ON core.social_comments (created_at);

----------------------------------------------------------------------------------------------------------------- mart
-- The days of accounts and messages that the marts have to look at again. Batches are those of mart.touched_days.
CREATE TABLE mart.touched_facts (
    batch_id bigint NOT NULL,
    about text NOT NULL,
    source_id text NOT NULL,
    day date NOT NULL,
    PRIMARY KEY (batch_id, about, source_id, day)
);

-- The first day a member paid in a shop, and ('') anywhere: who is new, who came back.
CREATE TABLE mart.buyer_firsts (
    member_id bigint NOT NULL,
    source_id text NOT NULL,
    first_date date NOT NULL,
    PRIMARY KEY (member_id, source_id)
);

-- In the daily tables business_date is the day of the last event the row tells of (docs/decisions/0064-kpi-days.md).
ALTER TABLE mart.fulfilment_kpis_daily
    ADD COLUMN delivery_due_count integer NOT NULL DEFAULT 0,      -- whose promised days to delivery are over
    ADD COLUMN delivered_on_time_count integer NOT NULL DEFAULT 0, -- of these, signed within the promised days
    ADD COLUMN on_time_delivery_rate numeric;

CREATE TABLE mart.service_kpis_daily (
    source_id text NOT NULL,
    day date NOT NULL,                               -- the day the review was written
    negative_review_count integer NOT NULL,
    replied_count integer NOT NULL,
    timed_reply_count integer NOT NULL,              -- of these, with a known time
    reply_hours numeric NOT NULL,                    -- sum over these
    median_hours_to_reply numeric,
    due_count integer NOT NULL,                      -- whose deadline is over
    replied_in_time_count integer NOT NULL,
    reply_in_time_rate numeric,
    overdue_count integer NOT NULL,                  -- deadline over and still no reply
    business_date date NOT NULL,
    PRIMARY KEY (source_id, day)
);

CREATE TABLE mart.content_kpis (
    source_id text NOT NULL,
    post_id text NOT NULL,
    published_date date NOT NULL,
    kind text NOT NULL,
    content_kind text NOT NULL CHECK (content_kind IN ('brand', 'useful')),
    reached_count bigint,                            -- people it was delivered to, where the platform says so
    reader_count bigint,                             -- people
    view_count bigint,                               -- times
    like_count bigint,
    comment_count bigint,
    share_count bigint,
    favourite_count bigint,
    participation_count bigint NOT NULL,
    audience_count bigint,                           -- readers, or else the followers of the day
    participation_rate numeric,
    read_rate numeric,                               -- reader_count / reached_count
    last_stat_date date,
    PRIMARY KEY (source_id, post_id)
);
CREATE INDEX ON mart.content_kpis (published_date);

CREATE TABLE mart.social_kpis_daily (
    source_id text NOT NULL,
    day date NOT NULL,
    follower_count bigint,                           -- at the end of the day
    start_follower_count bigint,                     -- at the end of the day before
    new_follower_count bigint,
    lost_follower_count bigint,
    net_follower_count bigint,
    growth_rate numeric,                             -- net_follower_count / start_follower_count
    read_count bigint,                               -- times something of ours was read that day
    message_count integer NOT NULL,                  -- people wrote to the account
    comment_count integer NOT NULL,                  -- comments and mentions
    post_count integer NOT NULL,                     -- published that day; the columns below are of these posts, up to now
    brand_post_count integer NOT NULL,
    reached_count bigint,                            -- of the post that reached most
    reach_rate numeric,                              -- reached_count / follower_count
    delivered_count bigint,                          -- sum over the posts of people it was delivered to
    reader_count bigint,                             -- sum over these posts of readers
    read_rate numeric,
    participation_count bigint NOT NULL,
    audience_count bigint NOT NULL,
    participation_rate numeric,
    PRIMARY KEY (source_id, day)
);

CREATE TABLE mart.channel_kpis_daily (
    channel text NOT NULL,
    day date NOT NULL,                               -- the day of sending: the run's first message was accepted
    message_count integer NOT NULL,
    accepted_count integer NOT NULL,
    delivered_count integer NOT NULL,
    failed_count integer NOT NULL,
    opened_count integer NOT NULL,
    clicked_count integer NOT NULL,
    unsubscribed_count integer NOT NULL,
    cost_amount numeric NOT NULL,
    business_date date NOT NULL,
    PRIMARY KEY (channel, day)
);

-- Distinct people by period: a person of two shops is one in '' (everything).
CREATE TABLE mart.buyer_periods (
    source_id text NOT NULL,
    grain text NOT NULL CHECK (grain IN ('day', 'week', 'month')),
    period_start date NOT NULL,
    buyer_count integer NOT NULL,
    new_buyer_count integer NOT NULL,                -- first paid order ever in the period
    repeat_buyer_count integer NOT NULL,             -- with a paid order in the period on a later day than their first
    PRIMARY KEY (source_id, grain, period_start)
);

-- What the KPIs are called, how they add up and what is wanted of them; from kpis.yaml.
CREATE TABLE mart.kpi_definitions (
    kpi text PRIMARY KEY,
    position smallint NOT NULL,
    name_zh text NOT NULL,
    name_en text NOT NULL,
    unit text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('sum', 'rate', 'level', 'growth', 'people')),
    direction text NOT NULL CHECK (direction IN ('up', 'down')),
    ripens_days integer NOT NULL,
    target numeric,
    target_grains text[] NOT NULL DEFAULT '{day,week,month}',
    amber_margin numeric NOT NULL,
    source_targets jsonb NOT NULL DEFAULT '{}'
);

-- One number per KPI, source ('' = all of them), grain and period, with its parts.
CREATE TABLE mart.kpi_values (
    kpi text NOT NULL,
    source_id text NOT NULL,
    grain text NOT NULL CHECK (grain IN ('day', 'week', 'month')),
    period_start date NOT NULL,
    numerator numeric,
    denominator numeric,                             -- NULL: the KPI is no ratio
    value numeric,
    PRIMARY KEY (kpi, source_id, grain, period_start)
);
CREATE INDEX ON mart.kpi_values (grain, period_start);

-- Which days of a KPI table came out differently: kpi_values looks at their periods again. Written by triggers, taken by kpi_values.
CREATE TABLE mart.moved_days (
    source_table text NOT NULL,
    day date NOT NULL
);
CREATE FUNCTION mart.note_moved_days() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        EXECUTE format('INSERT INTO mart.moved_days (source_table, day) SELECT DISTINCT %L, n.%I FROM after AS n', TG_TABLE_NAME, TG_ARGV[0]);
    END IF;
    IF TG_OP IN ('DELETE', 'UPDATE') THEN
        EXECUTE format('INSERT INTO mart.moved_days (source_table, day) SELECT DISTINCT %L, n.%I FROM before AS n', TG_TABLE_NAME, TG_ARGV[0]);
    END IF;
    RETURN NULL;
END $$;
DO $$
DECLARE
    spec record;
BEGIN
    FOR spec IN SELECT * FROM (VALUES
        ('shop_kpis_daily', 'day'), ('fulfilment_kpis_daily', 'day'), ('review_kpis_daily', 'day'), ('service_kpis_daily', 'day'),
        ('social_kpis_daily', 'day'), ('channel_kpis_daily', 'day'), ('buyer_periods', 'period_start')
    ) AS t (name, argument) LOOP
        EXECUTE format('CREATE TRIGGER moved_insert AFTER INSERT ON mart.%I REFERENCING NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION mart.note_moved_days(%L)', spec.name, spec.argument);
        EXECUTE format('CREATE TRIGGER moved_update AFTER UPDATE ON mart.%I REFERENCING OLD TABLE AS before NEW TABLE AS after'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION mart.note_moved_days(%L)', spec.name, spec.argument);
        EXECUTE format('CREATE TRIGGER moved_delete AFTER DELETE ON mart.%I REFERENCING OLD TABLE AS before'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION mart.note_moved_days(%L)', spec.name, spec.argument);
    END LOOP;
END $$;

-- A figure as people read it. unit: rate, amount, hours, count. NULL stays NULL.
CREATE FUNCTION mart.kpi_text(value numeric, unit text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE unit
        WHEN 'rate' THEN round(value * 100, 1) || ' %'
        WHEN 'amount' THEN to_char(value, 'FM999,999,999,999,990.00')
        WHEN 'hours' THEN round(value, 1) || ' h'
        ELSE to_char(round(value), 'FM999,999,999,999,990')
    END
$$;

-- What a business date says of each KPI: against its target, the period before, the year before, and what is usual.
CREATE TABLE mart.kpi_signals (
    business_date date NOT NULL,
    kpi text NOT NULL,
    source_id text NOT NULL,
    grain text NOT NULL CHECK (grain IN ('day', 'week', 'month')),
    period_start date NOT NULL,
    numerator numeric,
    denominator numeric,
    value numeric,
    previous_value numeric,
    last_year_value numeric,
    target numeric,
    light text NOT NULL CHECK (light IN ('green', 'amber', 'red', 'none')),
    usual_value numeric,                             -- median of the same weekday (day), of the weeks before (week)
    usual_spread numeric,                            -- median absolute deviation from it
    usual_count integer NOT NULL,                    -- of how many periods
    robust_z numeric,
    is_anomaly boolean NOT NULL,
    sentence_zh text NOT NULL,
    sentence_en text NOT NULL,
    PRIMARY KEY (business_date, kpi, source_id, grain)
);

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA core, mart TO nightmarket_etl;
GRANT SELECT ON ALL TABLES IN SCHEMA core, mart TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON ALL TABLES IN SCHEMA core, mart TO nightmarket_etl';
    END IF;
END $$;
