-- new_rows: what people did on our own pages, and what WeChat pushed to us, whoever kept the push: those pages or our receiver.
-- Grain: one row per event; also those that wait in raw.rejects for the message or the person they are about.
-- Params: source_id (text), account_source_id (text; the WeChat account whose pushes these are), stream (text).
-- Reads: raw.records, raw.rejects
-- Rerun: safe; writes a temporary table only. core/write/{form_profiles,follow_events,message_events,interactions,consents}.sql take
-- it into core. A push is a fact of the account: its rows carry the account's source id, so that it is one fact whichever way it came.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
records AS MATERIALIZED (
    SELECT r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload FROM new_records AS r
    UNION ALL
    SELECT r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload
    FROM raw.records AS r
    WHERE r.record_id IN (
        SELECT w.record_id
        FROM mapping_range AS g
        JOIN raw.rejects AS j
            ON j.source_id = g.source_id AND j.stream = g.stream AND j.stage = 'mapping' AND j.resolved_at IS NULL
            AND j.reason LIKE 'core.%%: waiting for %%' AND j.batch_id <= g.after_batch_id
        JOIN raw.records AS w
            ON w.source_id = j.source_id AND w.stream = j.stream AND w.record_key = j.record_key AND w.batch_id = j.batch_id
    )
),
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload ->> 'kind' AS kind,
        raw.to_instant(r.payload ->> 'received_at') AS received_at,
        r.payload ->> 'kind' = 'wechat.event' AS is_push,
        r.payload -> 'data' AS data,
        CASE WHEN r.payload ->> 'kind' = 'wechat.event' THEN r.payload #> '{data,fields}' END AS fields
    FROM records AS r
),
read AS (
    SELECT
        t.*,
        nullif(CASE WHEN t.is_push THEN t.fields ->> 'FromUserName' ELSE t.data ->> 'openid' END, '') AS openid,
        CASE WHEN t.data ->> 'phone' LIKE 'phone:%%' THEN t.data ->> 'phone' END AS phone,
        CASE WHEN t.data ->> 'email' LIKE 'email:%%' THEN t.data ->> 'email' END AS email,
        CASE WHEN t.data ->> 'name' LIKE 'name:%%' THEN t.data ->> 'name' END AS form_name,
        CASE WHEN t.data ->> 'language' IN ('zh', 'en') THEN t.data ->> 'language' END AS form_language,
        -- a day of any leap year: the year of birth is not asked for
        CASE WHEN t.data ->> 'birthday' ~ '^[0-9]{2}-[0-9]{2}$' AND pg_input_is_valid('2000-' || (t.data ->> 'birthday'), 'date')
             THEN ('2000-' || (t.data ->> 'birthday'))::date END AS form_birthday,
        t.fields ->> 'MsgType' AS message_type, t.fields ->> 'Event' AS event, t.fields ->> 'EventKey' AS event_key,
        t.fields ->> 'CreateTime' AS created, coalesce(t.fields ->> 'MsgId', t.fields ->> 'MsgID') AS platform_id,
        t.fields ->> 'Status' AS status, t.fields ->> 'SentCount' AS sent_count, t.fields ->> 'TotalCount' AS total_count
    FROM typed AS t
),
judged AS (
    SELECT
        r.*,
        nullif(concat_ws('; ',
            CASE WHEN r.received_at IS NULL THEN 'received_at is missing or not a time' END,
            CASE WHEN coalesce(r.kind, '') NOT IN ('wechat.event', 'binding', 'click', 'unsubscribe') THEN 'kind is missing or unknown' END,
            CASE WHEN r.is_push AND r.openid IS NULL THEN 'the push cannot be read or names nobody' END,
            CASE WHEN r.kind = 'binding' AND num_nonnulls(r.openid, r.phone, r.email) = 0
                 THEN 'data has neither openid nor phone nor email' END,
            CASE WHEN r.kind IN ('click', 'unsubscribe') AND coalesce(r.data ->> 'key', r.openid, r.email) IS NULL
                 THEN 'data has neither key nor openid nor email' END
        ), '') AS problem
    FROM read AS r
)
SELECT
    j.record_id, j.batch_id, j.record_key, j.observed_at,
    -- one form is one person; of other events the first one who is named counts
    CASE WHEN j.problem IS NULL THEN (
        SELECT jsonb_agg(jsonb_build_object('kind', v.kind, 'value', v.value) ORDER BY v.position)
        FROM (
            VALUES ('wechat_openid', j.openid, 1), ('phone', j.phone, 2), ('email', j.email, 3)
        ) AS v (kind, value, position)
        WHERE v.value IS NOT NULL AND (j.kind = 'binding' OR v.kind <> 'phone')
          AND NOT (j.kind = 'unsubscribe' AND v.kind = 'wechat_openid' AND j.email IS NOT NULL)
    ) END AS identities,
    NULL::text AS name, NULL::text AS language,      -- core/write/form_profiles.sql: what people say stands above what platforms say
    'binding' AS evidence, j.received_at AS seen_at,
    CASE WHEN j.is_push THEN %(account_source_id)s::text ELSE %(source_id)s::text END AS fact_source_id,
    j.kind, j.is_push, j.received_at, j.openid, j.phone, j.email, j.form_name, j.form_language, j.form_birthday,
    j.message_type, j.event, j.event_key, j.created, j.platform_id, j.status, j.sent_count, j.total_count,
    coalesce(raw.from_epoch(j.created), j.received_at) AS occurred_at,
    j.data ->> 'key' AS message_key, j.data ->> 'channel' AS channel,
    CASE WHEN j.kind = 'binding' AND jsonb_typeof(j.data -> 'consents') = 'array' THEN j.data -> 'consents' END AS words,
    j.problem
FROM judged AS j;
