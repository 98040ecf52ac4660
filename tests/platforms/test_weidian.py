"""Weidian: what the simulator refuses, what the client makes of it, and that core holds what the shop sold. Over HTTP."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import malls
import orjson
import psycopg
import pytest
import requests
from nights import everything, one

from nightmarket import dates, landing, mapping, settings
from nightmarket.dates import Window
from nightmarket.platforms import weidian
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
    NotFound,
    PlatformDown,
    PlatformError,
    RateLimited,
    Refused,
    Transport,
)
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row

SOURCE = "weidian_shop"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "connections" / "weidian.md"
READY = PAGE.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
# the ready block of the docs page; the world began a year before, and its limit of calls is another one
BLOCK = "sources:\n" + READY.replace("history_days: 730", "history_days: 400").replace("second: 5 ", "second: 1000 ")
LIST, DETAIL = "vdian.order.list.get", "vdian.order.get"
# what Weidian cannot give: customers, reviews, prices of items; refunds only of whole orders
LEFT_OUT = ("customers", "reviews", "products", "refunds", "refunds_settled", "refund_amount")
WHOLE = {"update_start": "2026-01-01 00:00:00", "update_end": "2026-03-15 02:30:00"}


class Raw:
    """Plain HTTP, written from the platform's description and not from our client: the second opinion."""

    def __init__(self, access: Mapping[str, Any]) -> None:
        self.account = access["weidian"]

    def token(self, **changes: str) -> dict[str, Any]:
        query = {
            "grant_type": "client_credential",
            "appkey": self.account["appkey"],
            "secret": self.account["secret"],
        }
        answer = requests.get(self.account["base_url"] + "/token", params=query | changes, timeout=30)
        assert answer.status_code == 200
        return dict(answer.json())

    def call(self, method: str, param: Any, token: str, version: str = "1.5", **public: Any) -> dict[str, Any]:
        said = {"method": method, "access_token": token, "version": version, "format": "json"} | public
        form = {"public": json.dumps(said), "param": json.dumps(param)}
        answer = requests.post(self.account["base_url"] + "/api", data=form, timeout=30)
        assert answer.status_code == 200
        return dict(answer.json())


@pytest.fixture
def raw(sandbox: Any) -> Raw:
    return Raw(sandbox.access)


@pytest.fixture
def shop(db: psycopg.Connection[Row], sandbox: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """The sandbox, and the sources.yaml of docs/connections/weidian.md."""
    malls.use_sources(monkeypatch, tmp_path, BLOCK)
    return sandbox


def truth(sandbox: Any) -> dict[str, Any]:
    found: dict[str, Any] = sandbox.control("GET", "/truth")["shops"]["weidian"]
    return found


def fault(sandbox: Any, kind: str, **more: Any) -> None:
    sandbox.control("POST", "/faults", {"faults": [{"platform": "weidian", "kind": kind, **more}]})


def requested(sandbox: Any) -> dict[str, int]:
    found: dict[str, int] = sandbox.control("GET", "/counters")["requests"].get("weidian", {})
    return found


def client(options: weidian.Options | None = None, **page_sizes: int) -> weidian.Client:
    sizes = {"*": page_sizes["every"]} if page_sizes else {}
    return weidian.connect(
        settings.credentials(SOURCE), Transport("weidian"), options=options or weidian.Options(), page_sizes=sizes
    )


def china(text: str) -> datetime:
    return datetime.fromisoformat(text + "+08:00")


# -------------------------------------------------------------------------------------------------------- simulator
def code(answer: dict[str, Any]) -> int:
    assert set(answer) == {"status", "result"}
    return int(answer["status"]["status_code"])


def test_a_token_and_what_it_opens(raw: Raw) -> None:
    answer = raw.token()
    assert answer["status"] == {"status_code": 0, "status_reason": "success"}
    assert answer["result"]["expires_in"] == 86_400
    token = answer["result"]["access_token"]
    page = raw.call(LIST, WHOLE | {"page_size": 2}, token)["result"]
    assert page["order_num"] == len(page["orders"]) == 2
    assert page["total_num"] > 2, "order_num counts the page, total_num the list"
    order = raw.call(DETAIL, {"order_id": page["orders"][0]["order_id"]}, token, "2.0")["result"]
    assert order["order_id"] == page["orders"][0]["order_id"]
    assert isinstance(order["order_id"], str)
    assert int(order["order_id"]) > 2**53
    assert order["buyer_info"]["phone"].startswith("100")
    fresh = raw.token()["result"]["access_token"]
    assert code(raw.call(LIST, WHOLE, token)) == 10012, "a new token ends the one before it"
    assert code(raw.call(LIST, WHOLE, fresh)) == 0


@pytest.mark.parametrize("changes", [{"grant_type": "x"}, {"appkey": "x"}, {"secret": "x"}])
def test_a_token_is_refused(raw: Raw, changes: dict[str, str]) -> None:
    answer = raw.token(**changes)
    assert code(answer) != 0
    assert answer["result"] == {}


def test_what_the_platform_refuses(raw: Raw, sandbox: Any) -> None:
    token = raw.token()["result"]["access_token"]
    for param in (
        {"page_size": 51},
        {"page_num": 0},
        {"order_type": "shipped"},  # the platform's word is `shiped`
        {"update_start": "2026-01-01"},
        {"update_start": "2026-03-16 00:00:00"},
        {"add_start": "2026-01-01 00:00:00"},
    ):
        assert code(raw.call(LIST, WHOLE | param, token)) == 10030, param
    assert code(raw.call(LIST, WHOLE, token, "1.1")) == 10007
    assert code(raw.call(LIST, WHOLE, token, format="xml")) == 10006
    assert code(raw.call(LIST, WHOLE, "")) == 10012
    assert code(raw.call(DETAIL, {"order_id": "1"}, token, "2.0")) == 10031
    bare = requests.post(raw.account["base_url"] + "/api", data={"public": "{", "param": "{}"}, timeout=30)
    assert code(bare.json()) == 10005
    sandbox.control("POST", "/clock", {"now": "2026-03-16T03:00:00+08:00"})
    assert code(raw.call(LIST, WHOLE, token)) == 10013


def test_without_a_time_the_list_is_the_last_month_and_a_page_has_30(raw: Raw, sandbox: Any) -> None:
    token = raw.token()["result"]["access_token"]
    month = raw.call(LIST, {}, token)["result"]["total_num"]
    added = {"add_start": "2026-02-12 02:30:00", "add_end": "2026-03-15 02:30:00"}
    assert raw.call(LIST, added, token)["result"]["total_num"] == month
    everything_there = raw.call(LIST, {"update_start": "2020-01-01 00:00:00", "update_end": added["add_end"]}, token)
    assert everything_there["result"]["total_num"] == truth(sandbox)["orders"] > month
    unpaid = raw.call(LIST, WHOLE | {"order_type": "close"}, token)["result"]
    assert {row["status"] for row in unpaid["orders"]} <= {"close"}


# ----------------------------------------------------------------------------------------------------------- client
@pytest.mark.parametrize(
    ("method", "status", "reason", "error", "words"),
    [
        (LIST, 10013, "access_token expired", AuthError, "the token is refused"),
        (LIST, 10020, "call frequency limit", RateLimited, "too many calls"),
        (LIST, 1, "操作过于频繁", RateLimited, "too many calls"),
        (LIST, 2, "系统繁忙", PlatformDown, "busy"),
        (LIST, 77, "sorry", AuthError, "the token is refused"),  # as the options say
        (LIST, 78, "sorry", RateLimited, "too many calls"),
        (LIST, 79, "sorry", PlatformDown, "busy"),
        (LIST, 80, "order of 13800001111 not exist", Refused, "status code 80"),
        (DETAIL, 80, "order of 13800001111 not exist", NotFound, "does not exist"),
        ("token", 3, "secret error", AuthError, r"check appkey \(login\) and secret \(password\)"),
    ],
)
def test_a_refusal_is_judged_by_its_words_and_by_the_options(
    method: str, status: int, reason: str, error: type[PlatformError], words: str
) -> None:
    options = weidian.Options(token_codes=(77,), limit_codes=(78,), busy_codes=(79,))
    found = weidian.to_error(method, status, reason, options)
    assert type(found) is error
    with pytest.raises(error, match=words):
        raise found
    assert "13800001111" not in str(found), "what the platform says is not repeated: it may name somebody"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "page 3 is not readable JSON"),
        (b"[]", "page 3 has no status"),
        (b'{"result": {}}', "page 3 has no status"),
        (b'{"status": {"status_code": 0}}', "page 3 has no result"),
    ],
)
def test_an_answer_of_another_shape_is_named(body: bytes, words: str) -> None:
    shop = weidian.connect(Credentials("c", "h", "l", "p"), Transport("weidian"), options=weidian.Options())
    with pytest.raises(BadPayload, match=words):
        shop._read(LIST, 200, body, 3)
    good = orjson.dumps({"status": {"status_code": "0"}, "result": {"a": 1}})
    assert shop._read(LIST, 200, good) == {"a": 1}, "a code may be a text"


@pytest.mark.parametrize("missing", ["host", "login", "password"])
def test_a_connection_that_lacks_a_part_is_a_sentence(missing: str) -> None:
    parts: dict[str, Any] = {"host": "h", "login": "l", "password": "p"} | {missing: ""}
    with pytest.raises(ConfigError, match=f"connection 'c': {missing}.* is missing"):
        weidian.connect(Credentials("c", **parts), Transport("weidian"), options=weidian.Options())


def window() -> Window:
    return Window(china("2026-03-01T00:00:00"), china("2026-03-15T02:30:00"))


def ids(client: weidian.Client, when: Window) -> set[str]:
    return {record["order_id"] for page in weidian.trade_pages(client, when) for record in page}


def test_a_token_is_shared_renewed_and_fetched_anew_once(environment: str, sandbox: Any, set_clock: Any) -> None:
    shop = client()
    ids(shop, window())
    assert requested(sandbox)["token"] == 1
    Raw(sandbox.access).token()  # somebody else's ends ours
    ids(shop, window())
    assert requested(sandbox)["token"] == 3
    fault(sandbox, "expired_token", times=1)
    ids(shop, window())
    assert requested(sandbox)["token"] == 4
    moment = "2026-03-16T02:27:00+08:00"  # three minutes before it ends
    sandbox.control("POST", "/clock", {"now": moment})
    set_clock(moment)
    ids(shop, window())
    assert requested(sandbox)["token"] == 5
    fault(sandbox, "revoked_token", times=-1)
    with pytest.raises(AuthError, match="check in the Weidian open platform"):
        ids(shop, window())
    assert requested(sandbox)["token"] == 6, "one new token, then a person has to act"


def test_wrong_keys_say_which_fields_to_look_at(environment: str, sandbox: Any) -> None:
    known = settings.credentials(SOURCE)
    for changes in ({"login": "n0body"}, {"password": "n0t-it"}):
        shop = weidian.connect(
            Credentials(**{**known.__dict__, **changes}), Transport("weidian"), options=weidian.Options()
        )
        with pytest.raises(AuthError, match=r"check appkey \(login\) and secret \(password\)") as caught:
            ids(shop, window())
        assert "n0t-it" not in str(caught.value)
        assert known.password not in str(caught.value)


def test_rows_that_change_while_a_list_is_paged_are_not_skipped(environment: str, sandbox: Any) -> None:
    """The three newest rows of the window leave it before each answer; read forwards, every page border would lose three."""
    when = Window(china("2025-06-01T00:00:00"), china("2026-03-15T02:29:00"))
    whole = ids(client(), when)
    assert len(whole) > 6
    fault(sandbox, "shifting_page", method=LIST, times=2, after=2)
    seen = ids(client(every=3), when)
    sandbox.control("POST", "/faults", {"faults": []})
    moved = ids(client(), Window(when.end, dates.now() + timedelta(seconds=5)))
    assert len(moved) >= 3
    assert seen | moved == whole


# ---------------------------------------------------------------------------------------------------- into the house
def test_the_first_night_equals_the_truth_and_a_second_changes_nothing(shop: Any, db: psycopg.Connection[Row]) -> None:
    summary = malls.night(SOURCE, "first")["trades"]
    assert malls.differences(db, SOURCE, truth(shop), *LEFT_OUT) == {}
    assert summary.seen == summary.changed == truth(shop)["orders"]
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0
    states = {
        row["status"]: row["n"]
        for row in db.execute("SELECT status, count(*) AS n FROM core.orders GROUP BY status").fetchall()
    }
    wanted = truth(shop)["orders_by_state"]
    assert states == {("cancelled" if name == "closed_unpaid" else name): count for name, count in wanted.items()}
    before = everything(db)
    assert malls.night(SOURCE, "again")["trades"].changed == 0
    assert everything(db) == before
    assert mapping.reset_mappings(db, SOURCE) == 2
    mapping.map_source(SOURCE, run_id="remap")
    assert everything(db) == before


def test_an_order_closed_after_it_was_paid_is_a_refund_of_all_of_it(shop: Any, db: psycopg.Connection[Row]) -> None:
    malls.night(SOURCE, "first")
    rows = db.execute(
        "SELECT o.order_id, o.paid_amount, o.modified_at, f.refund_amount, f.settled_at, f.is_money, f.identity_id"
        " FROM core.refunds AS f JOIN core.orders AS o USING (source_id, order_id)"
    ).fetchall()
    assert len(rows) == truth(shop)["orders_by_state"]["refunded"] > 0
    for row in rows:
        assert (row["refund_amount"], row["settled_at"]) == (row["paid_amount"], row["modified_at"])
        assert row["is_money"]
        assert row["identity_id"] is not None
    assert one(db, "SELECT count(*) FROM core.refunds") == len(rows)


def test_nights_of_increments_with_small_pages_equal_the_truth(
    shop: Any, db: psycopg.Connection[Row], set_clock: Any
) -> None:
    malls.night(SOURCE, "first", page_sizes={"*": 3})
    for day in ("2026-03-19", "2026-03-26", "2026-04-05"):
        moment = f"{day}T02:31:00+08:00"
        set_clock(moment)
        shop.control("POST", "/clock", {"now": moment})
        malls.night(SOURCE, day, page_sizes={"*": 3})
        assert malls.differences(db, SOURCE, truth(shop), *LEFT_OUT) == {}
    live = one(db, "SELECT count(*) FROM core.orders WHERE created_at > '2026-03-15 02:30+08'")
    assert live > 0


@pytest.mark.parametrize("kind", ["missing_fields", "null_fields", "ids_as_numbers", "emoji", "duplicate_page"])
def test_what_the_platform_spoils_is_repaired_by_the_next_night(
    shop: Any, db: psycopg.Connection[Row], kind: str
) -> None:
    fault(shop, kind, times=-1)
    malls.night(SOURCE, "spoilt", page_sizes={"*": 3})
    open_rejects = "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL"
    spoilt = malls.differences(db, SOURCE, truth(shop), *LEFT_OUT)
    assert (one(db, open_rejects) > 0) == (spoilt != {}) == (kind == "missing_fields")
    shop.control("POST", "/faults", {"faults": []})
    malls.night(SOURCE, "whole", page_sizes={"*": 3})
    assert one(db, open_rejects) == 0
    assert malls.differences(db, SOURCE, truth(shop), *LEFT_OUT) == {}


def test_people_are_known_by_their_phone_and_nothing_is_clear(shop: Any, db: psycopg.Connection[Row]) -> None:
    malls.night(SOURCE, "first")
    kinds = {
        row["kind"]: row["n"]
        for row in db.execute("SELECT kind, count(*) AS n FROM core.identities GROUP BY kind").fetchall()
    }
    assert kinds["phone"] == kinds["weidian_buyer_id"] > 0
    assert one(db, "SELECT count(*) FROM core.identity_links") == kinds["phone"]
    assert one(db, "SELECT count(*) FROM core.profiles WHERE name LIKE 'name:%%'") == kinds["phone"]
    texts = one(
        db,
        "SELECT (SELECT string_agg(payload::text, ' ') FROM raw.records) || (SELECT string_agg(c::text, ' ') FROM core.profiles AS c)"
        " || (SELECT string_agg(i::text, ' ') FROM core.identities AS i)",
    )
    people = shop.control("GET", "/people")["people"]
    assert [person["phone"][:3] for person in people if person["phone"] in texts] == []
    assert [len(person["name"]) for person in people if len(person["name"]) > 2 and person["name"] in texts] == []


def order(status: str, **changes: Any) -> dict[str, Any]:
    item = {"item_id": "7", "sku_id": "0", "item_name": "茶", "price": "10.00", "quantity": "2", "total_price": "18.00"}
    detail = {
        "status": status,
        "total": "18.00",
        "time": "2026-03-01 10:00:00",
        "update_time": "2026-03-05 10:00:00",
        "buyer_info": {"buyer_id": "b1"},
        "items": [item],
    }
    return {"order_id": "o", "detail": detail | changes}


def test_an_order_in_words_that_are_not_confirmed(shop: Any, db: psycopg.Connection[Row]) -> None:
    paid = {"pay_time": "2026-03-01 10:05:00"}
    sent = paid | {"send_time": "2026-03-02 09:00:00"}
    item = order("pay")["detail"]["items"][0]
    records = {
        "never paid": order("close"),
        "paid back": order("close", **paid),
        "asked for before it was sent": order("refunding", **paid),
        "asked for after it was sent": order("refunding", **sent),
        "one thing twice": order("pay", **paid, items=[item, item, item | {"sku_id": "9"}]),
        "no time of change": order("ship", **sent, update_time=""),
        "unknown": order("shipping"),
        "no detail": {"order_id": "o", "status": "pay"},
    }
    malls.arrived(db, SOURCE, "trades", records)
    mapping.map_source(SOURCE, run_id="r")
    states = db.execute("SELECT order_id, status, is_paid FROM core.orders").fetchall()
    assert {row["order_id"]: (row["status"], row["is_paid"]) for row in states} == {
        "never paid": ("cancelled", False),
        "paid back": ("refunded", True),
        "asked for before it was sent": ("paid", True),
        "asked for after it was sent": ("shipped", True),
        "one thing twice": ("paid", True),
        "no time of change": ("shipped", True),
    }
    lines = db.execute("SELECT line_id FROM core.order_lines WHERE order_id = 'one thing twice' ORDER BY 1").fetchall()
    assert [row["line_id"] for row in lines] == ["7:0", "7:0#2", "7:9"]
    assert one(db, "SELECT modified_at FROM core.orders WHERE order_id = 'no time of change'") == china(
        "2026-03-02T09:00:00"
    )
    refunds = db.execute("SELECT refund_id, refund_amount, is_money FROM core.refunds").fetchall()
    assert [tuple(row.values()) for row in refunds] == [("paid back", Decimal("18.00"), True)]
    rejects = {
        row["record_key"]: row["reason"] for row in db.execute("SELECT record_key, reason FROM raw.rejects").fetchall()
    }
    assert set(rejects) == {"unknown", "no detail"}
    assert rejects["unknown"] == "core.orders: detail: status is missing or unknown"


def test_check_names_the_shop_and_what_may_not_be_read(shop: Any) -> None:
    answer = landing.check_source(SOURCE)
    assert answer.startswith(f"weidian_shop: works for the shop of appkey {shop.access['weidian']['appkey']}; ")
    fault(shop, "revoked_token", method=LIST, times=-1)
    assert "trades: the token is refused" in landing.check_source(SOURCE)
