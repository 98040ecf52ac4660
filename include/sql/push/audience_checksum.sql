-- One hash over who is in which state, arm and variant, on which channel (and which next) and in which language.
-- Grain: one row.   Params: run_id.   Reads: push.audiences
SELECT encode(sha256(convert_to(coalesce(string_agg(
    a.member_id || '|' || a.state || '|' || coalesce(a.reason, '') || '|' || coalesce(a.variant, '') || '|'
    || coalesce(a.channel, '') || '|' || a.language || '|' || coalesce(a.address, '')
    || coalesce('|' || (a.routes::text), ''),
    E'\n' ORDER BY a.member_id
), ''), 'UTF8')), 'hex') AS checksum
FROM push.audiences AS a
WHERE a.run_id = %(run_id)s::text;
