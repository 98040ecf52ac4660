-- Campaigns with a schedule of their own, paused, extended, asked about again.
SELECT 1;
