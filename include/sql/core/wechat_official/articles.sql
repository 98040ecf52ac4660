-- new_rows: the articles that a WeChat official account sent, as posts.
-- Grain: one row per version of an article's figures. The account tells no text and no address here, only the title.
-- Params: none.
-- Reads: new_records.
-- Rerun: safe; writes a temporary table only. core/write/posts.sql takes it into core.
-- post_id is <msg_data_id>_<index>: msg_data_id is in the answer of the mass send, so a campaign finds its article.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
SELECT
    r.record_id, r.batch_id, r.record_key, r.observed_at,
    NULL::jsonb AS identities, NULL::text AS name, NULL::text AS language, 'profile' AS evidence, NULL::timestamptz AS seen_at,
    p.msgid AS post_id, p.title AS content, NULL::text AS url, 'article' AS kind, d.sent_at AS published_at, r.observed_at AS modified_at,
    nullif(concat_ws('; ',
        CASE WHEN p.msgid IS NULL OR p.msgid = '' THEN 'msgid is missing' END,
        CASE WHEN d.sent_at IS NULL THEN 'ref_date is not a date' END
    ), '') AS problem
FROM new_records AS r
CROSS JOIN LATERAL jsonb_to_record(r.payload) AS p (ref_date text, msgid text, title text)
CROSS JOIN LATERAL (SELECT raw.to_instant(p.ref_date, ' 00:00:00+08') AS sent_at) AS d;
