-- core.survey_answers: what people answered in the survey behind a message of ours.
-- Grain: one row per survey that was answered; phone numbers and addresses in the comment are tokens already.
-- Params: source_id (text).
-- Reads: core.survey_answers
-- Rerun: safe; a survey is answered once and the answer never changes.
INSERT INTO core.survey_answers (source_id, event_id, message_key, score, comment, occurred_at)
SELECT DISTINCT ON (n.record_key) %(source_id)s::text, n.record_key, n.message_key, n.score, n.comment, n.received_at
FROM new_rows AS n
WHERE n.problem IS NULL AND n.kind = 'survey'
ORDER BY n.record_key ASC, n.record_id ASC
ON CONFLICT (source_id, event_id) DO NOTHING;
