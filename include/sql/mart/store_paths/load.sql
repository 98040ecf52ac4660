-- mart.store_paths: from a phone to the till: orders made in a store, with what happened online before them.
-- Grain: one row per source (sources.yaml: is_store) and order that a coupon, a QR code or a message claims.
-- Params: none.
-- Reads: core.accounts, core.coupon_events, core.orders, mart.order_attributions
-- Rerun: safe; rows that do not differ are not rewritten. mart.order_attributions tells of the newest night, whatever the business date.
-- A coupon that was used at the till is certain and comes first; else the latest touch counts. A coupon's path begins when it was given.
WITH
paths AS (
    SELECT DISTINCT ON (a.source_id, a.order_id)
        a.source_id,
        a.order_id,
        a.member_id,
        a.day,
        CASE a.model WHEN 'coupon_code' THEN 'coupon' WHEN 'qr_scene' THEN 'qr_scene' ELSE 'message' END AS path,
        coalesce(g.given_at, a.touched_at) AS touched_at,
        o.paid_at,
        a.run_id,
        a.touch_source_id,
        a.scene,
        a.credited_amount
    FROM core.accounts AS s
    JOIN mart.order_attributions AS a ON a.source_id = s.source_id
    JOIN core.orders AS o ON o.source_id = a.source_id AND o.order_id = a.order_id
    LEFT JOIN LATERAL (
        SELECT min(c.occurred_at) AS given_at
        FROM core.coupon_events AS c
        WHERE c.coupon_request = a.coupon_request AND c.kind = 'issued'
    ) AS g ON TRUE
    WHERE s.is_store
    ORDER BY a.source_id ASC, a.order_id ASC, a.model = 'coupon_code' DESC, a.touched_at DESC, a.model ASC
),
vanished AS (
    DELETE FROM mart.store_paths AS m
    WHERE NOT EXISTS (SELECT 1 FROM paths AS p WHERE p.source_id = m.source_id AND p.order_id = m.order_id)
)
INSERT INTO mart.store_paths (
    source_id, order_id, member_id, day, path, touched_at, hours_to_order, run_id, touch_source_id, scene, gross_amount
)
SELECT
    p.source_id,
    p.order_id,
    p.member_id,
    p.day,
    p.path,
    p.touched_at,
    round(extract(EPOCH FROM p.paid_at - p.touched_at) / 3600, 2),
    p.run_id,
    p.touch_source_id,
    p.scene,
    p.credited_amount
FROM paths AS p
ON CONFLICT (source_id, order_id) DO UPDATE SET
    member_id = excluded.member_id,
    day = excluded.day,
    path = excluded.path,
    touched_at = excluded.touched_at,
    hours_to_order = excluded.hours_to_order,
    run_id = excluded.run_id,
    touch_source_id = excluded.touch_source_id,
    scene = excluded.scene,
    gross_amount = excluded.gross_amount
WHERE
    (
        store_paths.member_id, store_paths.day, store_paths.path, store_paths.touched_at, store_paths.hours_to_order, store_paths.run_id,
        store_paths.touch_source_id, store_paths.scene, store_paths.gross_amount
    )
    IS DISTINCT FROM (
        excluded.member_id, excluded.day, excluded.path, excluded.touched_at, excluded.hours_to_order, excluded.run_id,
        excluded.touch_source_id, excluded.scene, excluded.gross_amount
    );
