"""Properties of the marts that no single case can show: order, splitting and lateness of nights change nothing."""

from bisect import bisect_right
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from given import DEFAULTS, insert, put
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmarket.dates import DEFAULT_ZONE
from nightmarket.marts import MART_TABLES, load_path
from nightmarket.warehouse import Row, run_sql

START = date(2027, 6, 1)  # so that the year holds a 29 February
LAST = START + timedelta(days=800)
MEMBERS = (1, 2, 3)
WINDOW = 365
BANDS = (("bronze", 0, 700), ("silver", 700, 2000), ("gold", 2000, 5000), ("diamond", 5000, None))

days = st.integers(0, 800).map(lambda offset: START + timedelta(days=offset))
amounts = st.one_of(
    st.sampled_from([Decimal(text) for text in ("0.01", "699.99", "700", "1300", "2000", "4999.999", "5000")]),
    st.decimals(min_value="0.01", max_value="6000", places=2),
)
orders = st.tuples(st.just("order"), st.sampled_from(MEMBERS), days, amounts)
refunds = st.tuples(st.just("refund"), st.sampled_from(MEMBERS), days, amounts)
facts = st.lists(st.one_of(orders, orders, refunds), min_size=1, max_size=12)
Fact = tuple[str, int, date, Decimal]

many = settings(max_examples=40, derandomize=True)


@pytest.fixture
def world(warehouse: psycopg.Connection[Row]) -> psycopg.Connection[Row]:
    """Three people and the tier rules; every example rolls back to here."""
    put(warehouse, {"people": MEMBERS})
    insert(warehouse, "mart.tier_programmes", [{}])
    for rank, (tier, low, _) in enumerate(BANDS, start=1):
        insert(warehouse, "mart.tier_rules", [{"tier": tier, "rank": rank, "enter_value": low}])
    insert(warehouse, "mart.point_rules", [{}])
    return warehouse


def noon(day: date) -> datetime:
    return datetime.combine(day, time(12), tzinfo=DEFAULT_ZONE)


def enter(connection: psycopg.Connection[Row], some: list[Fact], first_id: int = 0) -> None:
    for number, (kind, member, day, amount) in enumerate(some, start=first_id):
        at = noon(day)
        if kind == "order":
            row = {"order_id": f"o{number}", "identity_id": member, "paid_at": at, "goods_amount": amount}
            insert(connection, "core.orders", [row])
        else:
            row = {"refund_id": f"r{number}", "order_id": "x", "identity_id": member, "settled_at": at}
            insert(connection, "core.refunds", [row | {"refund_amount": amount}])


def night(connection: psycopg.Connection[Row], day: date, tables: tuple[str, ...] = MART_TABLES) -> None:
    for table in tables:
        run_sql(connection, load_path(table), DEFAULTS["parameters"] | {"business_date": day})


def tiers(connection: psycopg.Connection[Row]) -> list[Row]:
    return connection.execute("SELECT * FROM mart.member_tiers ORDER BY member_id, programme, valid_from").fetchall()


def tiers_of(connection: psycopg.Connection[Row], some: list[Fact], nights: list[date]) -> list[Row]:
    """The tier table after these facts and nights, then everything rolled back."""
    with connection.transaction(force_rollback=True):
        enter(connection, some)
        for day in nights:
            night(connection, day, MEMBER_TABLES)
        return tiers(connection)


MEMBER_TABLES = ("touched_members", "member_days", "member_tiers")


def expected_tier(some: list[Fact], member: int, day: date) -> str | None:
    """The rule itself, day by day: no running sum, no events."""
    mine = [fact for fact in some if fact[1] == member and fact[2] <= day]
    if not any(kind == "order" for kind, *_ in mine):
        return None
    spend = sum(
        (amount if kind == "order" else -amount for kind, _, when, amount in mine if (day - when).days < WINDOW),
        Decimal(0),
    )
    lows = [low for _, low, _ in BANDS]
    return BANDS[bisect_right(lows, max(spend, Decimal(0))) - 1][0]


@many
@given(some=facts)
def test_tiers_are_the_rule_on_every_day(world: psycopg.Connection[Row], some: list[Fact]) -> None:
    history = tiers_of(world, some, [LAST])
    for member in MEMBERS:
        mine = [row for row in history if row["member_id"] == member]
        for before, after in pairwise(mine):
            assert before["valid_to"] == after["valid_from"]
            assert after["previous_tier"] == before["tier"] != after["tier"]
        edges = {
            fact[2] + timedelta(days=extra) for fact in some for extra in (-1, 0, 1, WINDOW - 1, WINDOW, WINDOW + 1)
        }
        for day in sorted(edge for edge in edges if edge <= LAST):
            standing = [
                row["tier"]
                for row in mine
                if row["valid_from"] <= day and (row["valid_to"] is None or row["valid_to"] > day)
            ]
            assert standing == [tier for tier in [expected_tier(some, member, day)] if tier]


@many
@given(some=facts, data=st.data())
def test_the_order_of_the_input_changes_nothing(world: psycopg.Connection[Row], some: list[Fact], data: Any) -> None:
    shuffled = data.draw(st.permutations(some))
    assert tiers_of(world, some, [LAST]) == tiers_of(world, shuffled, [LAST])


@pytest.mark.slow
@many
@given(some=facts, nights=st.lists(days, max_size=4))
def test_splitting_and_repeating_nights_changes_nothing(
    world: psycopg.Connection[Row], some: list[Fact], nights: list[date]
) -> None:
    once = tiers_of(world, some, [LAST])
    assert tiers_of(world, some, [*sorted(nights), LAST]) == once
    assert tiers_of(world, some, [LAST, *nights]) == once, "an older night takes nothing back"
    assert tiers_of(world, some, [*nights, LAST, LAST]) == once, "backfills in any order"


@many
@given(early=facts, late=facts, first=days)
def test_late_facts_restate_history_as_if_they_had_come_in_time(
    world: psycopg.Connection[Row], early: list[Fact], late: list[Fact], first: date
) -> None:
    with world.transaction(force_rollback=True):
        enter(world, early)
        night(world, first, MEMBER_TABLES)
        enter(world, late, first_id=len(early))
        night(world, LAST, MEMBER_TABLES)
        found = tiers(world)
    assert found == tiers_of(world, early + late, [LAST])


@many
@given(some=facts, again=orders, when=days)
def test_a_refund_and_a_new_order_on_one_day_are_as_if_never_refunded(
    world: psycopg.Connection[Row], some: list[Fact], again: Fact, when: date
) -> None:
    _, member, day, amount = again
    when = max(when, day)  # one cannot send back what was not bought yet
    kept = [*some, again]
    returned: list[Fact] = [*kept, ("refund", member, when, amount), ("order", member, when, amount)]
    assert tiers_of(world, returned, [LAST]) == tiers_of(world, kept, [LAST])


def snapshot(connection: psycopg.Connection[Row]) -> dict[str, list[str]]:
    """Every mart as text, without the night that wrote a row; of RFM, which is what each night knew, the last state only."""
    tables = {}
    for table in set(MART_TABLES) - {"touched_members", "touched_facts"}:
        where = {"member_rfm": " WHERE valid_to IS NULL", "stage_transitions": " WHERE about <> 'rfm'"}.get(table, "")
        if table in BY_DATE:
            where = f" WHERE business_date = '{LAST}'"
        hidden = "{business_date,computed_at,valid_from}" if table == "member_rfm" else "{business_date,computed_at}"
        rows = connection.execute(f"SELECT to_jsonb(t) - '{hidden}'::text[] AS r FROM mart.{table} AS t{where}")
        tables[table] = sorted(str(row["r"]) for row in rows)
    return tables


BY_DATE = ("product_roles", "asset_cube_daily", "kpi_signals")  # one snapshot per business date


reviews = st.tuples(st.sampled_from(MEMBERS), days, st.integers(1, 5))
journeys = st.tuples(st.integers(0, 200), st.integers(0, 5), st.integers(0, 30))


@pytest.mark.slow
@settings(many, max_examples=25)
@given(
    some=facts, opinions=st.lists(reviews, max_size=3), ways=st.lists(journeys, max_size=4),
    exposed=st.lists(st.tuples(st.sampled_from(MEMBERS), days, st.booleans()), max_size=4, unique_by=lambda x: x[0]),
    nights=st.lists(days, max_size=3), data=st.data(),
)  # fmt: skip
def test_every_mart_after_many_nights_is_the_mart_after_one(
    world: psycopg.Connection[Row], some: list[Fact], opinions: list[Any], ways: list[Any], exposed: list[Any],
    nights: list[date], data: Any,
) -> None:  # fmt: skip
    with world.transaction(force_rollback=True):
        enter(world, some)
        for number, (paid, shipping, signing) in enumerate(ways):
            at = noon(START + timedelta(days=paid))
            shipped = at + timedelta(days=shipping)
            row = {"order_id": f"w{number}", "identity_id": 1, "created_at": at - timedelta(days=1), "paid_at": at}
            insert(
                world, "core.orders", [row | {"shipped_at": shipped, "signed_at": shipped + timedelta(days=signing)}]
            )
        for number, (member, day, rating) in enumerate(opinions):
            row = {"review_id": f"v{number}", "order_id": f"w{number}", "identity_id": member, "rating": rating}
            insert(world, "core.reviews", [row | {"created_at": noon(day)}])
        for member, day, is_treated in exposed:
            row = {"member_id": member, "arm": "treatment" if is_treated else "holdout", "message_key": f"k{member}"}
            row |= {"exposed_at": noon(day), "attribution_until": noon(day + timedelta(days=7))}
            insert(world, "core.exposures", [row])
            event = {
                "event_id": f"e{member}",
                "message_key": f"k{member}",
                "kind": "accepted",
                "occurred_at": noon(day),
            }
            insert(world, "core.message_events", [event])
        with world.transaction(force_rollback=True):
            night(world, LAST)
            once = snapshot(world)
        for day in [*sorted(nights), LAST, *data.draw(st.permutations(nights))]:
            night(world, day)
        assert snapshot(world) == once
