"""WooCommerce: what the wire says, what the simulator refuses, and that core holds what the shop holds."""

import base64
import hashlib
import hmac
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import malls
import psycopg
import pytest
import requests
from nights import everything, one

from nightmarket import dates, landing, mapping
from nightmarket.platforms import people, woocommerce
from nightmarket.platforms.base import AuthError, BadPayload, NotFound, PlatformDown, RateLimited, Refused
from nightmarket.privacy import Tokenizer
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row

SOURCES = """
sources:
  woo_mall:
    platform: woocommerce
    kind: shop
    name: 夜市官方商城
    conn_id: woo_mall
    streams:
      orders: {window_minutes: 525600}
      customers: {}
      reviews: {window_minutes: 525600}
      products: {}
      coupons: {}
"""
OPTIONS = woocommerce.Options()


@pytest.fixture
def woo(sandbox: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    malls.use_sources(monkeypatch, tmp_path, SOURCES)
    return sandbox


def truth(woo: Any) -> dict[str, Any]:
    found: dict[str, Any] = woo.control("GET", "/truth")["shops"]["woocommerce"]
    # a refund exists here once it is made: requests and refusals are talk between people
    return found | {"refunds": found["refunds_settled"]}


# ------------------------------------------------------------------------------------------------------------- wire
def test_the_published_oauth_signature() -> None:
    parameters = {  # OAuth Core 1.0, appendix A
        "oauth_consumer_key": "dpf43f3p2l4k3l03",
        "oauth_token": "nnch734d00sl2jdk",
        "oauth_signature_method": "HMAC-SHA1",
        "oauth_timestamp": "1191242096",
        "oauth_nonce": "kllo9940pd9333jh",
        "oauth_version": "1.0",
        "file": "vacation.jpg",
        "size": "original",
    }
    found = woocommerce.oauth_signature(
        "GET", "http://photos.example.net/photos", parameters, "kd94hf93k423kf44", "pfkkdhi9sl3r4s00", "HMAC-SHA1"
    )
    assert found == "tR3+Ty81lMeYAr/Fid0kMTYa/WM="


def test_the_default_port_is_not_signed_and_another_one_is() -> None:
    urls = ("http://mall.test/x", "http://mall.test:80/x", "http://mall.test:8080/x")
    signatures = [woocommerce.oauth_signature("GET", url, {"a": "1"}, "s") for url in urls]
    assert signatures[0] == signatures[1] != signatures[2]


def client(recorded: malls.Recorded, host: str = "https://mall.test", **extra: str) -> woocommerce.Client:
    credentials = Credentials("woo_mall", host, "ck_1", "cs_1", extra=extra)
    return woocommerce.connect(credentials, recorded.transport("woocommerce"), options=OPTIONS)


def test_https_uses_basic_and_never_puts_the_secret_into_the_address() -> None:
    recorded = malls.Recorded((200, {"X-WP-Total": "0"}, []))
    client(recorded).page("/orders", 1, 10)
    _, url, arguments = recorded.asked[0]
    assert arguments["headers"]["Authorization"] == "Basic " + base64.b64encode(b"ck_1:cs_1").decode()
    assert "cs_1" not in url


def test_keys_go_into_the_query_only_where_that_was_asked_for() -> None:
    recorded = malls.Recorded((200, {"X-WP-Total": "0"}, []))
    client(recorded, auth="query").page("/orders", 1, 10)
    assert "consumer_key=ck_1&consumer_secret=cs_1" in recorded.asked[0][1]


@pytest.mark.parametrize(
    ("host", "extra", "words"),
    [
        ("", {}, "host (the shop's address, https://...) is missing"),
        ("mall.test", {}, "host must begin with https://"),
        ("https://mall.test", {"auth": "magic"}, "extra.auth is 'magic'; known: auto, basic, query, oauth1"),
        ("http://mall.test", {"auth": "basic"}, "would send the secret in clear text over http"),
        ("http://mall.test", {"signature_method": "PLAINTEXT"}, "extra.signature_method is 'PLAINTEXT'"),
    ],
)
def test_a_connection_that_cannot_work_says_what_is_wrong(host: str, extra: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match="connection 'woo_mall': ") as caught:
        client(malls.Recorded((200, {}, [])), host, **extra)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("status", "content", "kind", "words"),
    [
        (401, {"code": "woocommerce_rest_cannot_view", "message": "x", "data": {"status": 401}}, AuthError, "check key (login) and secret"),
        (403, {"code": "woocommerce_rest_cannot_view", "message": "x", "data": {"status": 403}}, AuthError, "permission Read"),
        (404, {"code": "rest_no_route", "message": "x", "data": {"status": 404}}, NotFound, "is WooCommerce active?"),
        (404, b"<html>", NotFound, "HTTP 404"),
        (400, {"code": "rest_invalid_param", "message": "x", "data": {"status": 400, "params": {"per_page": "x"}}}, Refused, "refused: per_page"),
        (301, b"", Refused, "another address"),
    ],
)  # fmt: skip
def test_errors_become_types_and_sentences(status: int, content: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        client(malls.Recorded((status, {}, content))).page("/orders", 1, 10)
    assert words in str(caught.value)
    assert str(caught.value).startswith("woocommerce, /orders: ")


def test_a_proxy_that_takes_the_total_away_is_told() -> None:
    with pytest.raises(BadPayload, match=r"page 3 came without the header X-WP-Total; does a proxy"):
        client(malls.Recorded((200, {}, []))).page("/orders", 3, 10)


@pytest.mark.parametrize(
    ("first", "last", "name"),
    [("小明", "王", "王小明"), ("𠮷", "张", "张𠮷"), ("王小明", "", "王小明"), ("Ann", "Lee", "Ann Lee"), (None, "Lee", "Lee"), ("", None, "")],
)  # fmt: skip
def test_two_names_are_one(first: Any, last: Any, name: str) -> None:
    assert people.full_name(first, last) == name


# -------------------------------------------------------------------------------------------------------- simulator
class Raw:
    """Requests signed by code of its own."""

    def __init__(self, sandbox: Any, key: str = "consumer_key", secret: str = "consumer_secret") -> None:
        access = sandbox.access["woocommerce"]
        self.base, self.key, self.secret = access["base_url"], access[key], access[secret]

    def parameters(self, **changes: Any) -> dict[str, str]:
        own = {
            "oauth_consumer_key": self.key,
            "oauth_nonce": str(time.monotonic_ns()),
            "oauth_signature_method": "HMAC-SHA256",
            "oauth_timestamp": str(int(dates.now().timestamp())),
        }
        return {name: str(value) for name, value in {**own, **changes}.items() if value is not None}

    def get(self, path: str, https: dict[str, str] | None = None, spoil: str = "", **query: Any) -> requests.Response:
        url = f"{self.base}/wp-json/wc/v3{path}"
        if https is not None:
            return requests.get(url, params=query, headers={"X-Forwarded-Proto": "https", **https}, timeout=30)
        found = self.parameters(**query)
        pairs = "&".join(f"{quote(k, safe='~')}={quote(found[k], safe='~')}" for k in sorted(found))
        text = "&".join(quote(part, safe="~") for part in ("GET", url, pairs))
        digest = hashlib.sha1 if found.get("oauth_signature_method") == "HMAC-SHA1" else hashlib.sha256
        signature = base64.b64encode(hmac.new(f"{self.secret}&".encode(), text.encode(), digest).digest()).decode()
        return requests.get(url, params={**found, "oauth_signature": signature + spoil}, timeout=30)


def code(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_the_simulator_takes_what_woocommerce_takes(woo: Any) -> None:
    raw = Raw(woo)
    for answer in (
        raw.get("/orders", per_page=3),
        raw.get("/orders", per_page=3, oauth_signature_method="HMAC-SHA1"),
        raw.get("/orders", {"Authorization": "Basic " + base64.b64encode(f"{raw.key}:{raw.secret}".encode()).decode()}, per_page=3),
        raw.get("/orders", {}, per_page=3, consumer_key=raw.key, consumer_secret=raw.secret),
    ):  # fmt: skip
        assert answer.status_code == 200
        assert len(answer.json()) == 3
        total = int(answer.headers["X-WP-Total"])
        assert total > 10
        assert int(answer.headers["X-WP-TotalPages"]) == -(-total // 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"oauth_consumer_key": "ck_other"}, (401, "woocommerce_rest_authentication_error")),
        ({"oauth_signature_method": "PLAINTEXT"}, (401, "woocommerce_rest_authentication_error")),
        ({"oauth_timestamp": "1000000000"}, (401, "woocommerce_rest_authentication_error")),
        ({"oauth_nonce": None}, (401, "woocommerce_rest_authentication_error")),
        ({"spoil": "x"}, (401, "woocommerce_rest_authentication_error")),
        ({"https": {}}, (401, "woocommerce_rest_cannot_view")),
        ({"https": {"Authorization": "Basic " + base64.b64encode(b"a:b").decode()}}, (401, "woocommerce_rest_authentication_error")),
        ({"per_page": 101}, (400, "rest_invalid_param")),
        ({"per_page": 0}, (400, "rest_invalid_param")),
        ({"page": "x"}, (400, "rest_invalid_param")),
        ({"status": "wc-paid"}, (400, "rest_invalid_param")),
        ({"orderby": "total"}, (400, "rest_invalid_param")),
        ({"order": "up"}, (400, "rest_invalid_param")),
        ({"modified_after": "yesterday"}, (400, "rest_invalid_param")),
    ],
)  # fmt: skip
def test_the_simulator_refuses_what_woocommerce_refuses(
    woo: Any, changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert code(Raw(woo).get("/orders", **changes)) == expected


def test_basic_is_not_looked_at_over_http(woo: Any) -> None:
    raw = Raw(woo)
    answer = requests.get(f"{raw.base}/wp-json/wc/v3/orders", auth=(raw.key, raw.secret), timeout=30)
    assert code(answer) == (401, "woocommerce_rest_cannot_view")


def test_a_nonce_works_once_and_other_paths_do_not_exist(woo: Any) -> None:
    raw = Raw(woo)
    assert raw.get("/orders", oauth_nonce="n1").status_code == 200
    assert code(raw.get("/orders", oauth_nonce="n1")) == (401, "woocommerce_rest_authentication_error")
    assert code(raw.get("/nothing")) == (404, "rest_no_route")
    assert code(raw.get("/orders/12/refunds")) == (404, "woocommerce_rest_invalid_order_id")
    assert code(Raw(woo, "narrow_key", "narrow_secret").get("/customers")) == (403, "woocommerce_rest_cannot_view")


def test_both_ends_of_a_window_are_exclusive_and_in_shop_time_unless_said_otherwise(woo: Any) -> None:
    raw = Raw(woo)
    order = raw.get("/orders", orderby="modified", order="asc", per_page=1).json()[0]
    at = datetime.fromisoformat(order["date_modified_gmt"]).replace(tzinfo=UTC)

    def found(after: datetime, before: datetime, **more: str) -> list[int]:
        form = "%Y-%m-%dT%H:%M:%S"
        rows = raw.get("/orders", modified_after=after.strftime(form), modified_before=before.strftime(form), **more)
        return [row["id"] for row in rows.json()]

    second, offset = timedelta(seconds=1), timedelta(hours=8)
    assert found(at - second, at + second, dates_are_gmt="true") == [order["id"]]
    assert found(at, at + second, dates_are_gmt="true") == []
    assert found(at - second, at, dates_are_gmt="true") == []
    assert found(at + offset - second, at + offset + second) == [order["id"]]


# ------------------------------------------------------------------------------------------------------- extraction
def test_a_night_equals_the_truth_and_reading_or_mapping_again_changes_nothing(
    db: psycopg.Connection[Row], woo: Any
) -> None:
    summaries = malls.night("woo_mall", "first", page_sizes={"*": 3})
    assert malls.requests_to(woo, "woocommerce")["orders"] > 8, "the list had one page only"
    assert malls.differences(db, "woo_mall", truth(woo)) == {}
    assert one(db, "SELECT count(*) FROM core.shop_coupons WHERE source_id = 'woo_mall' AND used_count > 0") > 0
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0
    assert all(summary.seen >= summary.changed > 0 for summary in summaries.values())
    before = everything(db)
    again = malls.night("woo_mall", "second")
    assert {name: summary.changed for name, summary in again.items()} == dict.fromkeys(again, 0)
    assert everything(db) == before
    assert mapping.reset_mappings(db, "woo_mall") > 0
    mapping.map_source("woo_mall", run_id="third")
    mapping.resolve_members(run_id="third")
    assert everything(db) == before


def test_nights_that_follow_equal_the_truth_while_lists_shift(
    db: psycopg.Connection[Row], woo: Any, set_clock: Any
) -> None:
    malls.night("woo_mall", "one")
    for day in ("2026-03-17", "2026-03-20", "2026-03-26", "2026-04-06"):
        malls.move(woo, set_clock, f"{day}T02:30:00+08:00")
        malls.fault(woo, "woocommerce", "shifting_page", method="orders", times=3)
        malls.night("woo_mall", day, page_sizes={"*": 2})
        woo.control("POST", "/faults", {"faults": []})
        malls.move(woo, set_clock, f"{day}T02:40:00+08:00")  # what moved, moved after the window's end
        malls.night("woo_mall", day + " later")
        assert malls.differences(db, "woo_mall", truth(woo)) == {}
    assert one(db, "SELECT count(*) FROM core.orders WHERE created_at > '2026-03-15'") >= 2


def test_no_clear_value_rests_in_raw_and_people_are_one_across_their_orders(
    db: psycopg.Connection[Row], woo: Any
) -> None:
    malls.night("woo_mall", "first")
    assert malls.clear_values_at_rest(db, woo, "woo_mall") == []
    kinds = {row["kind"] for row in db.execute("SELECT DISTINCT kind FROM core.identities")}
    assert {"shop_customer_id", "phone", "email"} <= kinds
    guests = one(db, "SELECT count(*) FROM raw.records WHERE stream = 'orders' AND payload ->> 'customer_id' = '0'")
    assert guests > 0
    assert one(db, "SELECT count(*) FROM core.orders WHERE identity_id IS NULL") == 0
    assert one(db, "SELECT count(*) FROM core.profiles WHERE name LIKE 'name:%'") > 0


def test_a_review_finds_the_order_of_the_person_who_bought_the_product(db: psycopg.Connection[Row], woo: Any) -> None:
    malls.night("woo_mall", "first")
    rows = db.execute(
        "SELECT v.order_id, v.product_id, v.created_at, o.created_at AS ordered_at, r.payload ->> 'reviewer_email' AS email,"
        " EXISTS (SELECT FROM core.order_lines AS l WHERE l.order_id = v.order_id AND l.product_id = v.product_id) AS is_bought"
        " FROM core.reviews AS v JOIN raw.records AS r ON r.stream = 'reviews' AND r.record_key = v.review_id"
        " LEFT JOIN core.orders AS o ON o.source_id = v.source_id AND o.order_id = v.order_id"
    ).fetchall()
    known = [row for row in rows if row["email"]]
    assert known, "nobody who wrote a review left an e-mail address"
    assert all(row["is_bought"] and row["ordered_at"] < row["created_at"] for row in known)
    assert all(row["order_id"] is None for row in rows if not row["email"])
    assert one(db, "SELECT count(*) FROM core.reviews WHERE content LIKE '%<%' OR content <> btrim(content)") == 0


def order(number: int, status: str, **more: Any) -> dict[str, Any]:
    line = {
        "id": number * 10,
        "product_id": 5,
        "sku": "A",
        "name": "Mug",
        "quantity": 2,
        "subtotal": "20.00",
        "total": "18.00",
    }
    base = {"id": number, "status": status, "total": "18.00", "shipping_total": "0.00", "customer_id": 0, "billing": {}}
    times = {"date_created_gmt": "2026-03-01T01:00:00", "date_modified_gmt": "2026-03-02T01:00:00"}
    return {**base, **times, "date_paid_gmt": None, "line_items": [line], "refunds": [], **more}


STATUSES = [
    ("pending", None, "unpaid", False),
    ("on-hold", None, "unpaid", False),
    ("checkout-draft", None, "unpaid", False),
    ("processing", "2026-03-01T01:05:00", "paid", True),
    ("processing", None, "unpaid", False),  # cash on delivery
    ("completed", "2026-03-01T01:05:00", "finished", True),
    ("refunded", "2026-03-01T01:05:00", "refunded", True),
    ("cancelled", None, "cancelled", False),
    ("cancelled", "2026-03-01T01:05:00", "refunded", True),
    ("failed", None, "cancelled", False),
    ("trash", None, "cancelled", False),
    ("trash", "2026-03-01T01:05:00", "refunded", True),
]


def test_every_status_has_one_meaning(db: psycopg.Connection[Row], woo: Any) -> None:
    orders = [
        order(number, status, date_paid_gmt=paid) for number, (status, paid, _, _) in enumerate(STATUSES, start=1)
    ]
    malls.put(db, "woo_mall", "orders", *orders)
    mapping.map_source("woo_mall", run_id="m")
    rows = db.execute("SELECT status, is_paid, paid_at IS NOT NULL AS has_time FROM core.orders ORDER BY order_id::int")
    assert [tuple(row.values()) for row in rows] == [(*case[2:], case[1] is not None) for case in STATUSES]


def test_what_cannot_be_used_goes_to_rejects_and_a_better_version_settles_it(
    db: psycopg.Connection[Row], woo: Any
) -> None:
    twice = {"id": 9, "amount": "much", "date_created_gmt": "2026-03-02T01:00:00", "line_items": []}
    malls.put(
        db,
        "woo_mall",
        "orders",
        order(1, "sold", total="a lot"),
        order(2, "completed", line_items=[]),
        order(3, "refunded", refund_details=[twice]),
    )
    mapping.map_source("woo_mall", run_id="m")
    reasons = [row["reason"] for row in db.execute("SELECT reason FROM raw.rejects ORDER BY record_key, reason")]
    assert reasons == [
        "core.orders: status is missing or unknown; total is missing or not a number",
        "core.orders: the order has no lines",
        "core.refunds: refund_details[].amount is missing or not a number",
    ]
    malls.put(db, "woo_mall", "orders", order(1, "completed"), order(2, "completed"),
              order(3, "refunded", refund_details=[twice | {"amount": "18.00"}]))  # fmt: skip
    mapping.map_source("woo_mall", run_id="n")
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0
    assert one(db, "SELECT refund_amount FROM core.refunds") == 18


def test_a_shop_that_does_not_filter_by_change_is_told_and_can_be_read_whole(
    db: psycopg.Connection[Row], woo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    woo.control("POST", "/settings", {"woo_modified_filter": False})
    malls.use_sources(monkeypatch, tmp_path, SOURCES.replace("orders: {window_minutes: 525600}", "orders: {}"))
    with pytest.raises(Refused, match=r"does not look at modified_after .*; set options\.modified_filter: false"):
        landing.land("woo_mall", "orders", run_id="r", until=dates.now())
    malls.use_sources(monkeypatch, tmp_path, SOURCES + "    options: {modified_filter: false}\n")
    malls.night("woo_mall", "whole")
    assert malls.differences(db, "woo_mall", truth(woo)) == {}
    again = malls.night("woo_mall", "again")
    assert again["orders"].seen > 0 == again["orders"].changed


# ----------------------------------------------------------------------------------------------------------- faults
@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("revoked_token", AuthError, "the consumer key or its signature is refused"),
        ("empty_last_page", PlatformDown, "the list kept changing: 0 rows after 4 walks, the platform counts"),
        ("truncated_json", BadPayload, "is not readable JSON"),
    ],
)
def test_a_fault_that_lasts_is_one_sentence_and_the_next_night_is_whole(
    db: psycopg.Connection[Row], woo: Any, kind: str, error: type[Exception], words: str
) -> None:
    malls.fault(woo, "woocommerce", kind, times=-1)
    with pytest.raises(error) as caught:
        landing.land("woo_mall", "orders", run_id="r", until=dates.now())
    assert words in str(caught.value)
    assert "cs_" not in str(caught.value)
    woo.control("POST", "/faults", {"faults": []})
    malls.night("woo_mall", "later")
    assert malls.differences(db, "woo_mall", truth(woo)) == {}


# the others: tests/faults/test_matrix.py
@pytest.mark.parametrize("kind", ["empty_last_page", "missing_fields"])
def test_a_fault_that_passes_is_repaired(db: psycopg.Connection[Row], woo: Any, kind: str) -> None:
    malls.fault(woo, "woocommerce", kind, times=2, after=2, seconds=1)
    malls.night("woo_mall", "first", page_sizes={"*": 4})
    woo.control("POST", "/faults", {"faults": []})
    malls.night("woo_mall", "later")
    assert malls.differences(db, "woo_mall", truth(woo)) == {}
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


def test_a_limit_that_is_long_is_not_waited_for(db: psycopg.Connection[Row], woo: Any) -> None:
    malls.fault(woo, "woocommerce", "call_limit", times=-1, seconds=300)
    with pytest.raises(RateLimited, match="next one in 300 s"):
        landing.land("woo_mall", "orders", run_id="r", until=dates.now())


def test_check_says_what_the_key_may_not_read(
    db: psycopg.Connection[Row], woo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert landing.check_source("woo_mall").startswith("woo_mall: works for shop 夜市官方商城; ")
    access = woo.access["woocommerce"]
    malls.change_connection(monkeypatch, "woo_mall", login=access["narrow_key"], password=access["narrow_secret"])
    sentence = landing.check_source("woo_mall")
    for stream in ("customers", "reviews", "coupons"):
        assert f"; {stream}: the key may not read this; give it the permission Read" in sentence
    assert "orders:" not in sentence


def test_coupon_codes_of_orders_are_tokens_and_follow_the_order(db: psycopg.Connection[Row], woo: Any) -> None:
    def told(number: int, paid: str | None, *codes: str, at: str = "2026-03-02T01:00:00") -> dict[str, Any]:
        lines = [{"id": 1, "code": code, "discount": "4.00", "discount_tax": "0.24"} for code in codes]
        status = "processing" if paid else "pending"
        record = order(number, status, date_paid_gmt=paid, coupon_lines=lines, date_modified_gmt=at)
        return Tokenizer.from_settings().tokenise(record, woocommerce.ORDERS.personal)

    paid = "2026-03-01T01:05:00"
    malls.put(db, "woo_mall", "orders", told(1, paid, "ab-12 cd", "spring"), told(2, None, "AB12CD"), told(3, paid))
    mapping.map_source("woo_mall", run_id="m")
    token = Tokenizer.from_settings().token
    rows = db.execute(
        "SELECT order_id, code_token, discount_amount, used_at FROM core.coupon_uses ORDER BY 1, 2"
    ).fetchall()
    assert {(row["order_id"], row["code_token"]) for row in rows} == {
        ("1", token("coupon", "AB12CD")), ("1", token("coupon", "SPRING")), ("2", token("coupon", "ab12cd")),
    }  # fmt: skip
    assert {row["discount_amount"] for row in rows} == {Decimal("4.24")}
    assert next(row["used_at"] for row in rows if row["order_id"] == "1").isoformat() == "2026-03-01T09:05:00+08:00"
    assert (
        one(db, "SELECT count(*) FROM raw.records WHERE payload::text LIKE '%ab-12%' OR payload::text LIKE '%spring%'")
        == 0
    )
    # the seller takes a code off the order
    malls.put(db, "woo_mall", "orders", told(1, paid, "spring", at="2026-03-03T01:00:00"))
    mapping.map_source("woo_mall", run_id="m")
    assert one(db, "SELECT count(*) FROM core.coupon_uses WHERE order_id = '1'") == 1
