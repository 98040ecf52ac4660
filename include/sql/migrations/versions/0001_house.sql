-- The house: schemas, tables, roles. Grain and rule of every table stand beside it.
-- Roles are groups without login; give a login to each deployment's users (docs/runbook.md).
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['nightmarket_etl', 'nightmarket_delivery', 'nightmarket_reader'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- another database of this server made it
        END;
    END LOOP;
END $$;

CREATE SCHEMA IF NOT EXISTS ops;
CREATE SCHEMA raw;
CREATE SCHEMA core;
CREATE SCHEMA mart;
CREATE SCHEMA push;
CREATE SCHEMA vault;

------------------------------------------------------------------------------------------------------------------ raw
-- One committed load: the records of some windows of one stream.
CREATE TABLE raw.batches (
    batch_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id text NOT NULL,
    stream text NOT NULL,
    part text NOT NULL DEFAULT '',               -- which list of the platform: history, created, modified, received, snapshot
    run_id text NOT NULL,
    window_start timestamptz,
    window_end timestamptz,
    seen_count integer NOT NULL DEFAULT 0,       -- records the platform gave us
    changed_count integer NOT NULL DEFAULT 0,    -- of these, new or different
    rejected_count integer NOT NULL DEFAULT 0,
    loaded_at timestamptz NOT NULL
);
CREATE INDEX ON raw.batches (source_id, stream, batch_id);

-- One row per version of a platform object, as received, personal values replaced by tokens. Append-only.
CREATE TABLE raw.records (
    record_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch_id bigint NOT NULL REFERENCES raw.batches,
    source_id text NOT NULL,
    stream text NOT NULL,
    record_key text NOT NULL,
    payload jsonb NOT NULL,
    content_hash bytea NOT NULL,                 -- keyed hash of the payload as received
    occurred_at timestamptz,                     -- the platform's own modification time
    observed_at timestamptz NOT NULL,
    run_id text NOT NULL
);
CREATE INDEX ON raw.records (batch_id);
CREATE INDEX ON raw.records (source_id, stream, record_key, record_id);

-- The current version of every platform object, narrow, so that unchanged records are dropped before COPY.
CREATE TABLE raw.heads (
    source_id text NOT NULL,
    stream text NOT NULL,
    record_key text NOT NULL,
    content_hash bytea NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, stream, record_key)
);

-- How far each stream was read. Moved in the transaction that writes the rows.
CREATE TABLE raw.cursors (
    source_id text NOT NULL,
    stream text NOT NULL,
    watermark timestamptz NOT NULL,              -- everything the platform changed before this instant is in raw
    run_id text NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, stream)
);

-- How far each core table has mapped each stream. Moved in the transaction that writes the core rows, so records of a
-- run that died between landing and mapping are mapped by the next one.
CREATE TABLE raw.mappings (
    source_id text NOT NULL,
    stream text NOT NULL,
    target text NOT NULL,                        -- e.g. core.orders
    last_batch_id bigint NOT NULL DEFAULT 0,
    mapped_at timestamptz,
    PRIMARY KEY (source_id, stream, target)
);

-- What could not be read or mapped, with the reason. Nothing is dropped silently; payload holds tokens, never clear values.
CREATE TABLE raw.rejects (
    reject_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id text NOT NULL,
    stream text NOT NULL,
    stage text NOT NULL CHECK (stage IN ('landing', 'mapping')),
    record_key text,
    reason text NOT NULL,
    payload jsonb,
    batch_id bigint,
    run_id text NOT NULL,
    rejected_at timestamptz NOT NULL,
    resolved_at timestamptz                      -- set when a later version of the same record was accepted
);
CREATE UNIQUE INDEX ON raw.rejects (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')));

-- A value of a platform's text, or NULL when it is not one: a bad value must not kill a night. STABLE, so that they are inlined.
CREATE FUNCTION raw.to_amount(value text) RETURNS numeric LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN pg_input_is_valid(value, 'numeric') AND value !~* '[a-df-z]' THEN value::numeric END
$$;
CREATE FUNCTION raw.to_instant(value text, utc_offset text DEFAULT '') RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN value ~ '^[0-9]{4}-' AND pg_input_is_valid(value || utc_offset, 'timestamptz')
                THEN (value || utc_offset)::timestamptz END
$$;
CREATE FUNCTION raw.from_epoch(value text) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN value ~ '^[0-9]{9,10}$' THEN to_timestamp(value::bigint) END
$$;

----------------------------------------------------------------------------------------------------------------- core
-- Our shops and social accounts: one row per source.
CREATE TABLE core.accounts (
    source_id text PRIMARY KEY,
    platform text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('shop', 'social', 'pages')),
    name text NOT NULL,
    currency_code text NOT NULL DEFAULT 'CNY',
    time_zone text NOT NULL DEFAULT 'Asia/Shanghai',
    is_active boolean NOT NULL DEFAULT TRUE      -- false = no longer in sources.yaml; its history stays
);

-- One row per way of knowing a person: (kind, value). Personal kinds hold tokens.
CREATE TABLE core.identities (
    identity_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('taobao_open_uid', 'wechat_openid', 'wechat_unionid', 'phone', 'email',
                                       'weibo_uid', 'pos_card', 'mall_id')),
    value text NOT NULL,
    source_id text NOT NULL,
    first_seen_at timestamptz NOT NULL,
    UNIQUE (kind, value)
);

-- Evidence that two identities are one person. Smaller identity first; one row per pair and source.
CREATE TABLE core.identity_links (
    identity_a bigint NOT NULL REFERENCES core.identities,
    identity_b bigint NOT NULL REFERENCES core.identities,
    source_id text NOT NULL,
    evidence text NOT NULL,                      -- 'trade', 'profile', 'binding'
    observed_at timestamptz NOT NULL,
    revoked_at timestamptz,                      -- a person found it wrong: it ties nobody any more, and stays on record
    PRIMARY KEY (identity_a, identity_b, source_id, evidence),
    CHECK (identity_a < identity_b)
);
CREATE INDEX ON core.identity_links (identity_b);

-- One row per person. The smallest member id of a merged group survives.
CREATE TABLE core.members (
    member_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    first_seen_at timestamptz NOT NULL,
    absorbed_by bigint REFERENCES core.members   -- NULL = alive
);
CREATE TABLE core.member_identities (
    identity_id bigint PRIMARY KEY REFERENCES core.identities,
    member_id bigint NOT NULL REFERENCES core.members,
    linked_at timestamptz NOT NULL
);
CREATE INDEX ON core.member_identities (member_id);
CREATE TABLE core.member_merges (
    merge_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    survivor_id bigint NOT NULL REFERENCES core.members,
    absorbed_id bigint NOT NULL REFERENCES core.members,
    evidence jsonb NOT NULL,
    merged_at timestamptz NOT NULL,
    UNIQUE (survivor_id, absorbed_id, merged_at)
);

-- What an identity says about the person behind it, as tokens: how to greet, in which language. One row per identity.
CREATE TABLE core.profiles (
    identity_id bigint PRIMARY KEY REFERENCES core.identities,
    source_id text NOT NULL,
    name text,                                   -- token name:...; NULL when the platform masks it
    language text,                               -- 'zh' or 'en' when the person chose one
    observed_at timestamptz NOT NULL
);

CREATE TABLE core.products (
    source_id text NOT NULL,
    product_id text NOT NULL,
    title text NOT NULL,
    outer_id text,                               -- our own article number
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, product_id)
);

-- One row per order whatever shop it came from. Amounts in currency_code, before refunds.
CREATE TABLE core.orders (
    source_id text NOT NULL,
    order_id text NOT NULL,
    identity_id bigint REFERENCES core.identities,   -- the buyer; NULL when the platform does not say
    status text NOT NULL CHECK (status IN ('unpaid', 'paid', 'shipped', 'signed', 'finished', 'refunded', 'cancelled')),
    status_original text NOT NULL,
    is_paid boolean NOT NULL,                        -- was paid at some time, also when refunded later
    currency_code text NOT NULL,
    goods_amount numeric NOT NULL,                   -- sum over lines of unit price x quantity
    paid_amount numeric NOT NULL,
    postage_amount numeric NOT NULL DEFAULT 0,
    line_count integer NOT NULL,
    unit_count numeric NOT NULL,
    city text,
    created_at timestamptz NOT NULL,
    paid_at timestamptz,
    shipped_at timestamptz,
    signed_at timestamptz,                           -- buyer confirmed, or end of the trade
    modified_at timestamptz NOT NULL,
    batch_id bigint NOT NULL,
    loaded_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, order_id)
);
CREATE INDEX ON core.orders (identity_id, paid_at);
CREATE INDEX ON core.orders (paid_at);
CREATE INDEX ON core.orders (signed_at);
CREATE INDEX ON core.orders (batch_id);

CREATE TABLE core.order_lines (
    source_id text NOT NULL,
    order_id text NOT NULL,
    line_id text NOT NULL,
    product_id text NOT NULL,
    outer_id text,
    title text NOT NULL,
    unit_price_amount numeric NOT NULL,
    quantity numeric NOT NULL,
    line_amount numeric NOT NULL,                    -- unit price x quantity
    paid_amount numeric NOT NULL,                    -- after discounts
    status text NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, order_id, line_id)
);
CREATE INDEX ON core.order_lines (source_id, line_id);

-- One row per refund request; is_money says whether money went back. A refund counts on the day it settled.
CREATE TABLE core.refunds (
    source_id text NOT NULL,
    refund_id text NOT NULL,
    order_id text NOT NULL,                          -- may lie before the history we were given
    line_id text,
    identity_id bigint REFERENCES core.identities,
    status text NOT NULL CHECK (status IN ('requested', 'returning', 'refused', 'closed', 'settled')),
    status_original text NOT NULL,
    is_money boolean NOT NULL,
    currency_code text NOT NULL,
    refund_amount numeric NOT NULL,
    quantity numeric,
    reason text,
    created_at timestamptz NOT NULL,
    settled_at timestamptz,
    modified_at timestamptz NOT NULL,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, refund_id)
);
CREATE INDEX ON core.refunds (settled_at);
CREATE INDEX ON core.refunds (source_id, order_id);
CREATE INDEX ON core.refunds (identity_id);

CREATE TABLE core.shipments (
    source_id text NOT NULL,
    order_id text NOT NULL,
    shipment_id text NOT NULL,
    carrier text,
    shipped_at timestamptz NOT NULL,
    signed_at timestamptz,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, order_id, shipment_id)
);

CREATE TABLE core.reviews (
    source_id text NOT NULL,
    review_id text NOT NULL,
    order_id text NOT NULL,
    line_id text,
    product_id text,
    identity_id bigint REFERENCES core.identities,   -- through the order when the platform masks the reviewer
    rating smallint NOT NULL CHECK (rating BETWEEN 1 AND 5),
    rating_original text NOT NULL,
    content text,
    reply text,
    created_at timestamptz NOT NULL,
    replied_at timestamptz,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, review_id)
);
CREATE INDEX ON core.reviews (source_id, order_id);
CREATE INDEX ON core.reviews (created_at);

-- Followers of our social accounts. Unfollowing is a state, not a deleted row.
CREATE TABLE core.followers (
    source_id text NOT NULL,
    openid text NOT NULL,
    identity_id bigint NOT NULL REFERENCES core.identities,
    is_following boolean NOT NULL,
    followed_at timestamptz,
    unfollowed_at timestamptz,
    scene text,
    language text,
    batch_id bigint NOT NULL,
    PRIMARY KEY (source_id, openid)
);
CREATE INDEX ON core.followers (identity_id);
CREATE TABLE core.follow_events (
    source_id text NOT NULL,
    event_id text NOT NULL,
    identity_id bigint NOT NULL REFERENCES core.identities,
    kind text NOT NULL CHECK (kind IN ('follow', 'unfollow')),
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, event_id)
);

-- Consent as a log of facts per identity, channel and purpose; the latest one counts, withdrawal included.
CREATE TABLE core.consents (
    source_id text NOT NULL,
    event_id text NOT NULL,
    identity_id bigint NOT NULL REFERENCES core.identities,
    channel text NOT NULL CHECK (channel IN ('wechat', 'email', 'sms', 'push')),
    purpose text NOT NULL CHECK (purpose IN ('marketing', 'service')),
    is_granted boolean NOT NULL,
    evidence text NOT NULL,                          -- in words: 'followed the account', 'form 2026-01, text v3'
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, event_id, channel, purpose)
);
CREATE INDEX ON core.consents (identity_id, channel, purpose, occurred_at DESC);

-- What a person did with us outside orders: wrote to the account, tapped a menu, clicked a link, visited a page.
CREATE TABLE core.interactions (
    source_id text NOT NULL,
    event_id text NOT NULL,
    identity_id bigint NOT NULL REFERENCES core.identities,
    kind text NOT NULL CHECK (kind IN ('message', 'menu', 'scan', 'click', 'visit')),
    message_key text,                                -- when it answers one of our messages
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, event_id)
);
CREATE INDEX ON core.interactions (identity_id, kind, occurred_at);

-- Who was treated or held out, when, in which arm: what a campaign did, as a fact. One row per run, member and step.
CREATE TABLE core.exposures (
    run_id text NOT NULL,
    member_id bigint NOT NULL,
    step text NOT NULL,
    campaign text NOT NULL,
    arm text NOT NULL,                               -- 'treatment' or 'holdout'
    variant text,
    channel text,                                    -- NULL for hold-out
    purpose text NOT NULL,
    message_key text,
    group_key text,                                  -- shared by the messages of one mass-send call
    coupon_request text,                             -- request key of the coupon, when one was given
    cost_amount numeric NOT NULL DEFAULT 0,
    as_of date NOT NULL,
    exposed_at timestamptz NOT NULL,
    attribution_until timestamptz NOT NULL,
    PRIMARY KEY (run_id, member_id, step)
);
CREATE INDEX ON core.exposures (member_id, exposed_at);

-- What happened to a message: one row per event, named by our own message key.
CREATE TABLE core.message_events (
    source_id text NOT NULL,
    event_id text NOT NULL,
    message_key text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('accepted', 'delivered', 'failed', 'opened', 'clicked', 'unsubscribed', 'bounced')),
    detail text,
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, event_id)
);
CREATE INDEX ON core.message_events (message_key);

CREATE TABLE core.coupon_events (
    issuer text NOT NULL,
    platform_coupon_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('issued', 'redeemed', 'expired', 'released')),
    coupon_request text NOT NULL,                    -- our request key
    member_id bigint NOT NULL,
    face_amount numeric NOT NULL,
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (issuer, platform_coupon_id, kind)
);

----------------------------------------------------------------------------------------------------------------- mart
-- What each member did on each day: the daily fact that makes nights cheap. Money in the shops' currency (CNY).
CREATE TABLE mart.member_days (
    member_id bigint NOT NULL,
    day date NOT NULL,
    order_count integer NOT NULL,
    gross_amount numeric NOT NULL,                   -- line value of orders paid that day
    refund_amount numeric NOT NULL,                  -- refunds settled that day
    net_amount numeric NOT NULL,
    PRIMARY KEY (member_id, day)
);
CREATE INDEX ON mart.member_days (day);

-- RFM at the end of a business date. One row per business date and member with a paid order in the window.
CREATE TABLE mart.member_rfm (
    business_date date NOT NULL,
    member_id bigint NOT NULL,
    last_order_date date NOT NULL,
    recency_days integer NOT NULL,                   -- business_date + 1 - last_order_date
    frequency_count integer NOT NULL,
    monetary_amount numeric NOT NULL,
    r_score smallint NOT NULL CHECK (r_score BETWEEN 1 AND 5),
    f_score smallint NOT NULL CHECK (f_score BETWEEN 1 AND 5),
    m_score smallint NOT NULL CHECK (m_score BETWEEN 1 AND 5),
    rfm_segment text NOT NULL,
    PRIMARY KEY (business_date, member_id)
);

-- The rules in force, loaded from include/config/tiers.yaml. Half-open bands that cover every amount.
CREATE TABLE mart.tier_rules (
    tier text PRIMARY KEY,
    rank smallint NOT NULL UNIQUE,
    name_zh text NOT NULL,
    name_en text NOT NULL,
    window_days integer NOT NULL,
    min_net_amount numeric NOT NULL,
    max_net_amount numeric,                          -- exclusive; NULL = no limit
    points_multiplier numeric NOT NULL DEFAULT 1
);

-- Tier history: one row per member and stretch of days in one tier. valid_to NULL = current; days are [from, to).
CREATE TABLE mart.member_tiers (
    member_id bigint NOT NULL,
    valid_from date NOT NULL,
    valid_to date,
    tier text NOT NULL,
    previous_tier text,
    window_net_amount numeric NOT NULL,
    reason text NOT NULL,                            -- in words: "365-day spend 5,210.00 ≥ 5,000.00"
    PRIMARY KEY (member_id, valid_from)
);
CREATE INDEX ON mart.member_tiers (tier) WHERE valid_to IS NULL;

-- In the tables below business_date is the night that last changed the row (-infinity: none did). Figures such as "signed by now" ripen;
-- a run for an older night never takes a row back to what was known then (docs/decisions/0022-ripening-figures.md).
CREATE TABLE mart.shop_kpis_daily (
    source_id text NOT NULL,
    day date NOT NULL,
    created_order_count integer NOT NULL,
    paid_order_count integer NOT NULL,               -- paid that day
    paid_of_created_count integer NOT NULL,          -- of the orders created that day, paid by now
    payment_conversion_rate numeric,
    buyer_count integer NOT NULL,
    repeat_buyer_count integer NOT NULL,             -- buyers of that day with an earlier paid order
    repeat_purchase_rate numeric,
    gross_amount numeric NOT NULL,
    refund_amount numeric NOT NULL,
    net_amount numeric NOT NULL,
    refund_order_count integer NOT NULL,
    refund_rate numeric,                             -- refund_amount / gross_amount
    average_order_value_amount numeric,
    unit_count numeric NOT NULL,
    review_count integer NOT NULL,
    positive_review_count integer NOT NULL,
    positive_review_rate numeric,
    signed_of_created_count integer NOT NULL DEFAULT 0,  -- of the orders created that day, signed by now
    order_success_rate numeric,                          -- signed_of_created_count / created_order_count
    business_date date NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (source_id, day)
);

CREATE TABLE mart.fulfilment_kpis_daily (
    source_id text NOT NULL,
    day date NOT NULL,                               -- the day the order was paid
    paid_order_count integer NOT NULL,
    shipped_order_count integer NOT NULL,
    shipped_on_time_count integer NOT NULL,          -- of the orders due, shipped within the promised hours (kpis.yaml)
    on_time_shipping_rate numeric,                   -- shipped_on_time_count / due_order_count
    signed_order_count integer NOT NULL,
    median_hours_to_ship numeric,
    median_days_to_sign numeric,
    due_order_count integer NOT NULL DEFAULT 0,          -- whose promised hours are over
    business_date date NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (source_id, day)
);

-- One row per run, arm and variant ('' = all variants of the arm): the funnel and its money.
CREATE TABLE mart.campaign_funnels (
    run_id text NOT NULL,
    campaign text NOT NULL,
    arm text NOT NULL,
    variant text NOT NULL DEFAULT '',
    as_of date NOT NULL,
    member_count integer NOT NULL,                   -- targeted or held out
    accepted_count integer NOT NULL,                 -- counts are members, but for coupons and orders
    delivered_count integer NOT NULL,
    clicked_count integer NOT NULL,
    unsubscribed_count integer NOT NULL,
    coupon_issued_count integer NOT NULL,
    coupon_redeemed_count integer NOT NULL,
    buyer_count integer NOT NULL,                    -- with a paid order inside the attribution window
    order_count integer NOT NULL,                    -- their paid orders
    revenue_amount numeric NOT NULL,                 -- line value of these orders, before refunds
    cost_amount numeric NOT NULL,                    -- messages + face value of redeemed coupons
    failed_count integer NOT NULL DEFAULT 0,
    opened_count integer NOT NULL DEFAULT 0,
    ordered_count integer NOT NULL DEFAULT 0,        -- with an order created inside the attribution window
    refund_amount numeric NOT NULL DEFAULT 0,        -- refunds of the paid orders settled by now
    net_revenue_square_sum numeric NOT NULL DEFAULT 0, -- sum over members of (revenue - refunds)^2, for the interval
    purpose text NOT NULL DEFAULT 'marketing',
    attribution_until timestamptz,                   -- when the last member's attribution window ends
    business_date date NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (run_id, arm, variant)
);

-- Incremental effect against the hold-out. One row per run.
CREATE TABLE mart.campaign_results (
    run_id text PRIMARY KEY,
    campaign text NOT NULL,
    as_of date NOT NULL,
    treated_count integer NOT NULL,
    treated_buyer_count integer NOT NULL,
    holdout_count integer NOT NULL,
    holdout_buyer_count integer NOT NULL,
    treated_rate numeric,
    holdout_rate numeric,
    uplift_rate numeric,                             -- difference of the two rates
    uplift_low_rate numeric,                         -- 95 % interval (Agresti-Caffo)
    uplift_high_rate numeric,
    incremental_order_count numeric,                 -- difference of orders per member x treated members
    incremental_revenue_amount numeric,              -- difference of net revenue per member x treated members
    verdict text NOT NULL CHECK (verdict IN ('not enough data', 'no effect shown', 'positive', 'negative')),
    is_window_closed boolean NOT NULL,
    incremental_buyer_count numeric,                 -- uplift_rate x treated members
    incremental_revenue_low_amount numeric,          -- its 95 % interval (Welch, normal approximation)
    incremental_revenue_high_amount numeric,
    business_date date NOT NULL DEFAULT '-infinity'
);

-- Review collection, one row per source and day of signing.
CREATE TABLE mart.review_kpis_daily (
    source_id text NOT NULL,
    day date NOT NULL,
    signed_order_count integer NOT NULL,
    asked_order_count integer NOT NULL,
    reminded_order_count integer NOT NULL,
    reviewed_order_count integer NOT NULL,
    reviewed_after_ask_count integer NOT NULL,
    review_rate numeric,
    business_date date NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (source_id, day)
);

----------------------------------------------------------------------------------------------------------------- push
-- One attempt of a person or a schedule to run a campaign: frozen config, as-of date, state.
CREATE TABLE push.campaign_runs (
    run_id text PRIMARY KEY,
    campaign text NOT NULL,
    mode text NOT NULL CHECK (mode IN ('dry_run', 'test', 'live')),
    as_of date NOT NULL,
    as_of_at timestamptz NOT NULL,                   -- the instant all gates look back from
    config jsonb NOT NULL,
    config_hash text NOT NULL,
    content_hash text,                               -- audience + templates + config: what an approval is for
    audience_checksum text,
    size_limit integer,
    state text NOT NULL CHECK (state IN ('building', 'awaiting_approval', 'approved', 'rejected', 'sending', 'sent',
                                         'finished', 'cancelled', 'failed', 'dry_run_done')),
    needs_approval boolean NOT NULL DEFAULT TRUE,
    approved_hash text,
    approved_by text,
    approved_at timestamptz,
    decision_reason text,
    report jsonb,                                    -- the dry-run report: counts, cost, masked samples
    created_by text NOT NULL,
    request_id text,                                 -- the caller's own id: a repeated request finds its run again
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,                 -- nothing of this run is sent after this instant
    finished_at timestamptz
);
-- The same campaign for the same day is live once: the second run is refused, not merged.
CREATE UNIQUE INDEX one_live_run ON push.campaign_runs (campaign, as_of)
    WHERE mode = 'live' AND state NOT IN ('rejected', 'cancelled', 'failed');

-- Run x member of the segment: exactly one state each (the partition law).
CREATE TABLE push.audiences (
    run_id text NOT NULL REFERENCES push.campaign_runs,
    member_id bigint NOT NULL,
    state text NOT NULL CHECK (state IN ('targeted', 'holdout', 'excluded')),
    reason text,                                     -- why excluded: the first gate that stopped it
    arm text,
    variant text,
    channel text,
    language text NOT NULL DEFAULT 'zh',
    address text,                                    -- openid or e-mail token the message would go to
    facts jsonb NOT NULL DEFAULT '{}',               -- what the gates saw, for "why not me"
    PRIMARY KEY (run_id, member_id),
    CHECK ((state = 'excluded') = (reason IS NOT NULL))
);

CREATE TABLE push.coupon_stocks (
    stock_id text PRIMARY KEY,
    issuer text NOT NULL,
    platform_stock_id text NOT NULL,
    name text NOT NULL,
    face_amount numeric NOT NULL,
    minimum_amount numeric NOT NULL DEFAULT 0,
    budget_count integer NOT NULL,
    per_member_limit integer NOT NULL DEFAULT 1,
    valid_from timestamptz NOT NULL,
    valid_to timestamptz NOT NULL,
    is_test boolean NOT NULL DEFAULT FALSE
);
CREATE TABLE push.coupons (
    request_key text PRIMARY KEY,                    -- idempotency key at the issuer; derived, never random
    stock_id text NOT NULL REFERENCES push.coupon_stocks,
    run_id text NOT NULL REFERENCES push.campaign_runs,
    member_id bigint NOT NULL,
    openid text,
    state text NOT NULL CHECK (state IN ('reserved', 'issued', 'redeemed', 'expired', 'released', 'unknown')),
    platform_coupon_id text,
    last_error text,
    reserved_at timestamptz NOT NULL,
    issued_at timestamptz,
    redeemed_at timestamptz,
    updated_at timestamptz NOT NULL
);
CREATE INDEX ON push.coupons (stock_id, state);
CREATE INDEX ON push.coupons (run_id);

-- The outbox: one row per message that shall go out once.
CREATE TABLE push.messages (
    message_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_key text NOT NULL UNIQUE,                -- idempotency key: campaign/as-of/member/step or journey/order/step
    run_id text NOT NULL REFERENCES push.campaign_runs,
    member_id bigint NOT NULL,
    step text NOT NULL,
    channel text NOT NULL,
    account text NOT NULL,                           -- the sending account: its limit and breaker are shared
    purpose text NOT NULL CHECK (purpose IN ('marketing', 'service')),
    address text NOT NULL,                           -- openid or e-mail token; opened at delivery only
    template text NOT NULL,
    language text NOT NULL,
    variant text,
    variables jsonb NOT NULL,                        -- template variables; personal ones as tokens
    coupon_request text REFERENCES push.coupons,
    group_key text,                                  -- messages of one mass-send call share it
    state text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'sending', 'accepted', 'delivered', 'failed', 'expired',
                                                          'suppressed', 'unknown', 'waiting_staff', 'cancelled')),
    not_before timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    lease_owner text,
    lease_until timestamptz,
    attempt_count integer NOT NULL DEFAULT 0,
    platform_message_id text,
    last_error text,
    queued_at timestamptz NOT NULL,
    accepted_at timestamptz,
    delivered_at timestamptz,
    updated_at timestamptz NOT NULL,
    UNIQUE (run_id, member_id, step)
);
CREATE INDEX messages_claim ON push.messages (channel, account, not_before, message_id) WHERE state = 'queued';
CREATE INDEX messages_leased ON push.messages (lease_until) WHERE state = 'sending';
CREATE INDEX ON push.messages (member_id, purpose, accepted_at);
CREATE INDEX ON push.messages (platform_message_id) WHERE platform_message_id IS NOT NULL;

-- Every call that was about to be made, recorded before it was made, and its answer.
CREATE TABLE push.attempts (
    attempt_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id bigint NOT NULL REFERENCES push.messages,
    attempt_number integer NOT NULL,
    worker text NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    outcome text CHECK (outcome IN ('accepted', 'refused', 'retry', 'unknown')),
    http_status integer,
    platform_code text,
    platform_message text,
    UNIQUE (message_id, attempt_number)
);

-- Addresses nothing may be sent to on a channel, beside consent: bounces, complaints, black lists.
CREATE TABLE push.suppressions (
    channel text NOT NULL,
    address text NOT NULL,
    reason text NOT NULL,
    source text NOT NULL,
    since timestamptz NOT NULL,
    until timestamptz,
    PRIMARY KEY (channel, address, reason)
);

-- One row per channel and sending account ('wechat_mass:wechat_official'): the next free time slot, shared by all workers.
CREATE TABLE push.pace (
    account text PRIMARY KEY,
    rate_per_second numeric NOT NULL,
    next_at timestamptz NOT NULL,
    paused_until timestamptz,
    pause_reason text
);

CREATE TABLE push.audit_log (
    audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    occurred_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);

---------------------------------------------------------------------------------------------------------------- vault
-- token -> ciphertext. The loading role may add and see which tokens exist; only delivery may read or delete.
CREATE TABLE vault.secrets (
    token text PRIMARY KEY,
    key_id text NOT NULL,
    ciphertext bytea NOT NULL,                       -- 12 bytes nonce + AES-256-GCM, bound to the token
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

------------------------------------------------------------------------------------------------------------------ ops
-- Results of quality gates and laws, kept.
CREATE TABLE ops.gate_results (
    result_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    business_date date NOT NULL,
    gate text NOT NULL,                              -- 'core', 'mart', 'campaign'
    table_name text NOT NULL,
    check_name text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('fail', 'warn')),
    is_passed boolean NOT NULL,
    observed text NOT NULL,
    message text NOT NULL,
    run_id text NOT NULL,
    checked_at timestamptz NOT NULL
);
CREATE INDEX ON ops.gate_results (business_date, gate);

--------------------------------------------------------------------------------------------------------------- grants
GRANT nightmarket_etl TO nightmarket_delivery;
GRANT USAGE ON SCHEMA raw, core, mart, push, ops, vault TO nightmarket_etl;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA raw, core, mart, push, ops TO nightmarket_etl;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON ALL TABLES IN SCHEMA raw, core, mart, push TO nightmarket_etl';
    END IF;
END $$;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA raw, core, mart, push, ops TO nightmarket_etl;
GRANT SELECT (token), INSERT ON vault.secrets TO nightmarket_etl;
GRANT SELECT, UPDATE, DELETE ON vault.secrets TO nightmarket_delivery;
GRANT USAGE ON SCHEMA core, mart, push, ops TO nightmarket_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA core, mart, push, ops TO nightmarket_reader;
-- Of raw, readers see what arrived and what was refused, never a payload.
GRANT USAGE ON SCHEMA raw TO nightmarket_reader;
GRANT SELECT ON raw.batches, raw.cursors TO nightmarket_reader;
GRANT SELECT (source_id, stream, stage, record_key, reason, batch_id, run_id, rejected_at, resolved_at)
    ON raw.rejects TO nightmarket_reader;
REVOKE UPDATE, DELETE, TRUNCATE ON raw.records, push.audit_log, ops.schema_version FROM nightmarket_etl;  -- append-only
