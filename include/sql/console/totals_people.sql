-- The people we know at the end of a business date: members alive, followers of the social accounts.
-- Grain: one row.   Params: business_date (date).   Reads: core.members, core.followers
SELECT
    (
        SELECT count(*) FROM core.members AS m
        WHERE m.absorbed_by IS NULL AND m.first_seen_at < (%(business_date)s::date + 1)::timestamptz
    ) AS member_count,
    (
        SELECT count(*) FROM core.followers AS f
        WHERE
            coalesce(f.followed_at, '-infinity') < (%(business_date)s::date + 1)::timestamptz
            AND (f.is_following OR f.unfollowed_at >= (%(business_date)s::date + 1)::timestamptz)
            AND f.scene IS DISTINCT FROM 'sample'    -- who was seen in a sample of Weibo's is not a count of its followers
    ) AS follower_count;
