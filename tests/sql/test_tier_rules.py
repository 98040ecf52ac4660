"""Tiers with reviews, grace, grants and frozen members; points: against the rules themselves, told day by day, in plain Python."""

from bisect import bisect_right
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg
import pytest
from given import DEFAULTS, insert, put
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmarket.marts import load_path
from nightmarket.warehouse import Row, run_sql

START = date(2027, 6, 1)  # the year holds a 29 February
LAST = START + timedelta(days=400)
TABLES = ("touched_members", "member_days", "member_tiers", "points_ledger")
many = settings(max_examples=60, derandomize=True)
days = st.integers(0, 400).map(lambda offset: START + timedelta(days=offset))


class Ladder(NamedTuple):
    enter: list[int]
    keep: list[int]
    window: int | None
    review: int | None
    grace: int
    downgrade: str
    measure: str


@st.composite
def ladders(draw: Any) -> Ladder:
    enter = [0, *sorted(draw(st.sets(st.integers(2, 12), min_size=1, max_size=3)))]
    keep = [0]
    for low, high in zip(enter[1:], [*enter[2:], 99], strict=True):
        keep.append(draw(st.integers(keep[-1] + 1, low)) if keep[-1] + 1 <= low else low)
        assert high
    review = draw(st.sampled_from([None, 0, 20, 30, 90]))
    return Ladder(
        enter, keep, draw(st.sampled_from([None, 40, 100, 365])), review, draw(st.sampled_from([0, 7, 15])),
        "by_balance" if review == 0 else draw(st.sampled_from(["one_step", "by_balance"])),
        draw(st.sampled_from(["net_amount", "order_count"])),
    )  # fmt: skip


orders = st.lists(st.tuples(st.just("order"), days, st.integers(1, 6)), min_size=1, max_size=9)
refunds = st.lists(st.tuples(st.just("refund"), days, st.integers(1, 6)), max_size=2)
freezes = st.lists(st.tuples(days, st.integers(1, 90)), max_size=1)
grants = st.lists(st.tuples(days, st.integers(1, 90), st.integers(1, 2)), max_size=2)


def history_by_hand(
    ladder: Ladder, facts: list[Any], frozen: list[tuple[date, date]], granted: list[tuple[date, date, int]]
) -> dict[date, int]:
    """Rank of every day: the rules as a person would apply them with a calendar."""

    def measure(day: date) -> int:
        total = 0
        for kind, when, amount in facts:
            if when <= day and (ladder.window is None or (day - when).days < ladder.window):
                if ladder.measure == "net_amount":
                    total += amount if kind == "order" else -amount
                else:
                    total += kind == "order"
        return max(total, 0)

    def is_frozen(day: date) -> bool:
        return any(start <= day < end for start, end in frozen)

    first = min(when for kind, when, _ in facts if kind == "order")
    seen = {}  # day -> (rank to enter, rank to keep), which stands still while frozen
    for number in range((LAST - first).days + 1):
        day = first + timedelta(days=number)
        value = measure(day)
        new = bisect_right(ladder.enter, value), bisect_right(ladder.keep, value)
        seen[day] = seen[day - timedelta(days=1)] if number and is_frozen(day) else new

    def thaw(day: date) -> date:
        for start, end in frozen:
            if start <= day < end:
                return end
        return day

    rank, since = seen[first][0], first
    ranks = {first: rank}
    grace = timedelta(days=ladder.grace)
    for day in list(seen)[1:]:
        if seen[day][0] > rank:
            rank, since = seen[day][0], day
        elif rank > 1 and ladder.review is not None and (missed := review_missed(ladder, seen, rank, since, day, thaw)):
            rank = rank - 1 if ladder.downgrade == "one_step" else seen[missed + grace][0]
            since = day
        ranks[day] = rank
    for start, end, tier in granted:
        for number in range((min(end, LAST + timedelta(days=1)) - start).days):
            day = start + timedelta(days=number)
            ranks[day] = max(ranks.get(day, 0), tier)
    return ranks


def review_missed(
    ladder: Ladder, seen: dict[date, tuple[int, int]], rank: int, since: date, day: date, thaw: Callable[[date], date]
) -> date | None:
    """The review whose grace ends today without the member having come back."""
    review = day - timedelta(days=ladder.grace)
    if review < since or (review == since and ladder.grace == 0):
        return None
    if ladder.review == 0:
        is_due = True
    else:
        assert ladder.review
        due = {thaw(since + timedelta(days=n * ladder.review)) for n in range(1, 400 // ladder.review + 2)}
        is_due = review in due
    came_back = any(
        seen[review + timedelta(days=n)][1] >= rank
        for n in range(1, ladder.grace + 1)
        if review + timedelta(days=n) in seen
    )
    return review if is_due and seen[review][1] < rank and not came_back else None


@pytest.fixture
def member(warehouse: psycopg.Connection[Row]) -> psycopg.Connection[Row]:
    put(warehouse, {"people": [1]})
    return warehouse


def prepare(
    connection: psycopg.Connection[Row],
    ladder: Ladder,
    frozen: list[Any] = (),
    granted: list[Any] = (),  # type: ignore[assignment]
) -> None:
    programme = {"measure": ladder.measure, "window_days": ladder.window, "review_days": ladder.review}
    insert(
        connection, "mart.tier_programmes", [programme | {"grace_days": ladder.grace, "downgrade": ladder.downgrade}]
    )
    for rank, (enter, keep) in enumerate(zip(ladder.enter, ladder.keep, strict=True), start=1):
        rule = {"tier": f"t{rank}", "rank": rank, "enter_value": enter, "keep_value": keep}
        insert(connection, "mart.tier_rules", [rule | {"points_multiplier": rank}])
    insert(connection, "mart.point_rules", [{"expire_days": 60}])
    for start, end in frozen:
        row = {"member_id": 1, "kind": "freeze", "valid_from": start, "valid_to": end}
        insert(connection, "core.tier_grants", [row])
    for start, end, tier in granted:
        row = {"member_id": 1, "kind": "grant", "tier": f"t{tier}", "valid_from": start, "valid_to": end}
        insert(connection, "core.tier_grants", [row])


def enter(connection: psycopg.Connection[Row], facts: list[Any], first_id: int = 0) -> None:
    for number, (kind, day, amount) in enumerate(facts, start=first_id):
        at = f"{day} 12:00:00"
        if kind == "order":
            insert(
                connection,
                "core.orders",
                [{"order_id": f"o{number}", "identity_id": 1, "paid_at": at, "goods_amount": amount}],
            )
        else:
            row = {
                "refund_id": f"r{number}",
                "order_id": "x",
                "identity_id": 1,
                "settled_at": at,
                "refund_amount": amount,
            }
            insert(connection, "core.refunds", [row])


def night(connection: psycopg.Connection[Row], day: date) -> None:
    for table in TABLES:
        run_sql(connection, load_path(table), DEFAULTS["parameters"] | {"business_date": day})


def told(connection: psycopg.Connection[Row]) -> list[Row]:
    return connection.execute("SELECT * FROM mart.member_tiers ORDER BY member_id, programme, valid_from").fetchall()


def ledger(connection: psycopg.Connection[Row]) -> list[Row]:
    return connection.execute(
        "SELECT * FROM mart.points_ledger ORDER BY member_id, day, kind, lot_day, use_id"
    ).fetchall()


@pytest.mark.slow
@many
@given(ladder=ladders(), bought=orders, returned=refunds, cold=freezes, gifts=grants)
def test_the_history_is_the_rules_day_by_day(
    member: psycopg.Connection[Row],
    ladder: Ladder,
    bought: list[Any],
    returned: list[Any],
    cold: list[Any],
    gifts: list[Any],
) -> None:
    frozen = [(start, start + timedelta(days=length)) for start, length in cold]
    granted = [(start, start + timedelta(days=length), tier) for start, length, tier in gifts]
    facts = [*bought, *returned]
    with member.transaction(force_rollback=True):
        prepare(member, ladder, frozen, granted)
        enter(member, facts)
        night(member, LAST)
        rows = told(member)
    found = {}
    for row in rows:
        day = row["valid_from"]
        while day <= LAST and (row["valid_to"] is None or day < row["valid_to"]):
            assert day not in found, "two tiers on one day"
            found[day] = int(row["tier"][1:])
            day += timedelta(days=1)
    assert found == {day: rank for day, rank in history_by_hand(ladder, facts, frozen, granted).items() if day <= LAST}


@pytest.mark.slow
@settings(many, max_examples=30)
@given(
    ladder=ladders(),
    bought=orders,
    returned=refunds,
    late=orders,
    gifts=grants,
    nights=st.lists(days, max_size=5),
    data=st.data(),
)
def test_nights_tell_what_one_night_tells(
    member: psycopg.Connection[Row], ladder: Ladder, bought: list[Any], returned: list[Any], late: list[Any], gifts: list[Any],
    nights: list[date], data: Any,
) -> None:  # fmt: skip
    """Split nights, late facts, a grant in between, an older night run again: row by row what a rebuild gives, points included."""
    granted = [(start, start + timedelta(days=length), tier) for start, length, tier in gifts]
    facts = [*bought, *returned]
    with member.transaction(force_rollback=True):
        prepare(member, ladder, granted=granted)
        enter(member, [*facts, *late])
        night(member, LAST)
        once = told(member), ledger(member)
    with member.transaction(force_rollback=True):
        prepare(member, ladder)
        enter(member, facts)
        order = sorted(nights)
        cut = data.draw(st.integers(0, len(order)))
        for day in order[:cut]:
            night(member, day)
        enter(member, late, first_id=len(facts))
        for day in order[cut:]:
            night(member, day)
        for start, end, tier in granted:
            row = {"member_id": 1, "kind": "grant", "tier": f"t{tier}", "valid_from": start, "valid_to": end}
            insert(member, "core.tier_grants", [row])
        night(member, LAST)
        for day in nights:
            night(member, day)
        assert (told(member), ledger(member)) == once


uses = st.lists(st.tuples(days, st.sampled_from(["redeem", "adjust"]), st.integers(-8, 8).filter(bool)), max_size=4)


@many
@given(
    bought=orders,
    returns=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 80), st.integers(1, 6)), max_size=3),
    used=uses,
)
def test_points_are_a_purse_that_is_never_overdrawn(
    member: psycopg.Connection[Row], bought: list[Any], returns: list[Any], used: list[Any]
) -> None:
    """The ledger against a queue of lots: oldest first, what expired is gone, nothing is taken that is not there."""
    expire = 60
    events: list[tuple[date, int, date, str, str, int]] = []
    by_day: dict[date, int] = {}
    with member.transaction(force_rollback=True):
        prepare(member, Ladder([0, 99], [0, 99], 365, 0, 0, "by_balance", "net_amount"))
        enter(member, bought)
        for _, day, amount in bought:
            by_day[day] = by_day.get(day, 0) + amount
        refunds_by_lot: dict[date, list[tuple[date, int]]] = {}
        for number, (which, after, amount) in enumerate(returns):
            index = which % len(bought)
            paid = bought[index][1]
            settled = paid + timedelta(days=after)
            row = {
                "refund_id": f"r{number}",
                "order_id": f"o{index}",
                "identity_id": 1,
                "settled_at": f"{settled} 12:00:00",
            }
            insert(member, "core.refunds", [row | {"refund_amount": amount}])
            refunds_by_lot.setdefault(paid, []).append((settled, amount))
        for number, (day, kind, points) in enumerate(used):
            points = abs(points) if kind == "redeem" else points
            row = {"use_id": f"u{number}", "member_id": 1, "kind": kind, "points": points, "used_at": f"{day} 12:00:00"}
            insert(member, "core.point_uses", [row])
            comes = kind == "adjust" and points > 0
            events.append((day, 2 if comes else 4, day, f"u{number}", kind, points if comes else -abs(points)))
        night(member, LAST)
        rows = ledger(member)
    for day, amount in by_day.items():
        events.append((day, 2, day, "", "earn", amount))
        gone = 0
        by_settled: dict[date, int] = {}
        for settled, refund in refunds_by_lot.get(day, []):
            by_settled[settled] = by_settled.get(settled, 0) + refund
        for settled, refund in sorted(by_settled.items()):
            taken = max(amount - gone, 0) - max(amount - gone - refund, 0)
            gone += refund
            events.append((settled, 3, day, "", "reverse", -taken))
    lots: list[list[Any]] = []  # [day, left, use]
    expected = []
    ends = [
        (day + timedelta(days=expire), 1, day, use, "expire", 0)
        for day, place, _, use, _, amount in events
        if place == 2
    ]
    for day, place, lot_day, use, kind, amount in sorted([*events, *ends]):
        if day > LAST:
            continue
        if place == 1:
            lost = sum(lot[1] for lot in lots if lot[0] <= lot_day)
            for lot in lots:
                if lot[0] <= lot_day:
                    lot[1] = 0
            amount = -lost
        elif amount > 0:
            lots.append([lot_day, amount])
            lots.sort()
        else:
            left = -amount
            for lot in lots:
                part = min(lot[1], left)
                lot[1] -= part
                left -= part
            amount += left
        if amount:
            expected.append((day, kind, lot_day, use, amount))
    assert [(r["day"], r["kind"], r["lot_day"], r["use_id"], r["points"]) for r in rows] == sorted(expected)
    balance = 0
    for day in sorted({row["day"] for row in rows}):
        balance += sum(row["points"] for row in rows if row["day"] == day)
        assert balance >= 0
    assert balance == sum(lot[1] for lot in lots)


@pytest.mark.slow
@many
@given(ladder=ladders(), bought=orders, extra=st.tuples(st.just("order"), days, st.integers(1, 6)))
def test_one_more_order_never_lowers_the_measure_or_the_first_tier(
    member: psycopg.Connection[Row], ladder: Ladder, bought: list[Any], extra: Any
) -> None:
    """Without reviews a tier is never lost, so an order more can only lift: on every day."""
    plain = ladder._replace(review=None)
    ranks = []
    for facts in (bought, [*bought, extra]):
        with member.transaction(force_rollback=True):
            prepare(member, plain)
            enter(member, facts)
            night(member, LAST)
            ranks.append(told(member))

    def rank(rows: list[Row], day: date) -> int:
        return max(
            (
                int(r["tier"][1:])
                for r in rows
                if r["valid_from"] <= day and (r["valid_to"] is None or r["valid_to"] > day)
            ),
            default=0,
        )

    for number in range(401):
        day = START + timedelta(days=number)
        assert rank(ranks[1], day) >= rank(ranks[0], day)


def test_points_follow_the_multiplier_and_the_rounding(member: psycopg.Connection[Row]) -> None:
    prepare(member, Ladder([0, 5], [0, 5], 365, None, 0, "by_balance", "net_amount"))
    member.execute("UPDATE mart.tier_rules SET points_multiplier = 1.5 WHERE tier = 't2'")
    insert(member, "core.orders", [
        {"order_id": "a", "identity_id": 1, "paid_at": "2027-06-01 12:00:00", "goods_amount": Decimal("3.99")},
        {"order_id": "b", "identity_id": 1, "paid_at": "2027-06-10 12:00:00", "goods_amount": Decimal("5.01")},
    ])  # fmt: skip
    for rounding, wanted in (("floor", [3, 7]), ("half_up", [4, 8]), ("ceil", [4, 8])):
        member.execute("UPDATE mart.point_rules SET rounding = %s", (rounding,))
        night(member, date(2027, 6, 11))
        assert [row["points"] for row in ledger(member)] == wanted, rounding
