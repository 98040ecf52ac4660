-- What went out before the database was put back to an older state, of messages that it does not have.

-- Keys of calls from the senders' log book. Whoever makes such a message again finds it unknown, not queued: it is not sent twice.
CREATE TABLE push.calls_before_restore (
    message_key text PRIMARY KEY,
    channel text NOT NULL,
    called_at timestamptz NOT NULL
);

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON push.calls_before_restore TO nightmarket_etl;
GRANT SELECT ON push.calls_before_restore TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON push.calls_before_restore TO nightmarket_etl';
    END IF;
END $$;
