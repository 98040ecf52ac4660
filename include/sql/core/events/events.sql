-- new_rows: what people did on our own pages, and what WeChat pushed to us, whoever kept the push: those pages or our receiver.
-- Grain: one row per event; also those that wait in raw.rejects for the message or the person they are about.
-- Params: source_id (text), account_source_id (text; the WeChat account whose pushes these are), stream (text).
-- Reads: new_and_waiting_records (temporary)
-- Rerun: safe; writes a temporary table only. core/write/{form_profiles,follow_events,subscribe_events,message_events,interactions,
-- consents,survey_answers,page_codes}.sql take it into core. A push is a fact of the account: its rows carry the account's source id,
-- so that it is one fact whichever way it came.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
records AS MATERIALIZED (SELECT r.* FROM new_and_waiting_records AS r),   -- each payload is read once
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
        -- the id in our own mall: what the app calls the person, and a push goes to
        CASE WHEN t.data ->> 'mall_id' ~ '^[[:alnum:]_@!#$&*+=.|-]{1,40}$' THEN t.data ->> 'mall_id' END AS mall_id,
        CASE WHEN t.data ->> 'wecom_external_id' ~ '^[[:alnum:]_-]{1,64}$' THEN t.data ->> 'wecom_external_id' END AS wecom_external_id,
        CASE WHEN t.data ->> 'name' LIKE 'name:%%' THEN t.data ->> 'name' END AS form_name,
        CASE WHEN t.data ->> 'language' IN ('zh', 'en') THEN t.data ->> 'language' END AS form_language,
        core.known_zone(t.data ->> 'time_zone') AS form_zone,
        -- a day of any leap year: the year of birth is not asked for
        CASE WHEN t.data ->> 'birthday' ~ '^[0-9]{2}-[0-9]{2}$' AND pg_input_is_valid('2000-' || (t.data ->> 'birthday'), 'date')
             THEN ('2000-' || (t.data ->> 'birthday'))::date END AS form_birthday,
        t.fields ->> 'MsgType' AS message_type, t.fields ->> 'Event' AS event, t.fields ->> 'EventKey' AS event_key,
        t.fields ->> 'CreateTime' AS created, n.notices,
        coalesce(t.fields ->> 'MsgId', t.fields ->> 'MsgID', n.notices -> 0 ->> 'MsgID') AS platform_id,
        CASE WHEN n.notices -> 0 ->> 'ErrorCode' = '0' THEN 'success'
             ELSE coalesce(n.notices -> 0 ->> 'ErrorStatus', t.fields ->> 'Status') END AS status,
        t.fields ->> 'SentCount' AS sent_count, t.fields ->> 'TotalCount' AS total_count
    FROM typed AS t
    CROSS JOIN LATERAL (   -- what an event about subscription notices lists: one object or several, in XML inside one named like it
        SELECT CASE jsonb_typeof(l.list) WHEN 'array' THEN l.list WHEN 'object' THEN jsonb_build_array(l.list) END AS notices
        FROM (
            SELECT CASE WHEN t.fields ->> 'Event' LIKE 'subscribe\_msg\_%%' THEN coalesce(
                t.fields #> '{SubscribeMsgPopupEvent,List}', t.fields #> '{SubscribeMsgChangeEvent,List}',
                t.fields #> '{SubscribeMsgSentEvent,List}', t.fields -> 'List'
            ) END AS list
        ) AS l
    ) AS n
),
judged AS (
    SELECT
        r.*,
        nullif(concat_ws('; ',
            CASE WHEN r.received_at IS NULL THEN 'received_at is missing or not a time' END,
            CASE WHEN coalesce(r.kind, '') NOT IN ('wechat.event', 'binding', 'click', 'unsubscribe', 'survey', 'redemption')
                 THEN 'kind is missing or unknown' END,
            CASE WHEN r.is_push AND r.openid IS NULL THEN 'the push cannot be read or names nobody' END,
            CASE WHEN r.kind = 'binding' AND num_nonnulls(r.openid, r.phone, r.email, r.mall_id) = 0
                 THEN 'data has neither openid nor phone nor email' END,
            CASE WHEN r.kind IN ('click', 'unsubscribe') AND coalesce(r.data ->> 'key', r.openid, r.email) IS NULL
                 THEN 'data has neither key nor openid nor email' END,
            CASE WHEN r.kind = 'survey' AND r.data ->> 'key' IS NULL THEN 'data has no key' END,
            CASE WHEN r.kind = 'survey' AND coalesce(r.data ->> 'score', '') !~ '^[1-5]$' THEN 'score is not one of 1 to 5' END,
            CASE WHEN r.kind = 'redemption' AND coalesce(r.data ->> 'code', '') NOT LIKE 'coupon:%%' THEN 'data has no code' END
        ), '') AS problem
    FROM read AS r
)
SELECT
    j.record_id, j.batch_id, j.record_key, j.observed_at,
    -- one form is one person; of other events the first one who is named counts
    CASE WHEN j.problem IS NULL THEN (
        SELECT jsonb_agg(jsonb_build_object('kind', v.kind, 'value', v.value) ORDER BY v.position)
        FROM (
            VALUES ('wechat_openid', j.openid, 1), ('phone', j.phone, 2), ('email', j.email, 3), ('mall_id', j.mall_id, 4),
                ('wecom_external_id', j.wecom_external_id, 5)
        ) AS v (kind, value, position)
        WHERE v.value IS NOT NULL AND (j.kind = 'binding' OR v.kind IN ('wechat_openid', 'email'))
          AND NOT (j.kind = 'unsubscribe' AND v.kind = 'wechat_openid' AND j.email IS NOT NULL)
    ) END AS identities,
    NULL::text AS name, NULL::text AS language,      -- core/write/form_profiles.sql: what people say stands above what platforms say
    'binding' AS evidence, j.received_at AS seen_at,
    CASE WHEN j.is_push THEN %(account_source_id)s::text ELSE %(source_id)s::text END AS fact_source_id,
    j.kind, j.is_push, j.received_at, j.openid, j.phone, j.email, j.mall_id, j.wecom_external_id, j.notices,
    j.form_name, j.form_language, j.form_zone, j.form_birthday,
    j.message_type, j.event, j.event_key, j.created, j.platform_id, j.status, j.sent_count, j.total_count,
    coalesce(raw.from_epoch(j.created), j.received_at) AS occurred_at,
    j.data ->> 'key' AS message_key, j.data ->> 'channel' AS channel, j.data ->> 'purpose' AS purpose,
    CASE WHEN j.kind = 'survey' AND j.problem IS NULL THEN (j.data ->> 'score')::smallint END AS score,
    CASE WHEN j.kind = 'survey' THEN nullif(j.data ->> 'comment', '') END AS comment,
    CASE WHEN j.kind = 'redemption' THEN j.data ->> 'code' END AS code_token,
    CASE WHEN j.kind = 'redemption' THEN nullif(j.data ->> 'source_id', '') END AS order_source_id,
    CASE WHEN j.kind = 'redemption' THEN nullif(j.data ->> 'order_id', '') END AS order_id,
    CASE WHEN j.kind = 'redemption' THEN raw.to_amount(j.data ->> 'discount') END AS discount_amount,
    CASE WHEN j.kind = 'binding' AND jsonb_typeof(j.data -> 'consents') = 'array' THEN j.data -> 'consents' END AS words,
    j.problem
FROM judged AS j;
