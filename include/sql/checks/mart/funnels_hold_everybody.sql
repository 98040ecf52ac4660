-- Everybody who was exposed or held out by the end of the business date is in the funnel of the run, once.
-- Table: mart.campaign_funnels. Severity: fail.
-- Params: business_date (date).
-- Reads: core.exposures, core.members, mart.campaign_funnels
-- A funnel that a later night has computed may hold more.
WITH
exposed AS (
    SELECT x.run_id, count(DISTINCT coalesce(p.absorbed_by, x.member_id)) AS member_count
    FROM core.exposures AS x
    LEFT JOIN core.members AS p ON p.member_id = x.member_id
    WHERE x.exposed_at < (%(business_date)s::date + 1)::timestamptz
    GROUP BY x.run_id
),
funnels AS (
    SELECT f.run_id, sum(f.member_count) AS member_count, max(f.business_date) AS business_date
    FROM mart.campaign_funnels AS f
    WHERE f.variant = ''
    GROUP BY f.run_id
)
SELECT
    count(*) = 0 AS is_passed,
    coalesce(
        string_agg(
            coalesce(e.run_id, f.run_id) || ': ' || coalesce(e.member_count, 0) || ' exposed, '
            || coalesce(f.member_count, 0) || ' in the funnel',
            ', ' ORDER BY coalesce(e.run_id, f.run_id)
        ),
        'all of them'
    ) AS observed
FROM exposed AS e
FULL JOIN funnels AS f ON f.run_id = e.run_id
WHERE
    e.member_count IS DISTINCT FROM f.member_count
    AND coalesce(f.business_date <= %(business_date)s::date, TRUE);
