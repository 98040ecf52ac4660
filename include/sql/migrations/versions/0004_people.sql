-- Identity at a million members; consent and suppression as event logs. docs/decisions/0061-members-by-heads.md, 0062-consent-ranks.md,
-- 0063-suppression-log.md.

------------------------------------------------------------------------------------------------------------- identity
-- A member stands for one identity for ever, its head: the smallest it had when it was made. A group of identities is the member with
-- the smallest id among those whose heads it holds, so merges and splits need no memory, and who was absorbed comes back as who they were.
ALTER TABLE core.members ADD COLUMN head_id bigint;      -- NULL: absorbed before heads were kept, or made by hand
UPDATE core.members AS m SET head_id = h.head_id
FROM (SELECT mi.member_id, min(mi.identity_id) AS head_id FROM core.member_identities AS mi GROUP BY mi.member_id) AS h
WHERE h.member_id = m.member_id;
CREATE UNIQUE INDEX members_head ON core.members (head_id);
CREATE INDEX members_absorbed ON core.members (absorbed_by) WHERE absorbed_by IS NOT NULL;

-- Both are written by one file only (core/members/members.sql), which writes no other ids; looking each of them up again took two
-- thirds of a first load (docs/decisions/0061-members-by-heads.md).
ALTER TABLE core.member_identities DROP CONSTRAINT member_identities_identity_id_fkey;
ALTER TABLE core.member_identities DROP CONSTRAINT member_identities_member_id_fkey;

-- Merges are taken back by the night (a link was revoked, a value became a hub) or by a person (nightmarket unmerge).
ALTER TABLE core.member_merges ADD COLUMN undone_at timestamptz;
ALTER TABLE core.member_merges ADD COLUMN undone_by text;
ALTER TABLE core.member_merges ADD COLUMN undone_reason text;
ALTER TABLE core.member_merges DROP CONSTRAINT member_merges_survivor_id_absorbed_id_merged_at_key;
ALTER TABLE core.member_merges ADD CHECK ((undone_at IS NULL) = (undone_by IS NULL));
CREATE UNIQUE INDEX one_merge_in_force ON core.member_merges (absorbed_id) WHERE undone_at IS NULL;
CREATE INDEX ON core.member_merges (survivor_id);

-- What the next resolution of members has to look at: an identity that is new or was seen earlier than thought, a link that is new,
-- revoked or gone. Written by triggers, whoever writes core; members.sql takes the rows away.
CREATE TABLE core.identity_changes (
    identity_id bigint NOT NULL,
    other_id bigint                                  -- the other end of a link, the larger one; NULL: the identity itself
);

-- One row: how many identities of one other kind may share a value before it links nothing (kpis.yaml), and the number that
-- core.identity_hubs was counted with; different: the next night counts everybody.
CREATE TABLE core.identity_rules (
    is_only boolean PRIMARY KEY DEFAULT TRUE CHECK (is_only),
    max_sharers integer NOT NULL CHECK (max_sharers >= 1),
    counted_max_sharers integer
);
INSERT INTO core.identity_rules (max_sharers) VALUES (10);

-- Values that too many share: a courier's phone, a shop's own number. Links to them tie nobody.
CREATE TABLE core.identity_hubs (
    identity_id bigint PRIMARY KEY,
    sharer_count integer NOT NULL,                   -- identities of the one other kind that has most
    since timestamptz NOT NULL
);

CREATE INDEX identity_links_revoked ON core.identity_links (identity_a, identity_b) WHERE revoked_at IS NOT NULL;
-- Evidence that nobody found wrong. A person who revokes speaks about the pair: no other source ties it again.
CREATE VIEW core.links_in_force AS
SELECT l.identity_a, l.identity_b, l.source_id, l.evidence, l.observed_at
FROM core.identity_links AS l
WHERE l.revoked_at IS NULL
  AND NOT EXISTS (
      SELECT FROM core.identity_links AS r
      WHERE r.revoked_at IS NOT NULL AND r.identity_a = l.identity_a AND r.identity_b = l.identity_b
  );
-- Of these, the ones that tie: neither end is shared by too many.
CREATE VIEW core.valid_links AS
SELECT l.identity_a, l.identity_b, l.source_id, l.evidence, l.observed_at
FROM core.links_in_force AS l
WHERE NOT EXISTS (SELECT FROM core.identity_hubs AS h WHERE h.identity_id = l.identity_a)
  AND NOT EXISTS (SELECT FROM core.identity_hubs AS h WHERE h.identity_id = l.identity_b);

CREATE FUNCTION core.change_identities() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO core.identity_changes (identity_id) SELECT n.identity_id FROM after AS n;
    ELSE
        INSERT INTO core.identity_changes (identity_id)
        SELECT n.identity_id FROM after AS n JOIN before AS o ON o.identity_id = n.identity_id
        WHERE n.first_seen_at <> o.first_seen_at;
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION core.change_identity_links() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO core.identity_changes (identity_id, other_id) SELECT n.identity_a, n.identity_b FROM after AS n;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO core.identity_changes (identity_id, other_id) SELECT o.identity_a, o.identity_b FROM before AS o;
    ELSE
        INSERT INTO core.identity_changes (identity_id, other_id)
        SELECT n.identity_a, n.identity_b
        FROM after AS n
        JOIN before AS o ON o.identity_a = n.identity_a AND o.identity_b = n.identity_b AND o.source_id = n.source_id AND o.evidence = n.evidence
        WHERE n.revoked_at IS DISTINCT FROM o.revoked_at;
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION core.change_member_identities() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN   -- by hand only: whoever is nobody's any more is solved again
    INSERT INTO core.identity_changes (identity_id) SELECT o.identity_id FROM before AS o;
    RETURN NULL;
END $$;
CREATE TRIGGER change_insert AFTER INSERT ON core.identities REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.change_identities();
CREATE TRIGGER change_update AFTER UPDATE ON core.identities REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.change_identities();
CREATE TRIGGER change_insert AFTER INSERT ON core.identity_links REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.change_identity_links();
CREATE TRIGGER change_update AFTER UPDATE ON core.identity_links REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.change_identity_links();
CREATE TRIGGER change_delete AFTER DELETE ON core.identity_links REFERENCING OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION core.change_identity_links();
CREATE TRIGGER change_delete AFTER DELETE ON core.member_identities REFERENCING OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION core.change_member_identities();

-- Connected components of the temporary table group_edges (a, b; a < b) into group_roots (node, root): root is the smallest node of
-- the component. Every node leans on its smallest neighbour below it, leaning is followed to its end (twice as far each time), then
-- each tree becomes one node; a few rounds, whatever the shape. For what a night brings; all of it at once is nightmarket rebuild-members.
CREATE FUNCTION core.connect_groups() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DROP TABLE IF EXISTS pg_temp.group_roots;
    CREATE TEMPORARY TABLE group_roots ON COMMIT DROP AS
    SELECT e.a AS node, e.a AS root FROM group_edges AS e UNION SELECT e.b, e.b FROM group_edges AS e;
    CREATE TEMPORARY TABLE open_edges ON COMMIT DROP AS SELECT e.a, e.b FROM group_edges AS e;
    WHILE EXISTS (SELECT FROM open_edges) LOOP
        CREATE TEMPORARY TABLE leans ON COMMIT DROP AS SELECT e.b AS node, min(e.a) AS root FROM open_edges AS e GROUP BY e.b;
        CREATE UNIQUE INDEX ON leans (node);
        ANALYZE leans;
        LOOP
            UPDATE leans AS l SET root = n.root FROM leans AS n WHERE n.node = l.root;
            EXIT WHEN NOT FOUND;
        END LOOP;
        UPDATE group_roots AS g SET root = l.root FROM leans AS l WHERE l.node = g.root;
        CREATE TEMPORARY TABLE next_edges ON COMMIT DROP AS
        SELECT DISTINCT least(x.a, x.b) AS a, greatest(x.a, x.b) AS b
        FROM (
            SELECT coalesce(la.root, e.a) AS a, coalesce(lb.root, e.b) AS b
            FROM open_edges AS e LEFT JOIN leans AS la ON la.node = e.a LEFT JOIN leans AS lb ON lb.node = e.b
        ) AS x
        WHERE x.a <> x.b;
        DROP TABLE leans;
        DROP TABLE open_edges;
        ALTER TABLE next_edges RENAME TO open_edges;
        ANALYZE open_edges;
    END LOOP;
    DROP TABLE open_edges;
    CREATE UNIQUE INDEX ON group_roots (node);
    ANALYZE group_roots;
END $$;

-- What was there before this migration and is not solved yet.
INSERT INTO core.identity_changes (identity_id)
SELECT i.identity_id FROM core.identities AS i
WHERE NOT EXISTS (SELECT FROM core.member_identities AS mi WHERE mi.identity_id = i.identity_id);
INSERT INTO core.identity_changes (identity_id, other_id)
SELECT DISTINCT l.identity_a, l.identity_b
FROM core.identity_links AS l
LEFT JOIN core.member_identities AS a ON a.identity_id = l.identity_a
LEFT JOIN core.member_identities AS b ON b.identity_id = l.identity_b
WHERE (a.member_id IS NOT DISTINCT FROM b.member_id) = (l.revoked_at IS NOT NULL);

-------------------------------------------------------------------------------------------------------------- consent
-- Who said it: the person (a form, a link, a reply), the platform (follows, leaves), or a list that somebody imported.
ALTER TABLE core.consents ADD COLUMN origin text NOT NULL DEFAULT 'person' CHECK (origin IN ('person', 'platform', 'import'));
UPDATE core.consents SET origin = 'platform'
WHERE evidence IN ('followed the account', 'left the account', 'does not follow the account any more');
-- The rule, in one place: of a person's words about a channel and purpose the one with the latest ranks_at is right, of two at the same
-- instant the refusal. A yes from an import ranks before everything that was ever said: it counts only where nothing else was.
ALTER TABLE core.consents ADD COLUMN ranks_at timestamptz NOT NULL
    GENERATED ALWAYS AS (CASE WHEN origin = 'import' AND is_granted THEN '-infinity'::timestamptz ELSE occurred_at END) STORED;

-- What each member had allowed or refused at an instant: the words of all their identities, by the rule above.
CREATE FUNCTION core.consents_as_of(as_of_at timestamptz)
RETURNS TABLE (member_id bigint, channel text, purpose text, is_granted boolean, since timestamptz,
               source_id text, evidence text, origin text)
LANGUAGE sql STABLE AS $$
    SELECT DISTINCT ON (mi.member_id, c.channel, c.purpose)
        mi.member_id, c.channel, c.purpose, c.is_granted, c.occurred_at, c.source_id, c.evidence, c.origin
    FROM core.consents AS c
    JOIN core.member_identities AS mi ON mi.identity_id = c.identity_id
    WHERE c.occurred_at < as_of_at
    ORDER BY mi.member_id, c.channel, c.purpose, c.ranks_at DESC, c.is_granted, c.occurred_at DESC, c.source_id, c.event_id
$$;
-- One row per member, channel and purpose about which the member has said something.
CREATE VIEW core.member_consents AS
SELECT c.member_id, c.channel, c.purpose, c.is_granted, c.since, c.source_id, c.evidence, c.origin
FROM core.consents_as_of('infinity') AS c;

---------------------------------------------------------------------------------------------------------- suppression
-- Which kind of identity a channel writes to.
CREATE FUNCTION core.address_kind(channel text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE channel WHEN 'wechat' THEN 'wechat_openid' WHEN 'email' THEN 'email' WHEN 'sms' THEN 'phone' WHEN 'push' THEN 'mall_id' END
$$;

-- Addresses and persons that nothing may be sent to on a channel, beside consent, as a log: bounces, complaints, black lists, lists of
-- people who told somebody else. One row per event and channel. Until a reason is lifted it stands; another reason stands beside it.
CREATE TABLE core.suppression_events (
    source_id text NOT NULL,
    event_id text NOT NULL,
    channel text NOT NULL CHECK (channel IN ('wechat', 'email', 'sms', 'push')),
    kind text NOT NULL,                              -- of the address: phone, email, wechat_openid ...
    address text NOT NULL,                           -- an openid or a token, never a clear value
    is_person boolean NOT NULL DEFAULT FALSE,        -- TRUE: whoever the address belongs to, on every address of the channel
    is_suppressed boolean NOT NULL,                  -- FALSE: lifted, for this channel, address and reason
    reason text NOT NULL,
    origin text NOT NULL CHECK (origin IN ('person', 'platform', 'import')),
    evidence text NOT NULL,
    occurred_at timestamptz NOT NULL,
    until timestamptz,                               -- NULL: until it is lifted
    PRIMARY KEY (source_id, event_id, channel),
    CHECK (is_suppressed OR origin <> 'import'),     -- an import never turns a no into a yes
    CHECK (kind NOT IN ('phone', 'email') OR starts_with(address, kind || ':'))
);
CREATE INDEX ON core.suppression_events (channel, address, reason, occurred_at);
CREATE INDEX ON core.suppression_events (kind, address) WHERE is_person;

INSERT INTO core.suppression_events (
    source_id, event_id, channel, kind, address, is_suppressed, reason, origin, evidence, occurred_at, until
)
SELECT s.source, md5(concat_ws('/', s.address, s.reason, s.since)), s.channel, core.address_kind(s.channel),
       s.address, TRUE, s.reason, 'platform',
       'a row of the table before it was a log', s.since, s.until
FROM push.suppressions AS s;
DROP TABLE push.suppressions;

-- The log as stretches of time, per channel and address: what campaigns ask, for any instant. A person's row counts for every address
-- of that channel the person has, by who is who today.
CREATE VIEW push.suppressions AS
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
FROM (VALUES ('wechat', 'wechat_openid'), ('email', 'email'), ('sms', 'phone'), ('push', 'mall_id')) AS c (channel, kind)
JOIN core.identities AS o ON o.kind = c.kind
JOIN core.member_identities AS om ON om.identity_id = o.identity_id
JOIN core.member_identities AS im ON im.member_id = om.member_id
JOIN core.identities AS i ON i.identity_id = im.identity_id
JOIN stretches AS s ON s.is_person AND s.channel = c.channel AND s.kind = i.kind AND s.address = i.value AND s.address <> o.value;

-- A row put in by hand is an event of the log.
CREATE FUNCTION push.log_suppression() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO core.suppression_events (source_id, event_id, channel, kind, address, is_suppressed, reason, origin, evidence, occurred_at, until)
    VALUES (NEW.source, md5(concat_ws('/', NEW.address, NEW.reason, NEW.since)), NEW.channel, core.address_kind(NEW.channel), NEW.address, TRUE,
            NEW.reason, 'person', 'put in by hand', NEW.since, NEW.until);
    RETURN NEW;
END $$;
CREATE TRIGGER log_insert INSTEAD OF INSERT ON push.suppressions FOR EACH ROW EXECUTE FUNCTION push.log_suppression();

-- Which members a channel reaches at an instant: one row per member and channel where the member has an address. On WeChat an address is
-- an openid that follows, and following is the consent unless the member said no; elsewhere silence is no consent. A member is suppressed
-- when every address there is. What was said and who followed is of that instant; who is who is of today.
CREATE FUNCTION core.reachability_as_of(as_of_at timestamptz, wanted_purpose text)
RETURNS TABLE (member_id bigint, channel text, has_consent boolean, is_suppressed boolean)
LANGUAGE sql STABLE AS $$
    WITH
    last_follow AS (
        SELECT DISTINCT ON (e.source_id, e.identity_id) e.source_id, e.identity_id, e.kind
        FROM core.follow_events AS e
        WHERE e.occurred_at < as_of_at
        ORDER BY e.source_id, e.identity_id, e.occurred_at DESC, e.event_id DESC
    ),
    following AS (
        SELECT DISTINCT f.identity_id
        FROM core.followers AS f
        LEFT JOIN last_follow AS l ON l.source_id = f.source_id AND l.identity_id = f.identity_id
        WHERE coalesce(l.kind = 'follow',
                       coalesce(f.followed_at < as_of_at, f.is_following) AND (f.is_following OR f.unfollowed_at >= as_of_at))
    ),
    addresses AS (
        SELECT c.channel, mi.member_id, i.value AS address
        FROM (VALUES ('wechat'), ('sms'), ('email'), ('push')) AS c (channel)
        JOIN core.identities AS i ON i.kind = core.address_kind(c.channel) AND i.first_seen_at < as_of_at
        JOIN core.member_identities AS mi ON mi.identity_id = i.identity_id
        WHERE c.channel <> 'wechat' OR EXISTS (SELECT FROM following AS f WHERE f.identity_id = i.identity_id)
    ),
    said AS (SELECT s.member_id, s.channel, s.is_granted FROM core.consents_as_of(as_of_at) AS s WHERE s.purpose = wanted_purpose),
    forbidden AS (
        SELECT DISTINCT x.channel, x.address FROM push.suppressions AS x WHERE x.since < as_of_at AND (x.until IS NULL OR x.until >= as_of_at)
    )
    SELECT a.member_id, a.channel, bool_or(coalesce(s.is_granted, a.channel = 'wechat')), bool_and(x.address IS NOT NULL)
    FROM addresses AS a
    LEFT JOIN said AS s ON s.member_id = a.member_id AND s.channel = a.channel
    LEFT JOIN forbidden AS x ON x.channel = a.channel AND x.address = a.address
    GROUP BY a.member_id, a.channel
$$;

CREATE FUNCTION core.touch_suppressions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO core.touches (kind, identity_id)
    SELECT DISTINCT 'member', i.identity_id FROM after AS n JOIN core.identities AS i ON i.kind = n.kind AND i.value = n.address;
    RETURN NULL;
END $$;
CREATE TRIGGER touch_insert AFTER INSERT ON core.suppression_events REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION core.touch_suppressions();

-- A complaint ("this is spam") is reported like a bounce.
ALTER TABLE core.message_events DROP CONSTRAINT message_events_kind_check;
ALTER TABLE core.message_events ADD CONSTRAINT message_events_kind_check
    CHECK (kind IN ('accepted', 'delivered', 'failed', 'opened', 'clicked', 'unsubscribed', 'bounced', 'complained'));

--------------------------------------------------------------------------------------------------------------- grants
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON core.identity_changes, core.identity_rules, core.identity_hubs, core.suppression_events
    TO nightmarket_etl;
GRANT SELECT ON core.links_in_force, core.valid_links, core.member_consents TO nightmarket_etl;
GRANT SELECT, INSERT ON push.suppressions TO nightmarket_etl;
GRANT SELECT ON core.identity_changes, core.identity_rules, core.identity_hubs, core.suppression_events,
    core.links_in_force, core.valid_links,
    core.member_consents, push.suppressions TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON core.identity_changes, core.identity_rules, core.identity_hubs, core.suppression_events TO nightmarket_etl';
    END IF;
END $$;
