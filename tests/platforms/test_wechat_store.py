"""WeChat store: the client's rules, what the simulator refuses, reading over HTTP, and core against the world's truth."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from malls import use_every_stream

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms import base, wechat_api, wechat_store
from nightmarket.platforms.base import AuthError, BadPayload, PlatformDown, RateLimited, Refused, Transport
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "include"))
from sandbox.wechat_store import COUPONS

STREAMS = ("orders", "aftersales", "products", "members", "coupons")
START = datetime(2025, 3, 1, tzinfo=UTC)


def client(sandbox: Any, page: int = 1000, **options: Any) -> wechat_store.Client:
    account = sandbox.access["wechat_store"]
    keys = Credentials("wechat_store", account["base_url"], account["appid"], account["secret"], {})
    transport = Transport("wechat_store", sleep=lambda _: None)
    return wechat_store.connect(keys, transport, options=wechat_store.Options(**options), page_sizes={"*": page})


def plan(**changes: Any) -> base.Plan:
    given: dict[str, Any] = {
        "until": dates.now().replace(microsecond=0),
        "cursors": {},
        "overlap": timedelta(hours=1),
        "window": timedelta(days=7),
        "history": timedelta(days=400),
    }
    return base.Plan(**(given | changes))


def read(store: wechat_store.Client, stream: str, **changes: Any) -> list[dict[str, Any]]:
    definition = wechat_store.STREAMS[stream]
    slices = definition.slices(store, plan(**({"window": definition.window} | changes)))
    return [record for piece in slices for page in piece.pages() for record in page]


class Raw:
    """Calls as any program would make them, without our client."""

    def __init__(self, sandbox: Any) -> None:
        self.access = sandbox.access["wechat_store"]
        self.token = self.ask_token()["access_token"]

    def ask_token(self, **changes: Any) -> dict[str, Any]:
        body = {"grant_type": "client_credential", "appid": self.access["appid"], "secret": self.access["secret"]}
        answer: dict[str, Any] = requests.post(
            self.access["base_url"] + "/cgi-bin/stable_token", json=body | changes, timeout=10
        ).json()
        return answer

    def send(self, path: str, body: Any, verb: str = "POST", token: str | None = None) -> requests.Response:
        url = f"{self.access['base_url']}/channels/ec/{path}"
        return requests.request(verb, url, params={"access_token": token or self.token}, json=body, timeout=10)

    def call(self, path: str, body: Any, **more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.send(path, body, **more).json()
        return answer


@pytest.fixture(autouse=True)
def every_stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default file leaves some streams out, to keep nights short."""
    use_every_stream(monkeypatch, tmp_path, "wechat_store")


@pytest.fixture
def raw(sandbox: Any) -> Raw:
    return Raw(sandbox)


def span(days: float = 7, until: datetime | None = None) -> dict[str, int]:
    end = int((until or dates.now()).timestamp())
    return {"start_time": int(end - days * 86_400), "end_time": end}


# ------------------------------------------------------------------------------------------------- the client alone


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-1, PlatformDown, "busy"),
        (40013, AuthError, "appid is not known"),
        (40125, AuthError, "app secret is wrong"),
        (42001, AuthError, "has expired"),
        (48001, AuthError, "permission"),
        (45009, RateLimited, "daily quota"),
        (45011, RateLimited, "this minute"),
        (31042, Refused, "too many orders"),
        (606006, Refused, "next_key belongs to a list with other parameters"),
        (43001, Refused, "wants GET"),
        (40097, Refused, "a parameter is refused"),
        (99999, Refused, "the request is refused (errcode 99999)"),
    ],
)
def test_errcodes_become_types_and_sentences(code: int, kind: type[Exception], words: str) -> None:
    body = b'{"errcode": %d, "errmsg": "said with a rid: 1"}' % code
    with pytest.raises(kind) as caught:
        wechat_api.read_answer("wechat_store", "/channels/ec/order/get", 200, body)
    assert words in str(caught.value)
    assert "rid" not in str(caught.value)
    assert str(caught.value).startswith("wechat_store, /channels/ec/order/get: ")


def test_answers_that_are_no_answers() -> None:
    for body in (b"[]", b"nothing", b'{"errcode": "x"}'):
        with pytest.raises(BadPayload):
            wechat_api.read_answer("wechat_store", "p", 200, body)
    assert wechat_api.read_answer("wechat_store", "p", 200, b'{"errcode":0}') == {"errcode": 0}
    assert wechat_api.read_answer("wechat_store", "p", 200, b'{"info":{}}') == {"info": {}}


def test_a_connection_names_what_is_missing() -> None:
    keys = Credentials("my_store", "https://api.weixin.qq.com", "wx1", "", {})
    with pytest.raises(ConfigError, match=r"connection 'my_store': password \(app secret\) is missing"):
        wechat_store.connect(keys, Transport("wechat_store"), options=wechat_store.Options())


class Lists:
    """A client whose lists are given: page by page, what it would answer."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.asked = list(answers), []  # type: ignore[var-annotated]
        self.options, self.page_sizes = wechat_store.Options(), {}  # type: ignore[var-annotated]

    def call(self, path: str, body: dict[str, Any], page: object = None) -> dict[str, Any]:
        self.asked.append(body)
        return self.answers.pop(0)


def walk(*answers: dict[str, Any]) -> tuple[list[Any], Lists]:
    lists = Lists(*answers)
    pages = wechat_store._by_next_key(lists, "p", "ids", "id", {"page_size": 2})  # type: ignore[arg-type]
    return [row["id"] for page in pages for row in page], lists


def test_a_walk_keeps_its_parameters_and_ends_where_the_platform_says() -> None:
    found, lists = walk(
        {"ids": ["1", "2"], "next_key": "A", "has_more": True},
        {"next_key": "B", "has_more": True},  # an empty page is not the end
        {"ids": ["3"], "next_key": "C", "has_more": False},
    )
    assert found == ["1", "2", "3"]
    assert lists.asked == [
        {"page_size": 2},
        {"page_size": 2, "next_key": "A"},
        {"page_size": 2, "next_key": "B"},
    ]


@pytest.mark.parametrize("following", ["", "A"])
def test_a_next_key_that_leads_nowhere_is_told(following: str) -> None:
    answers = [
        {"ids": ["1"], "next_key": "A", "has_more": True},
        {"ids": ["2"], "next_key": following, "has_more": True},
    ]
    with pytest.raises(BadPayload, match="page 2 promises more, but its next_key leads nowhere"):
        walk(*answers)


def test_details_keep_their_order_and_one_refusal_does_not_hold_up_the_others() -> None:
    store = wechat_store.Client(None, Transport("wechat_store"), wechat_store.Options(detail_workers=3), {})  # type: ignore[arg-type]

    def fetch(one: str) -> dict[str, Any]:
        if one in ("3", "x", "y"):
            raise Refused("wechat_store", "order/get", "the request is refused", code=99)
        return {"order_id": one}

    ids = [str(number) for number in range(20)]
    found = store.details(ids, fetch, "order_id")
    assert [record["order_id"] for record in found] == ids
    assert [record for record in found if len(record) > 1] == [{"order_id": "3", "errcode": 99}]
    assert store.details([], fetch, "order_id") == []
    with pytest.raises(Refused):
        store.details(["x", "y"], fetch, "order_id")


def test_a_failed_detail_ends_the_page_with_its_own_error() -> None:
    store = wechat_store.Client(None, Transport("wechat_store"), wechat_store.Options(), {})  # type: ignore[arg-type]
    done: list[str] = []

    def fetch(one: str) -> dict[str, Any]:
        if one == "0":
            raise RateLimited("wechat_store", "order/get", "the daily quota is used up", retry_after=86_400)
        done.append(one)
        return {"order_id": one}

    with pytest.raises(RateLimited):
        store.details([str(number) for number in range(1000)], fetch, "order_id")
    assert len(done) < 1000, "what had not begun was not begun any more"


def test_windows_are_whole_seconds_and_lose_nothing() -> None:
    window = Window(START + timedelta(milliseconds=300), START + timedelta(hours=1, milliseconds=300))
    first = int(START.timestamp())
    assert wechat_store._seconds(window, timedelta(hours=24)) == (first, first + 3601)
    assert wechat_store._seconds(window, timedelta(hours=1)) == (first, first + 3600), "the next one begins there"


# ------------------------------------------------------------------------------------------- what the simulator refuses


def test_tokens_belong_to_one_account(sandbox: Any, raw: Raw) -> None:
    official = sandbox.access["wechat_official"]
    other = raw.ask_token(appid=official["appid"], secret=official["secret"])["access_token"]
    assert other != raw.token
    assert raw.call("product/list/get", {"page_size": 1}, token=other)["errcode"] in (40001, 40014)
    answer = requests.get(official["base_url"] + "/cgi-bin/user/get", params={"access_token": raw.token}, timeout=10)
    assert answer.json()["errcode"] in (40001, 40014)
    assert raw.ask_token(secret=official["secret"])["errcode"] == 40125


def test_expires_in_shrinks_and_an_ended_token_is_42001(sandbox: Any, raw: Raw) -> None:
    begin = raw.ask_token()
    later = datetime.fromisoformat("2026-03-15T03:30:00+08:00")
    sandbox.control("POST", "/clock", {"now": later.isoformat()})
    again = raw.ask_token()
    assert again["access_token"] == begin["access_token"]
    assert 3500 < again["expires_in"] < begin["expires_in"] <= 7200
    sandbox.control("POST", "/clock", {"now": (later + timedelta(hours=3)).isoformat()})
    assert raw.call("product/list/get", {"page_size": 1})["errcode"] == 42001


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("order/list/get", {"page_size": 10}, 40097),  # no range at all
        ("order/list/get", {"update_time_range": span(7.1), "page_size": 10}, 40097),
        ("order/list/get", {"update_time_range": span(), "page_size": 101}, 40097),
        ("order/list/get", {"update_time_range": span(), "status": 11}, 40097),
        ("order/get", {"order_id": 5317494947640000004}, 40097),  # a number
        ("order/get", {"order_id": "1"}, 40097),
        ("aftersale/getaftersalelist", {}, 40097),
        ("aftersale/getaftersalelist", {"begin_update_time": 1, "end_update_time": 86_402}, 40097),
        ("aftersale/getaftersalelist", {"begin_update_time": 1, "end_update_time": 2, "page_size": 10}, 40097),
        ("product/list/get", {"page_size": 31}, 40097),
        ("coupon/get_list", {"status": 2, "page": 1, "page_size": 10}, 40097),  # page_ctx is required
        ("coupon/get_list", {"status": 2, "page": 12, "page_size": 10, "page_ctx": "1"}, 40097),
        ("coupon/get_list", {"status": 0, "page": 1, "page_size": 10, "page_ctx": ""}, 40097),
    ],
)
def test_refusals(raw: Raw, path: str, body: dict[str, Any], code: int) -> None:
    assert raw.call(path, body)["errcode"] == code


def test_verbs_bodies_and_the_address_list(sandbox: Any, raw: Raw) -> None:
    assert raw.call("order/list/get", None, verb="GET")["errcode"] == 43001
    assert raw.call("basics/info/get", {})["errcode"] == 43001
    assert raw.call("basics/info/get", None, verb="GET")["info"]["nickname"] == "夜市微信小店"
    assert raw.send("no/such/thing", {}).status_code == 404
    assert raw.call("order/list/get", [1])["errcode"] == 47001
    sandbox.control("POST", "/settings", {"wechat_store_ip_allowed": False})
    refused = raw.send("product/list/get", {"page_size": 1})
    assert (refused.status_code, refused.content) == (403, b"")
    with pytest.raises(AuthError, match="IP white list"):
        read(client(sandbox), "coupons")


def test_a_next_key_belongs_to_its_parameters(raw: Raw) -> None:
    body = {"page_size": 2}
    first = raw.call("product/list/get", body)
    assert len(first["product_ids"]) == 2
    assert raw.call("product/list/get", {"page_size": 3, "next_key": first["next_key"]})["errcode"] == 606006
    assert raw.call("product/list/get", {**body, "next_key": "???"})["errcode"] == 40097
    second = raw.call("product/list/get", {**body, "next_key": first["next_key"]})
    assert not set(second["product_ids"]) & set(first["product_ids"])


def test_limits(sandbox: Any, raw: Raw) -> None:
    sandbox.control("POST", "/settings", {"wechat_store_minute_calls": 0})
    assert raw.call("product/list/get", {"page_size": 1})["errcode"] == 45011
    with pytest.raises(RateLimited) as caught:
        read(client(sandbox), "coupons")
    assert caught.value.retry_after == 20


# ------------------------------------------------------------------------------------------------------ over HTTP


def truth_of(sandbox: Any) -> dict[str, Any]:
    found: dict[str, Any] = sandbox.control("GET", "/truth")["shops"]["wechat_store"]
    return found


@pytest.mark.parametrize("page", [1, 7, 1000])
def test_orders_read_are_the_worlds(sandbox: Any, page: int) -> None:
    truth = truth_of(sandbox)
    store = client(sandbox, page)
    found = {record["order_id"]: record for record in read(store, "orders")}
    assert len(found) == truth["orders"] > 20
    assert all(int(order_id) > 2**53 for order_id in found)
    details = [record["order_detail"] for record in found.values()]
    assert sum(len(detail["product_infos"]) for detail in details) == truth["lines"]
    assert sum(line["sku_cnt"] for detail in details for line in detail["product_infos"]) == truth["quantity"]
    goods = sum(line["sku_cnt"] * line["sale_price"] for detail in details for line in detail["product_infos"])
    assert Decimal(goods) / 100 == Decimal(truth["goods_amount"])
    for detail in details:
        price = detail["price_info"]
        assert price["order_price"] == price["product_price"] - price["discounted_price"] + price["freight"]
        assert sum(line["real_price"] for line in detail["product_infos"]) == price["order_price"] - price["freight"]


def test_the_other_streams_are_the_worlds(sandbox: Any) -> None:
    truth = truth_of(sandbox)
    store = client(sandbox, 4)
    aftersales = {record["after_sale_order_id"]: record for record in read(store, "aftersales")}
    assert len(aftersales) == truth["refunds"] > 0
    settled = [row for row in aftersales.values() if row["status"].endswith("_SUCCESS")]
    assert Decimal(sum(row["refund_info"]["amount"] for row in settled)) / 100 == Decimal(truth["refund_amount"])
    assert len({record["product_id"] for record in read(store, "products")}) == truth["products"]
    members = {record["openid"]: record for record in read(store, "members")}
    assert len(members) == truth["customers"]
    assert all(member["user_info"]["phone_number"].startswith("100") for member in members.values())
    without = {record["openid"]: record for record in read(client(sandbox, member_phones=False), "members")}
    assert [member["user_info"] for member in without.values()] == [{}] * truth["customers"]
    coupons = {record["coupon_id"]: record for record in read(store, "coupons")}
    assert set(coupons) == {str(coupon.coupon_id) for coupon in COUPONS}


@pytest.mark.parametrize(("stream", "field"), [("orders", "order_id"), ("aftersales", "after_sale_order_id")])
def test_a_past_range_is_read_by_creation(sandbox: Any, stream: str, field: str) -> None:
    definition = wechat_store.STREAMS[stream]
    assert definition.backfill is not None
    store = client(sandbox)
    expected = {
        record[field]
        for record in read(store, stream)
        if datetime(2025, 6, 1, tzinfo=UTC)
        <= datetime.fromtimestamp(record["create_time"], UTC)
        < datetime(2025, 10, 1, tzinfo=UTC)
    }
    window = Window(datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 10, 1, tzinfo=UTC))
    slices = list(definition.backfill(store, plan(), window))
    found = [record[field] for piece in slices for page in piece.pages() for record in page]
    assert set(found) == expected
    assert expected
    assert {piece.part for piece in slices} == {"created"}
    assert all(not piece.cursors for piece in slices), "the watermark stays"
    # one of these windows that held something unusable is read again by creation, too
    again = next(
        iter(definition.slices(store, plan(reread=(("created", slices[0].window),), cursors={"": dates.now()})))
    )
    assert [record[field] for page in again.pages() for record in page] == [
        record[field] for page in slices[0].pages() for record in page
    ]


def test_a_window_with_too_many_orders_is_halved(sandbox: Any) -> None:
    whole = {record["order_id"] for record in read(client(sandbox), "orders")}
    sandbox.control("POST", "/settings", {"wechat_store_window_orders": 1})
    store = client(sandbox)
    assert {record["order_id"] for record in read(store, "orders")} == whole
    sandbox.control("POST", "/settings", {"wechat_store_window_orders": 0})
    with pytest.raises(Refused, match="too many orders in one window"):
        read(store, "orders")


def test_a_refused_token_is_fetched_once_and_a_revoked_one_is_told(sandbox: Any) -> None:
    store = client(sandbox)
    read(store, "coupons")
    sandbox.control("POST", "/faults", {"faults": [{"platform": "wechat_store", "kind": "expired_token", "times": 1}]})
    assert len(read(store, "coupons")) == len(COUPONS)
    counters = sandbox.control("GET", "/counters")
    assert counters["refused"]["wechat_store"] == {"42001": 1}
    sandbox.control("POST", "/faults", {"faults": [{"platform": "wechat_store", "kind": "revoked_token", "times": -1}]})
    with pytest.raises(AuthError, match="check the password of the connection"):
        read(store, "coupons")
    refused = sandbox.control("GET", "/counters")["refused"]["wechat_store"]
    assert refused["40001"] == 2, "one renewal per call, then a person is asked"


def orders_in(sandbox: Any, window: Window, page: int = 1000) -> list[str]:
    return [record["order_id"] for rows in wechat_store.orders(client(sandbox, page), window) for record in rows]


def test_shifting_and_empty_pages_lose_no_order(sandbox: Any, set_clock: Callable[[str], None]) -> None:
    def fault(kind: str, times: int, after: int) -> None:
        entry = {"platform": "wechat_store", "method": "order/list/get", "kind": kind, "times": times, "after": after}
        sandbox.control("POST", "/faults", {"faults": [entry]})

    began = dates.now().replace(microsecond=0)
    fault("shifting_page", -1, 0)  # every order of the year gets a remark, now
    read(client(sandbox), "orders")
    sandbox.control("POST", "/faults", {"faults": []})
    moment = began + timedelta(minutes=20)
    set_clock(moment.isoformat())
    sandbox.control("POST", "/clock", {"now": moment.isoformat()})
    busy = Window(began - timedelta(minutes=5), began + timedelta(minutes=15))
    expected = set(orders_in(sandbox, busy))
    assert len(expected) > 20
    for kind in ("empty_last_page", "duplicate_page"):
        fault(kind, 1, 3)
        found = orders_in(sandbox, busy, 4)
        assert set(found) == expected
        assert len(found) == len(expected), "each is read in full once"
    fault("shifting_page", 1, 2)  # three orders leave the window while it is paged: others jump over the page border
    found = orders_in(sandbox, busy, 4)
    moved = orders_in(sandbox, Window(moment - timedelta(minutes=2), moment + timedelta(minutes=5)))
    assert len(moved) == 3
    assert set(found) | set(moved) == expected, "and what left the window is in the next one"
    assert set(orders_in(sandbox, busy)) == expected - set(moved) <= set(found)


def test_ids_as_numbers_and_missing_fields(sandbox: Any) -> None:
    expected = {record["order_id"] for record in read(client(sandbox), "orders")}
    everywhere = {"platform": "wechat_store", "kind": "ids_as_numbers", "times": -1}
    sandbox.control("POST", "/faults", {"faults": [everywhere]})
    found = [wechat_store.STREAMS["orders"].record_key(record) for record in read(client(sandbox), "orders")]
    assert set(found) == expected
    missing = {"platform": "wechat_store", "method": "order/get", "kind": "missing_fields", "times": 1}
    sandbox.control("POST", "/faults", {"faults": [missing]})
    keys = [wechat_store.STREAMS["orders"].record_key(record) for record in read(client(sandbox), "orders")]
    assert keys.count(None) == 1
    assert len(keys) == len(expected)


def test_check_names_the_shop_and_what_may_not_be_read(sandbox: Any, set_clock: Callable[[str], None]) -> None:
    found = wechat_store.check(client(sandbox), STREAMS)
    assert found.sentence() == "works for shop 夜市微信小店; clocks agree"
    fault = {"platform": "wechat_store", "method": "vip/user/list/get", "kind": "revoked_token", "times": -1}
    sandbox.control("POST", "/faults", {"faults": [fault]})
    found = wechat_store.check(client(sandbox), STREAMS)
    assert set(found.problems) == {"members"}
    assert "members: the app secret or the access token is refused" in found.sentence()


# -------------------------------------------------------------------------------------------------------- into core


def night(run_id: str) -> dict[str, Any]:
    from nightmarket import landing, mapping

    done = {
        stream: landing.land("wechat_store", stream, run_id=run_id, until=dates.now(), page_sizes={"*": 5})
        for stream in STREAMS
    }
    mapping.map_source("wechat_store", run_id=run_id)
    return done


def one(db: psycopg.Connection[Row], query: str) -> Any:
    row = db.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return next(iter(row.values()))


def assert_truth(db: psycopg.Connection[Row], truth: dict[str, Any]) -> None:
    figures = {
        "orders": "SELECT count(*) FROM core.orders",
        "paid_orders": "SELECT count(*) FROM core.orders WHERE is_paid",
        "lines": "SELECT count(*) FROM core.order_lines",
        "quantity": "SELECT sum(quantity) FROM core.order_lines",
        "paid_amount": "SELECT sum(paid_amount) FROM core.orders WHERE is_paid",
        "goods_amount": "SELECT sum(goods_amount) FROM core.orders",
        "postage_amount": "SELECT sum(postage_amount) FROM core.orders WHERE is_paid",
        "refunds": "SELECT count(*) FROM core.refunds",
        "refunds_settled": "SELECT count(*) FROM core.refunds WHERE is_money",
        "refund_amount": "SELECT sum(refund_amount) FROM core.refunds WHERE is_money",
        "customers": "SELECT count(*) FROM core.customers",
        "buyers": "SELECT count(DISTINCT identity_id) FROM core.orders WHERE is_paid",
        "products": "SELECT count(*) FROM core.products",
    }
    found = {name: Decimal(one(db, query) or 0) for name, query in figures.items()}
    assert {name: (value, truth[name]) for name, value in found.items() if value != Decimal(truth[name])} == {}
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


STATES = {"unpaid": "unpaid", "paid": "paid", "shipped": "shipped", "finished": "finished", "refunded": "refunded", "closed_unpaid": "cancelled"}  # fmt: skip


def test_core_is_the_worlds_truth_and_stays_so(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Callable[[str], None]
) -> None:
    night("one")
    truth = truth_of(sandbox)
    assert_truth(db, truth)
    states = {row["status"]: row["n"] for row in db.execute("SELECT status, count(*) AS n FROM core.orders GROUP BY 1")}
    assert states == {STATES[state]: count for state, count in truth["orders_by_state"].items()}
    for day in ("2026-03-19", "2026-03-28"):
        moment = f"{day}T02:30:00+08:00"
        set_clock(moment)
        sandbox.control("POST", "/clock", {"now": moment})
        night(day)
        assert_truth(db, truth_of(sandbox))
    assert truth_of(sandbox)["orders"] > truth["orders"]
    # a member's phone and an order's unionid are the same person; the phone stands nowhere in clear
    linked = one(
        db,
        """
        SELECT count(DISTINCT o.order_id) FROM core.orders AS o
        JOIN core.identities AS i USING (identity_id)
        JOIN core.identity_links AS l ON i.identity_id IN (l.identity_a, l.identity_b)
        JOIN core.identities AS p ON p.identity_id IN (l.identity_a, l.identity_b) AND p.kind = 'phone'
        WHERE i.kind = 'wechat_store_openid'
        """,
    )
    assert linked == one(db, "SELECT count(*) FROM core.orders")
    unions = one(db, "SELECT count(*) FROM core.identities WHERE kind = 'wechat_unionid'")
    assert unions == one(db, "SELECT count(*) FROM core.identities WHERE kind = 'wechat_store_openid'") > 0
    assert one(db, r"SELECT count(*) FROM raw.records WHERE payload::text ~ '\m100[0-9]{8}\M'") == 0
    assert one(db, "SELECT count(*) FROM core.shipments WHERE carrier IS NULL OR shipped_at IS NULL") == 0
    shipped = one(db, "SELECT count(*) FROM core.orders WHERE shipped_at IS NOT NULL")
    assert one(db, "SELECT count(DISTINCT order_id) FROM core.shipments") == shipped > 0


def test_reading_and_mapping_again_changes_nothing(db: psycopg.Connection[Row], sandbox: Any) -> None:
    from nightmarket import mapping

    night("one")
    tables = ("orders", "order_lines", "refunds", "customers", "products", "shop_coupons", "identities", "identity_links", "shipments")  # fmt: skip
    marks = {
        table: one(db, f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM core.{table} AS t")
        for table in tables
    }
    second = night("two")
    assert {stream: summary.changed for stream, summary in second.items()} == dict.fromkeys(STREAMS, 0)
    mapping.reset_mappings(db, "wechat_store")
    mapping.map_source("wechat_store", run_id="three")
    again = {
        table: one(db, f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM core.{table} AS t")
        for table in tables
    }
    assert again == marks


def test_coupons_in_yuan(db: psycopg.Connection[Row], sandbox: Any) -> None:
    night("one")
    rows = db.execute("SELECT * FROM core.shop_coupons ORDER BY coupon_id").fetchall()
    found = [(row["coupon_id"], row["name"], row["face_amount"], row["minimum_amount"], row["issued_count"], row["used_count"], row["status"]) for row in rows]  # fmt: skip
    words = {1: "editing", 2: "live", 3: "expired", 4: "void"}
    assert found == [
        (str(c.coupon_id), c.name, Decimal(c.face) / 100, Decimal(c.minimum) / 100, c.received, c.used, words[c.status])
        for c in COUPONS
    ]


def test_paying_later_is_paid_when_the_order_is_done(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Callable[[str], None]
) -> None:
    sandbox.control("POST", "/settings", {"wechat_store_pay_later": 1.0})
    moment = "2026-04-01T02:30:00+08:00"
    set_clock(moment)
    sandbox.control("POST", "/clock", {"now": moment})
    night("one")
    truth = truth_of(sandbox)
    finished = truth["orders_by_state"]["finished"]
    assert one(db, "SELECT count(*) FROM core.orders WHERE is_paid") == finished < truth["paid_orders"]
    assert (
        one(db, "SELECT count(*) FROM core.orders WHERE is_paid AND (status <> 'finished' OR paid_at <> signed_at)")
        == 0
    )
    assert one(db, "SELECT count(*) FROM core.orders WHERE NOT is_paid AND paid_at IS NOT NULL") == 0
