-- Money and pieces of mart.product_days add up to those of mart.shop_kpis_daily, shop by shop, over the last 30 days.
-- Table: mart.product_days. Severity: fail.
-- Params: business_date (date).
-- Reads: mart.product_days, mart.shop_kpis_daily
-- Thirty days, not all: a night looks at few days and this reads what it looked at; what is older was compared when it was young.
WITH
products AS (
    SELECT d.source_id, d.day, sum(d.gross_amount) AS gross_amount, sum(d.unit_count) AS unit_count
    FROM mart.product_days AS d
    WHERE d.day > %(business_date)s::date - 30 AND d.day <= %(business_date)s::date
    GROUP BY d.source_id, d.day
),
shops AS (
    SELECT k.source_id, k.day, k.gross_amount, k.unit_count
    FROM mart.shop_kpis_daily AS k
    WHERE k.day > %(business_date)s::date - 30 AND k.day <= %(business_date)s::date
),
compared AS (
    SELECT
        coalesce(p.gross_amount, 0) AS product_amount,
        coalesce(s.gross_amount, 0) AS shop_amount,
        coalesce(p.unit_count, 0) <> coalesce(s.unit_count, 0) AS is_other_count
    FROM products AS p
    FULL JOIN shops AS s ON s.source_id = p.source_id AND s.day = p.day
)
SELECT
    count(*) FILTER (WHERE c.product_amount <> c.shop_amount OR c.is_other_count) = 0 AS is_passed,
    count(*) FILTER (WHERE c.product_amount <> c.shop_amount OR c.is_other_count) || ' of ' || count(*)
    || ' days of shops differ; products ' || coalesce(sum(c.product_amount), 0) || ', shops ' || coalesce(sum(c.shop_amount), 0) AS observed
FROM compared AS c;
