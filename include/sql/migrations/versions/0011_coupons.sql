-- Coupons of several issuers: own codes, lists of codes, points, Taobao benefits and Youzan vouchers beside WeChat Pay.

--------------------------------------------------------------------------------------------------------------- stocks
ALTER TABLE push.coupon_stocks ALTER COLUMN platform_stock_id DROP NOT NULL;   -- codes of our own have none
ALTER TABLE push.coupon_stocks ADD COLUMN budget_amount numeric;               -- face value of all its coupons together; NULL: pieces only
ALTER TABLE push.coupon_stocks ADD COLUMN valid_days integer;           -- of a coupon, from the day it was given; NULL: until valid_to
ALTER TABLE push.coupon_stocks ADD COLUMN points_price bigint NOT NULL DEFAULT 0 CHECK (points_price >= 0);  -- what a member pays for one
ALTER TABLE push.coupon_stocks ADD COLUMN has_codes boolean NOT NULL DEFAULT FALSE;  -- coupons are codes that the database holds

-- A coupon: reserved -> unknown (a call is being made) -> issued -> redeemed | expired; released = never given, or taken back unseen.
ALTER TABLE push.coupons RENAME COLUMN openid TO receiver;                     -- how the issuer knows the person; NULL: it need not
ALTER TABLE push.coupons ALTER COLUMN run_id DROP NOT NULL;                    -- NULL: given by hand or by a page, not by a run
ALTER TABLE push.coupons ADD COLUMN valid_to timestamptz;                      -- last instant; NULL: the stock's
ALTER TABLE push.coupons ADD COLUMN points_paid bigint NOT NULL DEFAULT 0;     -- taken from the member, given back on release
CREATE INDEX ON push.coupons (member_id);
CREATE INDEX ON push.messages (coupon_request) WHERE coupon_request IS NOT NULL;

-- One row per code. The clear code is in the vault, like a personal value: who reads this table can spend nothing.
-- free -> bound to one coupon for good, or void: taken back after somebody may have seen it, or taken out by a person.
CREATE TABLE push.coupon_codes (
    code_token text PRIMARY KEY,                     -- coupon:XXXX; equal codes of two stocks would be one row, so there are none
    stock_id text NOT NULL REFERENCES push.coupon_stocks,
    code_number bigint GENERATED ALWAYS AS IDENTITY, -- handed out in this order
    state text NOT NULL CHECK (state IN ('free', 'bound', 'void')),
    request_key text REFERENCES push.coupons,        -- the coupon it is, or was before it became void
    tail text NOT NULL,                              -- the last characters, for people who compare
    origin text NOT NULL,                            -- who made it, or the file and line it was read from
    made_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CHECK ((state = 'free') <= (request_key IS NULL)),
    CHECK ((state = 'bound') <= (request_key IS NOT NULL))
);
CREATE UNIQUE INDEX ON push.coupon_codes (request_key) WHERE state = 'bound';
CREATE INDEX ON push.coupon_codes (stock_id, code_number) WHERE state = 'free';

-- Lines of imported lists that are no codes, or codes we have: where they stand and why, never what they say.
CREATE TABLE push.coupon_rejects (
    stock_id text NOT NULL REFERENCES push.coupon_stocks,
    file_name text NOT NULL,
    line_number integer NOT NULL,
    reason text NOT NULL,
    rejected_at timestamptz NOT NULL,
    PRIMARY KEY (stock_id, file_name, line_number)
);

----------------------------------------------------------------------------------------------------------- redemptions
-- What shops, tills and pages say about codes, ours or not; one row per order (or event) and code.
CREATE TABLE core.coupon_uses (
    source_id text NOT NULL,
    use_id text NOT NULL,                            -- the order, or the event that told it
    code_token text NOT NULL,                        -- coupon:XXXX
    order_source_id text,                            -- whose order; NULL: nobody said
    order_id text,
    discount_amount numeric,                         -- what it took off, when told
    used_at timestamptz NOT NULL,
    batch_id bigint,                                 -- NULL: typed in at a desk
    PRIMARY KEY (source_id, use_id, code_token)
);
CREATE INDEX ON core.coupon_uses (code_token);
CREATE INDEX ON core.coupon_uses (order_source_id, order_id);

ALTER TABLE core.coupon_events ADD COLUMN source_id text;   -- of a redemption: whose order, where the issuer names it
ALTER TABLE core.coupon_events ADD COLUMN order_id text;
CREATE INDEX ON core.coupon_events (source_id, order_id) WHERE order_id IS NOT NULL;

---------------------------------------------------------------------------------------------------------------- points
-- What a member can spend now: the ledger, and what was spent since it was written. As the tills ask (nightmarket.grants).
CREATE FUNCTION mart.points_balance(member bigint) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT (
        coalesce((SELECT sum(l.points) FROM mart.points_ledger AS l WHERE l.member_id = member), 0)
        - coalesce((
            SELECT sum(CASE u.kind WHEN 'redeem' THEN u.points ELSE -u.points END)
            FROM core.members AS m
            JOIN core.point_uses AS u ON u.member_id = m.member_id
            WHERE (m.member_id = member OR m.absorbed_by = member)
              AND NOT EXISTS (SELECT FROM mart.points_ledger AS k WHERE k.member_id = member AND k.use_id = u.use_id)
        ), 0)
    )::bigint
$$;

-- Who of a run's targeted members can have a coupon of a stock: known to its issuer, below the limit per person (former member
-- ids count), with points enough. `receiver` is how the issuer knows them, NULL when it need not.
CREATE FUNCTION push.coupon_receivers(wanted_run text, wanted_stock text, receiver_kind text, points_price bigint, member_limit integer)
RETURNS TABLE (member_id bigint, receiver text) LANGUAGE sql STABLE AS $$
    WITH
    held AS (   -- of other runs, or of none
        SELECT coalesce(m.absorbed_by, m.member_id) AS person_id, count(*) AS coupon_count
        FROM push.coupons AS c
        JOIN core.members AS m ON m.member_id = c.member_id
        WHERE c.stock_id = wanted_stock AND c.state <> 'released' AND c.run_id IS DISTINCT FROM wanted_run
        GROUP BY coalesce(m.absorbed_by, m.member_id)
    )
    SELECT a.member_id, k.receiver
    FROM push.audiences AS a
    LEFT JOIN core.members AS p ON p.member_id = a.member_id
    LEFT JOIN held AS h ON h.person_id = coalesce(p.absorbed_by, a.member_id)
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN receiver_kind IS NULL THEN NULL
            WHEN receiver_kind = 'wechat_openid' THEN a.facts ->> 'openid'   -- the account that was found to follow
            ELSE (
                SELECT i.value
                FROM core.member_identities AS mi
                JOIN core.identities AS i ON i.identity_id = mi.identity_id AND i.kind = receiver_kind
                WHERE mi.member_id = a.member_id
                ORDER BY i.identity_id DESC
                LIMIT 1
            )
        END AS receiver
    ) AS k
    WHERE wanted_stock IS NOT NULL AND a.run_id = wanted_run AND a.state = 'targeted'
      AND (receiver_kind IS NULL OR k.receiver IS NOT NULL)
      AND coalesce(h.coupon_count, 0) < member_limit
      AND CASE WHEN points_price = 0 THEN TRUE ELSE mart.points_balance(coalesce(p.absorbed_by, a.member_id)) >= points_price END
$$;

----------------------------------------------------------------------------------------------------------------- roles
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON push.coupon_codes, push.coupon_rejects, core.coupon_uses TO nightmarket_etl;
GRANT SELECT ON push.coupon_codes, push.coupon_rejects, core.coupon_uses TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON push.coupon_codes, push.coupon_rejects, core.coupon_uses TO nightmarket_etl';
    END IF;
END $$;
