"""The sandbox's other shops: real baskets, amounts that add up, lists that hold what they should, a truth that can be checked."""

import itertools
import sys
from collections import Counter, defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sandbox_client import RawClient

from sandbox_process import Sandbox

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "include"))
from sandbox.clock import DAY, HOUR  # noqa: E402
from sandbox.faults import EMOJI, Fault, clock_of, emptied, shift_rows, spoil_rows  # noqa: E402
from sandbox.shops import SHARES, Sale, Shop, Shops, yuan  # noqa: E402
from sandbox.world import DATA_FILE, History, load_history  # noqa: E402

ANCHOR = date(2026, 3, 14)
NAMES = list(SHARES)
ONLINE = [name for name in NAMES if name != "pos"]


@pytest.fixture(scope="module")
def history() -> History:
    return load_history(7, ANCHOR, 150)


@pytest.fixture(scope="module")
def small() -> History:
    return load_history(7, ANCHOR, 3)


def everything(shop: Shop) -> list[Sale]:
    return shop.created_between(0, 1 << 40, 1 << 40)


def picture(shop: Shop) -> list[Any]:
    return [
        (
            sale.order_id,
            sale.person and sale.person.phone,
            [(line.item, line.num, line.price, line.paid) for line in sale.lines],
            (sale.created, sale.paid_at, sale.shipped_at, sale.ended_at, sale.closed_at),
            [(refund.refund_id, refund.amount, refund.created, refund.settled) for refund in sale.refunds],
            [(review.review_id, review.stars, review.content) for review in sale.reviews],
        )
        for sale in everything(shop)
    ]


# ------------------------------------------------------------------------------------------------------------ baskets


def baskets(known: bool) -> dict[str, list[tuple[str, int, int]]]:
    """invoice -> (stock code, quantity of at most 20, fen) of its sold lines, straight from the file."""
    frame = pd.read_csv(DATA_FILE, dtype=str, keep_default_na=False)
    frame = frame[((frame["CustomerID"] != "") == known) & frame["InvoiceNo"].str.isdecimal()]
    found: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for invoice, code, num, price in zip(
        frame["InvoiceNo"], frame["StockCode"], frame["Quantity"], frame["UnitPrice"], strict=True
    ):
        if int(num) > 0 and float(price) > 0:
            found[invoice].append((code, min(int(num), 20), max((round(float(price) * 1000) + 5) // 10, 1)))
    return found


def test_baskets_are_real(history: History) -> None:
    beginnings = {tuple(lines[:5]) for lines in baskets(known=True).values()}
    pieces: set[tuple[Any, ...]] = set()
    for lines in baskets(known=False).values():
        for start in range(0, len(lines), 8):
            pieces |= {tuple(lines[start:end]) for end in range(start + 1, min(start + 8, len(lines)) + 1)}
    for name, shop in Shops(history).items():
        wanted = pieces if name == "pos" else beginnings
        for sale in everything(shop):
            basket = tuple((history.items[line.item].code, line.num, line.price) for line in sale.lines)
            assert basket in wanted, (name, basket)


def test_each_shop_has_its_share(history: History) -> None:
    paid = sum(trade.paid is not None for trade in history.trades)
    for name, shop in Shops(history).items():
        sales = everything(shop)
        before = [sale for sale in sales if sale.created < history.end]
        assert max(12, paid * SHARES[name]) * 0.8 <= len(before) <= max(12, paid * SHARES[name]) + 1
        assert len(sales) - len(before) >= 4
        assert max(sale.created for sale in sales) <= history.end + 30 * DAY


@pytest.mark.parametrize("name", ONLINE)
def test_the_smallest_world_has_every_kind_of_sale(small: History, name: str) -> None:
    shop = Shop(name, small)
    later = small.end + 90 * DAY
    sales = everything(shop)
    assert len(sales) >= 16
    assert {sale.state(later) for sale in sales} == {"finished", "closed_unpaid", "refunded"}
    refunds = shop.refunds_changed_between(0, later, later)
    assert {refund.state(later) for refund in refunds} == {"settled", "refused", "requested"}
    assert any(review.stars for review in shop.reviews_between(0, later, later))
    assert any(sale.discount for sale in sales)
    assert any(sale.postage for sale in sales)
    assert any(not customer.sales for customer in shop.customers(later))


def test_the_tills_sell_mostly_to_nobody_in_particular(history: History) -> None:
    sales = everything(Shops(history)["pos"])
    share = sum(sale.person is None for sale in sales) / len(sales)
    assert 0.55 < share < 0.8
    assert all(sale.paid_at == sale.ended_at == sale.created and not sale.reviews for sale in sales)
    assert all(10 <= (sale.created + 8 * HOUR) % DAY / HOUR <= 22 for sale in sales)


# ------------------------------------------------------------------------------------------------------------ sums


@pytest.mark.parametrize("name", NAMES)
def test_amounts_add_up_to_the_fen(history: History, name: str) -> None:
    for sale in everything(Shops(history)[name]):
        assert sale.goods == sum(line.price * line.num for line in sale.lines)
        assert sale.paid_amount == sale.goods - sale.discount + sale.postage
        assert sum(line.paid for line in sale.lines) == sale.goods - sale.discount
        assert all(line.paid > 0 for line in sale.lines)
        for refund in sale.refunds:
            assert 0 < refund.amount <= sale.lines[refund.line].paid
            assert 0 < refund.num <= sale.lines[refund.line].num
            assert sale.paid_at is not None
            assert refund.created >= sale.paid_at


@pytest.mark.parametrize("name", NAMES)
def test_ids_need_64_bits_and_are_unique(history: History, name: str) -> None:
    sales = everything(Shops(history)[name])
    for ids in (
        [sale.order_id for sale in sales],
        [refund.refund_id for sale in sales for refund in sale.refunds],
        [review.review_id for sale in sales for review in sale.reviews],
    ):
        assert len(set(ids)) == len(ids)
        assert all(2**53 < number < 2**63 for number in ids)


def test_people_are_shared_with_taobao_or_the_shops_own(history: History) -> None:
    known = {person.phone for person in history.people}
    phones: set[str] = set()
    for name, shop in Shops(history).items():
        people = {customer.person.phone: customer for customer in shop.customers(1 << 40)}
        own = people.keys() - known
        assert own, name
        assert people.keys() & known, name
        assert not own & phones, "two shops made the same person"
        phones |= own
        assert all(phone.startswith("100") and len(phone) == 11 for phone in people)
        numbers = [customer.number for customer in people.values()]
        assert len(set(numbers)) == len(numbers) == len(shop.customers(1 << 40))


def test_the_seed_decides_everything(history: History) -> None:
    again, other = load_history(7, ANCHOR, 150), load_history(8, ANCHOR, 150)
    for name in NAMES:
        assert picture(Shop(name, history)) == picture(Shop(name, again))
        assert picture(Shop(name, history)) != picture(Shop(name, other))


# ------------------------------------------------------------------------------------------------------------ lists


@pytest.mark.parametrize("name", NAMES)
def test_lists_hold_what_changed_and_nothing_from_the_future(history: History, name: str) -> None:
    shop = Shop(name, history)
    now = history.end + 2 * DAY
    sales = [sale for sale in everything(shop) if sale.created <= now]
    start, end = now - 60 * DAY, now - 5 * DAY
    created = shop.created_between(start, end, now)
    assert (
        created == sorted((s for s in sales if start <= s.created <= end), key=lambda s: (s.created, s.order_id))[::-1]
    )
    changed = shop.changed_between(start, end, now)
    assert {sale.order_id for sale in changed} == {s.order_id for s in sales if start <= s.modified(now) <= end}
    assert [sale.modified(now) for sale in changed] == sorted((s.modified(now) for s in changed), reverse=True)
    assert all(sale.modified(now) <= now for sale in shop.changed_between(0, 1 << 40, now))
    assert len(shop.changed_between(0, 1 << 40, now)) == len(sales) == shop.truth(now)["orders"]
    refunds = [refund for sale in sales for refund in sale.refunds if refund.created <= now]
    listed = shop.refunds_changed_between(0, 1 << 40, now)
    assert sorted(r.refund_id for r in listed) == sorted(r.refund_id for r in refunds)
    newest = everything(shop)[0]
    assert newest.created > now
    assert shop.sale(newest.order_id, now) is None
    assert shop.sale(sales[0].order_id, now) is sales[0]


@pytest.mark.parametrize("name", ONLINE)
def test_a_sale_goes_through_its_states(history: History, name: str) -> None:
    allowed = {
        ("unpaid", "paid"),
        ("unpaid", "closed_unpaid"),
        ("paid", "shipped"),
        ("paid", "refunded"),
        ("shipped", "finished"),
        ("shipped", "refunded"),
    }
    seen = set()
    for sale in everything(Shop(name, history)):
        instants = sorted(sale.changes())
        states = [sale.state(at) for at in instants]
        assert [sale.modified(at) for at in instants] == instants
        seen |= {(before, after) for before, after in itertools.pairwise(states) if before != after}
    assert seen <= allowed
    assert {("unpaid", "paid"), ("unpaid", "closed_unpaid"), ("shipped", "finished")} <= seen


def test_customers_count_what_was_paid(history: History) -> None:
    shop, now = Shop("youzan", history), history.end + 3 * DAY
    paid: Counter[str] = Counter()
    for sale in shop.created_between(0, now, now):
        if sale.is_paid(now):
            assert sale.person is not None
            paid[sale.person.phone] += sale.paid_amount
    for customer in shop.customers(now):
        assert customer.spent(now) == paid[customer.person.phone]
        assert customer.modified(now) <= now
        assert (customer.last_order(now) is None) == (customer.order_count(now) == 0)
        assert shop.customer(customer.number, now) is customer is shop.customer_of(customer.person)
        assert customer.is_member == (customer.level > 0)
    assert shop.truth(now)["buyers"] == len(paid)


def test_a_touched_sale_is_modified_until_reset(history: History) -> None:
    shop, now = Shop("jd", history), history.end + HOUR
    sale = shop.created_between(0, now, now)[-1]
    before = shop.truth(now), shop.changed_between(0, now, now)
    shop.touch(sale, now + 60)
    assert shop.changed_between(now, now + 60, now + 60)[0] is sale
    assert sale.modified(now + 60) == now + 60
    assert sale.remark
    assert shop.truth(now) == before[0], "a remark is no new order"
    shop.reset()
    assert (shop.truth(now), shop.changed_between(0, now, now)) == before
    assert sale.remark is None


def test_the_shop_lists_what_it_sells(history: History) -> None:
    shop = Shop("woocommerce", history)
    listed = {item.num_iid: item for item in shop.items()}
    sold = {history.items[line.item].num_iid for sale in everything(shop) for line in sale.lines}
    assert set(listed) == sold
    assert {item.is_listed for item in listed.values()} == {True, False}


# ------------------------------------------------------------------------------------------------------------ the process


def test_the_control_api_tells_the_truth_of_every_shop(sandbox: Sandbox, history: History) -> None:
    told = sandbox.control("GET", "/truth")["shops"]
    assert list(told) == NAMES
    now = history.end + 2.5 * HOUR
    for name, truth in told.items():
        sales = [sale for sale in everything(Shop(name, history)) if sale.created <= now]
        paid = [sale for sale in sales if sale.paid_at and sale.paid_at <= now]
        assert truth["orders"] == len(sales)
        assert truth["lines"] == sum(len(sale.lines) for sale in sales)
        assert truth["paid_amount"] == yuan(sum(sale.paid_amount for sale in paid))
    phones = {person["phone"] for person in sandbox.control("GET", "/people")["people"]}
    assert {customer.person.phone for customer in Shop("jd", history).customers(1 << 40)} <= phones


def test_shops_go_on_selling_as_the_clock_moves(sandbox: Sandbox) -> None:
    sandbox.control("POST", "/reset", {})
    before = sandbox.control("GET", "/truth")["shops"]
    sandbox.control("POST", "/clock", {"now": "2026-04-13T23:59:00+08:00"})
    after = sandbox.control("GET", "/truth")["shops"]
    assert all(after[name]["orders"] > before[name]["orders"] for name in NAMES)
    sandbox.control("POST", "/reset", {})
    assert sandbox.control("GET", "/truth")["shops"] == before


# ------------------------------------------------------------------------------------------------------------ faults


ROWS: list[dict[str, Any]] = [
    {"id": "9007199254740993", "note": "a", "city": "b", "lines": [{"sku": 9007199254740995}, {"sku": 2}]},
    {"id": "9007199254740997", "note": None, "lines": []},
]
PATHS: dict[str, tuple[str, ...]] = {
    "ids": ("id", "lines.sku"),
    "nullable": ("city",),
    "required": ("absent", "id"),
    "texts": ("note",),
}


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        (
            "ids_as_numbers",
            {"id": 9007199254740993, "lines": [{"sku": "9007199254740995"}, {"sku": "2"}]},
            9007199254740997,
        ),
        ("null_fields", {"city": None}, "9007199254740997"),
        ("emoji", {"note": "a" + EMOJI}, "9007199254740997"),
        ("call_limit", {}, "9007199254740997"),
    ],
)
def test_rows_are_spoilt_as_named(kind: str, first: dict[str, Any], second: Any) -> None:
    kept = str(ROWS)
    rows = spoil_rows(Fault("jd", "*", kind), ROWS, **PATHS)
    assert rows[0] == ROWS[0] | first
    assert rows[1]["id"] == second
    assert str(ROWS) == kept, "the world's own rows must stay as they are"


def test_a_missing_field_is_missing_in_one_row_only() -> None:
    rows = spoil_rows(Fault("jd", "*", "missing_fields"), ROWS, **PATHS)
    assert "id" not in rows[0]
    assert rows[0]["city"] == "b"
    assert rows[1:] == ROWS[1:]


def test_the_other_helpers(history: History) -> None:
    shop, now = Shop("jd", history), history.end + 500.0
    assert spoil_rows(Fault("jd", "*", "duplicate_page"), ROWS) == ROWS + ROWS
    assert spoil_rows(None, ROWS, **PATHS) is ROWS
    found = shop.changed_between(0, now - 600, now)
    assert not shift_rows(None, found, shop.touch, now)
    assert shift_rows(Fault("jd", "*", "shifting_page"), found, shop.touch, now)
    assert shop.changed_between(0, now - 600, now) == found[3:]
    assert clock_of(Fault("jd", "*", "wrong_clock", seconds=300), now) == now + 300
    assert clock_of(Fault("jd", "*", "emoji", seconds=300), now) == now == clock_of(None, now)
    assert emptied(Fault("jd", "*", "empty_last_page"), ROWS) == []
    assert emptied(None, ROWS) is ROWS


def test_a_fault_that_finds_nothing_to_spoil_has_not_happened(sandbox: Sandbox) -> None:
    """It stays for the first answer that has rows, and the counters do not tell of it."""
    fault = {"platform": "own_pages", "kind": "duplicate_page", "times": 1}
    sandbox.control("POST", "/faults", {"faults": [fault]})
    raw = RawClient(sandbox.access)
    assert raw.events(raw.now() - timedelta(days=3000), raw.now() - timedelta(days=2999)).json()["events"] == []
    assert "own_pages" not in sandbox.control("GET", "/counters")["faults_fired"]
    rows = raw.events(raw.now() - timedelta(days=3), raw.now(), size=2).json()["events"]
    assert len(rows) == 4
    assert sandbox.control("GET", "/counters")["faults_fired"]["own_pages"] == {"duplicate_page": 1}
