-- Products by category, role and company; which order a message, a coupon or a QR code may claim; the asset cube.

----------------------------------------------------------------------------------------------------------------- core
ALTER TABLE core.accounts ADD COLUMN is_store boolean NOT NULL DEFAULT FALSE;  -- tills: its orders were made in a store
ALTER TABLE core.interactions ADD COLUMN scene text;             -- of the QR code that a follower scanned
DELETE FROM raw.mappings WHERE stream = 'events';                -- scans of the past tell their scene too: they are mapped again

CREATE INDEX ON core.exposures (message_key) WHERE message_key IS NOT NULL;
CREATE INDEX ON core.exposures (group_key, run_id) WHERE group_key IS NOT NULL;
CREATE INDEX ON core.exposures (coupon_request) WHERE coupon_request IS NOT NULL;
CREATE INDEX ON core.coupon_events (member_id);
CREATE INDEX ON core.coupon_events (coupon_request);
CREATE INDEX ON core.coupon_events (occurred_at) WHERE kind = 'redeemed';
CREATE INDEX ON core.follow_events (identity_id) WHERE scene IS NOT NULL;

-- Addresses that nothing may be sent to at an instant, for marts, which do not read push.
CREATE FUNCTION core.suppressed_as_of(as_of_at timestamptz) RETURNS TABLE (channel text, address text)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT DISTINCT s.channel, s.address FROM push.suppressions AS s WHERE s.since < as_of_at AND (s.until IS NULL OR s.until >= as_of_at)
$$;

-- What a run did and what came back moves its members, however late the news is.
CREATE FUNCTION core.touch_answers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO core.touches (kind, member_id)
    SELECT DISTINCT 'member', coalesce(m.absorbed_by, m.member_id)
    FROM (
        SELECT x.member_id FROM after AS n JOIN core.exposures AS x ON x.message_key = n.message_key
        UNION
        SELECT x.member_id FROM after AS n JOIN core.exposures AS x ON x.group_key = n.message_key
    ) AS t
    JOIN core.members AS m ON m.member_id = t.member_id;
    RETURN NULL;
END $$;
CREATE TRIGGER touch_insert AFTER INSERT ON core.message_events REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_answers();
CREATE TRIGGER touch_update AFTER UPDATE ON core.message_events REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_answers();
CREATE TRIGGER touch_insert AFTER INSERT ON core.exposures REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_members();
CREATE TRIGGER touch_update AFTER UPDATE ON core.exposures REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_members();
CREATE TRIGGER touch_insert AFTER INSERT ON core.coupon_events REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_members();
CREATE TRIGGER touch_update AFTER UPDATE ON core.coupon_events REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_members();

----------------------------------------------------------------------------------------------------------------- mart
-- Which product is of which category: the first rule that fits. From include/config/categories.yaml.
CREATE TABLE mart.category_rules (
    category text PRIMARY KEY,
    position smallint NOT NULL UNIQUE,
    name_zh text NOT NULL,
    name_en text NOT NULL,
    is_goods boolean NOT NULL,                       -- false: postage, fees, vouchers; they have no role and no company
    title_pattern text,                              -- PostgreSQL regular expressions, case does not matter; NULL: never
    article_pattern text                             -- of our article number, or of the product id where a shop gives none
);

-- What was sold of each product on each day. One row per day, source and product with a paid order.
CREATE TABLE mart.product_days (
    day date NOT NULL,
    source_id text NOT NULL,
    product_id text NOT NULL,
    unit_count numeric NOT NULL,
    gross_amount numeric NOT NULL,                   -- unit price x quantity, before refunds
    order_count integer NOT NULL,
    buyer_count integer NOT NULL,                    -- people; an order without a buyer has none
    PRIMARY KEY (day, source_id, product_id)         -- in this order a night finds its days, and one index is enough
);

CREATE TABLE mart.products (
    source_id text NOT NULL,
    product_id text NOT NULL,
    title text NOT NULL,
    outer_id text,
    category text NOT NULL,
    is_goods boolean NOT NULL,
    first_sold_date date,                            -- NULL: never sold
    last_sold_date date,
    PRIMARY KEY (source_id, product_id)
);

-- What each product is good for, at the end of a business date: month ends and the newest.
CREATE TABLE mart.product_roles (
    business_date date NOT NULL,
    source_id text NOT NULL,
    product_id text NOT NULL,
    category text NOT NULL,
    unit_count numeric NOT NULL,                     -- in the window
    gross_amount numeric NOT NULL,
    order_count integer NOT NULL,
    buyer_day_count integer NOT NULL,                -- a person counts once a day
    source_gross_amount numeric NOT NULL,            -- of all goods of the source
    source_buyer_day_count integer NOT NULL,
    gross_share_rate numeric,
    buyer_share_rate numeric,
    gross_rank integer NOT NULL,
    cumulative_gross_amount numeric NOT NULL,        -- of this product and all that bring as much or more
    cumulative_gross_rate numeric,
    cumulative_buyer_day_count integer NOT NULL,
    cumulative_buyer_rate numeric,
    previous_gross_amount numeric NOT NULL,          -- in the window before
    growth_rate numeric,
    growth_phase text CHECK (growth_phase IN ('new', 'growing', 'mature', 'declining')),   -- NULL: the shop is younger than the two windows
    role text NOT NULL CHECK (role IN ('traffic_and_profit', 'profit', 'traffic', 'long_tail')),
    PRIMARY KEY (business_date, source_id, product_id)
);

-- Which products are bought together. One row per week's end (Sunday), source and pair.
CREATE TABLE mart.product_pairs (
    business_date date NOT NULL,
    source_id text NOT NULL,
    product_a text NOT NULL,
    product_b text NOT NULL,
    pair_rank integer NOT NULL,
    order_count integer NOT NULL,                    -- with both
    a_order_count integer NOT NULL,
    b_order_count integer NOT NULL,
    basket_count integer NOT NULL,                   -- all baskets that were looked at
    support_rate numeric NOT NULL,
    a_to_b_rate numeric NOT NULL,                    -- confidence: of the baskets with a, those with b too
    b_to_a_rate numeric NOT NULL,
    lift numeric NOT NULL,                           -- how many times as often as if they had nothing to do with each other
    PRIMARY KEY (business_date, source_id, product_a, product_b),
    CHECK (product_a < product_b)
);

-- What the brand has in its members: how many it reaches, how long they stay, what they bring.
CREATE TABLE mart.asset_cube_daily (
    business_date date PRIMARY KEY,
    member_count integer NOT NULL,
    reachable_wechat_count integer NOT NULL,
    reachable_sms_count integer NOT NULL,
    reachable_email_count integer NOT NULL,
    reachable_push_count integer NOT NULL,
    reachable_count integer NOT NULL,                -- on at least one of them
    reachable_rate numeric,                          -- / member_count
    complete_profile_count integer NOT NULL,
    complete_profile_rate numeric,                   -- / member_count
    buyer_count integer NOT NULL,                    -- ever
    lifetime_day_count bigint NOT NULL,              -- sum over buyers
    mean_lifetime_days numeric,                      -- / buyer_count
    median_lifetime_days numeric,
    previous_buyer_count integer NOT NULL,           -- in the year before the last
    retained_buyer_count integer NOT NULL,           -- of these, again in the last one
    retention_rate numeric,                          -- / previous_buyer_count
    year_buyer_count integer NOT NULL,               -- in the last year
    year_net_amount numeric NOT NULL,
    net_per_buyer_year_amount numeric,               -- / year_buyer_count
    net_amount numeric NOT NULL,                     -- of all buyers, ever
    net_per_buyer_amount numeric,                    -- / buyer_count
    margin_amount numeric,                           -- NULL: what goods cost is not known
    review_count integer NOT NULL,                   -- by members, ever
    reviews_per_buyer_rate numeric,                  -- / buyer_count
    referral_count integer                           -- NULL: no source tells who brought whom
);

-- Which touch may claim an order, by three models. An order is claimed once per model at most.
CREATE TABLE mart.order_attributions (
    model text NOT NULL CHECK (model IN ('last_touch', 'coupon_code', 'qr_scene')),
    source_id text NOT NULL,
    order_id text NOT NULL,
    member_id bigint NOT NULL,
    day date NOT NULL,                               -- the order was paid
    touch_kind text NOT NULL CHECK (touch_kind IN ('click', 'message', 'coupon', 'follow', 'scan')),
    touched_at timestamptz NOT NULL,
    run_id text,                                     -- NULL: a QR code, or a coupon of no run
    campaign text,
    message_key text,
    coupon_request text,                             -- the coupon, when one was redeemed
    arm text,                                        -- of the member in that run
    touch_source_id text,                            -- the account of a QR code
    scene text,
    credited_amount numeric NOT NULL,                -- line value of the order, before refunds
    PRIMARY KEY (model, source_id, order_id)
);
CREATE INDEX ON mart.order_attributions (member_id);

-- What each run may claim directly, beside what it changed against its hold-out.
CREATE TABLE mart.attribution_by_run (
    run_id text NOT NULL,
    model text NOT NULL,
    campaign text NOT NULL,
    order_count integer NOT NULL,                    -- claimed
    buyer_count integer NOT NULL,
    credited_amount numeric NOT NULL,
    holdout_order_count integer NOT NULL,            -- of these, by members who were held out
    incremental_order_count numeric,                 -- from campaign_results; NULL: not known
    incremental_revenue_amount numeric,
    incremental_revenue_low_amount numeric,
    incremental_revenue_high_amount numeric,
    verdict text,
    is_window_closed boolean,
    incremental_share_rate numeric,                  -- incremental_revenue_amount / credited_amount
    PRIMARY KEY (run_id, model)
);

-- From a phone to the till: orders made in a store, with the last online touch before them.
CREATE TABLE mart.store_paths (
    source_id text NOT NULL,
    order_id text NOT NULL,
    member_id bigint NOT NULL,
    day date NOT NULL,
    path text NOT NULL CHECK (path IN ('coupon', 'qr_scene', 'message')),
    touched_at timestamptz NOT NULL,                 -- of a coupon: when it was given
    hours_to_order numeric NOT NULL,
    run_id text,
    touch_source_id text,
    scene text,
    gross_amount numeric NOT NULL,
    PRIMARY KEY (source_id, order_id)
);

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON
    mart.category_rules, mart.product_days, mart.products, mart.product_roles, mart.product_pairs, mart.asset_cube_daily,
    mart.order_attributions, mart.attribution_by_run, mart.store_paths TO nightmarket_etl;
GRANT SELECT ON
    mart.category_rules, mart.product_days, mart.products, mart.product_roles, mart.product_pairs, mart.asset_cube_daily,
    mart.order_attributions, mart.attribution_by_run, mart.store_paths TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON ALL TABLES IN SCHEMA mart TO nightmarket_etl';
    END IF;
END $$;
