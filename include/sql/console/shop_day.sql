-- The KPIs of one day per shop, beside the mean of the 28 days before it and of the last four same weekdays.
-- Grain: one row per source.   Params: business_date (date).   Reads: mart.shop_kpis_daily, core.accounts
-- Means of rates are rates of the sums, so a quiet day does not weigh as much as a busy one. A shop younger than 28 days
-- is divided by its age; on its first day there is no mean.
WITH
ages AS (
    SELECT k.source_id, least(28, %(business_date)s::date - min(k.day)) AS day_count
    FROM mart.shop_kpis_daily AS k
    GROUP BY k.source_id
),
earlier AS (
    SELECT
        k.source_id,
        sum(k.paid_order_count)::numeric / max(a.day_count) AS paid_order_count,
        sum(k.buyer_count)::numeric / max(a.day_count) AS buyer_count,
        sum(k.gross_amount)::numeric / max(a.day_count) AS gross_amount,
        sum(k.refund_amount)::numeric / max(a.day_count) AS refund_amount,
        sum(k.net_amount)::numeric / max(a.day_count) AS net_amount,
        sum(k.review_count)::numeric / max(a.day_count) AS review_count,
        sum(k.gross_amount) / nullif(sum(k.paid_order_count), 0) AS average_order_value_amount,
        sum(k.repeat_buyer_count)::numeric / nullif(sum(k.buyer_count), 0) AS repeat_purchase_rate,
        sum(k.paid_of_created_count)::numeric / nullif(sum(k.created_order_count), 0) AS payment_conversion_rate,
        sum(k.signed_of_created_count)::numeric / nullif(sum(k.created_order_count), 0) AS order_success_rate,
        sum(k.refund_amount) / nullif(sum(k.gross_amount), 0) AS refund_rate,
        sum(k.positive_review_count)::numeric / nullif(sum(k.review_count), 0) AS positive_review_rate,
        sum(k.gross_amount) FILTER (WHERE mod(%(business_date)s::date - k.day, 7) = 0) / nullif(max(a.day_count) / 7, 0)
            AS same_weekday_gross_amount
    FROM mart.shop_kpis_daily AS k
    INNER JOIN ages AS a ON k.source_id = a.source_id
    WHERE k.day >= %(business_date)s::date - 28 AND k.day < %(business_date)s::date
    GROUP BY k.source_id
)
SELECT
    k.source_id,
    coalesce(a.name, k.source_id) AS source_name,
    coalesce(a.currency_code, 'CNY') AS currency_code,
    k.created_order_count, k.paid_order_count, k.payment_conversion_rate, k.order_success_rate,
    k.buyer_count, k.repeat_buyer_count, k.repeat_purchase_rate,
    k.gross_amount, k.refund_amount, k.net_amount, k.refund_rate,
    k.average_order_value_amount, k.unit_count,
    k.review_count, k.positive_review_count, k.positive_review_rate,
    e.paid_order_count AS mean_paid_order_count,
    e.buyer_count AS mean_buyer_count,
    e.gross_amount AS mean_gross_amount,
    e.refund_amount AS mean_refund_amount,
    e.net_amount AS mean_net_amount,
    e.review_count AS mean_review_count,
    e.average_order_value_amount AS mean_average_order_value_amount,
    e.repeat_purchase_rate AS mean_repeat_purchase_rate,
    e.payment_conversion_rate AS mean_payment_conversion_rate,
    e.order_success_rate AS mean_order_success_rate,
    e.refund_rate AS mean_refund_rate,
    e.positive_review_rate AS mean_positive_review_rate,
    e.same_weekday_gross_amount
FROM mart.shop_kpis_daily AS k
LEFT JOIN core.accounts AS a ON k.source_id = a.source_id
LEFT JOIN earlier AS e ON k.source_id = e.source_id
WHERE k.day = %(business_date)s::date
ORDER BY k.source_id ASC;
