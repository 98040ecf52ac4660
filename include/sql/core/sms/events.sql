-- new_rows: what SMS vendors pushed: what became of messages, and what people replied.
-- Grain: one row per pushed object; also those that wait in raw.rejects for the message they are about.
-- Params: source_id (text), account_source_id (text), stream (text).   Reads: new_and_waiting_records (temporary)
-- Rerun: safe; writes a temporary table only. core/write/message_events.sql takes receipts into core, core/write/sms_replies.sql replies.
-- Aliyun's receipt names our key (out_id), Tencent's only its own number (sid). Field names do not overlap. Times are China's.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
records AS MATERIALIZED (SELECT r.* FROM new_and_waiting_records AS r),   -- each payload is read once
read AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at, r.payload ->> 'kind' AS kind,
        raw.to_instant(r.payload ->> 'received_at') AS received_at,
        coalesce(d.data ->> 'phone_number', d.data ->> 'mobile') AS phone,
        nullif(d.data ->> 'out_id', '') AS message_key, coalesce(d.data ->> 'biz_id', d.data ->> 'sid') AS platform_id,
        r.payload ->> 'outcome' AS outcome, r.payload ->> 'is_refusal' = 'true' AS is_refusal,
        coalesce(d.data ->> 'sign_name', d.data ->> 'sign') AS sign,
        coalesce(
            raw.to_instant(d.data ->> 'report_time', '+08'), raw.to_instant(d.data ->> 'user_receive_time', '+08'),
            raw.to_instant(d.data ->> 'send_time', '+08'), raw.from_epoch(d.data ->> 'time')
        ) AS told_at
    FROM records AS r
    CROSS JOIN LATERAL (SELECT r.payload -> 'data' AS data) AS d
),
judged AS (
    SELECT
        r.*,
        nullif(concat_ws('; ',
            CASE WHEN coalesce(r.kind, '') NOT IN ('sms.report', 'sms.reply') THEN 'neither a receipt nor a reply' END,
            CASE WHEN r.kind = 'sms.report' AND coalesce(r.message_key, r.platform_id) IS NULL THEN 'the receipt names no message' END,
            CASE WHEN r.kind = 'sms.reply' AND r.phone NOT LIKE 'phone:%%' THEN 'the reply names no phone' END
        ), '') AS problem
    FROM read AS r
)
SELECT
    j.record_id, j.batch_id, j.record_key, j.observed_at,
    CASE WHEN j.problem IS NULL AND j.kind = 'sms.reply'
         THEN jsonb_build_array(jsonb_build_object('kind', 'phone', 'value', j.phone)) END AS identities,
    NULL::text AS name, NULL::text AS language, 'reply' AS evidence, j.received_at AS seen_at,
    %(account_source_id)s::text AS fact_source_id, j.kind, j.phone, NULL::text AS openid,
    CASE WHEN j.kind = 'sms.report' THEN j.message_key END AS message_key,
    CASE WHEN j.kind = 'sms.report' THEN j.platform_id END AS platform_id,
    CASE WHEN j.kind = 'sms.report' THEN 'sms_report' END AS event,
    j.outcome AS status, NULL::text AS sent_count, NULL::text AS total_count,
    j.is_refusal, j.sign, coalesce(least(j.told_at, j.received_at), j.received_at) AS occurred_at, j.problem
FROM judged AS j;
