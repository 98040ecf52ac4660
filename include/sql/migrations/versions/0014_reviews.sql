-- Reviews in full: rewards, service cases, surveys, links.

---------------------------------------------------------------------------------------------------------------- core
-- Who wrote a review of which order, and when: all that asking, thanking and rewarding may look at. What a review says and how it
-- rates cannot be reached from here (docs/decisions/0078-reviews-in-full.md).
CREATE VIEW core.written_reviews AS
SELECT v.source_id, v.review_id, v.order_id, v.created_at FROM core.reviews AS v;

-- Answers to the survey behind a message: one row per survey that was answered. Phone numbers and addresses in the comment are tokens.
CREATE TABLE core.survey_answers (
    source_id text NOT NULL,
    event_id text NOT NULL,
    message_key text NOT NULL,                       -- the message that led to the survey: core.exposures knows whom it went to
    score smallint NOT NULL CHECK (score BETWEEN 1 AND 5),
    comment text,
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, event_id)
);

---------------------------------------------------------------------------------------------------------------- mart
ALTER TABLE mart.review_kpis_daily
    ADD COLUMN reviewed_after_remind_count integer NOT NULL DEFAULT 0,  -- first reviewed at or after the reminder
    ADD COLUMN rewarded_order_count integer NOT NULL DEFAULT 0;         -- whose review was rewarded
CREATE INDEX ON core.point_uses (used_at);

---------------------------------------------------------------------------------------------------------------- push
-- One invitation to a survey, which can be answered once. Its link is /s/<survey_id>, signed.
CREATE TABLE push.surveys (
    survey_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_key text NOT NULL UNIQUE REFERENCES push.messages (message_key),
    language text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    answered_at timestamptz
);

-- A review that somebody has to answer. The rating stays in core.reviews.
CREATE TABLE push.service_cases (
    case_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id text NOT NULL,
    review_id text NOT NULL,
    order_id text,                                   -- NULL: the shop does not tell for which order
    member_id bigint,                                -- NULL: the shop does not tell who wrote it
    state text NOT NULL CHECK (state IN ('open', 'overdue', 'answered', 'closed')),
    written_at timestamptz NOT NULL,                 -- the review
    opened_at timestamptz NOT NULL,
    deadline_at timestamptz NOT NULL,                -- written_at + kpis.yaml: service.reply_hours, on the clock
    assigned_to text,
    answered_at timestamptz,                         -- of the reply in the shop; when it was seen, where the shop does not say
    is_in_time boolean,                              -- NULL: not answered, or nobody knows when
    closed_at timestamptz,                           -- by a person, without a reply in the shop
    closed_by text,
    close_reason text,
    opening_told_at timestamptz,                     -- when the team was told
    overdue_told_at timestamptz,
    UNIQUE (source_id, review_id),
    CHECK ((state = 'closed') = (closed_at IS NOT NULL)),
    CHECK ((state = 'answered') <= (answered_at IS NOT NULL))
);
CREATE INDEX ON push.service_cases (state, deadline_at);
CREATE INDEX IF NOT EXISTS messages_group ON push.messages (group_key) WHERE group_key IS NOT NULL;

---------------------------------------------------------------------------------------------------------------- links
-- What the receiver of our links may know and do. It is open to the internet, so its role reads no table: it asks these, by keys
-- that only a link signed by us can name (docs/decisions/0079-links.md).

-- Where the link of a message leads. No row: the message is gone. A mass send has one link for all its receivers.
CREATE FUNCTION push.link_of(key text)
RETURNS TABLE (channel text, purpose text, language text, is_group boolean, landing_url text, survey_id bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT m.channel, m.purpose, m.language, m.group_key IS NOT NULL,
           coalesce(r.config #>> '{campaign,landing_url}', r.config ->> 'home_url'), s.survey_id
    FROM (
        SELECT a.* FROM push.messages AS a WHERE a.message_key = key
        UNION ALL
        (SELECT b.* FROM push.messages AS b WHERE b.group_key = key LIMIT 1)
    ) AS m
    JOIN push.campaign_runs AS r ON r.run_id = m.run_id
    LEFT JOIN push.surveys AS s ON s.message_key = m.message_key
    LIMIT 1
$$;

-- The person behind a message says no: to advertising on this channel, and to service messages too when it was one. TRUE when the
-- message is known. The same event again is the same row; the night's mapping of the pushed event writes the same rows.
CREATE FUNCTION push.withdraw(of_source text, event text, key text, family text, at_instant timestamptz)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at, origin)
    SELECT of_source, event, i.identity_id, family, p.purpose, FALSE, 'unsubscribed by the link in ' || m.message_key, at_instant, 'person'
    FROM push.messages AS m
    LEFT JOIN core.members AS f ON f.member_id = m.member_id
    JOIN LATERAL (   -- who the address is, else anybody of the person
        SELECT coalesce(
            (SELECT k.identity_id FROM core.identities AS k WHERE k.kind = core.address_kind(family) AND k.value = m.address),
            (SELECT min(mi.identity_id) FROM core.member_identities AS mi
             WHERE mi.member_id = coalesce(f.absorbed_by, f.member_id))
        ) AS identity_id
    ) AS i ON i.identity_id IS NOT NULL
    JOIN (VALUES ('marketing'), ('service')) AS p (purpose) ON p.purpose = 'marketing' OR m.purpose = 'service'
    WHERE m.message_key = key
    ON CONFLICT (source_id, event_id, channel, purpose) DO NOTHING;
    RETURN EXISTS (SELECT FROM push.messages AS m WHERE m.message_key = key);
END $$;

-- What the page of a survey shows. No row: there is no such survey.
CREATE FUNCTION push.survey_of(survey bigint)
RETURNS TABLE (message_key text, language text, expires_at timestamptz, answered_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT s.message_key, s.language, s.expires_at, s.answered_at FROM push.surveys AS s WHERE s.survey_id = survey
$$;

-- Use a survey up: TRUE for exactly one caller, while it has not expired.
CREATE FUNCTION push.answer_survey(survey bigint, at_instant timestamptz)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    UPDATE push.surveys AS s SET answered_at = at_instant
    WHERE s.survey_id = survey AND s.answered_at IS NULL AND s.expires_at > at_instant;
    RETURN FOUND;
END $$;

REVOKE ALL ON FUNCTION push.link_of(text), push.withdraw(text, text, text, text, timestamptz), push.survey_of(bigint),
    push.answer_survey(bigint, timestamptz) FROM PUBLIC;  -- noqa: CP02
GRANT USAGE ON SCHEMA push TO nightmarket_receiver;
GRANT EXECUTE ON FUNCTION push.link_of(text), push.withdraw(text, text, text, text, timestamptz), push.survey_of(bigint),
    push.answer_survey(bigint, timestamptz) TO nightmarket_receiver, nightmarket_etl;

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON core.survey_answers, push.surveys, push.service_cases TO nightmarket_etl;
GRANT SELECT ON core.written_reviews TO nightmarket_etl, nightmarket_reader;
GRANT SELECT ON core.survey_answers, push.surveys, push.service_cases TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON core.survey_answers, push.surveys, push.service_cases TO nightmarket_etl';
    END IF;
END $$;
