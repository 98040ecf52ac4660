-- Predicted value per member (docs/decisions/0070-predictions.md).

-- One row per Sunday: the model as it was fitted on the order days up to that day, or why there is none.
CREATE TABLE mart.prediction_fits (
    business_date date PRIMARY KEY,                  -- a Sunday: what the model has seen ends with it
    is_usable boolean NOT NULL,
    reason text NOT NULL,                            -- in words: what was found, or why nothing is predicted
    sample_every integer NOT NULL,                   -- 1: fitted on everybody; 10: on every tenth member
    member_count integer NOT NULL,                   -- of these, with a paid order
    repeater_count integer NOT NULL,                 -- of these, with order days after the first
    frequency_r double precision,                    -- BG/NBD; the unit of time is a week
    frequency_alpha double precision,
    dropout_a double precision,
    dropout_b double precision,
    frequency_log_likelihood double precision,
    value_p double precision,                        -- Gamma-Gamma, of the money of an order day
    value_q double precision,
    value_gamma double precision,
    value_log_likelihood double precision,
    value_correlation double precision,              -- of how often and how much: the model takes it for none
    holdout_from date,                               -- the last day that the model of the trial had seen; NULL: history too short
    holdout_expected_count numeric,                  -- repeat order days that it expected up to business_date
    holdout_actual_count integer,
    holdout_error_rate numeric,                      -- expected / actual - 1
    CHECK (NOT is_usable OR (frequency_r, frequency_alpha, dropout_a, dropout_b, value_p, value_q, value_gamma) IS NOT NULL)
);

-- What members are expected to do in the next horizon_days.
CREATE TABLE mart.member_predictions (
    member_id bigint PRIMARY KEY,
    as_of_date date NOT NULL,                        -- the Sunday of the model, or the member's last order day after it
    horizon_days integer NOT NULL,
    repeat_count integer NOT NULL,                   -- order days after the first, up to as_of_date
    alive_probability numeric NOT NULL,
    expected_order_count numeric NOT NULL,           -- order days in the horizon_days after as_of_date
    expected_order_amount numeric NOT NULL,          -- money of one of them
    expected_amount numeric NOT NULL                 -- of all of them
);

GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON mart.prediction_fits, mart.member_predictions TO nightmarket_etl;
GRANT SELECT ON mart.prediction_fits, mart.member_predictions TO nightmarket_reader;
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN  -- ANALYZE by a role that is not the owner
        EXECUTE 'GRANT MAINTAIN ON mart.prediction_fits, mart.member_predictions TO nightmarket_etl';
    END IF;
END $$;
