-- core.profiles: name, language, birthday and clock as people gave them in a form of ours.
-- Grain: one row per identity that the form names.
-- Params: source_id (text).
-- Reads: core.identities
-- Rerun: safe. What people said about themselves stands above what a platform says about them; of two forms the newer one counts.
INSERT INTO core.profiles AS f (identity_id, source_id, name, language, birth_month, birth_day, time_zone, observed_at)
SELECT DISTINCT ON (i.identity_id) i.identity_id, %(source_id)s::text, n.form_name, n.form_language,
    extract(MONTH FROM n.form_birthday), extract(DAY FROM n.form_birthday), n.form_zone, n.received_at
FROM new_rows AS n
CROSS JOIN LATERAL (VALUES ('wechat_openid', n.openid), ('phone', n.phone), ('email', n.email)) AS v (kind, value)
JOIN core.identities AS i ON i.kind = v.kind AND i.value = v.value
WHERE n.problem IS NULL AND n.kind = 'binding' AND num_nonnulls(n.form_name, n.form_language, n.form_birthday, n.form_zone) > 0
ORDER BY i.identity_id ASC, n.received_at DESC, n.record_id DESC
ON CONFLICT (identity_id) DO UPDATE SET
    name = excluded.name, language = excluded.language, observed_at = excluded.observed_at, source_id = excluded.source_id,
    birth_month = coalesce(excluded.birth_month, f.birth_month), birth_day = coalesce(excluded.birth_day, f.birth_day),
    time_zone = coalesce(excluded.time_zone, f.time_zone)
WHERE (f.source_id <> excluded.source_id OR excluded.observed_at >= f.observed_at)
  AND (f.name, f.language, f.birth_month, f.birth_day, f.time_zone, f.observed_at)
      IS DISTINCT FROM (
          excluded.name, excluded.language, coalesce(excluded.birth_month, f.birth_month), coalesce(excluded.birth_day, f.birth_day),
          coalesce(excluded.time_zone, f.time_zone), excluded.observed_at
      );
