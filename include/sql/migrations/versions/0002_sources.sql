-- Every shop and every social platform, in. Grain and rule of every table stand beside it.

------------------------------------------------------------------------------------------------------------------ raw
-- The last batch of a window says that the window was read to its end: what the gap report adds up.
ALTER TABLE raw.batches ADD COLUMN is_complete boolean NOT NULL DEFAULT FALSE;
UPDATE raw.batches SET is_complete = TRUE;  -- before this column a cursor never moved past an unfinished window

-- What platforms push to us, stored before it is answered. The body is encrypted: nobody has looked at it yet.
CREATE TABLE raw.pushes (
    push_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id text NOT NULL,
    push_key text NOT NULL,                      -- the platform's id of the event, or a hash: a replay is the same row
    body bytea NOT NULL,
    received_at timestamptz NOT NULL,
    UNIQUE (source_id, push_key)
);
CREATE INDEX ON raw.pushes (source_id, received_at);

-- Pushes that were refused because their signature does not match: one row a minute and source at most.
CREATE TABLE raw.push_refusals (
    source_id text NOT NULL,
    refused_count integer NOT NULL,              -- since the row before it of the same process
    counted_at timestamptz NOT NULL
);
CREATE INDEX ON raw.push_refusals (counted_at);

-- Files that a source has taken. One row per content: the same bytes under another name are the same file.
CREATE TABLE raw.files (
    source_id text NOT NULL,
    content_hash bytea NOT NULL,
    path text NOT NULL,                          -- below the source's folder, as it was found
    stream text NOT NULL,
    byte_count bigint NOT NULL,
    row_count integer NOT NULL DEFAULT 0,
    rejected_count integer NOT NULL DEFAULT 0,
    waiting_count integer NOT NULL DEFAULT 0,    -- rows that wait for rows of another file: the next run reads it again
    taken_at timestamptz NOT NULL,
    archived_at timestamptz,
    run_id text NOT NULL,
    PRIMARY KEY (source_id, stream, content_hash)
);

-- Fields that a stream's records have had: a new one is told, a required one that vanishes stops the night.
CREATE TABLE raw.fields (
    source_id text NOT NULL,
    stream text NOT NULL,
    path text NOT NULL,                          -- dotted; one level below the top
    json_type text NOT NULL,
    is_required boolean NOT NULL DEFAULT FALSE,
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,           -- when a record that has it was last written
    PRIMARY KEY (source_id, stream, path)
);

CREATE FUNCTION raw.from_epoch_ms(value text) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN value ~ '^[0-9]{12,13}$' THEN to_timestamp(value::numeric / 1000) END
$$;

-- One frame per table instead of one per file (docs/decisions/0046-one-mapping-frame.md): these marks are gone.
DELETE FROM raw.mappings
WHERE target IN ('core.identities', 'core.order_lines', 'core.products', 'core.shipments') AND stream IN ('trades', 'refunds');

-- A push of WeChat is a fact of the account, whoever kept it; it was one of the pages that kept it. All of it is mapped again.
DELETE FROM core.interactions;
DELETE FROM core.message_events AS e USING raw.mappings AS m WHERE m.source_id = e.source_id AND m.stream = 'events';
DELETE FROM core.consents AS c USING raw.mappings AS m WHERE m.source_id = c.source_id AND m.stream = 'events';
DELETE FROM raw.mappings WHERE stream IN ('events', 'followers');

----------------------------------------------------------------------------------------------------------------- core
ALTER TABLE core.accounts ADD COLUMN streams text[];             -- those that sources.yaml reads; NULL: not synchronised yet

ALTER TABLE core.identities DROP CONSTRAINT identities_kind_check;
ALTER TABLE core.identities ADD CONSTRAINT identities_kind_check CHECK (kind IN (
    'taobao_open_uid', 'taobao_ouid', 'jd_open_id', 'youzan_open_id', 'weidian_buyer_id', 'wechat_openid', 'wechat_unionid',
    'wechat_store_openid', 'shop_customer_id', 'weibo_uid', 'pos_card', 'mall_id', 'phone', 'email'
));

ALTER TABLE core.products ADD COLUMN price_amount numeric;       -- in the source's currency; NULL = only seen in order lines
ALTER TABLE core.products ADD COLUMN is_listed boolean;          -- on sale now; NULL = not known
ALTER TABLE core.follow_events ADD COLUMN scene text;            -- of the QR code that brought the person
ALTER TABLE core.followers ADD COLUMN qr_scene text;             -- the same, as the profile says it
ALTER TABLE core.reviews ALTER COLUMN order_id DROP NOT NULL;  -- WooCommerce ties a review to a product and a person only

-- One row per customer as a shop knows them: its own member program, not our tiers.
CREATE TABLE core.customers (
    source_id text NOT NULL,
    customer_id text NOT NULL,
    identity_id bigint REFERENCES core.identities,
    is_member boolean NOT NULL,
    level text,
    points numeric,
    order_count integer,
    spent_amount numeric,                            -- as the platform counts it
    joined_at timestamptz,
    last_order_at timestamptz,
    modified_at timestamptz NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, customer_id)
);
CREATE INDEX ON core.customers (identity_id);

-- One row per coupon or voucher activity that a shop itself runs.
CREATE TABLE core.shop_coupons (
    source_id text NOT NULL,
    coupon_id text NOT NULL,
    name text NOT NULL,
    face_amount numeric,
    minimum_amount numeric,
    starts_at timestamptz,
    ends_at timestamptz,
    status text NOT NULL,                            -- the platform's own word
    issued_count integer,
    used_count integer,
    modified_at timestamptz NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, coupon_id)
);

-- What we published on a social account.
CREATE TABLE core.social_posts (
    source_id text NOT NULL,
    post_id text NOT NULL,
    kind text NOT NULL,                              -- post, repost, article
    content text,
    url text,
    published_at timestamptz NOT NULL,
    modified_at timestamptz NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, post_id)
);
-- What a post had gathered by the end of a day. One row per post, day and metric; the value is cumulative.
CREATE TABLE core.social_post_stats (
    source_id text NOT NULL,
    post_id text NOT NULL,
    stat_date date NOT NULL,
    metric text NOT NULL,
    value bigint NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, post_id, stat_date, metric)
);
-- What people wrote under our posts, or about us.
CREATE TABLE core.social_comments (
    source_id text NOT NULL,
    comment_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('comment', 'mention')),
    post_id text,
    identity_id bigint REFERENCES core.identities,
    content text,
    created_at timestamptz NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, comment_id)
);
CREATE INDEX ON core.social_comments (source_id, post_id);
-- A platform's own daily figures. One row per day, report, dimension and metric; counts of that day unless the report says otherwise.
CREATE TABLE core.social_stats_daily (
    source_id text NOT NULL,
    stat_date date NOT NULL,
    report text NOT NULL,                            -- e.g. user_summary
    dimension text NOT NULL DEFAULT '',              -- e.g. user_source=30
    metric text NOT NULL,
    value bigint NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, stat_date, report, dimension, metric)
);

-- The tags an account puts on its followers. One row per source and tag.
CREATE TABLE core.social_tags (
    source_id text NOT NULL,
    tag_id text NOT NULL,
    name text NOT NULL,
    follower_count bigint NOT NULL,                  -- at the end of stat_date
    stat_date date NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, tag_id)
);

------------------------------------------------------------------------------------------------------------------ ops
-- Access tokens shared by all workers. One row per account and token; the value is encrypted.
CREATE TABLE ops.tokens (
    account text NOT NULL,
    name text NOT NULL,
    value bytea,
    expires_at timestamptz,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (account, name)
);
-- The call limit of an account, shared by all workers: when the next call may start. paused_until: the platform asked to wait.
CREATE TABLE ops.pace (
    account text PRIMARY KEY,
    next_at timestamptz NOT NULL,
    paused_until timestamptz
);
-- Calls of an account per day (Asia/Shanghai) and priority of the stream: how much of a daily quota is spent.
CREATE TABLE ops.calls (
    account text NOT NULL,
    day date NOT NULL,
    priority smallint NOT NULL,
    call_count integer NOT NULL,
    PRIMARY KEY (account, day, priority)
);

---------------------------------------------------------------------------------------------------------------- rights
-- Who takes pushes from the internet may add one, and read nothing.
DO $$
BEGIN
    CREATE ROLE nightmarket_receiver NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- another database of this server made it
END $$;
GRANT USAGE ON SCHEMA raw TO nightmarket_receiver;
GRANT INSERT ON raw.pushes, raw.push_refusals TO nightmarket_receiver;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON
    raw.pushes, raw.push_refusals, raw.files, raw.fields, core.customers, core.shop_coupons, core.social_posts, core.social_post_stats,
    core.social_comments, core.social_stats_daily, core.social_tags, ops.tokens, ops.pace, ops.calls TO nightmarket_etl;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON ALL TABLES IN SCHEMA raw, core TO nightmarket_etl';
    END IF;
END $$;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA raw TO nightmarket_etl;
GRANT SELECT ON core.customers, core.shop_coupons, core.social_posts, core.social_post_stats, core.social_comments,
    core.social_stats_daily, core.social_tags, ops.pace, ops.calls, raw.fields, raw.files, raw.push_refusals TO nightmarket_reader;
GRANT SELECT (source_id, received_at) ON raw.pushes TO nightmarket_reader;  -- that something arrived, not what
