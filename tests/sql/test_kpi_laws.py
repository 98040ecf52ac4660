"""Laws of the KPI tables: a night is a full rebuild, sums are sums, the order of the input changes nothing."""

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from given import DEFAULTS, insert, put
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nightmarket.dates import DEFAULT_ZONE
from nightmarket.explain_kpi import period_of
from nightmarket.kpis import KpiDefinition, computed_kpis, sync_kpis
from nightmarket.marts import load_kpis, load_path
from nightmarket.warehouse import Row, run_sql

START = date(2028, 2, 20)  # a stretch with a 29 February, month ends and weeks of two months
SPAN = 60
LAST = START + timedelta(days=SPAN)
SOURCES = ("mall", "taobao_flagship")
MEMBERS = (1, 2, 3)
KPI_TABLES = (
    "touched_members", "touched_facts", "member_days", "buyer_firsts", "buyer_periods", "shop_kpis_daily", "fulfilment_kpis_daily",
    "review_kpis_daily", "service_kpis_daily", "content_kpis", "social_kpis_daily", "channel_kpis_daily", "kpi_values", "kpi_signals",
)  # fmt: skip
STORED = KPI_TABLES[3:-1]  # of signals only the last night is compared

many = settings(
    # a night takes half a second: few examples, and a failing one is shown as it was found
    max_examples=6, derandomize=True,
    phases=[Phase.generate],
)  # fmt: skip
# also the first and the last instant of a day in Shanghai
minutes = st.one_of(st.sampled_from([0, 1, 1439, 720]), st.integers(0, 1439))
instants = st.tuples(st.integers(0, SPAN + 5), minutes).map(
    lambda at: datetime.combine(START, datetime.min.time(), tzinfo=DEFAULT_ZONE) + timedelta(days=at[0], minutes=at[1])
)
waits = st.one_of(st.none(), st.integers(0, 20 * 24 * 60))  # minutes; None: not yet
orders = st.fixed_dictionaries({
    "source_id": st.sampled_from(SOURCES), "identity_id": st.one_of(st.none(), st.sampled_from(MEMBERS)), "created_at": instants,
    "is_paid": st.sampled_from([True, True, True, False]), "pay": st.integers(0, 3000), "ship": waits, "sign": waits,
    "goods_amount": st.decimals(min_value="0.01", max_value="900", places=2), "refund": waits,
    "review": waits, "rating": st.integers(1, 5), "reply": waits, "ask": waits, "city": st.sampled_from([None, "上海🌙"]),
})  # fmt: skip
people = st.fixed_dictionaries({
    "kind": st.sampled_from(["follow", "unfollow", "message"]), "identity_id": st.sampled_from(MEMBERS), "at": instants,
})  # fmt: skip
posts = st.fixed_dictionaries({
    "published_at": instants, "content": st.sampled_from(["#品牌 我们🎉", "好物清单", None]),
    "reads": st.integers(0, 90), "later": st.integers(0, 5),
})  # fmt: skip
sendings = st.fixed_dictionaries({
    "member_id": st.sampled_from(MEMBERS), "exposed_at": instants, "channel": st.sampled_from(["email", "wechat_mass"]),
    "is_group": st.booleans(), "kind": st.sampled_from(["delivered", "failed", "clicked", "unsubscribed"]), "wait": st.integers(0, 9000),
})  # fmt: skip
totals = st.tuples(st.integers(0, SPAN + 5), st.integers(1, 200))
worlds = st.fixed_dictionaries({
    "orders": st.lists(orders, min_size=1, max_size=8), "people": st.lists(people, max_size=5), "posts": st.lists(posts, max_size=3),
    "sendings": st.lists(sendings, max_size=4), "totals": st.lists(totals, max_size=6, unique_by=lambda pair: pair[0]),
})  # fmt: skip
days = st.integers(0, SPAN).map(lambda offset: START + timedelta(days=offset))


@pytest.fixture
def world(warehouse: psycopg.Connection[Row]) -> psycopg.Connection[Row]:
    """Three people, two shops, an account, the KPIs of kpis.yaml; every example rolls back to here."""
    put(warehouse, {"people": MEMBERS})
    for source, kind in (*((source, "shop") for source in SOURCES), ("wechat_official", "social")):
        insert(warehouse, "core.accounts", [{"source_id": source, "kind": kind, "name": source}])
    sync_kpis(warehouse, load_kpis().kpis, SOURCES)
    return warehouse


def after(at: datetime, wait: int | None) -> datetime | None:
    return None if wait is None else at + timedelta(minutes=wait)


def enter(connection: psycopg.Connection[Row], some: dict[str, list[Any]], first: int = 0) -> None:
    """Write a world's facts to core."""
    for number, order in enumerate(some["orders"], start=first):
        paid = after(order["created_at"], order["pay"]) if order["is_paid"] else None
        shipped = after(paid, order["ship"]) if paid else None
        signed = after(shipped, order["sign"]) if shipped else None
        key = {"source_id": order["source_id"], "order_id": f"o{number}"}
        row = {name: order[name] for name in ("identity_id", "created_at", "is_paid", "goods_amount", "city")}
        row |= {"paid_at": paid, "shipped_at": shipped, "signed_at": signed}
        insert(connection, "core.orders", [key | row | {"modified_at": order["created_at"], "paid_amount": 0}])
        if paid and order["refund"] is not None:
            refund = {"refund_id": f"r{number}", "settled_at": after(paid, order["refund"])}
            insert(connection, "core.refunds", [key | refund | {"refund_amount": order["goods_amount"]}])
        if paid and order["review"] is not None:
            written = after(paid, order["review"])
            review = {"review_id": f"v{number}", "rating": order["rating"], "created_at": written}
            if order["reply"] is not None and written:
                review |= {"reply": "抱歉 🙏", "replied_at": after(written, order["reply"])}
            insert(connection, "core.reviews", [key | review])
        if signed and order["ask"] is not None:
            event = {"event_id": f"a{number}", "kind": "accepted", "occurred_at": after(signed, order["ask"])}
            event["message_key"] = f"review/{order['source_id']}/o{number}/ask"
            insert(connection, "core.message_events", [event])
    for number, person in enumerate(some["people"], start=first):
        row = {"event_id": f"p{number}", "identity_id": person["identity_id"], "kind": person["kind"]}
        table = "core.interactions" if person["kind"] == "message" else "core.follow_events"
        insert(connection, table, [row | {"source_id": "wechat_official", "occurred_at": person["at"]}])
    for number, post in enumerate(some["posts"], start=first):
        row = {"post_id": f"x{number}", "published_at": post["published_at"], "content": post["content"]}
        insert(connection, "core.social_posts", [row | {"modified_at": post["published_at"]}])
        for wait, share in ((0, 1), (post["later"], 2)):
            stat = {"post_id": f"x{number}", "stat_date": post["published_at"].date() + timedelta(days=wait)}
            for metric, value in (
                ("int_page_read_user", post["reads"] * share),
                ("target_user", 100),
                ("share_user", share),
            ):
                if share == 1 or wait:
                    insert(connection, "core.social_post_stats", [stat | {"metric": metric, "value": value}])
    for offset, count in some["totals"]:
        row = {
            "stat_date": START + timedelta(days=offset),
            "report": "user_cumulate",
            "metric": "cumulate_user",
            "value": count,
        }
        connection.execute(
            "INSERT INTO core.social_stats_daily (source_id, stat_date, report, metric, value, batch_id)"
            " VALUES ('wechat_official', %(stat_date)s, %(report)s, %(metric)s, %(value)s, 1) ON CONFLICT DO NOTHING", row,
        )  # fmt: skip
    for number, sending in enumerate(some["sendings"], start=first):
        row = {name: sending[name] for name in ("member_id", "exposed_at", "channel")}
        group = f"g{number}" if sending["is_group"] else None
        row |= {
            "run_id": f"run{number}",
            "message_key": f"m{number}",
            "group_key": group,
            "cost_amount": Decimal("0.05"),
        }
        insert(connection, "core.exposures", [row | {"attribution_until": after(sending["exposed_at"], 9000)}])
        answered = f"g{number}" if group and sending["kind"] in ("delivered", "failed") else f"m{number}"
        event = {"event_id": f"e{number}", "message_key": answered, "kind": sending["kind"]}
        insert(
            connection, "core.message_events", [event | {"occurred_at": after(sending["exposed_at"], sending["wait"])}]
        )


def night(connection: psycopg.Connection[Row], day: date) -> None:
    connection.execute("DROP VIEW IF EXISTS pg_temp.money_back")
    for table in KPI_TABLES:
        run_sql(connection, load_path(table), DEFAULTS["parameters"] | {"business_date": day})


def rebuild(connection: psycopg.Connection[Row], day: date) -> None:
    connection.execute("DELETE FROM mart.marks")
    night(connection, day)


def snapshot(connection: psycopg.Connection[Row]) -> dict[str, list[str]]:
    found = {}
    for table in STORED:
        rows = connection.execute(f"SELECT to_jsonb(t)::text AS r FROM mart.{table} AS t ORDER BY 1")
        found[table] = [row["r"] for row in rows]
    rows = connection.execute(
        "SELECT to_jsonb(t)::text AS r FROM mart.kpi_signals AS t WHERE business_date = %s ORDER BY 1", (LAST,)
    )
    return found | {"kpi_signals": [row["r"] for row in rows]}


def differences(found: dict[str, list[str]], expected: dict[str, list[str]]) -> list[str]:
    """Rows that only one of two snapshots has."""
    return [
        f"{table} {sign} {row}"
        for table in expected
        for sign, rows in (
            ("-", set(expected[table]) - set(found[table])),
            ("+", set(found[table]) - set(expected[table])),
        )
        for row in sorted(rows)
    ]


def fresh(connection: psycopg.Connection[Row], some: list[dict[str, list[Any]]]) -> dict[str, list[str]]:
    """The tables after one night over everything, then everything rolled back."""
    with connection.transaction(force_rollback=True):
        for index, part in enumerate(some):
            enter(connection, part, first=100 * index)
        night(connection, LAST)
        return snapshot(connection)


@pytest.mark.slow
@many
@given(some=worlds, late=worlds, nights=st.lists(days, min_size=1, max_size=4), data=st.data())
def test_nights_are_a_full_rebuild_row_for_row(
    world: psycopg.Connection[Row], some: Any, late: Any, nights: list[date], data: Any
) -> None:
    once = fresh(world, [some, late])
    with world.transaction(force_rollback=True):
        enter(world, some)
        for day in sorted(nights):
            night(world, day)
        enter(world, late, first=100)  # comes in late: also of days that past nights have told of
        night(world, LAST)
        assert differences(snapshot(world), once) == [], "nights, the last facts late"
        night(world, data.draw(st.sampled_from(nights)))
        assert differences(snapshot(world), once) == [], "an older night takes nothing back"
        night(world, LAST)
        assert differences(snapshot(world), once) == [], "the same night again"
        rebuild(world, LAST)
        assert differences(snapshot(world), once) == [], "a rebuild over what is there"


@pytest.mark.slow
@many
@given(some=worlds, nights=st.lists(days, max_size=4))
def test_backfilled_nights_are_one_night(world: psycopg.Connection[Row], some: Any, nights: list[date]) -> None:
    once = fresh(world, [some])
    with world.transaction(force_rollback=True):
        enter(world, some)  # everything is in core before the first night
        for day in [*sorted(nights), LAST]:
            night(world, day)
        assert differences(snapshot(world), once) == []


@pytest.mark.slow
@many
@given(some=worlds, data=st.data())
def test_corrections_move_every_figure(world: psycopg.Connection[Row], some: Any, data: Any) -> None:
    number = data.draw(st.integers(0, len(some["orders"]) - 1))
    changed = data.draw(orders) | {"source_id": some["orders"][number]["source_id"]}
    corrected = some | {"orders": [*some["orders"][:number], changed, *some["orders"][number + 1 :]]}
    with world.transaction(force_rollback=True):
        enter(world, some)
        night(world, LAST - timedelta(days=7))
        paid = after(changed["created_at"], changed["pay"]) if changed["is_paid"] else None
        shipped = after(paid, changed["ship"]) if paid else None
        world.execute(
            "UPDATE core.orders SET identity_id = %s, created_at = %s, is_paid = %s, paid_at = %s, shipped_at = %s, signed_at = %s,"
            " goods_amount = %s WHERE order_id = %s",
            (changed["identity_id"], changed["created_at"], changed["is_paid"], paid, shipped,
             after(shipped, changed["sign"]) if shipped else None, changed["goods_amount"], f"o{number}"),
        )  # fmt: skip
        night(world, LAST)
        found = snapshot(world)
        rebuild(world, LAST)
        assert differences(found, snapshot(world)) == []
    assert corrected["orders"]


@pytest.mark.slow
@many
@given(some=worlds, other=st.sampled_from(MEMBERS))
def test_people_who_turn_out_to_be_one_are_one_in_every_figure(
    world: psycopg.Connection[Row], some: Any, other: int
) -> None:
    with world.transaction(force_rollback=True):
        enter(world, some)
        night(world, LAST - timedelta(days=3))
        world.execute("UPDATE core.member_identities SET member_id = 1 WHERE identity_id = %s", (other,))
        night(world, LAST)
        found = snapshot(world)
        rebuild(world, LAST)
        assert differences(found, snapshot(world)) == []


@pytest.mark.slow
@many
@given(some=worlds, data=st.data())
def test_the_order_of_the_input_changes_nothing(world: psycopg.Connection[Row], some: Any, data: Any) -> None:
    whole = fresh(world, [some])
    with world.transaction(force_rollback=True):
        for index in data.draw(st.permutations(range(len(some["orders"])))):
            part = {name: [] for name in some} | {"orders": [some["orders"][index]]}
            enter(world, part, first=index)
        enter(world, some | {"orders": []})
        night(world, LAST)
        assert differences(snapshot(world), whole) == []


@pytest.mark.slow
@many
@given(some=worlds)
def test_sources_add_up_to_all_and_days_to_weeks_and_months(world: psycopg.Connection[Row], some: Any) -> None:
    with world.transaction(force_rollback=True):
        enter(world, some)
        night(world, LAST)
        sources = world.execute(
            "SELECT w.kpi FROM mart.kpi_values AS w JOIN mart.kpi_definitions AS d ON d.kpi = w.kpi AND d.kind <> 'people'"
            " CROSS JOIN LATERAL (SELECT sum(s.numerator) AS numerator, sum(s.denominator) AS denominator FROM mart.kpi_values AS s"
            " WHERE (s.kpi, s.grain, s.period_start) = (w.kpi, w.grain, w.period_start) AND s.source_id <> '') AS s"
            " WHERE w.source_id = '' AND (w.numerator, w.denominator) IS DISTINCT FROM (s.numerator, s.denominator)"
        ).fetchall()
        assert sources == []
        periods = world.execute(
            "SELECT w.kpi FROM mart.kpi_values AS w JOIN mart.kpi_definitions AS d ON d.kpi = w.kpi AND d.kind IN ('sum', 'rate')"
            " CROSS JOIN LATERAL (SELECT sum(s.numerator) AS numerator, sum(s.denominator) AS denominator FROM mart.kpi_values AS s"
            " WHERE (s.kpi, s.source_id, s.grain) = (w.kpi, w.source_id, 'day')"
            " AND date_trunc(w.grain, s.period_start) = w.period_start) AS s"
            " WHERE w.grain <> 'day' AND (w.numerator, w.denominator) IS DISTINCT FROM (s.numerator, s.denominator)"
        ).fetchall()
        assert periods == []
        # people are counted: never more than the days say, and as the orders say
        counted = world.execute(
            "SELECT b.source_id FROM mart.buyer_periods AS b CROSS JOIN LATERAL ("
            " SELECT count(DISTINCT mi.member_id) AS buyers FROM core.orders AS o"
            " JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id"
            " WHERE o.is_paid AND b.source_id IN ('', o.source_id) AND date_trunc(b.grain, o.paid_at)::date = b.period_start"
            " AND o.paid_at < %s) AS c WHERE c.buyers <> b.buyer_count",
            (LAST + timedelta(days=1),),
        ).fetchall()
        assert counted == []


@pytest.mark.slow
@many
@given(some=worlds)
def test_every_figure_is_what_core_says(world: psycopg.Connection[Row], some: Any) -> None:
    with world.transaction(force_rollback=True):
        enter(world, some)
        night(world, LAST)
        rows = world.execute(
            "SELECT v.* FROM mart.kpi_values AS v ORDER BY md5(v.kpi || v.source_id || v.grain || v.period_start) LIMIT 150"
        ).fetchall()
        mistakes = []
        for row in rows:
            if row["kpi"] == "follower_growth_rate" and some["people"]:
                continue  # a total that is missing and events that are not: the mart uses the events, the query the totals
            first, last = period_of(row["period_start"], row["grain"])
            parameters = {
                "business_date": LAST,
                "source_id": row["source_id"],
                "from_day": first,
                "until_day": min(last, LAST),
            }
            (again,) = run_sql(world, f"explain/kpis/{row['kpi']}.sql", DEFAULTS["parameters"] | parameters)
            found, stored = again["numerator"], row["numerator"]
            if row["kpi"] == "hours_to_first_reply":  # days are rounded to a second's part
                found, stored = round(found, 2), round(stored, 2)
            if (found, again["denominator"]) != (stored, row["denominator"]):
                mistakes.append((row, again))
        assert mistakes == []


def test_every_kpi_has_a_definition_and_a_line() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nowhere")
        assert set(load_kpis().kpis) == computed_kpis()
        assert all(isinstance(kpi, KpiDefinition) for kpi in load_kpis().kpis.values())
