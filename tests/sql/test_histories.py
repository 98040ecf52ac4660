"""Histories of members, told again in plain Python: stages, RFM, monthly transitions, facts; nights in pieces equal one rebuild."""

from calendar import monthrange
from collections import Counter, defaultdict
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import psycopg
import pytest
from given import DEFAULTS, insert, put
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmarket.dates import DEFAULT_ZONE
from nightmarket.marts import load_path
from nightmarket.warehouse import Row, run_sql

START = date(2027, 12, 20)  # the months that follow hold a year's end and a 29 February
LENGTH = 130
LAST = START + timedelta(days=LENGTH)
MEMBERS = (1, 2, 3)
PARAMETERS = DEFAULTS["parameters"] | {
    "loyal_order_days": 3, "loyal_window_days": 40, "advocate_review_count": 2, "rfm_window_days": 60, "portrait_window_days": 50,
}  # fmt: skip
STAGES = ("none", "discovered", "aware", "considering", "choosing", "purchased", "satisfied", "loyal", "advocate")
TABLES = (
    "touched_members", "product_days", "products", "member_days", "member_tiers", "member_rfm", "member_stages", "member_facts",
    "stage_transitions",
)  # fmt: skip

many = settings(max_examples=25, derandomize=True)

days = st.integers(0, LENGTH).map(lambda offset: START + timedelta(days=offset))
# the first and the last instant of a day in Shanghai, and noon
clocks = st.sampled_from([time(0, 0), time(12, 0), time(23, 59, 59)])
instants = st.builds(lambda day, clock: datetime.combine(day, clock, tzinfo=DEFAULT_ZONE), days, clocks)
cities = st.sampled_from([None, "上海", "Zürich", "🏙️ city", "１２３号", "", "上海 "])
TITLES = ("a mug", "马克杯", "☕ MUG", "ＣＵＰ １２", "邮费 postage")
CATEGORIES = (
    {"category": "mugs", "position": 1, "title_pattern": r"\mmugs?\M|马克杯"},
    {"category": "other", "position": 9},
)


class Fact(NamedTuple):
    """Something that happened to a member; `more` is what only its kind has."""

    kind: str
    member: int
    at: datetime
    more: Any = None


def facts_of(kind: str, more: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Fact]:
    return st.builds(Fact, st.just(kind), st.sampled_from(MEMBERS), instants, st.none() if more is None else more)


class Bought(NamedTuple):
    amount: Decimal
    waited: int | None  # days from the order to its payment; None: never paid
    city: str | None
    shop: str
    title: str


bought = st.builds(
    Bought, st.sampled_from([Decimal(text) for text in ("0.01", "10", "10", "99.9", "700", "2000")]),
    st.sampled_from([0, 0, 0, 0, 1, 30, None]), cities, st.sampled_from(["shop_a", "shop_b"]), st.sampled_from(TITLES),
)  # fmt: skip
orders = facts_of("order", bought)
reviews = facts_of("review", st.integers(1, 5))
others = st.one_of(
    *(facts_of(kind) for kind in ("customer", "scan", "comment", "mention", "follow", "consent", "message", "click"))
)
facts = st.lists(st.one_of(orders, orders, reviews, others), min_size=1, max_size=14)
purchases = st.lists(orders, min_size=1, max_size=14)


@pytest.fixture
def world(warehouse: psycopg.Connection[Row]) -> psycopg.Connection[Row]:
    """Three people, tiers, products; every example rolls back to here."""
    put(warehouse, {"people": MEMBERS})
    warehouse.execute(
        "UPDATE core.identities SET first_seen_at = %s", (datetime.combine(START, time(0), DEFAULT_ZONE),)
    )
    insert(warehouse, "mart.tier_programmes", [{"window_days": 60, "review_days": 20, "grace_days": 5}])
    for rank, value in enumerate((0, 100, 1000), start=1):
        insert(warehouse, "mart.tier_rules", [{"tier": f"t{rank}", "rank": rank, "enter_value": value}])
    insert(warehouse, "mart.point_rules", [{"expire_days": 50}])
    for rule in CATEGORIES:
        insert(warehouse, "mart.category_rules", [{"name_zh": "类", "name_en": "class", "is_goods": True} | rule])
    for shop in ("shop_a", "shop_b"):
        for title in TITLES:
            row = {"source_id": shop, "product_id": title, "title": title, "seen_at": "2027-01-01 00:00:00"}
            insert(warehouse, "core.products", [row])
    return warehouse


def enter(connection: psycopg.Connection[Row], some: list[Fact], first_id: int = 0) -> None:
    for number, (kind, member, at, more) in enumerate(some, start=first_id):
        person = {"identity_id": member}
        if kind == "order":
            paid_at = None if more.waited is None else at + timedelta(days=more.waited)
            row = person | {"source_id": more.shop, "order_id": f"o{number}", "created_at": at, "paid_at": paid_at}
            row |= {"is_paid": paid_at is not None, "goods_amount": more.amount, "city": more.city}
            insert(connection, "core.orders", [row])
            row = {"source_id": more.shop, "order_id": f"o{number}", "line_id": "1", "product_id": more.title}
            insert(connection, "core.order_lines", [row | {"title": more.title, "line_amount": more.amount}])
        elif kind == "review":
            row = person | {"review_id": f"v{number}", "order_id": "x", "rating": more, "created_at": at}
            insert(connection, "core.reviews", [row])
        elif kind == "customer":
            row = person | {"source_id": "shop_a", "customer_id": f"c{number}", "is_member": True, "modified_at": at}
            insert(connection, "core.customers", [row | {"joined_at": at, "batch_id": 1}])
        elif kind in ("comment", "mention"):
            insert(
                connection,
                "core.social_comments",
                [person | {"comment_id": f"m{number}", "kind": kind, "created_at": at}],
            )
        elif kind == "follow":
            insert(connection, "core.followers", [person | {"openid": f"f{number}", "followed_at": at}])
        elif kind == "consent":
            insert(connection, "core.consents", [person | {"event_id": f"y{number}", "occurred_at": at}])
        else:
            insert(
                connection, "core.interactions", [person | {"event_id": f"i{number}", "kind": kind, "occurred_at": at}]
            )


def night(connection: psycopg.Connection[Row], day: date, tables: tuple[str, ...] = TABLES) -> None:
    for table in tables:
        run_sql(connection, load_path(table), PARAMETERS | {"business_date": day})


def rows_of(connection: psycopg.Connection[Row], table: str) -> list[str]:
    return [row["t"] for row in connection.execute(f"SELECT t::text AS t FROM mart.{table} AS t ORDER BY t::text")]


def state_on(rows: list[Row], day: date) -> Row | None:
    """The row of a history that holds on a day; there is never a second."""
    standing = [r for r in rows if r["valid_from"] <= day and (r["valid_to"] is None or r["valid_to"] > day)]
    assert len(standing) <= 1, f"two rows on {day}"
    return standing[0] if standing else None


def every_day(first: date = START, last: date = LAST) -> list[date]:
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def order_days(some: list[Fact], member: int, until: date = LAST) -> list[date]:
    """Days with a paid order, in order."""
    paid = (
        f.at + timedelta(days=f.more.waited)
        for f in some
        if f.kind == "order" and f.member == member and f.more.waited is not None
    )
    return sorted({at.date() for at in paid if at.date() <= until})


# ------------------------------------------------------------------------------------------------------------- stages
def stage_by_hand(some: list[Fact], member: int, day: date) -> str:
    """The highest condition that holds at the end of the day, each read as docs/metrics.md says it."""
    mine = [fact for fact in some if fact.member == member and fact.at.date() <= day]
    kinds = {fact.kind for fact in mine}
    rank = 1
    if kinds & {"customer", "scan", "comment", "mention"}:
        rank = 2
    if kinds & {"follow", "consent"}:
        rank = 3
    if kinds & {"message", "click"}:
        rank = 4
    if any(fact.kind == "order" and fact.more.waited != 0 for fact in mine):
        rank = 5
    bought_on = order_days(some, member, day)
    if bought_on:
        rank = 6
    said = [
        fact.more
        for _, fact in sorted(enumerate(some), key=lambda pair: (pair[1].at, f"v{pair[0]}"))
        if fact in mine and fact.kind == "review" and fact.member == member
    ]
    good = [rating >= PARAMETERS["positive_from_rating"] for rating in said]
    if good and good[-1]:
        rank = 7
    # loyal on a day: it lies in a window that holds enough order days and began with one of them
    needed, window = PARAMETERS["loyal_order_days"], PARAMETERS["loyal_window_days"]
    recent = [when for when in bought_on if (day - when).days < window]
    if len(recent) >= needed:
        rank = 8
    if sum(good) >= PARAMETERS["advocate_review_count"] or "mention" in kinds:
        rank = 9
    return STAGES[rank - 1]


STAGE_TABLES = ("touched_members", "member_days", "member_stages")


@pytest.mark.slow
@many
@given(some=facts)
def test_stages_are_the_conditions_day_by_day(world: psycopg.Connection[Row], some: list[Fact]) -> None:
    with world.transaction(force_rollback=True):
        enter(world, some)
        night(world, LAST, STAGE_TABLES)
        rows = world.execute("SELECT * FROM mart.member_stages ORDER BY member_id, valid_from").fetchall()
    for member in MEMBERS:
        mine = [row for row in rows if row["member_id"] == member]
        found = {day: (state_on(mine, day) or {}).get("stage") for day in every_day()}
        assert found == {day: stage_by_hand(some, member, day) for day in every_day()}
        for row in mine:
            before = state_on(mine, row["valid_from"] - timedelta(days=1))
            assert row["previous_stage"] == (before["stage"] if before else None)


# ---------------------------------------------------------------------------------------------------------------- RFM
def rfm_by_hand(some: list[Fact], day: date) -> dict[int, tuple[date, int, Decimal, int, int, int, str]]:
    """RFM of everybody for one business date, from the orders themselves."""
    behaviour = {}
    for member in MEMBERS:
        recent = []
        for fact in some:
            if fact.kind == "order" and fact.member == member and fact.more.waited is not None:
                paid = (fact.at + timedelta(days=fact.more.waited)).date()
                if paid <= day and (day - paid).days < PARAMETERS["rfm_window_days"]:
                    recent.append((paid, fact.more.amount))
        if recent:
            behaviour[member] = (max(paid for paid, _ in recent), len(recent), sum((a for _, a in recent), Decimal(0)))

    def score(place: int, value: Any) -> int:
        values = sorted(row[place] for row in behaviour.values())
        cuts = [values[-(-share * len(values) // 5) - 1] for share in (1, 2, 3, 4)]
        return 1 + sum(cut < value for cut in cuts)

    found = {}
    for member, row in behaviour.items():
        r, f, m = (score(place, value) for place, value in enumerate(row))
        high = PARAMETERS["rfm_high_from_score"]
        kind = {(True, True): "价值", (True, False): "发展", (False, True): "保持", (False, False): "挽留"}[
            r >= high, f >= high
        ]
        found[member] = (*row, r, f, m, ("重要" if m >= high else "一般") + kind + "客户")
    return found


RFM_TABLES = ("touched_members", "member_days", "member_rfm")


def rfm_on(connection: psycopg.Connection[Row], day: date) -> dict[int, tuple[Any, ...]]:
    """RFM of everybody on a day, as the history says it; nobody has two rows on a day, and neighbours differ."""
    rows = connection.execute("SELECT * FROM mart.member_rfm ORDER BY member_id, valid_from").fetchall()
    found = {}
    for member in MEMBERS:
        mine = [row for row in rows if row["member_id"] == member]
        for before, after in pairwise(mine):
            assert before["valid_to"] is not None
            assert before["valid_to"] <= after["valid_from"]
            is_alike = tuple(before.values())[3:] == tuple(after.values())[3:]
            assert before["valid_to"] < after["valid_from"] or not is_alike
        if row := state_on(mine, day):
            found[member] = tuple(row.values())[3:]
    return found


@many
@given(some=purchases, late=st.lists(orders, max_size=4), nights=st.lists(days, min_size=1, max_size=6), data=st.data())
def test_rfm_of_a_night_is_rfm_of_its_date(
    world: psycopg.Connection[Row], some: list[Fact], late: list[Fact], nights: list[date], data: Any
) -> None:
    """Nights in any order, with late orders somewhere between them; nights that knew the same still tell the same in the end."""
    cut = data.draw(st.integers(0, len(nights)))
    with world.transaction(force_rollback=True):
        enter(world, some)
        for day in nights[:cut]:
            night(world, day, RFM_TABLES)
            assert rfm_on(world, day) == rfm_by_hand(some, day)
        for day in nights[:cut]:
            assert rfm_on(world, day) == rfm_by_hand(some, day), "a night took another one back"
        enter(world, late, first_id=len(some))
        for day in nights[cut:]:
            night(world, day, RFM_TABLES)
            assert rfm_on(world, day) == rfm_by_hand(some + late, day)


# -------------------------------------------------------------------------------------------------------- transitions
def transitions_by_hand(connection: psycopg.Connection[Row], horizon: date) -> Counter[tuple[date, str, str, str]]:
    """Every member's state at two ends of months, looked up one by one in the histories."""
    counts: Counter[tuple[date, str, str, str]] = Counter()
    for about, table, column in (
        ("stage", "member_stages", "stage"),
        ("tier", "member_tiers", "tier"),
        ("rfm", "member_rfm", "rfm_segment"),
    ):
        by_member = defaultdict(list)
        for row in connection.execute(f"SELECT *, {column} AS state FROM mart.{table}"):
            by_member[row["member_id"]].append(row)
        month = date(2027, 1, 1)
        while month <= horizon:
            end = month.replace(day=monthrange(month.year, month.month)[1])
            for rows in by_member.values():
                before, after = state_on(rows, month - timedelta(days=1)), state_on(rows, min(end, horizon))
                if before or after:
                    counts[month, about, before["state"] if before else "", after["state"] if after else ""] += 1
            month = end + timedelta(days=1)
    return counts


TRANSITION_TABLES = (
    "touched_members",
    "member_days",
    "member_tiers",
    "member_rfm",
    "member_stages",
    "stage_transitions",
)


@settings(many, max_examples=10)
@given(some=facts, late=facts, nights=st.lists(days, min_size=1, max_size=3), data=st.data())
def test_transitions_are_what_the_histories_say(
    world: psycopg.Connection[Row], some: list[Fact], late: list[Fact], nights: list[date], data: Any
) -> None:
    cut = data.draw(st.integers(0, len(nights)))
    with world.transaction(force_rollback=True):
        enter(world, some)
        for number, day in enumerate(nights):
            if number == cut:
                enter(world, late, first_id=len(some))
            night(world, day, TRANSITION_TABLES)
            rows = world.execute("SELECT * FROM mart.stage_transitions").fetchall()
            found = {(r["month"], r["about"], r["state_from"], r["state_to"]): r["member_count"] for r in rows}
            assert found == transitions_by_hand(world, max(nights[: number + 1]))
            totals: Counter[Any] = Counter()
            for row in rows:
                totals[row["month"], row["about"], row["state_from"]] += row["member_count"]
            for row in rows:
                total = totals[row["month"], row["about"], row["state_from"]]
                wanted = round(row["member_count"] / total, 12) if row["state_from"] else None
                assert (None if row["member_rate"] is None else round(float(row["member_rate"]), 12)) == wanted


# -------------------------------------------------------------------------------------------------------------- facts
def facts_by_hand(some: list[Fact], member: int) -> dict[str, Any] | None:
    """The row of mart.member_facts of a member, from the orders and reviews themselves."""
    paid = []
    for number, fact in enumerate(some):
        if fact.kind == "order" and fact.member == member and fact.more.waited is not None:
            at = fact.at + timedelta(days=fact.more.waited)
            if at.date() <= LAST:
                paid.append((at, number, fact.more))
    if not paid:
        return None
    on = order_days(some, member)
    gaps = [(after - before).days for before, after in pairwise(on)]
    gap = Decimal(str(median(gaps))) if gaps else None
    recent = [
        (at, number, more) for at, number, more in paid if (LAST - at.date()).days < PARAMETERS["portrait_window_days"]
    ]
    shops: dict[str, list[Decimal]] = defaultdict(list)
    for _, _, more in recent:
        shops[more.shop].append(more.amount)
    # the last order that has a city; at one instant the shop first in the alphabet, there the order last in it
    cities = sorted((more.shop, f"o{number}", at, more.city) for at, number, more in recent if more.city is not None)
    cities.sort(key=lambda row: row[1], reverse=True)
    cities.sort(key=lambda row: row[0])
    cities.sort(key=lambda row: row[2], reverse=True)
    said = sorted(
        (fact.at, f"v{number}", fact.more)
        for number, fact in enumerate(some) if fact.kind == "review" and fact.member == member and fact.at.date() <= LAST
    )  # fmt: skip
    is_mug = [more for _, _, more in recent if more.title in ("a mug", "马克杯", "☕ MUG")]
    return {
        "first_order_date": on[0], "last_order_date": on[-1], "order_day_count": len(on), "order_count": len(paid),
        "gross_amount": sum((more.amount for _, _, more in paid), Decimal(0)), "median_gap_days": gap,
        "expected_next_order_date": None if gap is None
        else on[-1] + timedelta(days=int(gap.quantize(Decimal(1), ROUND_HALF_UP))),
        "favourite_source_id": min(shops, key=lambda s: (-len(shops[s]), -sum(shops[s]), s)) if shops else None,
        "favourite_category": "mugs" if is_mug else None,
        "city": cities[0][3] if cities else None,
        "last_rating": said[-1][2] if said else None, "last_rated_date": said[-1][0].date() if said else None,
    }  # fmt: skip


FACT_TABLES = ("touched_members", "product_days", "products", "member_days", "member_facts")


@many
@given(some=st.lists(st.one_of(orders, orders, reviews), min_size=1, max_size=12))
def test_facts_are_what_the_orders_say(world: psycopg.Connection[Row], some: list[Fact]) -> None:
    with world.transaction(force_rollback=True):
        enter(world, some)
        night(world, LAST, FACT_TABLES)
        found = {row.pop("member_id"): row for row in world.execute("SELECT * FROM mart.member_facts").fetchall()}
    for row in found.values():
        assert row.pop("net_amount") == row["gross_amount"]
    wanted = {member: facts_by_hand(some, member) for member in MEMBERS}
    assert found == {member: row for member, row in wanted.items() if row}


# ------------------------------------------------------------------------------------------------- nights and rebuilds
TOLD = ("member_days", "member_stages", "member_facts", "stage_transitions")


def told(connection: psycopg.Connection[Row]) -> dict[str, list[str]]:
    """Every table as text; of the transitions those of RFM are left out: RFM is what each night knew."""
    found = {table: rows_of(connection, table) for table in TOLD}
    found["stage_transitions"] = [row for row in found["stage_transitions"] if ",rfm," not in row]
    return found


@pytest.mark.slow
@settings(many, max_examples=10)
@given(some=facts, late=facts, nights=st.lists(days, max_size=2), data=st.data())
def test_nights_tell_what_a_rebuild_tells(
    world: psycopg.Connection[Row], some: list[Fact], late: list[Fact], nights: list[date], data: Any
) -> None:
    """Split nights, late facts in any order, older nights again: byte for byte what one night over everything gives."""
    with world.transaction(force_rollback=True):
        enter(world, [*some, *late])
        night(world, LAST)
        once = told(world)
    cut = data.draw(st.integers(0, len(nights)))
    with world.transaction(force_rollback=True):
        enter(world, some)
        for day in sorted(nights)[:cut]:
            night(world, day)
        enter(world, late, first_id=len(some))
        for day in sorted(nights)[cut:]:
            night(world, day)
        night(world, LAST)
        assert told(world) == once
        for day in nights:
            night(world, day)
        assert told(world) == once, "an older night took something back"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=DEFAULT_ZONE)


def order(text: str, member: int = 1, amount: int = 100) -> Fact:
    return Fact("order", member, at(text), Bought(Decimal(amount), 0, None, "shop_a", "a mug"))


@pytest.mark.parametrize(
    "kind", ["customer", "scan", "comment", "mention", "follow", "consent", "message", "review", "order"]
)
def test_what_came_in_before_its_night_is_told_by_its_night(world: psycopg.Connection[Row], kind: str) -> None:
    """A night begins after midnight: what people do until it has read everything is in core, and belongs to the next date."""
    fact = order("2028-01-11 00:30") if kind == "order" else Fact(kind, 1, at("2028-01-11 00:30"), 5)
    enter(world, [fact])
    night(world, date(2028, 1, 9))
    night(world, date(2028, 1, 10))
    assert [row["stage"] for row in stages(world)] == ["none"]
    night(world, date(2028, 1, 11))
    found = stages(world)
    assert [(row["stage"], row["valid_from"]) for row in found][1:] == [
        (stage_by_hand([fact], 1, date(2028, 1, 11)), date(2028, 1, 11))
    ]


def stages(connection: psycopg.Connection[Row]) -> list[Row]:
    return connection.execute("SELECT * FROM mart.member_stages WHERE member_id = 1 ORDER BY valid_from").fetchall()


@pytest.mark.parametrize("kind", ["customer", "comment", "follow", "message"])
def test_what_came_in_late_is_counted_in_its_month(world: psycopg.Connection[Row], kind: str) -> None:
    night(world, date(2028, 3, 10))
    enter(world, [Fact(kind, 1, at("2028-01-15 12:00"))])
    night(world, date(2028, 3, 11))
    rows = world.execute("SELECT * FROM mart.stage_transitions").fetchall()
    found = {(r["month"], r["about"], r["state_from"], r["state_to"]): r["member_count"] for r in rows}
    assert found == transitions_by_hand(world, date(2028, 3, 11))
    assert (
        found[date(2028, 1, 1), "stage", "none", stage_by_hand([Fact(kind, 1, at("2028-01-15 12:00"))], 1, LAST)] == 1
    )


def test_a_late_refund_restates_a_tier_and_says_so(world: psycopg.Connection[Row]) -> None:
    world.execute("UPDATE mart.tier_programmes SET review_days = 0, grace_days = 0")
    enter(world, [order("2028-01-05 12:00", amount=150), order("2028-02-01 12:00", 2, amount=150)])
    night(world, date(2028, 1, 20))
    night(world, date(2028, 1, 21))
    assert world.execute("SELECT * FROM mart.restatements").fetchall() == []
    row = {
        "refund_id": "r",
        "order_id": "o0",
        "source_id": "shop_a",
        "settled_at": at("2028-01-10 09:00"),
        "refund_amount": 60,
    }
    insert(world, "core.refunds", [row])
    for _ in range(2):  # the second time there is nothing to say any more
        night(world, date(2028, 1, 22))
        (said,) = world.execute("SELECT * FROM mart.restatements").fetchall()
        said.pop("restatement_id")
        assert said == {
            "business_date": date(2028, 1, 22), "about": "tier", "subject": "main", "source_id": "", "member_id": 1,
            "day_from": date(2028, 1, 10), "day_to": date(2028, 1, 22), "before": "t2", "after": "t1",
        }  # fmt: skip
    assert [(r["tier"], r["valid_from"]) for r in tiers(world)] == [("t2", date(2028, 1, 5)), ("t1", date(2028, 1, 10))]


def tiers(connection: psycopg.Connection[Row]) -> list[Row]:
    return connection.execute("SELECT * FROM mart.member_tiers WHERE member_id = 1 ORDER BY valid_from").fetchall()


def touched(connection: psycopg.Connection[Row]) -> set[tuple[int, str]]:
    return {
        (row["member_id"], row["day"])
        for row in connection.execute("SELECT member_id, day::text AS day FROM mart.touched_members")
    }


def touched_days(connection: psycopg.Connection[Row]) -> set[tuple[str, str]]:
    return {
        (row["source_id"], str(row["day"]))
        for row in connection.execute("SELECT source_id, day FROM mart.touched_days")
    }


def test_a_late_order_touches_its_day_and_the_later_days_of_its_buyer(world: psycopg.Connection[Row]) -> None:
    """Whose purchase is the first one changes on those days. Nobody else's days, and no earlier one, is looked at again."""
    enter(world, [order("2028-01-05 12:00"), order("2028-02-05 12:00"), order("2028-02-06 12:00", 2)])
    night(world, date(2028, 2, 20), ("touched_members", "member_days"))
    assert touched(world) == set(), "before the first marts there is nothing to remember"
    enter(world, [order("2028-01-20 12:00")], first_id=9)
    run_sql(world, load_path("touched_members"), {"business_date": date(2028, 2, 21)})
    assert touched(world) == {(1, "2028-01-20")}
    assert touched_days(world) == {("shop_a", "2028-01-20"), ("shop_a", "2028-02-05")}
    night(world, date(2028, 2, 22), ("touched_members", "member_days"))
    night(world, date(2028, 2, 22), ("touched_members",))
    assert touched(world) == set(), "what every mart knows is dropped"


def test_people_who_turn_out_to_be_one_are_touched_with_all_their_days(world: psycopg.Connection[Row]) -> None:
    enter(world, [order("2028-01-05 12:00"), order("2028-02-05 12:00", 2), order("2028-02-06 12:00", 3)])
    night(world, date(2028, 2, 20), ("touched_members", "member_days", "member_stages"))
    world.execute("UPDATE core.member_identities SET member_id = 1 WHERE identity_id = 2")
    world.execute("UPDATE core.members SET absorbed_by = 1 WHERE member_id = 2")
    night(world, date(2028, 2, 21), ("touched_members", "member_days", "member_stages"))
    assert touched(world) == {(1, "-infinity"), (2, "-infinity")}
    assert touched_days(world) == {("shop_a", "2028-01-05"), ("shop_a", "2028-02-05")}
    days_of_one = world.execute("SELECT day FROM mart.member_days WHERE member_id = 1 ORDER BY day").fetchall()
    assert [row["day"] for row in days_of_one] == [date(2028, 1, 5), date(2028, 2, 5)]
    for table in ("member_days", "member_stages"):
        assert world.execute(f"SELECT FROM mart.{table} WHERE member_id = 2").fetchall() == [], (
            "and of the other nothing is left"
        )


def test_the_order_of_the_input_changes_nothing(world: psycopg.Connection[Row]) -> None:
    """At one instant two shops, two cities, two ratings: what decides is said, and is not who came first."""
    noon = at("2028-02-29 12:00")
    some = [
        Fact("order", 1, noon, Bought(Decimal(10), 0, "上海", "shop_b", "马克杯")),
        Fact("order", 1, noon, Bought(Decimal(10), 0, "🏙️", "shop_a", "☕ MUG")),
        Fact("review", 1, noon, 5), Fact("review", 1, noon, 1), Fact("follow", 1, noon), Fact("mention", 1, noon),
    ]  # fmt: skip
    found = []
    for numbers in (range(6), reversed(range(6))):
        with world.transaction(force_rollback=True):
            for number in numbers:
                enter(world, [some[number]], first_id=number)
            night(world, date(2028, 3, 1))
            found.append(told(world))
    assert found[0] == found[1]
    (facts_row,) = found[0]["member_facts"]
    assert ",shop_a,mugs,🏙️,1," in facts_row


def test_months_before_the_earliest_change_are_left_alone(warehouse: psycopg.Connection[Row]) -> None:
    """What stands in January, here wrong on purpose, is not counted again when only February moved."""
    put(
        warehouse,
        {
            "mart.tier_programmes": [{}],
            "mart.member_stages": [
                {"member_id": 1, "valid_from": date(2026, 1, 5), "stage": "none", "reason": "r"},
                {
                    "member_id": 2,
                    "valid_from": date(2026, 1, 9),
                    "valid_to": date(2026, 2, 10),
                    "stage": "none",
                    "reason": "r",
                },
                {
                    "member_id": 2,
                    "valid_from": date(2026, 2, 10),
                    "stage": "aware",
                    "previous_stage": "none",
                    "reason": "r",
                },
            ],
        },
    )
    night = DEFAULTS["parameters"] | {"business_date": date(2026, 3, 14)}
    run_sql(warehouse, "mart/stage_transitions/load.sql", night)
    warehouse.execute("UPDATE mart.stage_transitions SET member_count = 99 WHERE month = '2026-01-01'")
    warehouse.execute("UPDATE mart.member_stages SET valid_to = '2026-02-20' WHERE member_id = 1")
    insert(warehouse, "mart.member_stages", [
        {"member_id": 1, "valid_from": date(2026, 2, 20), "stage": "loyal", "previous_stage": "none", "reason": "r"}
    ])  # fmt: skip
    run_sql(warehouse, "mart/stage_transitions/load.sql", night | {"business_date": date(2026, 3, 15)})
    found = {
        (str(row["month"]), row["state_from"], row["state_to"]): row["member_count"]
        for row in warehouse.execute("SELECT * FROM mart.stage_transitions")
    }
    assert found == {
        ("2026-01-01", "", "none"): 99,
        ("2026-02-01", "none", "loyal"): 1, ("2026-02-01", "none", "aware"): 1,
        ("2026-03-01", "loyal", "loyal"): 1, ("2026-03-01", "aware", "aware"): 1,
    }  # fmt: skip
