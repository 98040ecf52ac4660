"""A Taobao shop beyond its orders: customers, items, compact answers, other order methods, windows that are too full."""

from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from malls import use_every_stream
from nights import one

from nightmarket import dates, landing, mapping, settings, sources
from nightmarket.dates import Window
from nightmarket.platforms import taobao
from nightmarket.platforms.base import AuthError, PlatformDown, Refused, Transport
from nightmarket.warehouse import Row

SHOP = "taobao_flagship"
SIMPLE = {
    "sold": "taobao.trades.simple.sold.get",
    "history": None,
    "increment": "taobao.trades.simple.sold.increment.get",
    "detail": "taobao.trade.simple.get",
}


def read(stream: str, run_id: str = "run", **more: Any) -> landing.LandingSummary:
    return landing.land(SHOP, stream, run_id=run_id, until=dates.now(), **more)


def client(**options: Any) -> taobao.Client:
    transport = Transport("taobao", sleep=lambda _: None)
    return taobao.connect(settings.credentials(SHOP), transport, options=taobao.Options.model_validate(options))


@pytest.fixture(autouse=True)
def every_stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The default file leaves some streams out, to keep nights short."""
    use_every_stream(monkeypatch, tmp_path, "taobao_flagship")


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the `options:` of the shop for this test."""
    kept = sources.source(SHOP)

    def choose(**values: Any) -> None:
        changed = kept.model_copy(update={"settings": taobao.Options.model_validate(values)})
        monkeypatch.setattr(landing, "source", lambda _: changed)
        monkeypatch.setattr(mapping, "source", lambda _: changed)

    return choose


def called(sandbox: Any) -> dict[str, int]:
    found: dict[str, int] = sandbox.control("GET", "/counters")["requests"]["taobao"]
    return found


def spoil(sandbox: Any, method: str, kind: str, **more: Any) -> None:
    fault = {"platform": "taobao", "method": method, "kind": kind, **more}
    sandbox.control("POST", "/faults", {"faults": [fault]})


def test_the_documented_options_are_the_ones_there_are() -> None:
    page = (settings.ROOT / "docs" / "connections" / "taobao.md").read_text(encoding="utf-8")
    documented = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])["options"]
    assert taobao.Options.model_validate(documented).trade_methods == taobao.TradeMethods.model_validate(SIMPLE)
    assert set(documented) == set(taobao.Options.model_fields)
    assert documented["max_pages"] == taobao.Options().max_pages


# ---------------------------------------------------------------------------------------------------------- members
def test_customers_are_those_of_the_shop(db: psycopg.Connection[Row], sandbox: Any) -> None:
    summary = read("members", page_sizes={"*": 20})
    mapping.map_source(SHOP, run_id="run")
    truth = sandbox.control("GET", "/truth")
    assert summary.changed == truth["members"] == one(db, "SELECT count(*) FROM core.customers")
    totals = db.execute("SELECT sum(order_count) AS orders, sum(spent_amount) AS spent FROM core.customers").fetchone()
    assert totals is not None
    assert (totals["orders"], totals["spent"]) == (truth["paid_orders"], Decimal(truth["paid_line_value"]))
    assert one(db, "SELECT count(*) FROM core.customers WHERE order_count > 0") == truth["buyers"]
    assert one(db, "SELECT count(*) FROM core.customers WHERE order_count = 0 AND last_order_at IS NULL") > 0
    assert one(db, "SELECT count(DISTINCT identity_id) FROM core.customers") == truth["members"]
    assert one(db, "SELECT count(*) FROM core.customers WHERE is_member") > 0
    assert one(db, "SELECT count(*) FROM core.customers WHERE NOT is_member AND order_count > 0") > 0
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0


def test_members_are_read_again_only_where_something_changed(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Any
) -> None:
    first = read("members")
    again = read("members", "again")
    assert 0 <= again.seen < first.seen / 3
    assert again.changed == 0
    moment = "2026-03-20T02:30:00+08:00"
    set_clock(moment)
    sandbox.control("POST", "/clock", {"now": moment})
    later = read("members", "later")
    assert 0 < later.changed < first.changed
    mapping.map_source(SHOP, run_id="later")
    assert one(db, "SELECT sum(order_count) FROM core.customers") == sandbox.control("GET", "/truth")["paid_orders"]
    assert "taobao.crm.members.increment.get" in called(sandbox)


def test_more_members_than_pages_are_cut_by_their_last_trade(
    db: psycopg.Connection[Row], sandbox: Any, options: Any
) -> None:
    options(max_pages=3)
    summary = read("members", page_sizes={"*": 5})
    assert summary.changed == sandbox.control("GET", "/truth")["members"]
    assert summary.windows > 10
    assert one(db, "SELECT count(*) FROM raw.cursors WHERE stream LIKE 'members:%%'") == 0


def test_a_first_load_of_members_that_died_goes_on_where_it_stopped(
    db: psycopg.Connection[Row], sandbox: Any, options: Any
) -> None:
    options(max_pages=3)
    spoil(sandbox, "taobao.crm.members.search", "garbage", after=25, times=-1)
    with pytest.raises(taobao.BadPayload, match="is not readable JSON"):
        read("members", page_sizes={"*": 5})
    assert one(db, "SELECT count(*) FROM raw.cursors WHERE stream = 'members:traded'") == 1
    before = one(db, "SELECT count(*) FROM raw.heads WHERE stream = 'members'")
    sandbox.control("POST", "/faults", {"faults": []})
    summary = read("members", "again", page_sizes={"*": 5})
    assert summary.changed == sandbox.control("GET", "/truth")["members"] - before
    assert before > 0


def test_members_whom_nothing_tells_apart_are_a_sentence(sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taobao, "MEMBER_PAGES", 0)
    with pytest.raises(Refused, match="no time of a trade tells apart"):
        list(taobao._members(client(), taobao.MEMBER_SEARCH, {"relation_source": 2}))


# ------------------------------------------------------------------------------------------------------------ items
def test_every_item_on_sale_is_a_product(db: psycopg.Connection[Row], sandbox: Any) -> None:
    summary = read("items")
    mapping.map_source(SHOP, run_id="run")
    assert summary.changed == sandbox.control("GET", "/truth")["items"]
    assert one(db, "SELECT count(*) FROM core.products WHERE is_listed AND title <> ''") == summary.changed
    assert one(db, "SELECT count(*) FROM core.products WHERE price_amount > 0") == summary.changed
    again = read("items", "again")
    assert (again.seen, again.changed) == (0, 0)


def test_items_keep_their_titles_when_orders_know_them_too(db: psycopg.Connection[Row], sandbox: Any) -> None:
    read("trades")
    read("items")
    mapping.map_source(SHOP, run_id="run")
    assert one(db, "SELECT count(*) FROM core.products") == sandbox.control("GET", "/truth")["items"]
    assert one(db, "SELECT count(*) FROM core.products WHERE title = '' OR price_amount IS NULL") == 0


# ------------------------------------------------------------------------------------------ other forms and methods
def orders_of(db: psycopg.Connection[Row]) -> tuple[Any, ...]:
    row = db.execute(
        "SELECT count(*) AS n, sum(goods_amount) AS goods, sum(line_count) AS lines, count(identity_id) AS people FROM core.orders"
    ).fetchone()
    assert row is not None
    return tuple(row.values())


def test_compact_answers_give_the_same_core(db: psycopg.Connection[Row], sandbox: Any, options: Any) -> None:
    options(simplify=True)
    for stream in ("trades", "refunds", "rates", "members", "items"):
        assert read(stream).changed > 0
    mapping.map_source(SHOP, run_id="run")
    truth = sandbox.control("GET", "/truth")
    orders, _, lines, people = orders_of(db)
    assert (orders, lines, people) == (truth["trades"], truth["lines"], truth["trades"])
    assert one(db, "SELECT sum(goods_amount) FROM core.orders WHERE is_paid") == Decimal(truth["paid_line_value"])
    assert one(db, "SELECT count(*) FROM core.refunds WHERE is_money") == truth["refunds"]
    assert one(db, "SELECT count(*) FROM core.reviews") == truth["reviews_readable"]
    assert one(db, "SELECT count(*) FROM core.customers") == truth["members"]
    assert one(db, "SELECT count(*) FROM raw.rejects") == 0
    assert (
        one(db, "SELECT jsonb_typeof(payload -> 'orders') FROM raw.records WHERE stream = 'trades' LIMIT 1") == "array"
    )


def test_errors_of_the_compact_form_are_errors(sandbox: Any) -> None:
    spoil(sandbox, "taobao.trades.sold.get", "expired_token")
    with pytest.raises(AuthError, match="authorise the application again"):
        client(simplify=True).call("taobao.trades.sold.get", 1, fields="tid")


def test_simple_order_methods_know_buyers_by_their_id_in_the_shop(
    db: psycopg.Connection[Row], sandbox: Any, options: Any, set_clock: Any
) -> None:
    """Applications without the order package: three months of orders, no receiver, customers and orders still one person."""
    options(trade_methods=SIMPLE)
    read("trades")
    moment = "2026-03-16T02:30:00+08:00"
    set_clock(moment)
    sandbox.control("POST", "/clock", {"now": moment})
    assert read("trades", "later").changed > 0
    read("members")
    mapping.map_source(SHOP, run_id="run")
    mapping.resolve_members(run_id="run")
    names = set(called(sandbox))
    assert {SIMPLE["sold"], SIMPLE["increment"], SIMPLE["detail"]} <= names
    assert not {"taobao.trades.sold.get", "taobao.trades.sold.history.get", "taobao.trade.fullinfo.get"} & names
    assert one(db, "SELECT count(*) FROM core.orders") > 20
    assert one(db, "SELECT count(*) FROM raw.records WHERE payload ? 'receiver_name'") == 0
    assert one(db, "SELECT count(*) FROM core.orders WHERE identity_id IS NULL") == 0
    assert one(
        db,
        "SELECT count(*) FROM core.orders AS o JOIN core.member_identities AS a USING (identity_id) WHERE NOT EXISTS ("
        " SELECT 1 FROM core.customers AS c JOIN core.member_identities AS b USING (identity_id) WHERE b.member_id = a.member_id)",
    ) == 0  # fmt: skip


# ------------------------------------------------------------------------------------------------------ full windows
def test_an_increment_window_of_too_many_pages_is_cut(
    db: psycopg.Connection[Row], sandbox: Any, options: Any, set_clock: Any
) -> None:
    read("trades")
    options(max_pages=2)
    moment = "2026-03-16T02:30:00+08:00"
    set_clock(moment)
    sandbox.control("POST", "/clock", {"now": moment})
    summary = read("trades", "later", page_sizes={"*": 1})
    assert summary.windows > 4
    rows = db.execute(
        "SELECT window_start, window_end, seen_count FROM raw.batches WHERE run_id = 'later' ORDER BY window_start"
    ).fetchall()
    assert all(row["seen_count"] <= 2 for row in rows if row["window_end"] - row["window_start"] > timedelta(seconds=4))
    mapping.map_source(SHOP, run_id="run")
    truth = sandbox.control("GET", "/truth")
    assert orders_of(db)[0] == truth["trades"]
    assert one(db, "SELECT count(*) FROM core.orders WHERE is_paid") == truth["paid_orders"]


def test_the_pieces_of_a_window_leave_no_gap() -> None:
    start = datetime(2026, 3, 14, tzinfo=dates.now().tzinfo)
    rows = [start + timedelta(minutes=7 * number) for number in range(200)]

    class Busy:
        calls = 0

        def page_size(self, method: str, largest: int) -> int:
            return 10

        def call(self, method: str, page: int, *, low: datetime, high: datetime, **_: Any) -> dict[str, Any]:
            self.calls += 1
            return {"total_results": sum(low <= row < high for row in rows)}

    busy = Busy()
    whole = Window(start, start + timedelta(days=1))
    pieces = list(
        taobao.fitting(busy, "m", 100, whole, lambda window: {"low": window.start, "high": window.end}, 3)  # type: ignore[arg-type]
    )
    assert pieces[0][0].start == whole.start
    assert pieces[-1][0].end == whole.end
    assert all(one[0].end == other[0].start for one, other in pairwise(pieces))
    assert sum(first["total_results"] for _, first in pieces) == len(rows)
    assert all(first["total_results"] <= 30 for _, first in pieces)
    assert busy.calls < 2 * len(pieces)


def test_a_second_that_holds_too_much_is_read_whole() -> None:
    class Flash:
        def page_size(self, method: str, largest: int) -> int:
            return 10

        def call(self, method: str, page: int, **_: Any) -> dict[str, Any]:
            return {"total_results": 5000}

    start = datetime(2026, 3, 14, tzinfo=dates.now().tzinfo)
    pieces = list(
        taobao.fitting(Flash(), "m", 100, Window(start, start + timedelta(seconds=16)), lambda _: {}, 3)  # type: ignore[arg-type]
    )
    assert [window.end - window.start for window, _ in pieces] == [timedelta(seconds=2)] * 8


# ------------------------------------------------------------------------------------------------------ errors as told
def test_a_ban_is_waited_for_as_told(sandbox: Any) -> None:
    waits: list[float] = []
    spoil(sandbox, "taobao.time.get", "call_limit", seconds=9)
    shop = taobao.connect(settings.credentials(SHOP), Transport("taobao", sleep=waits.append), options=taobao.Options())
    assert "time" in shop.call("taobao.time.get")
    assert len(waits) == 1
    assert 9 <= waits[0] <= 13.5


def test_the_platforms_own_troubles_are_tried_again_and_refusals_are_not(sandbox: Any) -> None:
    spoil(sandbox, "taobao.trades.sold.get", "platform_busy", times=2)
    assert "total_results" in client().call("taobao.trades.sold.get", 1, fields="tid")
    assert called(sandbox)["taobao.trades.sold.get"] == 3
    with pytest.raises(Refused, match=r"isv\.missing-parameter:fields"):
        client().call("taobao.trades.sold.get", 1)
    assert called(sandbox)["taobao.trades.sold.get"] == 4
    spoil(sandbox, "taobao.trades.sold.get", "platform_busy", times=-1)
    with pytest.raises(PlatformDown, match="not available right now"):
        client().call("taobao.trades.sold.get", 1, fields="tid")


def test_check_names_the_streams_that_may_not_be_read(sandbox: Any) -> None:
    names = list(sources.source(SHOP).streams)
    assert taobao.check(client(), names).problems == {}
    spoil(sandbox, "taobao.crm.members.search", "revoked_token", times=-1)
    problems = taobao.check(client(), names).problems
    assert list(problems) == ["members"]
    assert "authorise the application again" in problems["members"]


def test_a_wrong_clock_is_named(sandbox: Any) -> None:
    spoil(sandbox, "*", "wrong_clock", times=-1, seconds=300)
    assert "clock off by 300 s (behind)" in taobao.check(client(), []).sentence()
    spoil(sandbox, "*", "wrong_clock", times=-1, seconds=900)
    with pytest.raises(Refused, match="clock is off by more than 10 minutes"):
        client().call("taobao.time.get")
