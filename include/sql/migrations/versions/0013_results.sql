-- What campaigns achieved, kept: two more steps of the funnel, the report of a finished run, what people learned from it.

-- Who came to a page or the account of ours inside the window; coupons that expired unused.
ALTER TABLE mart.campaign_funnels ADD COLUMN visited_count integer NOT NULL DEFAULT 0;
ALTER TABLE mart.campaign_funnels ADD COLUMN coupon_expired_count integer NOT NULL DEFAULT 0;

-- The retrospective report of a run, made once when its attribution window was closed. `facts` are its figures as they stood then;
-- `html` is made of the facts and of what was learned, again whenever somebody adds to that.
CREATE TABLE push.retrospectives (
    run_id text PRIMARY KEY REFERENCES push.campaign_runs,
    business_date date NOT NULL,                     -- the night whose marts the figures are of
    made_at timestamptz NOT NULL,
    facts jsonb NOT NULL,
    html text NOT NULL,
    CHECK (jsonb_typeof(facts) = 'object')
);

-- What people learned from a run, in their words, one row each time somebody says something. Nothing is changed or taken back.
CREATE TABLE push.learnings (
    learning_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text NOT NULL REFERENCES push.campaign_runs,
    learning text NOT NULL CHECK (learning <> ''),
    said_by text NOT NULL,
    said_at timestamptz NOT NULL
);
CREATE INDEX ON push.learnings (run_id);

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON push.retrospectives, push.learnings TO nightmarket_etl;
GRANT SELECT ON push.retrospectives, push.learnings TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON push.retrospectives, push.learnings TO nightmarket_etl';
    END IF;
END $$;
