-- new_rows: members of a WeChat store.
-- Grain: one row per version of a member. The list tells level and phone, neither points nor orders.
-- Params: none.
-- Reads: nothing but new_records.
-- Rerun: safe; writes a temporary table only. core/write/customers.sql takes it into core.
CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS
WITH
typed AS (
    SELECT
        r.record_id, r.batch_id, r.record_key, r.observed_at,
        coalesce(nullif(r.payload ->> 'unionid', ''), r.payload ->> 'union_id') AS unionid,
        r.payload #>> '{user_info,phone_number}' AS phone,
        r.payload #>> '{user_grade_info,grade}' AS grade
    FROM new_records AS r
)
SELECT
    t.record_id, t.batch_id, t.record_key, t.observed_at,
    jsonb_build_array(
        jsonb_build_object('kind', 'wechat_store_openid', 'value', t.record_key),
        jsonb_build_object('kind', 'wechat_unionid', 'value', t.unionid),
        jsonb_build_object('kind', 'phone', 'value', t.phone)
    ) AS identities,
    NULL::text AS name, NULL::text AS language, 'profile' AS evidence, t.observed_at AS seen_at,
    t.record_key AS customer_id,
    coalesce(t.grade, '') <> '0' AS is_member,      -- 0: the store knows them, they have no level
    nullif(t.grade, '0') AS level, NULL::numeric AS points, NULL::integer AS order_count, NULL::numeric AS spent_amount,
    NULL::timestamptz AS joined_at, NULL::timestamptz AS last_order_at, t.observed_at AS modified_at,
    CASE WHEN t.grade !~ '^[0-9]{1,3}$' THEN 'user_grade_info.grade is not a level' END AS problem
FROM typed AS t;
