"""Youzan: what the simulator refuses, what the client makes of it, and that core holds what the shop sold. Over HTTP."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import malls
import orjson
import psycopg
import pytest
import requests
from nights import everything, one

from nightmarket import dates, landing, mapping, settings, sources
from nightmarket.console.receiver import Receiver
from nightmarket.dates import Window
from nightmarket.platforms import youzan
from nightmarket.platforms.base import (
    REFUSED,
    AuthError,
    BadPayload,
    NotFound,
    PlatformDown,
    PlatformError,
    PushRequest,
    RateLimited,
    Refused,
    Transport,
)
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row

SOURCE = "youzan_mall"
BLOCK = """
sources:
  youzan_mall:
    platform: youzan
    kind: shop
    name: 夜市有赞店
    conn_id: youzan_mall
    history_days: 400
    streams: {trades: {}, refunds: {}, customers: {}, coupons: {}, reviews: {}}
    options: {reviews: true}
"""
SOLD, TRADE = "youzan.trades.sold.get/4.0.4", "youzan.trade.get/4.0.2"
REFUNDS, REFUND = "youzan.trade.refund.search/3.0.1", "youzan.trade.refund.get/3.0.1"
CUSTOMERS, COUPONS = "youzan.scrm.customer.list/1.0.0", "youzan.ump.voucheractivity.query/3.0.1"
REVIEWS = "youzan.item.reviews.query/3.0.0"


class Raw:
    """Plain HTTP, written from the platform's description and not from our client: the second opinion."""

    def __init__(self, access: Mapping[str, Any]) -> None:
        self.account = access["youzan"]

    def token(self, **changes: Any) -> dict[str, Any]:
        body = {
            "client_id": self.account["client_id"],
            "client_secret": self.account["client_secret"],
            "authorize_type": "silent",
            "grant_id": self.account["grant_id"],
            "refresh": True,
        }
        answer = requests.post(self.account["base_url"] + "/auth/token", json=body | changes, timeout=30)
        assert answer.status_code == 200
        return dict(answer.json())

    def call(self, api: str, body: Any = None, token: str | None = None, **arguments: Any) -> dict[str, Any]:
        query = {"access_token": token} if token else {}
        content: dict[str, Any] = arguments or {"json": body or {}}
        answer = requests.post(f"{self.account['base_url']}/api/{api}", params=query, timeout=30, **content)
        assert answer.status_code == 200
        return dict(answer.json())


@pytest.fixture
def raw(sandbox: Any) -> Raw:
    return Raw(sandbox.access)


@pytest.fixture
def shop(db: psycopg.Connection[Row], sandbox: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """The sandbox, and a sources.yaml that reads every stream of its Youzan shop."""
    malls.use_sources(monkeypatch, tmp_path, BLOCK)
    return sandbox


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries are noted, not waited for."""
    noted: list[float] = []
    original = Transport.__init__

    def quick(self: Transport, platform: str, **options: Any) -> None:
        original(self, platform, **(options | {"sleep": noted.append}))

    monkeypatch.setattr(Transport, "__init__", quick)
    return noted


def truth(sandbox: Any) -> dict[str, Any]:
    found: dict[str, Any] = sandbox.control("GET", "/truth")["shops"]["youzan"]
    return found


def fault(sandbox: Any, kind: str, **more: Any) -> None:
    sandbox.control("POST", "/faults", {"faults": [{"platform": "youzan", "kind": kind, **more}]})


def requested(sandbox: Any) -> dict[str, int]:
    found: dict[str, int] = sandbox.control("GET", "/counters")["requests"].get("youzan", {})
    return found


def client(options: youzan.Options | None = None, **page_sizes: int) -> youzan.Client:
    sizes = {"*": page_sizes["every"]} if page_sizes else {}
    return youzan.connect(
        settings.credentials(SOURCE), Transport("youzan"), options=options or youzan.Options(), page_sizes=sizes
    )


def china(text: str) -> datetime:
    return datetime.fromisoformat(text + "+08:00")


WHOLE = {"start_update": "2026-01-01 00:00:00", "end_update": "2026-03-15 02:00:00"}


# -------------------------------------------------------------------------------------------------------- simulator
def test_a_token_says_until_when_in_milliseconds_and_ends_the_one_before(raw: Raw) -> None:
    first, second = raw.token(), raw.token()
    assert first["success"] is True
    assert first["code"] == 200
    ends = datetime.fromtimestamp(first["data"]["expires"] / 1000, UTC)
    assert abs(ends - china("2026-03-22T02:30:00")) < timedelta(minutes=1)
    assert first["data"]["authority_id"] == raw.account["grant_id"]
    assert raw.call(SOLD, WHOLE, first["data"]["access_token"])["gw_err_resp"]["err_code"] == 4203
    assert raw.call(SOLD, WHOLE, second["data"]["access_token"])["success"] is True
    renewed = raw.token(authorize_type="refresh_token", refresh_token=second["data"]["refresh_token"])
    assert raw.call(SOLD, WHOLE, renewed["data"]["access_token"])["success"] is True


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"client_id": "x"}, 1103),
        ({"client_secret": "x"}, 1105),
        ({"grant_id": "1"}, 1005),
        ({"authorize_type": "authorization_code"}, 1004),
        ({"authorize_type": "refresh_token", "refresh_token": "x"}, 1005),
    ],
)
def test_a_token_is_refused(raw: Raw, changes: dict[str, Any], code: int) -> None:
    answer = raw.token(**changes)
    assert answer["success"] is False
    assert answer["data"] is None
    assert answer["code"] == code


def test_a_token_needs_json(raw: Raw) -> None:
    form = {"client_id": raw.account["client_id"], "authorize_type": "silent"}
    answer = requests.post(raw.account["base_url"] + "/auth/token", data=form, timeout=30).json()
    assert (answer["success"], answer["code"]) == (False, 1000)


def test_the_gateway_checks_in_its_order(raw: Raw) -> None:
    token = raw.token()["data"]["access_token"]

    def code(*arguments: Any, **more: Any) -> int:
        answer = raw.call(*arguments, **more)
        assert set(answer) == {"gw_err_resp"}, "a refusal of the gateway has neither success nor code"
        return int(answer["gw_err_resp"]["err_code"])

    assert code("youzan.trades.sold.get", {}, token) == 4001, "the version is missing"
    assert code("youzan.trades.sold.get/9.9.9", {}) == 4005, "an unknown API is told before a missing token"
    assert code(SOLD, {}) == 4201
    assert code(SOLD, {}, "never-given") == 4203
    assert code(SOLD, json={}, headers={"Authorization": f"Bearer {token}"}) == 4201, "a token counts only in the query"
    assert code(SOLD, json={"access_token": token}) == 4201
    assert code(SOLD, token=token, data={"page_no": 1}) == 4007
    assert code(SOLD, token=token, data=b"{", headers={"Content-Type": "application/json"}) == 4004
    bare = {"start_update": "2026-03-01", "end_update": "2026-03-15"}
    assert code(SOLD, bare, token) == 5001, "a date without a time"
    assert code(SOLD, WHOLE | {"page_no": "one"}, token) == 5001


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (SOLD, {"page_size": 101}),
        (SOLD, {"page_no": 101}),
        (SOLD, {"start_update": "2025-11-01 00:00:00"}),  # more than three months
        (SOLD, {"start_update": "2026-03-15 02:00:00"}),  # not longer than nothing
        (TRADE, {"tid": "E20260101999"}),
        (REFUNDS, {"page_no": 31, "page_size": 100}),  # 3,100 rows deep
        (REFUNDS, {"page_no": 101, "page_size": 1}),
        (REFUND, {"refund_id": "1"}),
        (CUSTOMERS, {"page_size": 51}),
        (CUSTOMERS, {"page_no": 201, "page_size": 50}),  # 10,050 rows deep
    ],
)
def test_what_the_shops_system_refuses(raw: Raw, api: str, body: dict[str, Any]) -> None:
    answer = raw.call(api, WHOLE | body, raw.token()["data"]["access_token"])
    assert answer["success"] is False
    assert answer["data"] is None
    assert answer["code"] > 100_000_000


def test_half_of_a_time_range_is_ignored(raw: Raw) -> None:
    token = raw.token()["data"]["access_token"]
    everything_there = raw.call(SOLD, {}, token)["data"]["total_results"]
    assert raw.call(SOLD, {"start_update": WHOLE["start_update"]}, token)["data"]["total_results"] == everything_there
    assert 0 < raw.call(SOLD, WHOLE, token)["data"]["total_results"] < everything_there


def test_the_list_shows_a_change_half_a_minute_late(raw: Raw, sandbox: Any) -> None:
    sandbox.control("POST", "/clock", {"now": "2026-04-14T00:00:00+08:00"})
    token = raw.token()["data"]["access_token"]
    rows = raw.call(SOLD, {"page_size": 100}, token)["data"]["full_order_info_list"]  # by creation, newest first
    orders = [row["full_order_info"]["order_info"] for row in rows]
    newest = next(order for order in orders if order["pay_time"])
    sandbox.control("POST", "/reset", {})
    listed, known = {}, {}
    for late in (10, 35):
        at = china(newest["created"]) + timedelta(seconds=late)
        sandbox.control("POST", "/clock", {"now": at.isoformat()})
        token = raw.token()["data"]["access_token"]
        listed[late] = raw.call(SOLD, {"tid": newest["tid"]}, token)["data"]["total_results"]
        known[late] = raw.call(TRADE, {"tid": newest["tid"]}, token)["success"]
    assert (listed, known) == ({10: 0, 35: 1}, {10: True, 35: True})


def test_only_the_detail_knows_what_was_paid(raw: Raw) -> None:
    token = raw.token()["data"]["access_token"]
    rows = raw.call(SOLD, {"page_size": 100}, token)["data"]["full_order_info_list"]
    differ = 0
    for row in rows:
        info = row["full_order_info"]
        assert "real_payment" not in info["pay_info"]
        paid = raw.call(TRADE, {"tid": info["order_info"]["tid"]}, token)["data"]["full_order_info"]["pay_info"]
        differ += paid["real_payment"] != info["pay_info"]["payment"]
        is_paid = info["order_info"]["pay_time"] != ""
        assert (paid["real_payment"] != "0.00") == is_paid
    assert differ > 0
    assert {row["full_order_info"]["order_info"]["status"] for row in rows} >= {"TRADE_SUCCESS", "TRADE_CLOSED"}
    assert all(str(row["full_order_info"]["orders"][0]["oid"]).isdigit() for row in rows)


def test_three_envelopes(raw: Raw) -> None:
    token = raw.token()["data"]["access_token"]
    assert set(raw.call("youzan.none/1.0.0", {}, token)) == {"gw_err_resp"}
    today = raw.call(COUPONS, {}, token)
    assert (today["code"], today["data"]["is_success"]) == ("200", "true"), "texts, as some schemas have them"
    assert raw.call(REVIEWS, {}, token)["response"]["total_results"] >= 0
    assert set(raw.call(REVIEWS, {"page_size": 101}, token)["error_response"]) == {"code", "msg"}


def test_more_calls_in_a_second_than_allowed_are_refused(raw: Raw, sandbox: Any) -> None:
    token = raw.token()["data"]["access_token"]
    sandbox.control("POST", "/settings", {"youzan_rate": 1})
    answers = [raw.call(COUPONS, {}, token) for _ in range(12)]
    codes = [answer.get("gw_err_resp", {}).get("err_code") for answer in answers]
    assert codes[0] is None
    assert set(codes) == {None, 4101}


# ----------------------------------------------------------------------------------------------------------- client
def test_a_redirect_says_to_check_the_address() -> None:
    with pytest.raises(Refused, match="HTTP 301; check the address"):
        youzan.read_answer(SOLD, 301, b"")


def answered(value: Any) -> dict[str, Any]:
    return youzan.read_answer(SOLD, 200, orjson.dumps(value), 1)


@pytest.mark.parametrize(
    "answer",
    [
        {"success": True, "code": 200, "data": {"a": 1}, "message": "successful", "trace_id": "t"},
        {"success": "true", "code": "200", "data": {"a": 1}},
        {"code": 200, "data": {"a": 1, "is_success": "true"}},
        {"response": {"a": 1}},
    ],
)
def test_success_in_every_envelope(answer: dict[str, Any]) -> None:
    assert answered(answer)["a"] == 1


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ({"gw_err_resp": {"err_code": 4005, "trace_id": "yz7-9"}}, Refused, "does not know this API"),
        ({"gw_err_resp": {"err_code": "4007"}}, AuthError, "IP allow-list"),
        ({"gw_err_resp": {"err_code": 4101}}, RateLimited, "too many calls"),
        ({"gw_err_resp": {"err_code": 4201}}, AuthError, "authorise the application for this shop again"),
        ({"gw_err_resp": {"err_code": 4204}}, AuthError, "capability package"),
        ({"gw_err_resp": {"err_code": 4009}}, NotFound, "does not know this person"),
        ({"gw_err_resp": {"err_code": 5001}}, PlatformDown, "parameter of a wrong type"),
        ({"gw_err_resp": {"err_code": 4999}}, Refused, "gateway code 4999"),
        ({"success": False, "code": 101500005, "data": None}, Refused, "code 101500005"),
        ({"success": "false", "code": "101500005", "data": None}, Refused, "code 101500005"),
        ({"success": False, "code": 123000042}, RateLimited, "too many calls"),
        ({"success": True, "code": 142710032}, Refused, "more rows than the list shows"),
        ({"success": True, "code": 200, "data": {"is_success": "false"}}, Refused, "is_success false"),
        ({"success": True, "code": 200, "data": {"is_success": False}}, Refused, "is_success false"),
        ({"error_response": {"code": 500100004, "msg": "x"}}, RateLimited, "too many calls"),
        ({"error_response": {"code": 50000, "msg": "13800001111"}}, Refused, "code 50000"),
        ({"success": True, "code": 200, "data": None}, BadPayload, "page 1 has no data"),
        ({"trades": []}, BadPayload, "page 1 has none of the known envelopes"),
        ([], BadPayload, "page 1 is not a JSON object"),
    ],
)
def test_a_refusal_in_every_envelope(answer: Any, error: type[PlatformError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        answered(answer)
    assert str(caught.value).startswith(f"youzan, {SOLD}: ")
    assert "13800001111" not in str(caught.value), "what the platform says is not repeated: it may name somebody"


def test_a_token_is_fetched_once_and_by_whom_it_is_refused_once_more(environment: str, sandbox: Any) -> None:
    shop = client()
    for _ in range(3):
        shop.call(COUPONS, {})
    assert requested(sandbox)["auth/token"] == 1
    Raw(sandbox.access).token()  # somebody else's grant ends ours: 4203
    shop.call(COUPONS, {})
    assert requested(sandbox)["auth/token"] == 3
    fault(sandbox, "expired_token", times=1)  # 4202
    shop.call(COUPONS, {})
    assert requested(sandbox)["auth/token"] == 4
    fault(sandbox, "revoked_token", times=-1)  # 4201, whatever the token
    with pytest.raises(AuthError, match="the shop's authorisation has lapsed; authorise the application"):
        shop.call(COUPONS, {})
    assert requested(sandbox)["auth/token"] == 5, "one new token, then a person has to act"


def test_a_token_is_renewed_before_it_ends(environment: str, sandbox: Any, set_clock: Any) -> None:
    shop = client()
    shop.call(COUPONS, {})
    for moment, tokens in (("2026-03-21T12:00:00+08:00", 1), ("2026-03-22T02:26:00+08:00", 2)):
        sandbox.control("POST", "/clock", {"now": moment})
        set_clock(moment)
        shop.call(COUPONS, {})
        assert requested(sandbox)["auth/token"] == tokens
    assert sandbox.control("GET", "/counters")["refused"].get("youzan", {}) == {}


def test_it_waits_as_the_platform_advises_and_then_gives_up(environment: str, sandbox: Any, waits: list[float]) -> None:
    fault(sandbox, "call_limit", times=3, method="youzan.ump.voucheractivity.query")
    client().call(COUPONS, {})
    for wait, advised in zip(waits, (3, 6, 12), strict=True):
        assert advised <= wait <= 1.5 * advised
    waits.clear()
    fault(sandbox, "call_limit", times=-1, method="youzan.ump.voucheractivity.query")
    with pytest.raises(RateLimited, match="too many calls") as caught:
        client().call(COUPONS, {})
    assert [round(wait / advised) for wait, advised in zip(waits, (3, 6, 12, 24), strict=True)] == [1] * 4
    assert caught.value.retry_after == 48, "the task's own retry comes after that"


def test_a_month_that_is_used_up_says_what_to_order(environment: str, sandbox: Any) -> None:
    sandbox.control("POST", "/settings", {"youzan_month_calls": 2})
    shop = client()
    shop.call(COUPONS, {})
    shop.call(COUPONS, {})
    with pytest.raises(AuthError, match="no capability package for this API, or this month's calls are used up"):
        shop.call(COUPONS, {})


def test_wrong_keys_say_which_fields_to_look_at(environment: str, sandbox: Any) -> None:
    known = settings.credentials(SOURCE)
    for changes in ({"login": "n0body"}, {"password": "n0t-it"}, {"extra": {"grant_id": "1"}}):
        credentials = Credentials(**{**known.__dict__, **changes})
        shop = youzan.connect(credentials, Transport("youzan"), options=youzan.Options())
        with pytest.raises(
            AuthError, match=r"client id \(login\), client secret \(password\) and the shop's number"
        ) as caught:
            shop.call(COUPONS, {})
        assert known.password not in str(caught.value)
        assert "n0t-it" not in str(caught.value)


@pytest.mark.parametrize("missing", ["host", "login", "password", "extra"])
def test_a_connection_that_lacks_a_part_is_a_sentence(missing: str) -> None:
    parts: dict[str, Any] = {"host": "h", "login": "l", "password": "p", "extra": {"grant_id": "1"}}
    parts[missing] = {} if missing == "extra" else ""
    with pytest.raises(ConfigError, match=f"connection 'c': {missing}.* is missing"):
        youzan.connect(Credentials("c", **parts), Transport("youzan"), options=youzan.Options())


def trade_ids(pages: Iterator[list[dict[str, Any]]]) -> list[str]:
    return [record["tid"] for page in pages for record in page]


def test_a_window_with_more_rows_than_pages_show_is_halved(
    environment: str, sandbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = Window(china("2026-01-01T00:00:00"), china("2026-03-15T02:00:00"))
    options = youzan.Options(trade_detail=False)
    whole = trade_ids(youzan.trade_pages(client(options), window))
    assert len(whole) > 6
    before = requested(sandbox)["youzan.trades.sold.get"]
    # as if the platform showed three pages of one row each
    monkeypatch.setattr(youzan, "DEEPEST_PAGE", 3)
    listing = youzan.Listing
    monkeypatch.setattr(youzan, "Listing", lambda *a, **more: listing(*a, **({"deepest_page": 3} | more)))
    halved = trade_ids(youzan.trade_pages(client(options, every=1), window))
    assert set(halved) == set(whole)
    assert requested(sandbox)["youzan.trades.sold.get"] - before > len(whole)
    moment = Window(window.end - timedelta(seconds=2), window.end)
    with pytest.raises(Refused, match="rows within seconds of"):
        youzan.halves(listing(SOLD, 100, "r", "t", lambda row: None), moment, 10_000, 10_000)


def test_rows_that_change_while_a_list_is_paged_are_not_skipped(environment: str, sandbox: Any) -> None:
    """The three newest rows of the window leave it before each answer; read forwards, every page border would lose three."""
    window = Window(china("2026-01-01T00:00:00"), china("2026-03-15T02:00:00"))
    options = youzan.Options(trade_detail=False)
    whole = set(trade_ids(youzan.trade_pages(client(options), window)))
    fault(sandbox, "shifting_page", method="youzan.trades.sold.get", times=2, after=2)
    seen = set(trade_ids(youzan.trade_pages(client(options, every=3), window)))
    sandbox.control("POST", "/faults", {"faults": []})
    moved = set(trade_ids(youzan.trade_pages(client(options), Window(window.end, dates.now()))))
    assert len(moved) >= 3
    assert seen | moved == whole, "what is not in the window any more is in the next one"
    assert whole - moved <= seen


def test_customers_beyond_the_ceiling_are_read_by_when_they_joined(
    shop: Any, db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.control("POST", "/settings", {"youzan_customer_depth": 6})
    deep = youzan.CUSTOMER_LISTING
    monkeypatch.setattr(
        youzan, "CUSTOMER_LISTING", youzan.Listing(deep.api, 3, deep.rows, deep.total, deep.key, depth=6)
    )
    summary = landing.land(SOURCE, "customers", run_id="first", until=dates.now())
    assert summary.changed == truth(shop)["customers"]
    assert summary.windows > 3
    marks = {row["stream"] for row in db.execute("SELECT stream FROM raw.cursors")}
    assert marks == {"customers", "customers:full"}, "a reading that is complete leaves no mark of its way"


def test_a_reading_of_all_customers_goes_on_where_it_ended(
    shop: Any, db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = youzan.CUSTOMER_LISTING
    monkeypatch.setattr(
        youzan, "CUSTOMER_LISTING", youzan.Listing(deep.api, 3, deep.rows, deep.total, deep.key, depth=6)
    )
    cut = landing.land(SOURCE, "customers", run_id="cut", until=dates.now(), limit=8)
    assert cut.is_limited
    assert one(db, "SELECT count(*) FROM raw.cursors WHERE stream = 'customers:walked'") == 1
    rest = landing.land(SOURCE, "customers", run_id="rest", until=dates.now())
    assert cut.changed + rest.changed == truth(shop)["customers"]
    assert rest.seen < truth(shop)["customers"], "what was read to its end is not read again"
    third = landing.land(SOURCE, "customers", run_id="third", until=dates.now())
    assert (third.seen, third.changed) == (0, 0), "all customers are read once a day, new ones every time"


def test_the_unit_of_the_customers_time_is_an_option(environment: str, sandbox: Any) -> None:
    window = Window(china("2025-06-01T00:00:00"), china("2026-01-01T00:00:00"))
    found = [len(page) for page in youzan.customer_pages(client(), window)]
    sandbox.control("POST", "/settings", {"youzan_customer_milliseconds": True})
    options = youzan.Options(customer_time_unit="ms")
    assert [len(page) for page in youzan.customer_pages(client(options), window)] == found
    assert sum(found) > 0


# ---------------------------------------------------------------------------------------------------- into the house
def test_the_first_night_equals_the_truth_and_a_second_changes_nothing(shop: Any, db: psycopg.Connection[Row]) -> None:
    summaries = malls.night(SOURCE, "first")
    assert malls.differences(db, SOURCE, truth(shop), "products") == {}
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0
    assert one(db, "SELECT count(*) FROM core.shop_coupons WHERE source_id = %s", (SOURCE,)) == 7
    assert {name: s.seen == s.changed > 0 for name, s in summaries.items()} == dict.fromkeys(summaries, True)
    states = {
        row["status"]: row["n"]
        for row in db.execute("SELECT status, count(*) AS n FROM core.orders GROUP BY status").fetchall()
    }
    wanted = truth(shop)["orders_by_state"]
    assert states == {("cancelled" if name == "closed_unpaid" else name): count for name, count in wanted.items()}
    before = everything(db)
    again = malls.night(SOURCE, "again")
    assert {name: summary.changed for name, summary in again.items()} == dict.fromkeys(again, 0)
    assert everything(db) == before


def test_small_pages_and_a_full_remap_give_the_same(shop: Any, db: psycopg.Connection[Row]) -> None:
    malls.night(SOURCE, "small", page_sizes={"*": 3})
    assert malls.differences(db, SOURCE, truth(shop), "products") == {}
    before = everything(db)
    assert mapping.reset_mappings(db, SOURCE) == 5
    mapping.map_source(SOURCE, run_id="remap")
    assert everything(db) == before


def test_a_past_range_can_be_read_again_and_no_gap_is_left(
    shop: Any, db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    malls.use_sources(monkeypatch, tmp_path, BLOCK.replace("history_days: 400", "history_days: 20"))
    malls.night(SOURCE, "short")
    assert "orders" in malls.differences(db, SOURCE, truth(shop))
    assert landing.gaps(SOURCE) == []
    marks = "SELECT stream, watermark FROM raw.cursors ORDER BY 1"
    before = db.execute(marks).fetchall()
    past = Window(dates.now() - timedelta(days=400), dates.now() - timedelta(days=19))
    for stream in ("trades", "refunds"):
        landing.land(SOURCE, stream, run_id="past", until=dates.now(), window=past)
    assert db.execute(marks).fetchall() == before, "a backfill leaves the watermarks where they are"
    mapping.map_source(SOURCE, run_id="past")
    mapping.resolve_members(run_id="past")
    assert malls.differences(db, SOURCE, truth(shop), "products") == {}


def test_nights_of_increments_equal_the_truth(shop: Any, db: psycopg.Connection[Row], set_clock: Any) -> None:
    malls.night(SOURCE, "first")
    for day in ("2026-03-19", "2026-03-26", "2026-04-05"):
        moment = f"{day}T02:31:00+08:00"
        set_clock(moment)
        shop.control("POST", "/clock", {"now": moment})
        summaries = malls.night(SOURCE, day)
        assert summaries["trades"].windows <= 2
        assert malls.differences(db, SOURCE, truth(shop), "products") == {}
    points = one(db, "SELECT sum(order_count) FROM core.customers WHERE source_id = %s", (SOURCE,))
    assert points == truth(shop)["paid_orders"], "counts of old customers moved on: all of them were read again"


def test_people_are_tied_by_their_phone(shop: Any, db: psycopg.Connection[Row]) -> None:
    malls.night(SOURCE, "first")
    unlinked = one(
        db,
        """
        SELECT count(*) FROM core.identities AS i WHERE i.kind = 'youzan_open_id' AND NOT EXISTS (
            SELECT FROM core.identity_links AS l JOIN core.identities AS p ON p.identity_id IN (l.identity_a, l.identity_b)
            WHERE i.identity_id IN (l.identity_a, l.identity_b) AND p.kind = 'phone')
        """,
    )
    assert unlinked == 0
    phones = one(db, "SELECT count(*) FROM core.identities WHERE kind = 'phone'")
    assert phones == one(db, "SELECT count(*) FROM core.identities WHERE kind = 'youzan_open_id'"), (
        "a cipher text is no phone"
    )
    assert one(db, "SELECT count(*) FROM core.orders WHERE identity_id IS NULL") == 0
    assert one(db, "SELECT count(*) FROM core.refunds WHERE identity_id IS NULL") == 0
    assert one(db, "SELECT count(*) FROM core.profiles WHERE name IS NULL") == 0


def test_no_clear_value_rests_in_raw_or_core(shop: Any, db: psycopg.Connection[Row]) -> None:
    malls.night(SOURCE, "first")
    people = shop.control("GET", "/people")["people"]
    texts = one(
        db,
        "SELECT (SELECT string_agg(payload::text, ' ') FROM raw.records) || (SELECT string_agg(c::text, ' ') FROM core.profiles AS c)"
        " || (SELECT string_agg(i::text, ' ') FROM core.identities AS i)",
    )
    assert [person["phone"][:3] for person in people if person["phone"] in texts] == []
    assert [len(person["name"]) for person in people if len(person["name"]) > 2 and person["name"] in texts] == []
    assert (
        one(
            db,
            "SELECT count(*) FROM raw.records WHERE payload #>> '{full_order_info,address_info,receiver_tel}' LIKE 'address:%%'",
        )
        > 0
    )


def test_without_details_the_lists_payment_counts(
    shop: Any, db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    malls.use_sources(monkeypatch, tmp_path, BLOCK.replace("reviews: true", "reviews: true, trade_detail: false"))
    before = requested(shop).get("youzan.trade.get", 0)
    malls.night(SOURCE, "first")
    assert requested(shop).get("youzan.trade.get", 0) == before
    found = malls.differences(db, SOURCE, truth(shop), "products")
    assert set(found) == {"paid_amount"}, "which is not what was paid: the postage is missing"


def test_reviews_are_off_until_somebody_switches_them_on(
    environment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert set(youzan.streams(youzan.Options())) == {"trades", "refunds", "customers", "coupons"}
    assert "reviews" in youzan.streams(youzan.Options(reviews=True))
    page = Path(__file__).resolve().parents[2] / "docs" / "connections" / "youzan.md"
    ready = page.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    file = malls.use_sources(monkeypatch, tmp_path, "sources:\n" + ready)
    assert sources.load_sources(file)[SOURCE].settings == youzan.Options(), "the page shows what is set anyway"
    shipped = sources.load_sources(malls.CONFIG / "sources.yaml")[SOURCE]
    assert set(shipped.streams) == {"trades", "refunds", "customers", "coupons"}


PAID_BACK, CLOSED = 1773450000, 1773440000  # 2026-03-14 09:00 and 06:13 in China


def refund(detail: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    row = {"tid": "E1", "status": "SUCCESS", "refund_fee": "15.00", "created": 1773400000, "modified": CLOSED} | changes
    return row | ({"detail": detail} if detail is not None else {})


def test_a_refund_is_what_really_went_back_on_the_day_it_arrived(shop: Any, db: psycopg.Connection[Row]) -> None:
    def funds(*states: tuple[int, int]) -> list[dict[str, int]]:
        return [{"refund_fee": fen, "status": status} for fen, status in states]

    times = {"refund_account_time": PAID_BACK, "refund_success_time": CLOSED}
    cases: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
        "a part failed": (refund(times | {"refund_fund_list": funds((1000, 2), (500, 1))}), (True, "10.00", PAID_BACK)),
        "on its way": (
            refund({"refund_success_time": CLOSED, "refund_fund_list": funds((1500, 0))}),
            (True, "15.00", CLOSED),
        ),
        "all of it failed": (refund(times | {"refund_fund_list": funds((1500, 1))}), (False, "15.00", PAID_BACK)),
        "with postage": (
            refund({"refund_fee": "16.50", "refund_fund_list": funds((1650, 2))}),
            (True, "16.50", CLOSED),
        ),
        "no list": (refund(None), (True, "15.00", CLOSED)),
        "times as texts": (
            refund(
                {"refund_account_time": "2026-03-14 09:00:00"}, modified="2026-03-14 06:13:20", created=1773400000000
            ),
            (True, "15.00", PAID_BACK),
        ),
        "asked for": (
            refund({"refund_fund_list": funds((1500, 0))}, status="WAIT_SELLER_AGREE"),
            (False, "15.00", None),
        ),
    }
    unusable = {
        "unknown": refund(None, status="NEW_WORD"),
        "no number": refund({"refund_fund_list": [{"refund_fee": "x", "status": 2}]}),
    }
    malls.arrived(db, SOURCE, "refunds", {name: payload for name, (payload, _) in cases.items()} | unusable)
    mapping.map_source(SOURCE, run_id="r")
    rows = db.execute("SELECT refund_id, is_money, refund_amount, settled_at FROM core.refunds").fetchall()
    found = {
        row["refund_id"]: (
            row["is_money"],
            f"{row['refund_amount']:.2f}",
            row["settled_at"] and int(row["settled_at"].timestamp()),
        )
        for row in rows
    }
    assert found == {name: wanted for name, (_, wanted) in cases.items()}
    rejects = db.execute("SELECT record_key, reason FROM raw.rejects ORDER BY 1").fetchall()
    assert [(row["record_key"], row["reason"]) for row in rejects] == [
        ("no number", "core.refunds: refund_fund_list: refund_fee is missing or not a number"),
        ("unknown", "core.refunds: status is missing or unknown"),
    ]


def trade(status: str, pay: dict[str, str], **times: str) -> dict[str, Any]:
    info = {
        "tid": "t",
        "status": status,
        "created": "2026-03-01 10:00:00",
        "update_time": "2026-03-02 10:00:00",
    } | times
    lines = [{"oid": "1", "item_id": 7, "title": "茶", "num": 2, "price": "10.00", "payment": "18.00"}]
    return {
        "order_info": info,
        "pay_info": pay,
        "buyer_info": {"yz_open_id": "yz1", "buyer_phone": "masked"},
        "orders": lines,
    }


def test_an_orders_state_and_what_was_paid(shop: Any, db: psycopg.Connection[Row]) -> None:
    due, paid = {"payment": "18.00"}, {"payment": "20.00", "real_payment": "20.00", "post_fee": "2.00"}
    when = {"pay_time": "2026-03-01 10:05:00"}
    records: dict[str, dict[str, Any]] = {
        "never paid": {"full_order_info": trade("TRADE_CLOSED", due, pay_time="")},
        "paid back": {"full_order_info": trade("TRADE_CLOSED", due, **when)},
        "group-buy": {"full_order_info": trade("WAIT_CONFIRM", due, **when)},
        "detail is newer": {
            "full_order_info": trade("WAIT_SELLER_SEND_GOODS", due, **when),
            "detail": {"full_order_info": trade("WAIT_BUYER_CONFIRM_GOODS", paid, **when)},
        },
        "detail without the amount": {
            "full_order_info": trade("TRADE_SUCCESS", due, **when),
            "detail": {"full_order_info": trade("TRADE_SUCCESS", due, **when)},
        },
        "unknown": {"full_order_info": trade("TRADE_NEW", due)},
        "nothing": {"full_order_info": None},
    }
    malls.arrived(db, SOURCE, "trades", records)
    mapping.map_source(SOURCE, run_id="r")
    rows = db.execute(
        "SELECT order_id, status, is_paid, paid_amount, postage_amount, goods_amount FROM core.orders"
    ).fetchall()
    assert {row["order_id"]: tuple(map(str, list(row.values())[1:])) for row in rows} == {
        "never paid": ("cancelled", "False", "18.00", "0", "20.00"),
        "paid back": ("refunded", "True", "18.00", "0", "20.00"),
        "group-buy": ("paid", "True", "18.00", "0", "20.00"),
        "detail is newer": ("shipped", "True", "20.00", "2.00", "20.00"),
    }
    rejects = {
        row["record_key"]: row["reason"] for row in db.execute("SELECT record_key, reason FROM raw.rejects").fetchall()
    }
    assert rejects["detail without the amount"] == (
        "core.orders: detail: pay_info.real_payment is missing or not a number"
    )
    assert rejects["unknown"] == "core.orders: order_info.status is missing or unknown"
    assert "the order has no lines" in rejects["nothing"]
    assert one(db, "SELECT count(*) FROM core.identities") == 1, "a masked phone is nobody"


def test_check_names_the_shop_and_what_may_not_be_read(shop: Any) -> None:
    answer = landing.check_source(SOURCE)
    assert answer.startswith(f"youzan_mall: works for shop {shop.access['youzan']['grant_id']}; ")
    fault(shop, "revoked_token", method="youzan.scrm.customer.list", times=-1)
    answer = landing.check_source(SOURCE)
    assert "customers: the shop's authorisation has lapsed" in answer
    assert "trades:" not in answer


@pytest.mark.parametrize("kind", ["missing_fields", "null_fields", "ids_as_numbers", "emoji", "duplicate_page"])
def test_what_the_platform_spoils_is_repaired_by_the_next_night(
    shop: Any, db: psycopg.Connection[Row], kind: str
) -> None:
    fault(shop, kind, times=-1)
    malls.night(SOURCE, "spoilt", page_sizes={"*": 3})
    open_rejects = "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL"
    spoilt = malls.differences(db, SOURCE, truth(shop), "products")
    assert (one(db, open_rejects) > 0) == (spoilt != {}) == (kind == "missing_fields")
    shop.control("POST", "/faults", {"faults": []})
    malls.night(SOURCE, "whole", page_sizes={"*": 3})
    assert one(db, open_rejects) == 0
    assert malls.differences(db, SOURCE, truth(shop), "products") == {}


def test_a_page_that_came_empty_is_read_again(shop: Any, db: psycopg.Connection[Row]) -> None:
    for api in ("youzan.trades.sold.get", "youzan.trade.refund.search", "youzan.scrm.customer.list"):
        fault(shop, "empty_last_page", method=api, times=2, after=50 if "trade" in api else 0)
        malls.land(SOURCE, api, page_sizes={"*": 3})
    malls.night(SOURCE, "first")
    assert malls.differences(db, SOURCE, truth(shop), "products") == {}
    fault(shop, "empty_last_page", method="youzan.ump.voucheractivity.query", times=-1)
    with pytest.raises(PlatformDown, match="the list kept changing: 0 rows after 4 walks, the platform counts 7"):
        landing.land(SOURCE, "coupons", run_id="empty", until=dates.now())


# ----------------------------------------------------------------------------------------------------------- pushes
CREDENTIALS = Credentials("youzan_mall", "h", "client-1", "secret-1", extra={"grant_id": "1"})


def push(body: bytes, credentials: Credentials = CREDENTIALS, **changes: Any) -> Any:
    sign = hashlib.md5(credentials.login.encode() + body + credentials.password.encode()).hexdigest()
    headers = changes.pop("headers", {"event-sign": sign})
    return youzan.receive(
        credentials, PushRequest(changes.pop("method", "POST"), "/webhooks/youzan_mall", {}, headers, body)
    )


def test_a_signed_push_is_kept_and_answered() -> None:
    body = json.dumps(
        {"msg_id": "m-1", "type": "trade_TradePaid", "id": "E1", "msg": "%7B%7D", "sendCount": 0}
    ).encode()
    answer = push(body)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert json.loads(answer.body) == {"code": 0, "msg": "success"}
    assert [(kept.key, kept.body) for kept in answer.pushes] == [("m-1", body)]
    repeated = json.dumps(
        {"msg_id": "m-1", "type": "trade_TradePaid", "id": "E1", "msg": "%7B%7D", "sendCount": 1}
    ).encode()
    assert push(repeated).pushes[0].key == "m-1", "sent again it is the same push"
    nameless = b'{"type":"x"}'
    assert push(nameless).pushes[0].key == hashlib.sha256(nameless).hexdigest()


def test_a_push_that_is_not_signed_well_is_refused() -> None:
    body = b'{"msg_id": "m-1"}'
    good = hashlib.md5(b"client-1" + body + b"secret-1").hexdigest()
    assert push(body, headers={}) == REFUSED
    assert push(body, headers={"event-sign": "0" * 32}) == REFUSED
    assert push(body, headers={"event-sign": "签"}) == REFUSED
    assert push(body + b" ", headers={"event-sign": good}) == REFUSED
    assert push(body, method="GET") == REFUSED
    assert push(b"", Credentials("c", "h", "", "")) == REFUSED, "without a secret everybody could sign"
    assert push(b"[1]").status == 400
    other = Credentials("c", "h", "client-1", "secret-1", extra={"push_header": "X-Sign"})
    assert push(body, other, headers={"x-sign": good.upper()}).status == 200


def test_a_push_is_stored_encrypted_once(shop: Any, db: psycopg.Connection[Row]) -> None:
    archive = Receiver()
    credentials = settings.credentials(SOURCE)
    body = json.dumps(
        {"msg_id": "m-7", "type": "trade_TradePaid", "msg": "%7B%22buyer_phone%22%3A%2210012345678%22%7D"}
    ).encode()
    sign = hashlib.md5(credentials.login.encode() + body + credentials.password.encode()).hexdigest()
    request = PushRequest("POST", f"/webhooks/{SOURCE}", {}, {"event-sign": sign}, body)
    try:
        for _ in range(2):
            assert archive.take(SOURCE, request).status == 200
        forged = PushRequest("POST", request.path, {}, {"event-sign": sign}, body + b" ")
        assert archive.take(SOURCE, forged).status == 403
    finally:
        archive.close()
    rows = db.execute("SELECT push_key, body FROM raw.pushes WHERE source_id = %s", (SOURCE,)).fetchall()
    assert [row["push_key"] for row in rows] == ["m-7"]
    assert b"10012345678" not in bytes(rows[0]["body"])


def test_every_call_gives_one_more_voucher(raw: Raw, sandbox: Any) -> None:
    token = raw.token()["data"]["access_token"]
    page = raw.call(CUSTOMERS, {"page_no": 1, "page_size": 20}, token)["data"]["record_list"]
    open_id, activity = page[0]["yz_open_id"], 9_007_199_254_740_996
    body = {"activity_id": activity, "yz_open_id": open_id}
    given = [
        raw.call("youzan.ump.voucheractivity.send/3.0.1", body, token)["data"]["voucher_identity"]["coupon_id"]
        for _ in range(2)
    ]
    assert len(set(given)) == 2
    counted = sandbox.control("GET", "/counters")["coupons"]["by_out_request_no"]
    assert counted == {f"youzan:{activity}:{open_id}": 2}
    detail = raw.call("youzan.ump.voucher.query.detail/3.0.1", {"coupon_id": given[0], "coupon_type": 0}, token)["data"]
    assert (detail["is_used"], detail["is_expired"]) == (False, False)


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("youzan.ump.voucheractivity.send/3.0.1", {"activity_id": 1, "yz_open_id": "yz1"}),
        ("youzan.ump.voucheractivity.send/3.0.1", {"activity_id": "9007199254740996", "yz_open_id": "yz1"}),
        ("youzan.ump.voucheractivity.send/3.0.1", {"activity_id": 9_007_199_254_740_996, "yz_open_id": "nobody"}),
        ("youzan.ump.voucheractivity.send/3.0.1", {"activity_id": 9_007_199_254_740_999, "yz_open_id": "yz1"}),  # ended
        ("youzan.ump.voucher.query.detail/3.0.1", {"coupon_id": 5, "coupon_type": 0}),
    ],
)
def test_a_voucher_is_refused(raw: Raw, api: str, body: dict[str, Any]) -> None:
    answer = raw.call(api, body, raw.token()["data"]["access_token"])
    assert (answer["success"], len(str(answer["code"]))) == (False, 9)
