-- mart.product_roles: what each product is good for at a week's end: who brings buyers, who brings money, who grows.
-- Grain: one row per week's end (a Sunday), source and product (goods) with a sale in the window or in the one before it.
-- Params: business_date (date), role_window_days (integer), profit_share (numeric), traffic_share (numeric), growth_change (numeric).
-- Reads: mart.product_days, mart.products, mart.marks, mart.product_roles
-- Rerun: safe; computes the last Sunday up to the business date once, and an older one that is kept when asked for it: the newest and
-- the last Sunday of each month are. A late order moves only Sundays still to come; delete the mark to compute the newest again.
-- Money stands for profit, because no source tells what goods cost. Equal products get equal places, no id breaks a tie
-- (docs/decisions/0067-products.md).
DROP TABLE IF EXISTS pg_temp.mark;
CREATE TEMPORARY TABLE mark ON COMMIT DROP AS
SELECT
    w.sunday,
    w.settings,
    greatest(w.sunday, m.business_date) AS newest,
    coalesce(
        w.sunday > m.business_date
        OR (w.sunday = m.business_date AND w.settings <> m.settings)
        OR (w.sunday < m.business_date AND date_trunc('month', w.sunday) <> date_trunc('month', w.sunday + 7)),
        TRUE
    ) AS is_due
FROM (
    SELECT
        'product_roles' AS mart,
        %(business_date)s::date - mod(extract(ISODOW FROM %(business_date)s::date)::integer, 7) AS sunday,
        concat_ws(
            '/', %(role_window_days)s::integer, %(profit_share)s::numeric, %(traffic_share)s::numeric, %(growth_change)s::numeric
        ) AS settings
) AS w
LEFT JOIN mart.marks AS m ON m.mart = w.mart;

WITH
night AS (SELECT k.sunday AS business_date, k.newest, k.is_due FROM mark AS k),
sold AS (
    SELECT
        d.source_id,
        d.product_id,
        coalesce(sum(d.unit_count) FILTER (WHERE d.day > n.business_date - %(role_window_days)s::integer), 0) AS unit_count,
        coalesce(sum(d.gross_amount) FILTER (WHERE d.day > n.business_date - %(role_window_days)s::integer), 0) AS gross_amount,
        coalesce(sum(d.order_count) FILTER (WHERE d.day > n.business_date - %(role_window_days)s::integer), 0) AS order_count,
        coalesce(sum(d.buyer_count) FILTER (WHERE d.day > n.business_date - %(role_window_days)s::integer), 0) AS buyer_day_count,
        coalesce(sum(d.gross_amount) FILTER (WHERE d.day <= n.business_date - %(role_window_days)s::integer), 0)
            AS previous_gross_amount
    FROM night AS n
    JOIN mart.product_days AS d
        ON d.day > n.business_date - 2 * %(role_window_days)s::integer AND d.day <= n.business_date
    WHERE n.is_due
    GROUP BY d.source_id, d.product_id
),
shops AS (SELECT p.source_id, min(p.first_sold_date) AS first_day FROM mart.products AS p GROUP BY p.source_id),
placed AS (
    SELECT
        s.source_id, s.product_id, p.category, p.first_sold_date, s.unit_count, s.gross_amount, s.order_count, s.buyer_day_count,
        s.previous_gross_amount,
        sum(s.gross_amount) OVER (PARTITION BY s.source_id) AS source_gross_amount,
        sum(s.buyer_day_count) OVER (PARTITION BY s.source_id) AS source_buyer_day_count,
        rank() OVER (PARTITION BY s.source_id ORDER BY s.gross_amount DESC) AS gross_rank,
        sum(s.gross_amount) OVER (PARTITION BY s.source_id ORDER BY s.gross_amount DESC) AS cumulative_gross_amount,
        sum(s.gross_amount) OVER (PARTITION BY s.source_id, s.gross_amount) AS peer_gross_amount,
        sum(s.buyer_day_count) OVER (PARTITION BY s.source_id ORDER BY s.buyer_day_count DESC) AS cumulative_buyer_day_count,
        sum(s.buyer_day_count) OVER (PARTITION BY s.source_id, s.buyer_day_count) AS peer_buyer_day_count
    FROM sold AS s
    JOIN mart.products AS p ON p.source_id = s.source_id AND p.product_id = s.product_id AND p.is_goods
),
judged AS (
    -- a product is in the first 80 per cent when those that bring more than it do not bring them yet
    SELECT
        p.*,
        p.gross_amount > 0
        AND p.cumulative_gross_amount - p.peer_gross_amount < %(profit_share)s::numeric * p.source_gross_amount AS is_profit,
        p.buyer_day_count > 0
        AND p.cumulative_buyer_day_count - p.peer_buyer_day_count < %(traffic_share)s::numeric * p.source_buyer_day_count AS is_traffic,
        h.first_day <= n.business_date - 2 * %(role_window_days)s::integer + 1 AS has_two_windows,
        p.first_sold_date > n.business_date - %(role_window_days)s::integer AS is_new
    FROM placed AS p
    CROSS JOIN night AS n
    JOIN shops AS h ON h.source_id = p.source_id
),
final AS (
    SELECT
        j.source_id, j.product_id, j.category, j.unit_count, j.gross_amount, j.order_count, j.buyer_day_count, j.source_gross_amount,
        j.source_buyer_day_count, j.gross_rank, j.cumulative_gross_amount, j.cumulative_buyer_day_count, j.previous_gross_amount,
        j.gross_amount / nullif(j.source_gross_amount, 0) AS gross_share_rate,
        j.buyer_day_count / nullif(j.source_buyer_day_count, 0) AS buyer_share_rate,
        j.cumulative_gross_amount / nullif(j.source_gross_amount, 0) AS cumulative_gross_rate,
        j.cumulative_buyer_day_count / nullif(j.source_buyer_day_count, 0) AS cumulative_buyer_rate,
        j.gross_amount / nullif(j.previous_gross_amount, 0) - 1 AS growth_rate,
        CASE
            WHEN NOT j.has_two_windows THEN NULL
            WHEN j.is_new THEN 'new'
            WHEN j.gross_amount > 0 AND j.gross_amount >= j.previous_gross_amount * (1 + %(growth_change)s::numeric) THEN 'growing'
            WHEN j.previous_gross_amount > 0 AND j.gross_amount <= j.previous_gross_amount * (1 - %(growth_change)s::numeric)
                THEN 'declining'
            ELSE 'mature'
        END AS growth_phase,
        CASE
            WHEN j.is_traffic AND j.is_profit THEN 'traffic_and_profit'
            WHEN j.is_profit THEN 'profit'
            WHEN j.is_traffic THEN 'traffic'
            ELSE 'long_tail'
        END AS role
    FROM judged AS j
),
vanished AS (
    DELETE FROM mart.product_roles AS m
    USING night AS n
    WHERE
        (
            n.is_due AND m.business_date = n.business_date
            AND NOT EXISTS (SELECT 1 FROM final AS f WHERE f.source_id = m.source_id AND f.product_id = m.product_id)
        )
        OR (m.business_date < n.newest AND date_trunc('month', m.business_date) = date_trunc('month', m.business_date + 7))
)
INSERT INTO mart.product_roles (
    business_date, source_id, product_id, category, unit_count, gross_amount, order_count, buyer_day_count, source_gross_amount,
    source_buyer_day_count, gross_share_rate, buyer_share_rate, gross_rank, cumulative_gross_amount, cumulative_gross_rate,
    cumulative_buyer_day_count, cumulative_buyer_rate, previous_gross_amount, growth_rate, growth_phase, role
)
SELECT
    n.business_date, f.source_id, f.product_id, f.category, f.unit_count, f.gross_amount, f.order_count, f.buyer_day_count,
    f.source_gross_amount, f.source_buyer_day_count, f.gross_share_rate, f.buyer_share_rate, f.gross_rank, f.cumulative_gross_amount,
    f.cumulative_gross_rate, f.cumulative_buyer_day_count, f.cumulative_buyer_rate, f.previous_gross_amount, f.growth_rate,
    f.growth_phase, f.role
FROM final AS f
CROSS JOIN night AS n
ON CONFLICT (business_date, source_id, product_id) DO UPDATE SET
    category = excluded.category,
    unit_count = excluded.unit_count,
    gross_amount = excluded.gross_amount,
    order_count = excluded.order_count,
    buyer_day_count = excluded.buyer_day_count,
    source_gross_amount = excluded.source_gross_amount,
    source_buyer_day_count = excluded.source_buyer_day_count,
    gross_share_rate = excluded.gross_share_rate,
    buyer_share_rate = excluded.buyer_share_rate,
    gross_rank = excluded.gross_rank,
    cumulative_gross_amount = excluded.cumulative_gross_amount,
    cumulative_gross_rate = excluded.cumulative_gross_rate,
    cumulative_buyer_day_count = excluded.cumulative_buyer_day_count,
    cumulative_buyer_rate = excluded.cumulative_buyer_rate,
    previous_gross_amount = excluded.previous_gross_amount,
    growth_rate = excluded.growth_rate,
    growth_phase = excluded.growth_phase,
    role = excluded.role
WHERE
    (
        product_roles.category, product_roles.unit_count, product_roles.gross_amount, product_roles.order_count,
        product_roles.buyer_day_count, product_roles.source_gross_amount, product_roles.source_buyer_day_count,
        product_roles.gross_rank, product_roles.cumulative_gross_amount, product_roles.cumulative_buyer_day_count,
        product_roles.previous_gross_amount, product_roles.growth_phase, product_roles.role
    )
    IS DISTINCT FROM (
        excluded.category, excluded.unit_count, excluded.gross_amount, excluded.order_count,
        excluded.buyer_day_count, excluded.source_gross_amount, excluded.source_buyer_day_count,
        excluded.gross_rank, excluded.cumulative_gross_amount, excluded.cumulative_buyer_day_count,
        excluded.previous_gross_amount, excluded.growth_phase, excluded.role
    );

INSERT INTO mart.marks (mart, business_date, batch_id, settings)
SELECT 'product_roles', k.sunday, 9223372036854775807, k.settings -- it waits for no batch of touches
FROM mark AS k
WHERE k.sunday = k.newest
ON CONFLICT (mart) DO UPDATE SET
    business_date = excluded.business_date, settings = excluded.settings, computed_at = clock_timestamp()
WHERE (marks.business_date, marks.settings) IS DISTINCT FROM (excluded.business_date, excluded.settings);
