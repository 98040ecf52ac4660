-- Messages by channel and state, over everything that is not finished or went wrong.
-- Grain: one row per channel and state.   Params: none.   Reads: push.messages
SELECT m.channel, m.state, count(*) AS message_count
FROM push.messages AS m
GROUP BY m.channel, m.state
ORDER BY m.channel ASC, m.state ASC;
