"""Two nights as rows: what the tables hold after a first load, a campaign and a second night. For report and console tests.

Small, deterministic, and awkward on purpose: a name with markup in it, a Saturday without orders, a red gate, unknown
messages. The figures that tests compare are counted from the tables, or stand here as constants.
"""

from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg.types.json import Jsonb

DAY_ONE = date(2026, 3, 12)
DAY_TWO = date(2026, 3, 13)
RUN_ID = "winback_gold@2026-03-12"
DRY_RUN_ID = "winback_gold@2026-03-12#1"
JOURNEY_ID = "followup_reviews@2026-03-12"
SHOP = "taobao_flagship"
HOSTILE = "<script>alert('x')</script>"
MEMBERS = 400
CONFIGS = {
    "winback_gold": {"campaign": {"title": {"zh": "唤回金卡会员", "en": "Win back gold members"}}},
    "followup_reviews": {
        "campaign": {"journey": "followup_reviews", "title": {"zh": "评价跟进", "en": "Review follow-up"}}
    },
}

_ZONE = ZoneInfo("Asia/Shanghai")


def at(day: date, hour: int, minute: int = 0) -> datetime:
    """An instant on the clock of the business zone."""
    return datetime.combine(day, time(hour, minute), tzinfo=_ZONE)


def seed_shop(connection: psycopg.Connection[Any]) -> None:
    """Night one's first half: sources, people, orders, refunds, KPIs, tiers. No campaign, no message."""
    night = at(DAY_ONE + timedelta(days=1), 2, 31)
    run = connection.execute
    run(
        "INSERT INTO core.accounts (source_id, platform, kind, name) VALUES (%s, 'taobao', 'shop', %s),"
        " ('wechat_official', 'wechat_official', 'social', '夜市公众号'), ('own_pages', 'own_pages', 'pages', '自有页面')",
        (SHOP, f"夜市旗舰店 {HOSTILE}"),
    )
    for source, stream, seen, changed, rejected in (
        (SHOP, "trades", 19180, 19180, 0),
        (SHOP, "refunds", 8905, 8905, 0),
        (SHOP, "traderates", 6402, 6402, 3),
        ("wechat_official", "followers", 2251, 2251, 0),
        ("own_pages", "events", 3120, 3120, 0),
    ):
        batch(connection, source, stream, night, seen, changed, rejected)
    run(
        "INSERT INTO raw.rejects (source_id, stream, stage, record_key, reason, run_id, rejected_at)"
        " SELECT %s, 'traderates', 'landing', NULLIF('r' || n, 'r1'), %s, 'manual__1', %s FROM generate_series(1, 3) AS n",
        (SHOP, f"the record has no oid, which is its key {HOSTILE}", night),
    )
    run(
        "INSERT INTO core.identities (kind, value, source_id, first_seen_at)"
        " SELECT 'taobao_open_uid', 'AAH' || n, %s, '2025-03-01'::timestamptz FROM generate_series(1, %s::int) AS n",
        (SHOP, MEMBERS),
    )
    run("INSERT INTO core.members (first_seen_at) SELECT first_seen_at FROM core.identities ORDER BY identity_id")
    run(
        "INSERT INTO core.member_identities (identity_id, member_id, linked_at)"
        " SELECT i.identity_id, m.member_id, m.first_seen_at"
        " FROM (SELECT identity_id, row_number() OVER (ORDER BY identity_id) AS n FROM core.identities) AS i"
        " INNER JOIN (SELECT member_id, first_seen_at, row_number() OVER (ORDER BY member_id) AS n FROM core.members) AS m"
        " USING (n)"
    )
    run(
        "INSERT INTO core.followers (source_id, openid, identity_id, is_following, followed_at, batch_id)"
        " SELECT 'wechat_official', 'o' || identity_id, identity_id, true, '2025-06-01'::timestamptz, 4"
        " FROM core.identities WHERE identity_id %% 2 = 0",
        (),
    )
    # one order a member and visit, none on Saturdays, more in the evening of the year
    run(
        "INSERT INTO core.orders (source_id, order_id, identity_id, status, status_original, is_paid, currency_code,"
        " goods_amount, paid_amount, line_count, unit_count, created_at, paid_at, shipped_at, signed_at, modified_at,"
        " batch_id, loaded_at)"
        " SELECT %(shop)s, 'T' || n, i.identity_id, 'finished', 'TRADE_FINISHED', true, 'CNY', v.amount, v.amount, 3, 24,"
        " v.paid_at - interval '3 minutes', v.paid_at, v.paid_at + interval '20 hours', v.paid_at + interval '5 days',"
        " v.paid_at, 1, %(night)s"
        " FROM generate_series(1, 2400) AS n"
        " CROSS JOIN LATERAL (SELECT round((40 + (n * 7919 %% 280) + (n %% 13) * 11.35)::numeric, 2) AS amount,"
        "   %(last)s::date - (n * 37 %% 90) + make_interval(hours => 9 + n %% 12, mins => n %% 60) AS paid_at) AS v"
        " INNER JOIN core.identities AS i ON i.identity_id = 1 + (n * 97 %% 400) * (n * 61 %% 400) / 400 %% %(members)s"
        " WHERE extract(isodow FROM v.paid_at) <> 6",
        {"shop": SHOP, "night": night, "last": DAY_TWO, "members": MEMBERS},
    )
    run(
        "INSERT INTO core.refunds (source_id, refund_id, order_id, identity_id, status, status_original, is_money,"
        " currency_code, refund_amount, created_at, settled_at, modified_at, batch_id)"
        " SELECT source_id, 'R' || order_id, order_id, identity_id, 'settled', 'SUCCESS', true, 'CNY', round(goods_amount / 3, 2),"
        " paid_at + interval '2 days', paid_at + interval '3 days', paid_at + interval '3 days', 2"
        " FROM core.orders WHERE substr(order_id, 2)::int %% 17 = 0 AND paid_at < '2026-03-08'::timestamptz",
        (),
    )
    run(
        "INSERT INTO core.reviews (source_id, review_id, order_id, identity_id, rating, rating_original, reply, created_at,"
        " batch_id)"
        " SELECT source_id, 'V' || order_id, order_id, identity_id, v.rating, 'x',"
        " CASE WHEN v.rating <= 2 AND substr(order_id, 2)::int %% 2 = 0 THEN '抱歉' END, signed_at + interval '1 day', 3"
        " FROM core.orders CROSS JOIN LATERAL (SELECT CASE substr(order_id, 2)::int %% 33 WHEN 0 THEN 1 WHEN 3 THEN 3 ELSE 5"
        " END AS rating) AS v WHERE substr(order_id, 2)::int %% 3 = 0 AND signed_at + interval '1 day' < %s",
        (at(DAY_ONE + timedelta(days=1), 0),),
    )
    run(
        "INSERT INTO mart.tier_programmes (programme, position, name_zh, name_en, measure, window_days, review_days, downgrade)"
        " VALUES ('main', 1, '会员等级', 'Member tiers', 'net_amount', 365, 0, 'by_balance')"
    )
    run(
        "INSERT INTO mart.tier_rules (programme, tier, rank, name_zh, name_en, enter_value, keep_value) VALUES"
        " ('main', 'bronze', 1, '铜卡', 'Bronze', 0, 0), ('main', 'silver', 2, '银卡', 'Silver', 1000, 1000),"
        " ('main', 'gold', 3, '金卡', 'Gold', 2500, 2500), ('main', 'diamond', 4, '钻石卡', 'Diamond', 3500, 3500)"
    )
    run(
        "INSERT INTO mart.member_tiers (member_id, programme, valid_from, tier, kind, measure_value, reason)"
        " SELECT s.member_id, 'main', %(day)s, (array_agg(t.tier ORDER BY t.rank DESC))[1], 'first', s.amount, 'first tier'"
        " FROM (SELECT m.member_id, coalesce(sum(o.goods_amount), 0) AS amount FROM core.members AS m"
        "   LEFT JOIN core.member_identities USING (member_id) LEFT JOIN core.orders AS o USING (identity_id) GROUP BY 1) AS s"
        " INNER JOIN mart.tier_rules AS t ON s.amount >= t.enter_value GROUP BY s.member_id, s.amount",
        {"day": DAY_ONE},
    )
    for day in (DAY_ONE - timedelta(days=n) for n in range(59, -1, -1)):
        shop_kpis(connection, day)
    rfm(connection, DAY_ONE)
    gate(connection, DAY_ONE, "core", "core.orders", "unique_key", True, "0 duplicates", night)
    gate(connection, DAY_ONE, "core", "core.orders", "money_equals_raw", True, "difference 0.00", night)
    gate(connection, DAY_ONE, "mart", "mart.member_tiers", "one_current_tier", True, "0 members", night)
    gate(connection, DAY_ONE, "mart", "mart.shop_kpis_daily", "row_count", True, "60 rows", night)


def seed_campaign(connection: psycopg.Connection[Any]) -> None:
    """The morning after night one: a dry run, the campaign, review requests."""
    night, morning = at(DAY_ONE + timedelta(days=1), 2, 33), at(DAY_ONE + timedelta(days=1), 10, 5)
    run = connection.execute
    for run_id, campaign, mode, state, created in (
        (DRY_RUN_ID, "winback_gold", "dry_run", "dry_run_done", morning - timedelta(minutes=4)),
        (RUN_ID, "winback_gold", "live", "sent", morning),
        (JOURNEY_ID, "followup_reviews", "live", "sent", night),
    ):
        run(
            "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, content_hash, state,"
            " needs_approval, approved_by, approved_at, decision_reason, created_by, created_at, expires_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, 'c0ffee', 'f00d', %s, %s, %s, %s, %s, 'admin', %s, %s)",
            (run_id, campaign, mode, DAY_ONE, at(DAY_TWO, 0), Jsonb(CONFIGS[campaign]), state, run_id == RUN_ID,
             "ulla" if run_id == RUN_ID else None, morning if run_id == RUN_ID else None,
             "the dry run looks right" if run_id == RUN_ID else None, created, created + timedelta(days=2)),
        )  # fmt: skip
    for run_id in (DRY_RUN_ID, RUN_ID):
        # 240 members: 130 targeted, 30 held out, 80 excluded for four reasons
        run(
            "INSERT INTO push.audiences (run_id, member_id, state, reason, arm, variant, channel, address, facts)"
            " SELECT %s, n, CASE WHEN n <= 130 THEN 'targeted' WHEN n <= 160 THEN 'holdout' ELSE 'excluded' END,"
            " CASE WHEN n > 160 THEN (ARRAY['no_address', 'no_consent', 'capped', 'suppressed'])[1 + (n > 210)::int + (n > 230)::int"
            " + (n > 236)::int] END,"
            " CASE WHEN n <= 130 THEN 'treatment' WHEN n <= 160 THEN 'holdout' END,"
            " CASE WHEN n <= 130 THEN (ARRAY['a', 'b'])[1 + n %% 2] END,"
            " CASE WHEN n <= 100 THEN 'wechat_mass' WHEN n <= 130 THEN 'email' END,"
            " 'o-secret-address-' || n, jsonb_build_object('openid', 'o-secret-address-' || n, 'email', 'email:secret', 'marketing_recent', (n > 230)::int * 2)"
            " FROM generate_series(1, 240) AS n",
            (run_id,),
        )
    run(
        "INSERT INTO push.coupon_stocks (stock_id, issuer, platform_stock_id, name, face_amount, minimum_amount, budget_count,"
        " valid_from, valid_to) VALUES ('winback30', 'wechat_pay', '9856001', '满100减30', 30, 100, 5000, %s, %s)",
        (night, night + timedelta(days=30)),
    )
    run(
        "INSERT INTO push.coupons (request_key, stock_id, run_id, member_id, state, reserved_at, issued_at, updated_at)"
        " SELECT 'k' || n, 'winback30', %s, n, CASE WHEN n <= 20 THEN 'redeemed' WHEN n = 21 THEN 'unknown' ELSE 'issued' END,"
        " %s, %s, %s FROM generate_series(1, 130) AS n",
        (RUN_ID, morning, morning, morning),
    )
    run(
        "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
        " variables, coupon_request, state, not_before, expires_at, last_error, queued_at, accepted_at, updated_at)"
        " SELECT 'winback_gold/2026-03-12/' || n || '/send', %(run)s, n, 'send', CASE WHEN n <= 100 THEN 'wechat_mass' ELSE 'email' END,"
        " 'acc', 'marketing', 'o-secret-address-' || n, 'winback', 'zh', '{}', 'k' || n,"
        " CASE WHEN n <= 96 THEN 'delivered' WHEN n <= 98 THEN 'unknown' WHEN n <= 101 THEN 'failed' ELSE 'accepted' END,"
        " %(at)s, %(at)s + interval '2 days', CASE WHEN n BETWEEN 97 AND 98 THEN 'no answer within 10 s'"
        " WHEN n BETWEEN 99 AND 101 THEN %(hostile)s END, %(at)s, %(at)s, %(at)s FROM generate_series(1, 130) AS n",
        {"run": RUN_ID, "at": morning, "hostile": f"refused: {HOSTILE}"},
    )
    run(
        "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
        " variables, state, not_before, expires_at, queued_at, accepted_at, updated_at)"
        " SELECT 'review/taobao_flagship/T' || n || '/ask', %(run)s, n, 'ask', 'wechat_service', 'acc', 'service', 'a' || n,"
        " 'review_ask', 'zh', '{}', 'accepted', %(at)s, %(at)s + interval '2 days', %(at)s, %(at)s, %(at)s"
        " FROM generate_series(1, 41) AS n",
        {"run": JOURNEY_ID, "at": night},
    )
    run(
        "INSERT INTO push.audiences (run_id, member_id, state, reason, arm, channel)"
        " SELECT %s, n, CASE WHEN n <= 41 THEN 'targeted' ELSE 'excluded' END, CASE WHEN n > 41 THEN 'no_address' END,"
        " CASE WHEN n <= 41 THEN 'treatment' END, CASE WHEN n <= 41 THEN 'wechat_service' END FROM generate_series(1, 50) AS n",
        (JOURNEY_ID,),
    )
    run(
        "INSERT INTO core.exposures (run_id, member_id, step, campaign, arm, variant, channel, purpose, cost_amount, as_of,"
        " exposed_at, attribution_until)"
        " SELECT run_id, member_id, 'send', 'winback_gold', arm, variant, channel, 'marketing', 0, %s, %s, %s"
        " FROM push.audiences WHERE run_id = %s AND state <> 'excluded'",
        (DAY_ONE, morning, morning + timedelta(days=7), RUN_ID),
    )
    for arm, variant, members, values in (
        ("treatment", "", 130, (125, 96, 31, 1, 130, 20, 29, 31, 6120.4, 603.9, 30)),
        ("treatment", "a", 65, (62, 48, 17, 1, 65, 11, 16, 17, 3390.1, 331.95, 17)),
        ("treatment", "b", 65, (63, 48, 14, 0, 65, 9, 13, 14, 2730.3, 271.95, 13)),
        ("holdout", "", 30, (0, 0, 0, 0, 0, 0, 3, 3, 512.0, 0, 3)),
    ):
        run(
            "INSERT INTO mart.campaign_funnels (run_id, campaign, arm, variant, as_of, member_count, accepted_count,"
            " delivered_count, clicked_count, unsubscribed_count, coupon_issued_count, coupon_redeemed_count, buyer_count,"
            " order_count, revenue_amount, cost_amount, ordered_count)"
            " VALUES (%s, 'winback_gold', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (RUN_ID, arm, variant, DAY_ONE, members, *values),
        )
    run(
        "INSERT INTO mart.campaign_results (run_id, campaign, as_of, treated_count, treated_buyer_count, holdout_count,"
        " holdout_buyer_count, treated_rate, holdout_rate, uplift_rate, uplift_low_rate, uplift_high_rate,"
        " incremental_order_count, incremental_revenue_amount, verdict, is_window_closed, incremental_buyer_count,"
        " incremental_revenue_low_amount, incremental_revenue_high_amount)"
        " VALUES (%s, 'winback_gold', %s, 130, 29, 30, 3, 0.22308, 0.1, 0.12308, -0.0214, 0.2489, 18, 3901.73,"
        " 'no effect shown', false, 16, -850.2, 8653.66)",
        (RUN_ID, DAY_ONE),
    )
    gate(connection, DAY_ONE, "campaign", "push.audiences", "partition", True, "240 = 240", morning, RUN_ID)


def seed_second_night(connection: psycopg.Connection[Any]) -> None:
    """Night two: only what changed; a warning, a red gate that the second try turned green, one that stayed red."""
    night = at(DAY_TWO + timedelta(days=1), 2, 31)
    for source, stream, seen, changed, rejected in (
        (SHOP, "trades", 61, 58, 0),
        (SHOP, "refunds", 4, 4, 0),
        (SHOP, "traderates", 31, 27, 0),
        ("own_pages", "events", 188, 188, 0),
    ):
        batch(connection, source, stream, night, seen, changed, rejected)
    shop_kpis(connection, DAY_TWO)
    rfm(connection, DAY_TWO)
    connection.execute(
        "WITH risen AS (UPDATE mart.member_tiers SET valid_to = %(day)s WHERE tier = 'silver' AND member_id %% 9 = 0"
        " RETURNING member_id, tier)"
        " INSERT INTO mart.member_tiers (member_id, programme, valid_from, tier, previous_tier, kind, measure_value, reason)"
        " SELECT member_id, 'main', %(day)s, 'gold', tier, 'up', 2600, '365-day spend 2,600.00 ≥ 2,500.00' FROM risen",
        {"day": DAY_TWO},
    )
    gate(connection, DAY_TWO, "core", "core.orders", "unique_key", False, "2 duplicates", night)
    gate(connection, DAY_TWO, "core", "core.orders", "unique_key", True, "0 duplicates", night + timedelta(minutes=9))
    gate(connection, DAY_TWO, "core", "core.followers", "freshness", False, "25 hours", night)
    gate(connection, DAY_TWO, "mart", "mart.shop_kpis_daily", "row_count", False, "1 row", night, severity="warn")


def batch(
    connection: psycopg.Connection[Any],
    source: str,
    stream: str,
    loaded: datetime,
    seen: int,
    changed: int,
    rejected: int,
) -> None:
    connection.execute(
        "INSERT INTO raw.batches (source_id, stream, run_id, window_start, window_end, seen_count, changed_count,"
        " rejected_count, loaded_at) VALUES (%s, %s, 'manual__1', %s, %s, %s, %s, %s, %s)",
        (source, stream, loaded - timedelta(days=1), loaded, seen, changed, rejected, loaded),
    )
    connection.execute(
        "INSERT INTO raw.cursors (source_id, stream, watermark, run_id, updated_at) VALUES (%s, %s, %s, 'manual__1', %s)"
        " ON CONFLICT (source_id, stream) DO UPDATE SET watermark = excluded.watermark, updated_at = excluded.updated_at",
        (source, stream, loaded, loaded),
    )


def shop_kpis(connection: psycopg.Connection[Any], day: date) -> None:
    connection.execute(
        "INSERT INTO mart.shop_kpis_daily"
        " SELECT %(shop)s, %(day)s, n + 2, n, n, n / (n + 2.0), b, b / 2, CASE WHEN b > 0 THEN (b / 2)::numeric / b END, gross, refunds,"
        " gross - refunds, 2, refunds / nullif(gross, 0), gross / nullif(n, 0), n * 24, 9, 8, 8 / 9.0"
        " FROM (SELECT count(*) AS n, count(DISTINCT identity_id) AS b, coalesce(sum(goods_amount), 0) AS gross FROM core.orders"
        "   WHERE paid_at >= %(day)s::date::timestamptz AND paid_at < (%(day)s::date + 1)::timestamptz) AS o"
        " CROSS JOIN (SELECT coalesce(sum(refund_amount), 0) AS refunds FROM core.refunds"
        "   WHERE settled_at >= %(day)s::date::timestamptz AND settled_at < (%(day)s::date + 1)::timestamptz) AS r",
        {"shop": SHOP, "day": day},
    )
    connection.execute(
        "INSERT INTO mart.fulfilment_kpis_daily SELECT source_id, day, paid_order_count, paid_order_count, paid_order_count - 1,"
        " (paid_order_count - 1.0) / nullif(paid_order_count, 0), paid_order_count / 2, 20.5, 5 FROM mart.shop_kpis_daily"
        " WHERE source_id = %s AND day = %s AND paid_order_count > 0",
        (SHOP, day),
    )
    connection.execute(
        "INSERT INTO mart.review_kpis_daily SELECT source_id, day, paid_order_count, paid_order_count * 6 / 10,"
        " paid_order_count / 5, paid_order_count / 3, paid_order_count / 8,"
        " (paid_order_count / 3)::numeric / nullif(paid_order_count, 0)"
        " FROM mart.shop_kpis_daily WHERE source_id = %s AND day = %s AND paid_order_count > 0",
        (SHOP, day),
    )


def rfm(connection: psycopg.Connection[Any], day: date) -> None:
    connection.execute(
        "WITH closed AS (UPDATE mart.member_rfm SET valid_to = %(day)s WHERE valid_to IS NULL)"
        " INSERT INTO mart.member_rfm (member_id, valid_from, last_order_date, frequency_count, monetary_amount, r_score, f_score,"
        " m_score, rfm_segment)"
        " SELECT mi.member_id, %(day)s, max(o.paid_at)::date, count(*), sum(o.goods_amount),"
        " 3, 3, 3, (ARRAY['重要价值客户', '重要发展客户', '重要保持客户', '重要挽留客户', '一般价值客户', '一般发展客户',"
        " '一般保持客户', '一般挽留客户'])[1 + (mi.member_id * 5 + extract(day FROM %(day)s::date)::int / 14) %% 8]"
        " FROM core.orders AS o INNER JOIN core.member_identities AS mi USING (identity_id) GROUP BY mi.member_id",
        {"day": day},
    )


def gate(
    connection: psycopg.Connection[Any], day: date, name: str, table: str, check: str, passed: bool, observed: str,
    checked: datetime, run_id: str = "manual__1", severity: str = "fail",
) -> None:  # fmt: skip
    connection.execute(
        "INSERT INTO ops.gate_results (business_date, gate, table_name, check_name, severity, is_passed, observed, message, run_id,"
        " checked_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (day, name, table, check, severity, passed, observed, f"{table}: {check}: {observed}", run_id, checked),
    )
