"""Laws of the marts of products and attribution: nights are the rebuild, pairs and claims are what counting by hand gives."""

from collections import Counter, defaultdict
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import combinations
from typing import Any

import psycopg
import pytest
from given import DEFAULTS, insert, put
from hypothesis import given, settings
from hypothesis import strategies as st

from nightmarket.dates import DEFAULT_ZONE
from nightmarket.marts import load_path
from nightmarket.warehouse import Row, run_sql

LAST = date(2026, 3, 31)
SPAN = 10  # days up to LAST on which things happen: few, so that they meet
TABLES = ("product_days", "products", "order_attributions", "attribution_by_run", "store_paths")
SHOPS = ("taobao_flagship", "pos_stores")
PEOPLE = (1, 2, 3)  # member = identity; identity 11 is member 1's, 12 is member 2's second one

moments = st.builds(
    lambda day, second: (
        datetime(LAST.year, LAST.month, LAST.day, tzinfo=DEFAULT_ZONE) - timedelta(days=day - 1, seconds=second)
    ),
    st.integers(0, SPAN),
    st.sampled_from([1, 300, 43_200, 86_100, 86_400]),
)
people = st.sampled_from((1, 1, 2, 11, 12, 3))
numbers = st.integers(0, 9)
products = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3)
orders = st.tuples(
    st.just("order"), people, moments, products, st.sampled_from(SHOPS), st.sampled_from([True, True, False])
)
facts = st.one_of(
    orders,
    orders,
    orders,
    st.tuples(
        st.just("message"), st.sampled_from(PEOPLE), moments, st.sampled_from(["accepted", "delivered", "bounced"])
    ),
    st.tuples(st.just("coupon_of"), numbers, st.sampled_from([-300, 0, 300, 3600])),
    st.tuples(st.just("click"), people, moments, st.sampled_from(PEOPLE)),
    st.tuples(st.just("scan"), people, moments),
    st.tuples(st.just("coupon"), st.sampled_from(PEOPLE), moments),
    st.tuples(st.just("moved"), numbers, moments),
    st.tuples(st.just("unpaid"), numbers),
    st.tuples(st.just("buyer"), numbers, people),
    st.tuples(st.just("title"), st.sampled_from("abcdef"), st.sampled_from(["bag", "postage", "mug"])),
    st.tuples(st.just("merge"), st.sampled_from([(1, 2), (1, 3), (2, 3)])),
)
many = settings(
    max_examples=40, derandomize=True
)  # fmt: skip


@pytest.fixture
def world(warehouse: psycopg.Connection[Row]) -> psycopg.Connection[Row]:
    """Three people who were sent a message in run r, two shops of which one is a store, three categories."""
    put(warehouse, {
        "people": PEOPLE,
        "core.accounts": [{"source_id": shop, "is_store": shop == "pos_stores"} for shop in SHOPS],
        "core.exposures": [
            {"member_id": person, "message_key": f"k{person}", "coupon_request": f"c{person}", "run_id": "r",
             "arm": "holdout" if person == 3 else "treatment"}
            for person in PEOPLE
        ],
        "mart.category_rules": [
            {"category": "service", "position": 1, "name_zh": "费", "name_en": "fees", "is_goods": False, "title_pattern": "postage"},
            {"category": "bags", "position": 2, "name_zh": "包", "name_en": "bags", "is_goods": True, "title_pattern": "bag"},
        ],
    })  # fmt: skip
    put(warehouse, {
        "core.identities": [{"identity_id": person + 10, "kind": "wechat_openid", "value": f"o{person}"} for person in (1, 2)],
        "core.member_identities": [{"identity_id": person + 10, "member_id": person} for person in (1, 2)],
    })  # fmt: skip
    return warehouse


def enter(connection: psycopg.Connection[Row], some: list[Any], first: int = 0) -> None:
    for number, (kind, *fact) in enumerate(some, start=first):
        match kind, fact:
            case "order", (person, at, lines, shop, is_paid):
                row = {
                    "order_id": f"o{number}",
                    "source_id": shop,
                    "identity_id": person,
                    "is_paid": is_paid,
                    "created_at": at,
                }
                insert(
                    connection,
                    "core.orders",
                    [row | {"paid_at": at if is_paid else None, "goods_amount": 10 * len(lines)}],
                )
                for line, product in enumerate(lines):
                    row = {"source_id": shop, "order_id": f"o{number}", "line_id": str(line), "product_id": product}
                    insert(connection, "core.order_lines", [row | {"line_amount": 10}])
            case "message", (person, at, what):
                row = {"event_id": f"e{number}", "message_key": f"k{person}", "kind": what, "occurred_at": at}
                insert(connection, "core.message_events", [row])
            case "click", (person, at, whose):
                row = {"event_id": f"e{number}", "identity_id": person, "message_key": f"k{whose}", "occurred_at": at}
                insert(connection, "core.interactions", [row])
            case "scan", (person, at):
                row = {"event_id": f"e{number}", "identity_id": person, "kind": "scan", "scene": f"s{number % 3}"}
                insert(connection, "core.interactions", [row | {"occurred_at": at}])
            case "coupon", (person, at):
                row = {
                    "platform_coupon_id": f"p{number}",
                    "kind": "redeemed",
                    "coupon_request": f"c{person}",
                    "member_id": person,
                }
                insert(connection, "core.coupon_events", [row | {"occurred_at": at}])
            case "coupon_of", (order, seconds):
                connection.execute(
                    "INSERT INTO core.coupon_events (issuer, platform_coupon_id, kind, coupon_request, member_id, face_amount,"
                    " occurred_at) SELECT 'wechat_pay', %s, 'redeemed', 'c' || m.member_id, m.member_id, 30,"
                    " o.paid_at + make_interval(secs => %s) FROM core.orders AS o JOIN core.member_identities AS m USING (identity_id)"
                    " WHERE o.is_paid AND o.order_id = %s", (f"p{number}", seconds, nth_order(connection, order)),
                )  # fmt: skip
            case "moved", (order, at):
                name = nth_order(connection, order)
                connection.execute("UPDATE core.orders SET paid_at = %s WHERE order_id = %s AND is_paid", (at, name))
            case "unpaid", (order,):
                name = nth_order(connection, order)
                connection.execute(
                    "UPDATE core.orders SET is_paid = FALSE, paid_at = NULL WHERE order_id = %s", (name,)
                )
            case "buyer", (order, person):
                name = nth_order(connection, order)
                connection.execute("UPDATE core.orders SET identity_id = %s WHERE order_id = %s", (person, name))
            case "title", (product, title):
                connection.execute(
                    "INSERT INTO core.products (source_id, product_id, title, seen_at) VALUES ('pos_stores', %s, %s, '2026-01-01')"
                    " ON CONFLICT (source_id, product_id) DO UPDATE SET title = excluded.title", (product, title),
                )  # fmt: skip
            case "merge", ((survivor, absorbed),):
                connection.execute(
                    "UPDATE core.members SET absorbed_by = (SELECT coalesce(absorbed_by, member_id) FROM core.members"
                    " WHERE member_id = %s) WHERE member_id = %s AND absorbed_by IS NULL", (survivor, absorbed),
                )  # fmt: skip
                connection.execute(
                    "UPDATE core.members SET absorbed_by = (SELECT absorbed_by FROM core.members WHERE member_id = %(absorbed)s)"
                    " WHERE absorbed_by = %(absorbed)s", {"absorbed": absorbed},
                )  # fmt: skip
                connection.execute(
                    "UPDATE core.member_identities AS mi SET member_id = m.absorbed_by FROM core.members AS m"
                    " WHERE m.member_id = mi.member_id AND m.absorbed_by IS NOT NULL"
                )


def nth_order(connection: psycopg.Connection[Row], number: int) -> str | None:
    """The order with that number, counted round and round."""
    names = [row["order_id"] for row in connection.execute("SELECT order_id FROM core.orders ORDER BY order_id")]
    return names[number % len(names)] if names else None


def night(connection: psycopg.Connection[Row], day: date) -> None:
    for table in ("touched_members", *TABLES):
        run_sql(connection, load_path(table), DEFAULTS["parameters"] | {"business_date": day})


def snapshot(connection: psycopg.Connection[Row]) -> dict[str, list[str]]:
    """The marts as text."""
    found = {}
    for table in TABLES:
        rows = connection.execute(f"SELECT t::text AS r FROM mart.{table} AS t").fetchall()
        found[table] = sorted(row["r"] for row in rows)
    return found


def rebuilt(connection: psycopg.Connection[Row]) -> dict[str, list[str]]:
    """The same marts from nothing."""
    connection.execute("DELETE FROM mart.marks")
    for table in TABLES:
        connection.execute(f"TRUNCATE mart.{table}")
    night(connection, LAST)
    return snapshot(connection)


@pytest.mark.slow
@many
@given(pieces=st.lists(st.lists(facts, min_size=3, max_size=12), min_size=2, max_size=3), data=st.data())
def test_nights_are_the_rebuild(world: psycopg.Connection[Row], pieces: list[list[Any]], data: Any) -> None:
    with world.transaction(force_rollback=True):
        number = 0
        for piece in pieces:
            enter(world, piece, number)
            number += len(piece)
            night(world, LAST - timedelta(days=data.draw(st.integers(0, SPAN))))
        night(world, LAST)
        nights = snapshot(world)
        assert nights == rebuilt(world)


@many
@given(some=st.lists(facts, max_size=14))
def test_products_add_up_to_the_orders(world: psycopg.Connection[Row], some: list[Any]) -> None:
    with world.transaction(force_rollback=True):
        enter(world, some)
        night(world, LAST)
        by_product = world.execute(
            "SELECT source_id, day, sum(gross_amount) AS amount, sum(unit_count) AS units FROM mart.product_days GROUP BY 1, 2"
            " ORDER BY 1, 2"
        ).fetchall()
        by_order = world.execute(
            "SELECT o.source_id, o.paid_at::date AS day, sum(l.line_amount) AS amount, sum(l.quantity) AS units FROM core.orders AS o"
            " JOIN core.order_lines AS l USING (source_id, order_id) WHERE o.is_paid AND o.paid_at < '2026-04-01' GROUP BY 1, 2"
            " ORDER BY 1, 2"
        ).fetchall()
        assert by_product == by_order


baskets = st.lists(st.sets(st.sampled_from("abcdefg"), min_size=1, max_size=6), max_size=25)


@many
@given(some=baskets)
def test_pairs_are_what_counting_gives(world: psycopg.Connection[Row], some: list[set[str]]) -> None:
    sunday, most, fewest = (
        date(2026, 3, 29),
        DEFAULTS["parameters"]["pair_max_products"],
        DEFAULTS["parameters"]["pair_min_orders"],
    )
    at = datetime(2026, 3, 20, 12, tzinfo=DEFAULT_ZONE)
    with world.transaction(force_rollback=True):
        enter(world, [("order", 1, at, sorted(basket) * 2, "pos_stores", True) for basket in some])
        night(world, LAST)
        run_sql(world, load_path("product_pairs"), DEFAULTS["parameters"] | {"business_date": LAST})
        found = world.execute(
            "SELECT product_a, product_b, order_count, support_rate, a_to_b_rate, b_to_a_rate, lift FROM mart.product_pairs"
            " WHERE business_date = %s ORDER BY pair_rank", (sunday,),
        ).fetchall()  # fmt: skip
    kept = [basket for basket in some if len(basket) <= most]
    single = Counter(product for basket in kept for product in basket)
    both = Counter(pair for basket in kept for pair in combinations(sorted(basket), 2))
    expected = []
    for (a, b), count in both.items():
        if count >= fewest:
            lift = Decimal(count * len(kept)) / (single[a] * single[b])
            expected.append((a, b, count, count / len(kept), count / single[a], count / single[b], lift))
    expected.sort(key=lambda pair: (-pair[6], -pair[2], pair[0], pair[1]))
    assert len(found) == min(len(expected), DEFAULTS["parameters"]["pairs_per_source"])
    for row, pair in zip(found, expected, strict=False):
        assert (row["product_a"], row["product_b"], row["order_count"]) == pair[:3]
        assert [float(row[name]) for name in ("support_rate", "a_to_b_rate", "b_to_a_rate", "lift")] == [
            pytest.approx(float(value)) for value in pair[3:]
        ]


@many
@given(some=st.lists(facts, max_size=14))
def test_claims_are_what_looking_back_gives(world: psycopg.Connection[Row], some: list[Any]) -> None:
    """The rule of last touch and of QR codes, order by order, over members as they are at the end."""
    with world.transaction(force_rollback=True):
        enter(world, some)
        night(world, LAST)
        found = {
            (row["model"], row["source_id"], row["order_id"]): (row["touch_kind"], row["touched_at"])
            for row in world.execute("SELECT * FROM mart.order_attributions WHERE model <> 'coupon_code'")
        }
        member = {row["identity_id"]: row["member_id"] for row in world.execute("SELECT * FROM core.member_identities")}
        orders = world.execute("SELECT * FROM core.orders WHERE is_paid AND paid_at < '2026-04-01'").fetchall()
    events: dict[str, list[Any]] = defaultdict(list)
    for kind, *fact in some:
        events[kind].append(fact)
    expected = {}
    for order in orders:
        buyer, paid = member[order["identity_id"]], order["paid_at"]
        failed = {person for person, at, what in events["message"] if what == "bounced" and at <= paid}
        touches = [
            (at, "message") for person, at, what in events["message"]
            if member[person] == buyer and what != "bounced" and person not in failed and at <= paid < at + timedelta(days=3)
        ]  # fmt: skip
        touches += [
            (at, "click")
            for person, at, _ in events["click"]
            if member[person] == buyer and at <= paid < at + timedelta(days=7)
        ]
        scans = [
            (at, "scan")
            for person, at in events["scan"]
            if member[person] == buyer and at <= paid < at + timedelta(days=30)
        ]
        for model, kinds in (("last_touch", touches), ("qr_scene", scans)):
            if kinds:
                at, kind = max(kinds, key=lambda touch: (touch[0], touch[1] == "click"))
                expected[model, order["source_id"], order["order_id"]] = (kind, at)
    assert found == expected


SAID = st.tuples(
    st.sampled_from(["wechat", "sms", "email", "push"]),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from(["person", "import"]),
    moments,
)
FOLLOWED = st.tuples(st.sampled_from([1, 2, 3]), st.booleans(), moments, moments)
SUPPRESSED = st.tuples(st.integers(1, 8), moments, st.booleans())


@many
@given(said=st.lists(SAID, max_size=12), followed=st.lists(FOLLOWED, max_size=4, unique_by=lambda f: f[0]),
       suppressed=st.lists(SUPPRESSED, max_size=4), asked=st.integers(0, SPAN))  # fmt: skip
def test_the_cube_reaches_whom_the_rule_of_core_reaches(
    warehouse: psycopg.Connection[Row], said: list[Any], followed: list[Any], suppressed: list[Any], asked: int
) -> None:
    kinds = {
        1: "wechat_openid",
        2: "wechat_openid",
        3: "wechat_openid",
        4: "phone",
        5: "email",
        6: "email",
        7: "mall_id",
        8: "phone",
    }
    channels = {"wechat_openid": "wechat", "phone": "sms", "email": "email", "mall_id": "push"}
    day = LAST - timedelta(days=asked)
    with warehouse.transaction(force_rollback=True):
        values = {number: f"{kind}:{number}" for number, kind in kinds.items()}
        put(warehouse, {
            "core.members": [{"member_id": member} for member in PEOPLE],
            "core.identities": [{"identity_id": n, "kind": kind, "value": values[n]} for n, kind in kinds.items()],
            "core.member_identities": [{"identity_id": n, "member_id": n % 3 + 1} for n in kinds],
            "core.consents": [
                {"event_id": f"e{n}", "identity_id": person, "channel": channel, "is_granted": yes, "origin": origin, "occurred_at": at}
                for n, (channel, person, yes, origin, at) in enumerate(said)
            ],
            "core.followers": [
                {"source_id": "w", "openid": values[person], "identity_id": person, "is_following": follows, "batch_id": 1,
                 "followed_at": min(since, until), "unfollowed_at": None if follows else max(since, until)}
                for person, follows, since, until in followed
            ],
            "core.suppression_events": [
                {"source_id": "s", "event_id": f"e{n}", "channel": channels[kinds[person]], "kind": kinds[person], "origin": "person",
                 "address": values[person], "is_person": person_wide, "is_suppressed": True, "reason": f"r{n}", "evidence": "-",
                 "occurred_at": at}
                for n, (person, at, person_wide) in enumerate(suppressed)
            ],
        })  # fmt: skip
        run_sql(warehouse, load_path("asset_cube_daily"), DEFAULTS["parameters"] | {"business_date": day})
        cube = warehouse.execute("SELECT * FROM mart.asset_cube_daily").fetchone()
        assert cube
        rows = warehouse.execute(
            "SELECT channel, member_id FROM core.reachability_as_of((%s::date + 1)::timestamptz, 'marketing')"
            " WHERE has_consent AND NOT is_suppressed", (day,),
        ).fetchall()  # fmt: skip
    counts = Counter(row["channel"] for row in rows)
    assert {name: cube[f"reachable_{name}_count"] for name in channels.values()} == {
        name: counts[name] for name in channels.values()
    }
    assert cube["reachable_count"] == len({row["member_id"] for row in rows})
