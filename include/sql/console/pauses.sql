-- Sending accounts that are paused at an instant, and why.
-- Grain: one row per channel and account ('channel:account').   Params: as_of_at (timestamptz).   Reads: push.pace
SELECT p.account, p.paused_until, coalesce(p.pause_reason, '') AS pause_reason
FROM push.pace AS p
WHERE p.paused_until > %(as_of_at)s::timestamptz
ORDER BY p.account ASC;
