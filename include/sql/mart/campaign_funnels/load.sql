-- mart.campaign_funnels: what became of the members of each run: targeted, accepted, delivered, clicked, visited, ordered, paid, money.
-- Grain: one row per run, arm and variant; variant '' = all members of the arm.
-- Params: business_date (date).
-- Reads: core.exposures, core.message_events, core.coupon_events, core.orders, core.refunds, core.member_identities,
--   core.members, core.interactions
-- Rerun: safe; rows that do not differ are not rewritten. Figures ripen; a run for an older date leaves rows alone that a
-- later night has changed (docs/decisions/0022-ripening-figures.md).
-- An order belongs to a run when it was paid at or after the member's first exposure and before the end of the attribution
-- window; held-out members are measured over the same window (docs/decisions/0023-uplift.md).
WITH
night AS (SELECT (%(business_date)s::date + 1)::timestamptz AS ends_at),
exposed AS (
    -- a member who was merged into another one since is that other one
    SELECT
        x.run_id, coalesce(p.absorbed_by, x.member_id) AS member_id, x.campaign, x.arm, x.variant, x.purpose, x.message_key,
        x.group_key, x.coupon_request, x.cost_amount, x.as_of, x.exposed_at, x.attribution_until
    FROM core.exposures AS x
    JOIN night AS n ON x.exposed_at < n.ends_at
    LEFT JOIN core.members AS p ON p.member_id = x.member_id
),
members AS (
    -- a member may be exposed by several steps of a run: one window from the first to the last; who got a message under
    -- one name and was held out under another was treated
    SELECT
        x.run_id,
        x.member_id,
        min(x.campaign) AS campaign,
        min(x.purpose) AS purpose,
        min(x.as_of) AS as_of,
        max(x.arm) AS arm,
        min(x.variant) AS variant,
        min(x.exposed_at) AS exposed_at,
        max(x.attribution_until) AS attribution_until,
        sum(x.cost_amount) AS message_cost_amount
    FROM exposed AS x
    GROUP BY x.run_id, x.member_id
),
events AS (
    SELECT x.run_id, x.member_id, e.kind
    FROM exposed AS x
    JOIN core.message_events AS e ON e.message_key = x.message_key
    JOIN night AS n ON e.occurred_at < n.ends_at
    UNION ALL
    -- the platform answers for a mass send as a whole; clicks on its link count where core knows whose they were,
    -- and then they carry the key of the person's own message
    SELECT x.run_id, x.member_id, e.kind
    FROM exposed AS x
    JOIN core.message_events AS e ON e.message_key = x.group_key AND e.kind IN ('accepted', 'delivered', 'failed')
    JOIN night AS n ON e.occurred_at < n.ends_at
),
reactions AS (
    SELECT
        run_id,
        member_id,
        bool_or(kind = 'accepted') AS is_accepted,
        bool_or(kind = 'delivered') AS is_delivered,
        bool_or(kind IN ('failed', 'bounced')) AS is_failed,
        bool_or(kind = 'opened') AS is_opened,
        bool_or(kind = 'clicked') AS is_clicked,
        bool_or(kind = 'unsubscribed') AS is_unsubscribed
    FROM events
    GROUP BY run_id, member_id
),
coupons AS (
    SELECT
        x.run_id,
        x.member_id,
        count(*) FILTER (WHERE c.kind = 'issued') AS issued_count,
        count(*) FILTER (WHERE c.kind = 'redeemed') AS redeemed_count,
        count(*) FILTER (WHERE c.kind = 'expired') AS expired_count,
        sum(c.face_amount) FILTER (WHERE c.kind = 'redeemed') AS redeemed_amount
    FROM (SELECT DISTINCT run_id, member_id, coupon_request FROM exposed WHERE coupon_request IS NOT NULL) AS x
    JOIN core.coupon_events AS c ON c.coupon_request = x.coupon_request
    JOIN night AS n ON c.occurred_at < n.ends_at
    GROUP BY x.run_id, x.member_id
),
visitors AS (
    -- came to a page or the account of ours inside the window, by whatever way: in both arms
    SELECT DISTINCT m.run_id, m.member_id
    FROM members AS m
    CROSS JOIN night AS n
    JOIN core.member_identities AS mi ON mi.member_id = m.member_id
    JOIN core.interactions AS i
        ON i.identity_id = mi.identity_id AND i.kind IN ('visit', 'click', 'menu', 'scan')
        AND i.occurred_at >= m.exposed_at AND i.occurred_at < least(m.attribution_until, n.ends_at)
),
member_orders AS (
    SELECT
        m.run_id,
        m.member_id,
        o.source_id,
        o.order_id,
        o.goods_amount,
        coalesce(o.is_paid AND o.paid_at >= m.exposed_at AND o.paid_at < least(m.attribution_until, n.ends_at), FALSE)
            AS is_paid_inside,
        o.created_at >= m.exposed_at AND o.created_at < least(m.attribution_until, n.ends_at) AS is_created_inside
    FROM members AS m
    CROSS JOIN night AS n
    JOIN core.member_identities AS mi ON mi.member_id = m.member_id
    -- what was paid before the exposure was made before it; looking at every order a member ever made took most of the time
    CROSS JOIN LATERAL (
        SELECT p.source_id, p.order_id, p.goods_amount, p.is_paid, p.paid_at, p.created_at
        FROM core.orders AS p
        WHERE p.identity_id = mi.identity_id AND p.paid_at >= m.exposed_at
        UNION ALL
        SELECT u.source_id, u.order_id, u.goods_amount, u.is_paid, u.paid_at, u.created_at
        FROM core.orders AS u
        WHERE u.identity_id = mi.identity_id AND u.paid_at IS NULL
    ) AS o
),
refunded AS (
    SELECT o.run_id, o.member_id, sum(r.refund_amount) AS refund_amount
    FROM member_orders AS o
    JOIN core.refunds AS r ON r.source_id = o.source_id AND r.order_id = o.order_id
    JOIN night AS n ON r.settled_at < n.ends_at
    WHERE o.is_paid_inside AND r.is_money
    GROUP BY o.run_id, o.member_id
),
bought AS (
    SELECT
        run_id,
        member_id,
        bool_or(is_created_inside) AS has_ordered,
        count(*) FILTER (WHERE is_paid_inside) AS order_count,
        sum(goods_amount) FILTER (WHERE is_paid_inside) AS revenue_amount
    FROM member_orders
    GROUP BY run_id, member_id
),
member_results AS (
    SELECT
        m.run_id, m.campaign, m.purpose, m.as_of, m.arm, m.variant, m.attribution_until, m.message_cost_amount,
        r.is_accepted, r.is_delivered, r.is_failed, r.is_opened, r.is_clicked, r.is_unsubscribed,
        coalesce(c.issued_count, 0) AS coupon_issued_count,
        coalesce(c.redeemed_count, 0) AS coupon_redeemed_count,
        coalesce(c.expired_count, 0) AS coupon_expired_count,
        v.member_id IS NOT NULL AS has_visited,
        coalesce(c.redeemed_amount, 0) AS coupon_cost_amount,
        b.has_ordered,
        coalesce(b.order_count, 0) AS order_count,
        coalesce(b.revenue_amount, 0) AS revenue_amount,
        coalesce(f.refund_amount, 0) AS refund_amount
    FROM members AS m
    LEFT JOIN reactions AS r ON r.run_id = m.run_id AND r.member_id = m.member_id
    LEFT JOIN coupons AS c ON c.run_id = m.run_id AND c.member_id = m.member_id
    LEFT JOIN visitors AS v ON v.run_id = m.run_id AND v.member_id = m.member_id
    LEFT JOIN bought AS b ON b.run_id = m.run_id AND b.member_id = m.member_id
    LEFT JOIN refunded AS f ON f.run_id = m.run_id AND f.member_id = m.member_id
),
final AS (
    SELECT
        run_id,
        min(campaign) AS campaign,
        arm,
        coalesce(variant, '') AS variant,
        min(as_of) AS as_of,
        min(purpose) AS purpose,
        max(attribution_until) AS attribution_until,
        count(*) AS member_count,
        count(*) FILTER (WHERE is_accepted) AS accepted_count,
        count(*) FILTER (WHERE is_delivered) AS delivered_count,
        count(*) FILTER (WHERE is_failed) AS failed_count,
        count(*) FILTER (WHERE is_opened) AS opened_count,
        count(*) FILTER (WHERE is_clicked) AS clicked_count,
        count(*) FILTER (WHERE is_unsubscribed) AS unsubscribed_count,
        sum(coupon_issued_count) AS coupon_issued_count,
        sum(coupon_redeemed_count) AS coupon_redeemed_count,
        sum(coupon_expired_count) AS coupon_expired_count,
        count(*) FILTER (WHERE has_visited) AS visited_count,
        count(*) FILTER (WHERE has_ordered) AS ordered_count,
        count(*) FILTER (WHERE order_count > 0) AS buyer_count,
        sum(order_count) AS order_count,
        sum(revenue_amount) AS revenue_amount,
        sum(refund_amount) AS refund_amount,
        sum((revenue_amount - refund_amount) * (revenue_amount - refund_amount)) AS net_revenue_square_sum,
        sum(message_cost_amount + coupon_cost_amount) AS cost_amount
    FROM member_results
    GROUP BY GROUPING SETS ((run_id, arm), (run_id, arm, variant))
    HAVING grouping(variant) = 1 OR variant IS NOT NULL
),
vanished AS (
    DELETE FROM mart.campaign_funnels AS m
    WHERE
        m.business_date <= %(business_date)s::date
        AND NOT EXISTS (
            SELECT 1 FROM final AS f WHERE f.run_id = m.run_id AND f.arm = m.arm AND f.variant = m.variant
        )
)
INSERT INTO mart.campaign_funnels (
    run_id, campaign, arm, variant, as_of, business_date, purpose, attribution_until, member_count, accepted_count,
    delivered_count, failed_count, opened_count, clicked_count, unsubscribed_count, coupon_issued_count,
    coupon_redeemed_count, coupon_expired_count, visited_count, ordered_count, buyer_count, order_count, revenue_amount,
    refund_amount, net_revenue_square_sum, cost_amount
)
SELECT
    f.run_id, f.campaign, f.arm, f.variant, f.as_of, %(business_date)s::date, f.purpose, f.attribution_until,
    f.member_count, f.accepted_count, f.delivered_count, f.failed_count, f.opened_count, f.clicked_count,
    f.unsubscribed_count, f.coupon_issued_count, f.coupon_redeemed_count, f.coupon_expired_count, f.visited_count,
    f.ordered_count, f.buyer_count, f.order_count, f.revenue_amount, f.refund_amount, f.net_revenue_square_sum, f.cost_amount
FROM final AS f
ON CONFLICT (run_id, arm, variant) DO UPDATE SET
    campaign = excluded.campaign,
    as_of = excluded.as_of,
    business_date = excluded.business_date,
    purpose = excluded.purpose,
    attribution_until = excluded.attribution_until,
    member_count = excluded.member_count,
    accepted_count = excluded.accepted_count,
    delivered_count = excluded.delivered_count,
    failed_count = excluded.failed_count,
    opened_count = excluded.opened_count,
    clicked_count = excluded.clicked_count,
    unsubscribed_count = excluded.unsubscribed_count,
    coupon_issued_count = excluded.coupon_issued_count,
    coupon_redeemed_count = excluded.coupon_redeemed_count,
    coupon_expired_count = excluded.coupon_expired_count,
    visited_count = excluded.visited_count,
    ordered_count = excluded.ordered_count,
    buyer_count = excluded.buyer_count,
    order_count = excluded.order_count,
    revenue_amount = excluded.revenue_amount,
    refund_amount = excluded.refund_amount,
    net_revenue_square_sum = excluded.net_revenue_square_sum,
    cost_amount = excluded.cost_amount
WHERE
    campaign_funnels.business_date <= excluded.business_date
    AND (
        campaign_funnels.campaign, campaign_funnels.as_of, campaign_funnels.purpose, campaign_funnels.attribution_until,
        campaign_funnels.member_count, campaign_funnels.accepted_count, campaign_funnels.delivered_count,
        campaign_funnels.failed_count, campaign_funnels.opened_count, campaign_funnels.clicked_count,
        campaign_funnels.unsubscribed_count, campaign_funnels.coupon_issued_count, campaign_funnels.coupon_redeemed_count,
        campaign_funnels.coupon_expired_count, campaign_funnels.visited_count,
        campaign_funnels.ordered_count, campaign_funnels.buyer_count, campaign_funnels.order_count,
        campaign_funnels.revenue_amount, campaign_funnels.refund_amount, campaign_funnels.net_revenue_square_sum,
        campaign_funnels.cost_amount
    )
    IS DISTINCT FROM (
        excluded.campaign, excluded.as_of, excluded.purpose, excluded.attribution_until,
        excluded.member_count, excluded.accepted_count, excluded.delivered_count,
        excluded.failed_count, excluded.opened_count, excluded.clicked_count,
        excluded.unsubscribed_count, excluded.coupon_issued_count, excluded.coupon_redeemed_count,
        excluded.coupon_expired_count, excluded.visited_count,
        excluded.ordered_count, excluded.buyer_count, excluded.order_count,
        excluded.revenue_amount, excluded.refund_amount, excluded.net_revenue_square_sum,
        excluded.cost_amount
    );
