"""Shopify: the bucket of calls, cursors, what the simulator refuses, and that core holds what the shop holds."""

import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import malls
import psycopg
import pytest
import requests
from nights import everything, one

from nightmarket import dates, landing, mapping
from nightmarket.platforms import shopify
from nightmarket.platforms.base import AuthError, BadPayload, NotFound, PlatformDown, Refused
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row

SOURCES = """
sources:
  shopify_mall:
    platform: shopify
    kind: shop
    name: 夜市海外商城
    conn_id: shopify_mall
    streams:
      orders: {window_minutes: 525600}
      customers: {window_minutes: 525600}
      products: {}
"""


@pytest.fixture
def shop(sandbox: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    malls.use_sources(monkeypatch, tmp_path, SOURCES)
    return sandbox


def differences(db: psycopg.Connection[Row], shop: Any) -> dict[str, Any]:
    truth = shop.control("GET", "/truth")["shops"]["shopify"]
    # a refund exists here once it is made, and reviews are a matter of apps
    return malls.differences(db, "shopify_mall", truth | {"refunds": truth["refunds_settled"]}, "reviews")


# ------------------------------------------------------------------------------------------------------------- wire
def client(recorded: malls.Recorded, **changes: Any) -> shopify.Client:
    given = {"host": "https://nightmarket.myshopify.com", "password": "shpat_1", "extra": {}} | changes
    credentials = Credentials("shopify_mall", given["host"], "", given["password"], extra=given["extra"])
    return shopify.connect(credentials, recorded.transport("shopify"), options=shopify.Options())


def test_later_pages_carry_the_cursor_and_the_limit_only_and_stay_on_the_shop() -> None:
    link = (
        '<https://evil.test/a?page_info=BACK>; rel="previous", <https://evil.test/x?limit=2&page_info=NEXT>; rel="next"'
    )
    recorded = malls.Recorded((200, {"Link": link}, {"orders": [{"id": 1}]}), (200, {}, {"orders": [{"id": 2}]}))
    found = list(client(recorded).pages("/orders.json", "orders", {"status": "any"}))
    assert found == [[{"id": 1}], [{"id": 2}]]
    first, second = (urlsplit(url) for _, url, _ in recorded.asked)
    assert dict(parse_qsl(first.query)) == {"status": "any", "limit": "250"}
    assert dict(parse_qsl(second.query)) == {"page_info": "NEXT", "limit": "250"}
    assert second.netloc == "nightmarket.myshopify.com"
    assert second.path == "/admin/api/2024-10/orders.json"
    assert recorded.asked[0][2]["headers"]["X-Shopify-Access-Token"] == "shpat_1"


def test_a_cursor_that_leads_back_ends_the_walk() -> None:
    recorded = malls.Recorded((200, {"Link": '<https://x/a?page_info=A>; rel="next"'}, {"orders": []}))
    with pytest.raises(BadPayload, match="page 2 leads back to an earlier page"):
        list(client(recorded).pages("/orders.json", "orders", {}))


@pytest.mark.parametrize(
    ("status", "content", "kind", "words"),
    [
        (401, {"errors": "[API] Invalid API key"}, AuthError, "install the app in the shop again"),
        (403, {"errors": "[API] This action requires merchant approval for read_orders scope."}, AuthError, "lacks read_orders;"),
        (403, b"nothing", AuthError, "lacks the scope of this list"),
        (402, {"errors": "Unavailable Shop"}, AuthError, "frozen until its owner pays"),
        (423, {"errors": "Locked"}, AuthError, "is locked"),
        (404, {"errors": "Not Found"}, NotFound, "api_version"),
        (301, b"", Refused, ".myshopify.com"),
        (400, {"errors": {"limit": "x"}}, Refused, "HTTP 400"),
    ],
)  # fmt: skip
def test_errors_become_types_and_sentences(status: int, content: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        client(malls.Recorded((status, {}, content))).count("/orders/count.json", {})
    assert words in str(caught.value)
    assert str(caught.value).startswith("shopify, /orders/count.json: ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": ""}, "host (https://<shop>.myshopify.com) is missing"),
        ({"password": ""}, "password (Admin API access token) is missing"),
        ({"host": "nightmarket.myshopify.com"}, "host must begin with https://"),
        ({"extra": {"api_version": "latest"}}, "extra.api_version is 'latest'; it looks like 2024-10"),
    ],
)
def test_a_connection_that_cannot_work_says_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match="connection 'shopify_mall': ") as caught:
        client(malls.Recorded((200, {}, {})), **changes)
    assert words in str(caught.value)


def test_the_bucket_is_left_a_tenth_free_and_empties_with_time() -> None:
    bucket = shopify.Bucket()
    assert bucket.wait(0) == 0
    bucket.saw("30/40", 100.0)
    assert bucket.wait(100.0) == 0
    bucket.saw("38/40", 100.0)
    assert bucket.wait(100.0) == pytest.approx(1.5)  # 38 + this call, down to 36, at two a second
    assert bucket.wait(101.0) == pytest.approx(0.5)
    assert bucket.wait(110.0) == 0
    bucket.saw("400/400", 100.0)  # the largest plan leaks ten times as fast
    assert bucket.wait(100.0) == pytest.approx(41 / 20)
    bucket.saw("nonsense", 200.0)
    assert bucket.size == 400


# -------------------------------------------------------------------------------------------------------- simulator
def get(shop: Any, path: str, token: str | None = None, **query: Any) -> requests.Response:
    access = shop.access["shopify"]
    head = {"X-Shopify-Access-Token": access["access_token"] if token is None else token}
    return requests.get(f"{access['base_url']}/admin/api/2024-10/{path}", params=query, headers=head, timeout=30)


def cursor(answer: requests.Response) -> str:
    return dict(parse_qsl(urlsplit(answer.links["next"]["url"]).query))["page_info"]


def test_open_orders_only_unless_any_is_asked_for(shop: Any) -> None:
    everything_there = get(shop, "orders/count.json", status="any").json()["count"]
    assert get(shop, "orders/count.json").json()["count"] < everything_there
    assert len(get(shop, "orders.json", status="any", limit=250).json()["orders"]) == everything_there > 10


def test_page_info_stands_alone(shop: Any) -> None:
    first = get(shop, "orders.json", status="any", limit=2)
    answer = get(shop, "orders.json", page_info=cursor(first), limit=2, status="any")
    assert answer.status_code == 400
    assert answer.json() == {"errors": {"status": "status cannot be passed when page_info is present"}}
    second = get(shop, "orders.json", page_info=cursor(first), limit=2)
    ids = [row["id"] for answer in (first, second) for row in answer.json()["orders"]]
    assert len(set(ids)) == 4
    assert all(isinstance(number, int) and number > 1 << 53 for number in ids)
    updated = [row["updated_at"] for answer in (first, second) for row in answer.json()["orders"]]
    assert updated == sorted(updated)


@pytest.mark.parametrize(
    ("path", "query", "status", "words"),
    [
        ("orders.json", {"limit": 251}, 400, "between 1 and 250"),
        ("orders.json", {"status": "paid"}, 400, "open, closed, cancelled, any"),
        ("orders.json", {"updated_at_min": "2026-01-01T00:00:00"}, 400, "offset"),
        ("orders.json", {"page_info": "made-up"}, 400, "Invalid value"),
        ("carts.json", {}, 404, "Not Found"),
    ],
)
def test_the_simulator_refuses_what_shopify_refuses(
    shop: Any, path: str, query: dict[str, Any], status: int, words: str
) -> None:
    answer = get(shop, path, **query)
    assert answer.status_code == status
    assert words in answer.text


def test_tokens_and_scopes(shop: Any) -> None:
    assert get(shop, "orders.json", token="shpat_other").status_code == 401
    narrow = shop.access["shopify"]["narrow_token"]
    refused = get(shop, "customers.json", token=narrow)
    assert refused.status_code == 403
    assert "merchant approval for read_customers scope" in refused.text
    recent = get(shop, "orders/count.json", token=narrow, status="any").json()["count"]
    assert 0 < recent < get(shop, "orders/count.json", status="any").json()["count"]


def test_a_full_bucket_is_429_with_a_decimal_wait(shop: Any) -> None:
    shop.control("POST", "/settings", {"shopify_bucket": 3, "shopify_leak": 2.5})
    answers = [get(shop, "shop.json") for _ in range(5)]
    assert [answer.status_code for answer in answers[:3]] == [200, 200, 200]
    assert re.fullmatch(r"[123]/3", answers[0].headers["X-Shopify-Shop-Api-Call-Limit"])
    assert answers[4].status_code == 429
    assert answers[4].headers["Retry-After"] == "0.4"
    assert "Exceeded 2 calls per second" in answers[4].json()["errors"]


# ------------------------------------------------------------------------------------------------------- extraction
def test_a_night_equals_the_truth_and_reading_or_mapping_again_changes_nothing(
    db: psycopg.Connection[Row], shop: Any
) -> None:
    summaries = malls.night("shopify_mall", "first", page_sizes={"*": 3})
    assert malls.requests_to(shop, "shopify")["orders"] > 4, "the list had one page only"
    assert differences(db, shop) == {}
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0
    before = everything(db)
    again = malls.night("shopify_mall", "second")
    assert {name: summary.changed for name, summary in again.items()} == dict.fromkeys(summaries, 0)
    assert everything(db) == before
    assert mapping.reset_mappings(db, "shopify_mall") > 0
    mapping.map_source("shopify_mall", run_id="third")
    mapping.resolve_members(run_id="third")
    assert everything(db) == before
    assert malls.clear_values_at_rest(db, shop, "shopify_mall") == []
    parcels = one(db, "SELECT count(*) FROM core.shipments WHERE carrier = 'SF Express' AND shipment_id LIKE 'SF%'")
    assert parcels == one(db, "SELECT count(*) FROM core.orders WHERE shipped_at IS NOT NULL") > 0
    assert one(db, "SELECT count(*) FROM core.shipments WHERE signed_at IS NOT NULL") > 0


def test_the_bucket_never_overflows(db: psycopg.Connection[Row], shop: Any) -> None:
    """Learned from the answers: more calls than the bucket holds, and not one is refused."""
    shop.control(
        "POST", "/settings", {"shopify_bucket": 20, "shopify_leak": 1.0}
    )  # the pace of a plan of 20, 1 a second
    shop.control("POST", "/settings", {"shopify_leak": 20 / shopify.BUCKET_SECONDS})
    landing.land("shopify_mall", "products", run_id="r", until=dates.now(), page_sizes={"*": 4})
    calls = malls.requests_to(shop, "shopify")
    assert sum(calls.values()) > 20
    assert malls.refused(shop, "shopify") == {}


def test_nights_that_follow_equal_the_truth_while_lists_shift(
    db: psycopg.Connection[Row], shop: Any, set_clock: Any
) -> None:
    malls.night("shopify_mall", "one")
    for day in ("2026-03-18", "2026-03-27", "2026-04-08"):
        malls.move(shop, set_clock, f"{day}T02:30:00+08:00")
        malls.fault(shop, "shopify", "shifting_page", method="orders", times=2)
        malls.night("shopify_mall", day, page_sizes={"*": 2})
        shop.control("POST", "/faults", {"faults": []})
        malls.move(shop, set_clock, f"{day}T02:40:00+08:00")  # what moved, moved after the window's end
        malls.night("shopify_mall", day + " later")
        assert differences(db, shop) == {}


# the others: tests/faults/test_matrix.py
@pytest.mark.parametrize("kind", ["empty_last_page", "missing_fields"])
def test_a_fault_that_passes_is_repaired(db: psycopg.Connection[Row], shop: Any, kind: str) -> None:
    malls.fault(shop, "shopify", kind, times=2, after=2, seconds=1)
    malls.night("shopify_mall", "first", page_sizes={"*": 4})
    shop.control("POST", "/faults", {"faults": []})
    malls.night("shopify_mall", "later")
    assert differences(db, shop) == {}
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


def test_without_the_count_the_cursor_is_trusted(
    db: psycopg.Connection[Row], shop: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    malls.use_sources(monkeypatch, tmp_path, SOURCES + "    options: {count: false}\n")
    malls.night("shopify_mall", "r", page_sizes={"*": 3})
    assert differences(db, shop) == {}
    assert "orders/count" not in malls.requests_to(shop, "shopify")


def test_an_empty_page_that_stays_is_told(db: psycopg.Connection[Row], shop: Any) -> None:
    malls.fault(shop, "shopify", "empty_last_page", method="orders", times=-1)
    with pytest.raises(PlatformDown, match="0 rows after 4 walks, the platform counts"):
        landing.land("shopify_mall", "orders", run_id="r", until=dates.now())


# ---------------------------------------------------------------------------------------------------------- mapping
def order(number: int, financial: str, **more: Any) -> dict[str, Any]:
    line = {"id": number * 10, "product_id": 5, "sku": "A", "title": "Mug", "quantity": 2, "price": "10.00",
            "discount_allocations": [{"amount": "1.50"}, {"amount": "0.50"}]}  # fmt: skip
    times = {"created_at": "2026-03-01T09:00:00+08:00", "updated_at": "2026-03-02T09:00:00+08:00"}
    return {"id": number, "financial_status": financial, "fulfillment_status": None, "total_price": "18.00", **times,
            "line_items": [line], "fulfillments": [], "refunds": [], **more}  # fmt: skip


SENT = {"status": "success", "created_at": "2026-03-01T12:00:00+08:00", "updated_at": "2026-03-04T12:00:00+08:00"}


STATES = [
    (order(1, "pending"), "unpaid", False),
    (order(2, "authorized"), "unpaid", False),
    (order(3, "partially_paid"), "unpaid", False),
    (order(4, "pending", cancelled_at="2026-03-02T09:00:00+08:00"), "cancelled", False),
    (order(5, "voided"), "cancelled", False),
    (order(6, "paid"), "paid", True),
    (order(7, "paid", fulfillment_status="partial", fulfillments=[SENT]), "paid", True),
    (order(8, "paid", fulfillment_status="fulfilled", fulfillments=[SENT]), "shipped", True),
    (order(9, "paid", fulfillment_status="fulfilled", fulfillments=[SENT | {"shipment_status": "delivered"}]), "signed", True),
    (order(10, "partially_refunded", fulfillment_status="fulfilled", fulfillments=[SENT], closed_at="2026-03-09T09:00:00+08:00"), "finished", True),
    (order(11, "refunded"), "refunded", True),
    (order(12, "paid", cancelled_at="2026-03-02T09:00:00+08:00"), "refunded", True),
]  # fmt: skip


def test_every_state_has_one_meaning(db: psycopg.Connection[Row], shop: Any) -> None:
    malls.put(db, "shopify_mall", "orders", *(payload for payload, _, _ in STATES))
    mapping.map_source("shopify_mall", run_id="m")
    rows = db.execute("SELECT status, is_paid FROM core.orders ORDER BY order_id::int")
    assert [tuple(row.values()) for row in rows] == [case[1:] for case in STATES]
    assert one(db, "SELECT count(*) FROM core.orders WHERE goods_amount <> 20 OR paid_amount <> 18") == 0
    assert one(db, "SELECT count(*) FROM core.order_lines WHERE paid_amount <> 18") == 0


def test_a_refund_is_what_was_really_paid_back(db: psycopg.Connection[Row], shop: Any) -> None:
    def refund(number: int, *transactions: dict[str, Any], lines: int = 1) -> dict[str, Any]:
        return {
            "id": number,
            "created_at": "2026-03-02T09:00:00+08:00",
            "refund_line_items": [{"line_item_id": 10 + part, "quantity": 1} for part in range(lines)],
            "transactions": [{"kind": "refund", "status": "success", "amount": "5.00"} | part for part in transactions],
        }

    refunds = [
        refund(1, {}, {"status": "failure", "amount": "5.00"}),
        refund(2, {"amount": "3.00"}, {"amount": "4.00"}, lines=2),
        refund(3),  # goods without money
        refund(4, {"status": "pending"}),
        refund(5, {"amount": "all of it"}),
    ]
    malls.put(db, "shopify_mall", "orders", order(1, "partially_refunded", refunds=refunds))
    mapping.map_source("shopify_mall", run_id="m")
    rows = db.execute("SELECT * FROM core.refunds ORDER BY refund_id").fetchall()
    found = [(row["refund_id"], row["refund_amount"], row["is_money"], row["line_id"], row["status"]) for row in rows]
    assert found == [
        ("1", 5, True, "10", "settled"),
        ("2", 7, True, None, "settled"),
        ("3", 0, False, "10", "settled"),
        ("4", 0, False, "10", "returning"),
    ]
    assert one(db, "SELECT reason FROM raw.rejects") == (
        "core.refunds: refunds[].transactions[].amount is missing or not a number"
    )


# ------------------------------------------------------------------------------------------------------------ check
def test_check_says_which_scope_is_missing(
    db: psycopg.Connection[Row], shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert landing.check_source("shopify_mall").startswith("shopify_mall: works for shop 夜市海外商城; ")
    malls.change_connection(monkeypatch, "shopify_mall", password=shop.access["shopify"]["narrow_token"])
    sentence = landing.check_source("shopify_mall")
    assert "orders: only orders of the last 60 days are shown; the app lacks read_all_orders" in sentence
    assert "customers: the app lacks read_customers" in sentence
    assert "products:" not in sentence
    malls.change_connection(monkeypatch, "shopify_mall", password="shpat_0")
    with pytest.raises(AuthError, match="install the app in the shop again"):
        landing.check_source("shopify_mall")
