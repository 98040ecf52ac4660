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
ALTER TABLE push.messages ADD COLUMN asked_at timestamptz;   -- when the platform was last asked what became of it
-- Over which channel a call went: a message that was refused goes on over another one, under the same key.
ALTER TABLE push.attempts ADD COLUMN channel text;
UPDATE push.attempts AS a SET channel = m.channel FROM push.messages AS m WHERE m.message_id = a.message_id;
ALTER TABLE push.attempts ALTER COLUMN channel SET NOT NULL;

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

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON push.quota_counts TO nightmarket_etl;
GRANT SELECT ON push.quota_counts TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON push.quota_counts TO nightmarket_etl';
    END IF;
END $$;
