-- What the message of one member is filled with: a name token, a tier, and what else a template may say (mart.template_facts).
-- Grain: one row.   Params: member_id, language, as_of.   Reads: core.member_identities, core.profiles, mart.member_tiers,
--   mart.tier_programmes, mart.tier_rules
SELECT
    (
        SELECT p.name
        FROM core.member_identities AS mi
        JOIN core.profiles AS p ON p.identity_id = mi.identity_id
        WHERE mi.member_id = %(member_id)s::bigint AND p.name LIKE 'name:%%'
        ORDER BY p.observed_at DESC, p.identity_id ASC
        LIMIT 1
    ) AS name_token,
    (
        SELECT CASE %(language)s::text WHEN 'zh' THEN r.name_zh ELSE r.name_en END
        FROM mart.member_tiers AS mt
        JOIN mart.tier_programmes AS g ON g.programme = mt.programme AND g.position = 1
        JOIN mart.tier_rules AS r ON r.programme = mt.programme AND r.tier = mt.tier
        WHERE mt.member_id = %(member_id)s::bigint AND mt.valid_from <= %(as_of)s::date
          AND (mt.valid_to IS NULL OR mt.valid_to > %(as_of)s::date)
    ) AS tier,
    mart.template_facts(%(member_id)s::bigint, %(language)s::text, %(as_of)s::date) AS facts;
