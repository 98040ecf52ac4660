-- The outbox for every channel: addresses of five families, routes to fall back on, the receiver's own clock, quotas, questions.

---------------------------------------------------------------------------------------------------------------- people
-- A contact of an employee on WeCom is one more way of knowing a person, and of reaching one.
ALTER TABLE core.identities DROP CONSTRAINT identities_kind_check;
ALTER TABLE core.identities ADD CONSTRAINT identities_kind_check CHECK (kind IN (
    'taobao_open_uid', 'taobao_ouid', 'jd_open_id', 'youzan_open_id', 'weidian_buyer_id', 'wechat_openid', 'wechat_unionid',
    'wechat_store_openid', 'shop_customer_id', 'weibo_uid', 'pos_card', 'mall_id', 'phone', 'email', 'wecom_external_id'
));
ALTER TABLE core.consents DROP CONSTRAINT consents_channel_check;
ALTER TABLE core.consents ADD CONSTRAINT consents_channel_check CHECK (channel IN ('wechat', 'email', 'sms', 'push', 'wecom'));
ALTER TABLE core.suppression_events DROP CONSTRAINT suppression_events_channel_check;
ALTER TABLE core.suppression_events ADD CONSTRAINT suppression_events_channel_check
    CHECK (channel IN ('wechat', 'email', 'sms', 'push', 'wecom'));
CREATE OR REPLACE FUNCTION core.address_kind(channel text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE channel WHEN 'wechat' THEN 'wechat_openid' WHEN 'email' THEN 'email' WHEN 'sms' THEN 'phone' WHEN 'push' THEN 'mall_id'
        WHEN 'wecom' THEN 'wecom_external_id' END
$$;
-- The person's own clock, an IANA name, when a form or a shop told it. NULL: the clock of the house.
ALTER TABLE core.profiles ADD COLUMN time_zone text;
-- The name of a time zone as somebody wrote it, or NULL when there is no such zone: a wrong one must not stop the outbox.
CREATE FUNCTION core.known_zone(name text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF name !~ '^[A-Za-z]+/[A-Za-z0-9_/+-]+$' THEN
        RETURN NULL;
    END IF;
    PERFORM now() AT TIME ZONE name;
    RETURN name;
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN NULL;
END $$;

-- As in 0004, with contacts of WeCom.
CREATE OR REPLACE VIEW push.suppressions AS
WITH
stretches AS NOT MATERIALIZED (   -- asked per address: an index each, not the whole log
    SELECT e.source_id, e.channel, e.kind, e.address, e.is_person, e.reason, e.occurred_at AS since,
           least(e.until, (
               SELECT min(l.occurred_at) FROM core.suppression_events AS l
               WHERE l.channel = e.channel AND l.address = e.address AND l.reason = e.reason
                 AND NOT l.is_suppressed AND l.occurred_at > e.occurred_at
           )) AS until
    FROM core.suppression_events AS e
    WHERE e.is_suppressed
)
SELECT s.channel, s.address, s.reason, s.source_id AS source, s.since, s.until FROM stretches AS s
UNION ALL
SELECT c.channel, o.value, s.reason, s.source_id, s.since, s.until
-- as core.address_kind says
FROM (VALUES ('wechat', 'wechat_openid'), ('email', 'email'), ('sms', 'phone'), ('push', 'mall_id'), ('wecom', 'wecom_external_id'))
    AS c (channel, kind)
JOIN core.identities AS o ON o.kind = c.kind
JOIN core.member_identities AS om ON om.identity_id = o.identity_id
JOIN core.member_identities AS im ON im.member_id = om.member_id
JOIN core.identities AS i ON i.identity_id = im.identity_id
JOIN stretches AS s ON s.is_person AND s.channel = c.channel AND s.kind = i.kind AND s.address = i.value AND s.address <> o.value;

---------------------------------------------------------------------------------------------------------------- outbox
-- Where a message may still go when its channel refuses it: [{"channel", "account", "address", "template", "cost"}], dearer ones later.
ALTER TABLE push.messages ADD COLUMN routes jsonb NOT NULL DEFAULT '[]';
ALTER TABLE push.messages ADD COLUMN time_zone text;         -- the receiver's; NULL: the clock of the house
ALTER TABLE push.messages ADD COLUMN billed_parts integer NOT NULL DEFAULT 1;   -- a long SMS costs as much as several
ALTER TABLE push.messages ADD COLUMN asked_at timestamptz;   -- when the platform was last asked what became of it
-- Over which channel a call went: a message that was refused goes on over another one, under the same key.
ALTER TABLE push.attempts ADD COLUMN channel text;
UPDATE push.attempts AS a SET channel = m.channel FROM push.messages AS m WHERE m.message_id = a.message_id;
ALTER TABLE push.attempts ALTER COLUMN channel SET NOT NULL;

-- Both are written by statements that hold the run's row; looking it up again for each of a million rows took a tenth of the time.
ALTER TABLE push.audiences DROP CONSTRAINT audiences_run_id_fkey;
ALTER TABLE push.messages DROP CONSTRAINT messages_run_id_fkey;

-- Caps look at what went out lately, of everybody.
CREATE INDEX messages_accepted ON push.messages (accepted_at) INCLUDE (member_id, purpose, channel) WHERE accepted_at IS NOT NULL;
CREATE INDEX messages_open ON push.messages (state, channel) WHERE state IN ('unknown', 'waiting_staff');

-- Calls of an account in a window of its quota. `account` as in push.pace; the window is a day or a month of the house's clock.
CREATE TABLE push.quota_counts (
    account text NOT NULL,
    period text NOT NULL CHECK (period IN ('day', 'month')),
    window_start date NOT NULL,
    call_count bigint NOT NULL CHECK (call_count >= 0),
    PRIMARY KEY (account, period, window_start)
);

-- The first instant at or after `at_instant` at which [opens, closes) holds on the receiver's clock; over midnight when opens > closes,
-- always open when they are equal. As nightmarket.dates.send_window.
CREATE FUNCTION push.next_opening(at_instant timestamptz, opens time, closes time, zone text) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN opens = closes THEN at_instant
        WHEN opens < closes AND l.clock >= opens AND l.clock < closes THEN at_instant
        WHEN opens > closes AND (l.clock >= opens OR l.clock < closes) THEN at_instant
        WHEN l.clock < opens THEN (l.day + opens) AT TIME ZONE zone
        ELSE (l.day + 1 + opens) AT TIME ZONE zone
    END
    FROM (SELECT (at_instant AT TIME ZONE zone)::date AS day, (at_instant AT TIME ZONE zone)::time AS clock) AS l
$$;

-- The key a platform itself handed out for a message (JPush's cid), kept before the first call with it. A row says that a call may
-- have gone out. docs/connections/jpush.md
CREATE TABLE push.platform_keys (
    account text NOT NULL,
    message_key text NOT NULL,
    platform_key text NOT NULL,
    obtained_at timestamptz NOT NULL,    -- how long the platform remembers it counts from here
    PRIMARY KEY (account, message_key)
);
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON push.platform_keys TO nightmarket_etl;
GRANT SELECT ON push.platform_keys TO nightmarket_reader;

-- Who allowed one subscription notice of a WeChat template, or refused them: one row per push of WeChat and template.
CREATE TABLE core.subscribe_events (
    source_id text NOT NULL,             -- the account
    event_id text NOT NULL,
    openid text NOT NULL,
    template_id text NOT NULL,           -- WeChat's
    kind text NOT NULL CHECK (kind IN ('accept', 'reject')),
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, event_id)
);
CREATE INDEX ON core.subscribe_events (openid, template_id, occurred_at);
CREATE INDEX messages_noticed ON push.messages (address) WHERE channel = 'wechat_subscribe';
-- How many notices of a template a person still allows: each acceptance one, less every call that may have used one up; a refusal,
-- the person's or WeChat's (43101), ends what was allowed before.
CREATE FUNCTION push.subscribe_balance(of_account text, of_openid text, of_template text, at_instant timestamptz)
RETURNS integer LANGUAGE sql STABLE AS $$
    WITH calls AS MATERIALIZED (
        SELECT a.started_at, a.platform_code = '43101' AS is_refused
        FROM push.messages AS m
        JOIN push.campaign_runs AS r ON r.run_id = m.run_id
        JOIN push.attempts AS a ON a.message_id = m.message_id AND a.channel = 'wechat_subscribe'
        WHERE m.channel = 'wechat_subscribe' AND m.account = of_account AND m.address = of_openid AND a.started_at <= at_instant
          AND r.config -> 'templates' -> ((r.config #>> '{channels,wechat_subscribe,templates}') || '/' || m.template) ->> 'template_id'
              = of_template
          AND (a.outcome IS NULL OR a.outcome IN ('accepted', 'unknown') OR a.platform_code = '43101')
    ),
    words AS MATERIALIZED (
        SELECT e.kind, e.occurred_at FROM core.subscribe_events AS e
        WHERE e.source_id = of_account AND e.openid = of_openid AND e.template_id = of_template AND e.occurred_at <= at_instant
    ),
    ended AS (
        SELECT greatest(
            (SELECT max(w.occurred_at) FROM words AS w WHERE w.kind = 'reject'),
            (SELECT max(c.started_at) FROM calls AS c WHERE c.is_refused)
        ) AS at
    )
    SELECT greatest(0,
        (SELECT count(*) FROM words AS w WHERE w.kind = 'accept' AND (z.at IS NULL OR w.occurred_at > z.at))
        - (SELECT count(*) FROM calls AS c WHERE c.is_refused IS NOT TRUE AND (z.at IS NULL OR c.started_at > z.at))
    )::integer
    FROM ended AS z
$$;
-- May this message go out as a subscription notice now?
CREATE FUNCTION push.may_notify(of_message bigint, at_instant timestamptz) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT push.subscribe_balance(
        m.account, m.address,
        r.config -> 'templates' -> ((r.config #>> '{channels,wechat_subscribe,templates}') || '/' || m.template) ->> 'template_id',
        at_instant
    ) > 0
    FROM push.messages AS m
    JOIN push.campaign_runs AS r ON r.run_id = m.run_id
    WHERE m.message_id = of_message
$$;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON core.subscribe_events TO nightmarket_etl;
GRANT SELECT ON core.subscribe_events TO nightmarket_reader;

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON push.quota_counts TO nightmarket_etl;
GRANT SELECT ON push.quota_counts TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON push.quota_counts TO nightmarket_etl';
    END IF;
END $$;
