-- Campaigns with a schedule of their own, paused, extended, asked about again.

-- A person stopped the run for a while: nothing of it is called until it is resumed. Beside the state, which stays what it was.
ALTER TABLE push.campaign_runs
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN paused_by text,
    ADD COLUMN pause_reason text,
    ADD CHECK ((paused_at IS NULL) = (paused_by IS NULL));

-- Everything that was done to a run, in order.
CREATE INDEX audit_of_subject ON push.audit_log (subject, audit_id);

-- What stood in the run before the change that is being asked about: a no takes it back. And when its audience was built again.
ALTER TABLE push.campaign_runs
    ADD COLUMN previous_config jsonb,
    ADD COLUMN rebuilt_at timestamptz;
