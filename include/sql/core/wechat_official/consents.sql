-- core.consents: following the account is consent to be written to there, leaving it is its withdrawal.
-- Grain: one row per follow or leave, channel and purpose. Latest per identity, channel and purpose counts.
-- Params: source_id (text), as_of_at (timestamptz).   Reads: raw.records, raw.batches, raw.mappings, core.identities
-- Rerun: safe; event ids follow from the record, so a fact is written once.
INSERT INTO raw.mappings (source_id, stream, target) VALUES (%(source_id)s::text, 'followers', 'core.consents')
ON CONFLICT (source_id, stream, target) DO NOTHING;

DROP TABLE IF EXISTS pg_temp.mapping_range;
CREATE TEMPORARY TABLE mapping_range ON COMMIT DROP AS
SELECT m.last_batch_id AS after_batch_id,
       (SELECT coalesce(max(b.batch_id), 0) FROM raw.batches AS b WHERE b.source_id = m.source_id AND b.stream = m.stream) AS upto_batch_id
FROM raw.mappings AS m
WHERE m.source_id = %(source_id)s::text AND m.stream = 'followers' AND m.target = 'core.consents'
FOR UPDATE OF m;

INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at)
SELECT
    %(source_id)s::text,
    concat_ws('/', CASE WHEN e.is_following THEN 'follow' ELSE 'leave' END, r.record_key, extract(EPOCH FROM e.occurred_at)::bigint),
    i.identity_id, 'wechat', p.purpose, e.is_following,
    CASE WHEN e.is_following THEN 'followed the account' ELSE 'does not follow the account any more' END,
    e.occurred_at
FROM mapping_range AS g
JOIN raw.records AS r ON r.batch_id > g.after_batch_id AND r.batch_id <= g.upto_batch_id
CROSS JOIN LATERAL (
    SELECT r.payload ->> 'subscribe' = '1' AS is_following,
           CASE r.payload ->> 'subscribe'
               WHEN '1' THEN raw.from_epoch(r.payload ->> 'subscribe_time') WHEN '0' THEN r.observed_at
           END AS occurred_at
) AS e
JOIN core.identities AS i ON i.kind = 'wechat_openid' AND r.record_key = i.value
CROSS JOIN (VALUES ('marketing'), ('service')) AS p (purpose)
WHERE r.source_id = %(source_id)s::text AND r.stream = 'followers' AND e.occurred_at IS NOT NULL
ON CONFLICT (source_id, event_id, channel, purpose) DO NOTHING;

UPDATE raw.mappings AS m SET last_batch_id = g.upto_batch_id, mapped_at = %(as_of_at)s::timestamptz
FROM mapping_range AS g
WHERE m.source_id = %(source_id)s::text AND m.stream = 'followers' AND m.target = 'core.consents' AND m.last_batch_id < g.upto_batch_id;
