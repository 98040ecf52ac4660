"""The sandbox's TOP gateway on the wire: what it must verify, refuse, and never lose."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sandbox_client import RawClient

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "include"))
from sandbox.top import signature  # noqa: E402

ANCHOR_END = datetime.fromisoformat("2026-03-15T00:00:00+08:00")
LONG_AGO = "2020-01-01 00:00:00"

# Published (T1, T2) and recomputed (T3-T5) vectors of the signature rule.
T1 = {
    "method": "taobao.item.seller.get",
    "app_key": "12345678",
    "session": "test",
    "timestamp": "2016-01-01 12:00:00",
    "format": "json",
    "v": "2.0",
    "fields": "num_iid,title,nick,price,num",
    "num_iid": "11223344",
}
T2 = {
    "method": "taobao.user.seller.get",
    "timestamp": "2013-05-06 13:52:03",
    "format": "xml",
    "app_key": "test",
    "v": "2.0",
    "fields": "nick",
    "session": "test",
}
T5 = {
    "method": "taobao.trades.sold.increment.get",
    "app_key": "12345678",
    "session": "test",
    "timestamp": "2016-01-01 12:00:00",
    "format": "json",
    "v": "2.0",
    "fields": "tid,status,payment,orders",
    "start_modified": "2015-12-31 00:00:00",
    "end_modified": "2015-12-31 00:30:00",
    "page_no": "1",
    "page_size": "40",
    "use_has_next": "true",
    "buyer_nick": "小明",
}


@pytest.mark.parametrize(
    ("parameters", "secret", "sign_method", "expected"),
    [
        (T1, "helloworld", "md5", "66987CB115214E59E6EC978214934FB8"),
        (T2, "test", "md5", "72CB4D809B375A54502C09360D879C64"),
        (T1, "helloworld", "hmac", "D56D7858309C31B6251083A874D48273"),
        (T1, "helloworld", "hmac-sha256", "04DB15AD0774D5CFCE2C837DE43E3FCEA9011ED74F3038FB6AB5F3C4CEA119E8"),
        (T5, "helloworld", "md5", "6EFF93695AB08B0407279180772D884E"),
        (T5, "helloworld", "hmac", "98B0B08C3FC4564A243B6AECAC25962A"),
        (T5, "helloworld", "hmac-sha256", "5C233D18E4A848A97F0CEDB0F091CE7FBC54FD9D6224A1B0E21A67036A65BBDA"),
    ],
)
def test_signature_vectors(parameters: dict[str, str], secret: str, sign_method: str, expected: str) -> None:
    signed = {**parameters, "sign_method": sign_method, "empty": "", "sign": "IGNORED"}
    assert signature(signed, secret, sign_method) == expected


@pytest.fixture
def raw(sandbox_process: Any) -> RawClient:
    client = RawClient(sandbox_process.access)
    client.control("POST", "/reset", {}).raise_for_status()
    return client


def created_window(start: str, end: str) -> dict[str, str]:
    return {"start_created": start, "end_created": end}


@pytest.mark.parametrize("sign_method", ["md5", "hmac", "hmac-sha256"])
def test_all_digests_are_accepted(raw: RawClient, sign_method: str) -> None:
    content = raw.top("taobao.trades.sold.get", sign_method, fields="tid,status", buyer_nick="", page_size=2)
    assert len(content["trades"]["trade"]) == 2
    assert content["request_id"]


def test_get_works_like_post(raw: RawClient) -> None:
    params = raw.top_params("taobao.time.get", session=None)
    params["sign"] = raw.top_sign(params)
    answer = raw.http.get(raw.access["taobao"]["gateway_url"], params=params, timeout=10).json()
    assert answer["time_get_response"]["time"].startswith("2026-03-15 00:00:")


def refused(raw: RawClient, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"method": "taobao.trades.sold.get", "fields": "tid"}
    content = raw.top(**{**base, **changes})
    assert set(content) >= {"code", "msg", "request_id"}, content
    return content


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (22, {"method": "taobao.nothing.get"}),
        (26, {"session": None}),
        (27, {"session": "6100stolen"}),
        (28, {"app_key": None}),
        (29, {"app_key": "1"}),
        (30, {"timestamp": None}),
        (31, {"timestamp": "2026-03-14 23:49:00"}),
        (31, {"timestamp": "2026-03-15 00:11:30"}),
        (31, {"timestamp": "yesterday"}),
        (32, {"v": None}),
        (33, {"v": "1.0"}),
        (40, {"fields": None}),
        (41, {"page_size": 101}),
        (41, {"page_size": 0}),
        (41, {"page_no": "one"}),
        (41, {"start_created": "2026-03-01"}),
        (41, {"start_created": "2026-03-02 00:00:00", "end_created": "2026-03-01 00:00:00"}),
        (41, {"method": "taobao.trades.sold.history.get", "page_size": 51}),
        (40, {"method": "taobao.trades.sold.increment.get"}),
        (15, {"method": "taobao.trade.fullinfo.get", "tid": 4000000000000000001}),
        (40, {"method": "taobao.traderates.get", "role": "buyer"}),
        (41, {"method": "taobao.traderates.get", "role": "buyer", "rate_type": "take"}),
        (41, {"method": "taobao.traderates.get", "role": "buyer", "rate_type": "get", "page_size": 151}),
        (41, {"method": "taobao.traderates.get", "role": "buyer", "rate_type": "get", "page_no": 201}),
        (41, {"method": "taobao.refunds.receive.get", "page_size": 101}),
    ],
)
def test_refusals(raw: RawClient, code: int, changes: dict[str, Any]) -> None:
    assert refused(raw, **changes)["code"] == code
    assert raw.control("GET", "/counters").json()["refused"]["taobao"] == {str(code): 1}


def test_what_is_missing_is_named(raw: RawClient) -> None:
    assert refused(raw, fields=None)["sub_code"] == "isv.missing-parameter:fields"
    assert refused(raw, page_size=1000)["sub_code"] == "isv.invalid-parameter:page_size"


def test_nine_minutes_are_tolerated(raw: RawClient) -> None:
    assert raw.top("taobao.trades.sold.get", fields="tid", timestamp="2026-03-14 23:51:00")["total_results"] > 0


@pytest.mark.parametrize("sign_method", ["md5", "hmac", "hmac-sha256"])
def test_a_changed_parameter_breaks_the_signature(raw: RawClient, sign_method: str) -> None:
    params = raw.top_params("taobao.trades.sold.get", sign_method, fields="tid")
    params["sign"] = raw.top_sign(params)
    changed = raw.top_post({**params, "fields": "tid,payment"}).json()
    assert changed["error_response"]["code"] == 25
    unsigned = raw.top_post({name: value for name, value in params.items() if name != "sign"}).json()
    assert unsigned["error_response"]["code"] == 24
    lower = raw.top_post({**params, "sign": params["sign"].lower()}).json()
    assert lower["error_response"]["code"] == 25


def test_other_verbs_are_refused(raw: RawClient) -> None:
    answer = raw.http.put(raw.access["taobao"]["gateway_url"], data={"method": "x"}, timeout=10)
    assert b"<code>9</code>" in answer.content


# ------------------------------------------------------------------------------------------------------------ answers


def test_only_requested_fields_come_back(raw: RawClient) -> None:
    content = raw.top("taobao.trades.sold.get", fields="tid,orders.title,orders.price", page_size=3)
    for trade in content["trades"]["trade"]:
        assert set(trade) == {"tid", "orders"}
        assert all(set(order) == {"title", "price"} for order in trade["orders"]["order"])
    whole = raw.top("taobao.trades.sold.get", fields="tid,orders", page_size=1)["trades"]["trade"][0]
    assert set(whole["orders"]["order"][0]) >= {"oid", "oid_str", "num_iid", "outer_iid", "num", "payment", "status"}


def test_open_uid_comes_with_the_nick_only(raw: RawClient) -> None:
    alone = raw.top("taobao.trades.sold.get", fields="tid,buyer_open_uid", page_size=1)["trades"]["trade"][0]
    assert set(alone) == {"tid"}
    both = raw.top("taobao.trades.sold.get", fields="tid,buyer_nick,buyer_open_uid", page_size=1)["trades"]["trade"][0]
    assert both["buyer_open_uid"].startswith("AAH")
    assert re.fullmatch(r".\*\*", both["buyer_nick"])


def test_ids_are_larger_than_a_float_holds_and_come_as_text_too(raw: RawClient) -> None:
    for trade in raw.top("taobao.trades.sold.get", fields="tid,tid_str,orders", page_size=20)["trades"]["trade"]:
        assert 2**53 < trade["tid"] < 2**63
        assert trade["tid_str"] == str(trade["tid"])
        oids = [order["oid"] for order in trade["orders"]["order"]]
        assert len(set(oids)) == len(oids)
        assert (trade["tid"] in oids) == (len(oids) == 1)


def test_has_next_replaces_the_count(raw: RawClient) -> None:
    total = raw.top("taobao.trades.sold.get", fields="tid", page_size=100)["total_results"]
    pages = -(-total // 100)
    for page in range(1, pages + 1):
        content = raw.top("taobao.trades.sold.get", fields="tid", page_size=100, page_no=page, use_has_next="true")
        assert "total_results" not in content
        assert content["has_next"] is (page < pages)
    past = raw.top("taobao.trades.sold.get", fields="tid", page_size=100, page_no=pages + 1)
    assert "trades" not in past
    assert past["total_results"] == total


def test_simplify_and_xml_are_the_same_answer(raw: RawClient) -> None:
    plain = raw.top("taobao.trades.sold.get", fields="tid,orders.num", page_size=2)
    params = raw.top_params("taobao.trades.sold.get", fields="tid,orders.num", page_size=2, simplify="true")
    simple = raw.top_post({**params, "sign": raw.top_sign(params)}).json()
    assert [trade["tid"] for trade in simple["trades"]] == [trade["tid"] for trade in plain["trades"]["trade"]]
    assert isinstance(simple["trades"][0]["orders"], list)
    params = raw.top_params("taobao.trades.sold.get", fields="tid,orders.num", page_size=2, format=None)
    answer = raw.top_post({**params, "sign": raw.top_sign(params)})
    root = ElementTree.fromstring(answer.content)
    assert root.tag == "trades_sold_get_response"
    assert [int(node.text or 0) for node in root.iter("tid")] == [trade["tid"] for trade in plain["trades"]["trade"]]


def test_status_and_buyer_filter(raw: RawClient) -> None:
    rows = raw.trades("taobao.trades.sold.get", 100, fields="tid,status,buyer_nick")
    waiting = [row["tid"] for row in rows if row["status"] == "WAIT_SELLER_SEND_GOODS"]
    asked = raw.trades("taobao.trades.sold.get", 100, fields="tid", status="WAIT_SELLER_SEND_GOODS")
    assert waiting
    assert sorted(row["tid"] for row in asked) == sorted(waiting)
    uid = rows[0]["buyer_open_uid"]
    own = raw.trades("taobao.trades.sold.get", 100, fields="tid", buyer_open_id=uid)
    assert {row["tid"] for row in own} == {row["tid"] for row in rows if row["buyer_open_uid"] == uid}
    assert "trades" not in raw.top("taobao.trades.sold.get", fields="tid", type="eticket")


# ------------------------------------------------------------------------------------------------------------ history


def test_recent_and_old_trades_meet_without_gap_or_overlap(raw: RawClient) -> None:
    recent = raw.trades("taobao.trades.sold.get", 100, fields="tid,created", start_created=LONG_AGO)
    old = raw.trades("taobao.trades.sold.history.get", 50, fields="tid,created", start_created=LONG_AGO)
    border = "2025-12-15 00:00:00"  # three months before the clock's day
    assert min(row["created"] for row in recent) >= border
    assert max(row["created"] for row in old) < border
    both = {row["tid"] for row in recent + old}
    assert len(both) == len(recent) + len(old) == raw.truth()["trades"]


def test_the_sample_says_what_the_truth_says(raw: RawClient) -> None:
    fields = "tid,pay_time,payment,status,orders.price,orders.num,orders.payment,buyer_nick"
    rows = raw.trades("taobao.trades.sold.get", 100, fields=fields, start_created=LONG_AGO)
    rows += raw.trades("taobao.trades.sold.history.get", 50, fields=fields, start_created=LONG_AGO)
    paid = [row for row in rows if "pay_time" in row]
    value = sum(Decimal(line["price"]) * line["num"] for row in paid for line in row["orders"]["order"])
    truth = raw.truth()
    assert len(paid) == truth["paid_orders"]
    assert len({row["buyer_open_uid"] for row in paid}) == truth["buyers"]
    assert value == Decimal(truth["paid_line_value"]) == sum(Decimal(row["payment"]) for row in paid)
    unpaid = [row for row in rows if "pay_time" not in row]
    assert unpaid
    assert {row["status"] for row in unpaid} <= {"TRADE_CLOSED_BY_TAOBAO", "WAIT_BUYER_PAY"}


def test_orders_are_paid_on_the_day_they_are_created(raw: RawClient) -> None:
    for row in raw.trades("taobao.trades.sold.get", 100, fields="created,pay_time,consign_time,end_time,modified"):
        if "pay_time" in row:
            assert row["created"][:10] == row["pay_time"][:10]
            assert row["created"] < row["pay_time"]
        steps = [row[name] for name in ("created", "pay_time", "consign_time", "end_time") if name in row]
        assert steps == sorted(steps)
        assert row["modified"] >= steps[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from sandbox_process import start_sandbox

    folder = tmp_path_factory.mktemp("whole")
    process, sandbox = start_sandbox(folder, "--seed", "7", "--anchor", "2026-03-14", "--top-rate", "100000")
    yield RawClient(sandbox.access)
    process.terminate()
    process.wait(10)


@pytest.mark.slow
def test_the_whole_world_is_the_data(whole: RawClient) -> None:
    """Every figure is recomputed here from the CSV; nothing comes from the sandbox's own loader."""
    data = pd.read_csv(ROOT / "include/data/online_retail.csv.gz", dtype=str, keep_default_na=False)
    data = data[data["CustomerID"] != ""]
    cancelled = data[data["InvoiceNo"].str.startswith("C")]
    rest = data[~data["InvoiceNo"].str.startswith("C")]
    clean = rest[(rest["Quantity"].astype(int) > 0) & (rest["UnitPrice"].astype(float) > 0)]
    value = sum(map(_amount, clean["Quantity"], clean["UnitPrice"]))
    refund = -sum(map(_amount, cancelled["Quantity"], cancelled["UnitPrice"]))
    assert (len(clean), value) == (397_884, Decimal("8911407.904"))

    fields = "tid,created,pay_time,buyer_nick,orders.price,orders.num,orders.outer_iid,orders.title"
    rows = whole.trades("taobao.trades.sold.get", 100, fields=fields, start_created=LONG_AGO)
    rows += whole.trades("taobao.trades.sold.history.get", 50, fields=fields, start_created=LONG_AGO)
    paid = [row for row in rows if "pay_time" in row]
    lines = [line for row in paid for line in row["orders"]["order"]]
    assert len(paid) == clean["InvoiceNo"].nunique() == 18_532
    assert len({row["buyer_open_uid"] for row in paid}) == clean["CustomerID"].nunique() == 4_338
    assert sum(Decimal(line["price"]) * line["num"] for line in lines) == value
    served = sorted((line["outer_iid"], line["num"], Decimal(line["price"])) for line in lines)
    assert served == sorted(
        zip(clean["StockCode"], map(int, clean["Quantity"]), map(Decimal, clean["UnitPrice"]), strict=True)
    )
    titles = {line["outer_iid"]: line["title"] for line in lines}
    assert titles["85123A"] == "WHITE HANGING HEART T-LIGHT HOLDER"  # also written CREAM HANGING HEART... in some rows
    shift = pd.Timestamp("2026-03-14") - pd.Timestamp("2011-12-09")
    earliest = pd.to_datetime(clean["InvoiceDate"]).groupby(clean["InvoiceNo"]).min() + shift
    assert sorted(row["created"] for row in paid) == sorted(earliest.dt.strftime("%Y-%m-%d %H:%M:%S"))

    refunds = all_refunds(whole)
    assert len(refunds) == len({row["refund_id"] for row in refunds}) == len(cancelled) == 8_905
    assert sum(Decimal(row["refund_fee"]) for row in refunds) == refund == Decimal("611342.09")
    assert {row["status"] for row in refunds} == {"SUCCESS"}
    assert {row["dispute_type"] for row in refunds} == {"REFUND", "REFUND_AND_RETURN"}


@pytest.mark.slow
def test_the_whole_world_is_fast(whole: RawClient) -> None:
    """A page of 100 trades with all their lines; the best of ten, because the machine may be busy."""
    fields = "tid,status,created,modified,pay_time,payment,buyer_nick,receiver_mobile,orders"
    params = whole.top_params("taobao.trades.sold.get", fields=fields, page_size=100)
    params["sign"] = whole.top_sign(params)
    seconds = min(whole.top_post(params).elapsed.total_seconds() for _ in range(10))
    assert seconds < 0.06


def _amount(quantity: str, price: str) -> Decimal:
    return int(quantity) * Decimal(price)


def all_refunds(raw: RawClient, **business: Any) -> list[dict[str, Any]]:
    fields = "refund_id,tid,oid,status,refund_fee,dispute_type,created,modified,end_time,num,outer_id,refund_phase"
    rows: list[dict[str, Any]] = []
    page, more = 1, True
    while more:
        content = raw.top(
            "taobao.refunds.receive.get", fields=fields, page_size=100, page_no=page, use_has_next="true", **business
        )
        rows += content.get("refunds", {}).get("refund", [])
        page, more = page + 1, content["has_next"]
    return rows


# ------------------------------------------------------------------------------------------------------------ increment


def modified_window(end: datetime, hours: int = 24) -> dict[str, str]:
    form = "%Y-%m-%d %H:%M:%S"
    return {
        "start_modified": (end - timedelta(hours=hours)).strftime(form),
        "end_modified": end.strftime(form),
    }


def test_a_window_is_at_most_a_day(raw: RawClient) -> None:
    for start, end in (
        ("2026-03-13 00:00:00", "2026-03-14 00:00:01"),
        ("2026-03-13 00:00:00", "2026-03-13 00:00:00"),
        ("2026-03-13 00:00:01", "2026-03-13 00:00:00"),
    ):
        content = raw.top("taobao.trades.sold.increment.get", fields="tid", start_modified=start, end_modified=end)
        assert content["code"] == 41


def test_increment_is_ordered_by_modification_newest_first(raw: RawClient) -> None:
    window = modified_window(ANCHOR_END)
    content = raw.top("taobao.trades.sold.increment.get", fields="tid,modified,created", page_size=100, **window)
    times = [trade["modified"] for trade in content["trades"]["trade"]]
    assert times == sorted(times, reverse=True)
    assert all(window["start_modified"] <= time <= window["end_modified"] for time in times)
    assert any(trade["created"] < window["start_modified"] for trade in content["trades"]["trade"])


def test_increments_of_all_days_give_every_recent_trade_as_it_is_now(raw: RawClient) -> None:
    raw.control("POST", "/clock", {"now": "2026-03-20T02:30:00+08:00"}).raise_for_status()
    fields = "tid,status,modified,pay_time,consign_time,end_time"
    listed = {row["tid"]: row for row in raw.trades("taobao.trades.sold.get", 100, fields=fields)}
    seen: dict[int, dict[str, Any]] = {}
    for day in range(100):
        window = modified_window(raw.now() - timedelta(days=day))
        for row in raw.trades("taobao.trades.sold.increment.get", 100, fields=fields, **window):
            seen[row["tid"]] = row
    assert seen == listed


def test_a_trade_changes_with_the_clock(raw: RawClient) -> None:
    raw.control("POST", "/settings", {"refund_live": 0.0}).raise_for_status()
    rows = raw.trades("taobao.trades.sold.get", 100, fields="tid,status,modified")
    tid = next(row["tid"] for row in rows if row["status"] == "WAIT_SELLER_SEND_GOODS")
    statuses = []
    for day in range(15):
        raw.control("POST", "/clock", {"now": (ANCHOR_END + timedelta(days=day)).isoformat()}).raise_for_status()
        trade = raw.top("taobao.trade.fullinfo.get", fields="status,modified,consign_time,end_time", tid=tid)["trade"]
        assert ("consign_time" in trade) == (trade["status"] in ("WAIT_BUYER_CONFIRM_GOODS", "TRADE_FINISHED"))
        assert ("end_time" in trade) == (trade["status"] == "TRADE_FINISHED")
        statuses.append(trade["status"])
    assert list(dict.fromkeys(statuses)) == [
        "WAIT_SELLER_SEND_GOODS",
        "WAIT_BUYER_CONFIRM_GOODS",
        "TRADE_FINISHED",
    ]


@pytest.mark.parametrize(("backwards", "complete"), [(True, True), (False, False)])
def test_shifting_rows_are_lost_forwards_and_kept_backwards(raw: RawClient, backwards: bool, complete: bool) -> None:
    method, size = "taobao.trades.sold.increment.get", 3
    window = modified_window(ANCHOR_END - timedelta(days=2))
    before = raw.top(method, fields="tid", page_size=100, **window)
    expected = {row["tid"] for row in before["trades"]["trade"]}
    pages = list(range(1, -(-before["total_results"] // size) + 1))
    assert len(pages) >= 3
    raw.control("POST", "/clock", {"now": (ANCHOR_END + timedelta(hours=1)).isoformat()}).raise_for_status()
    fault = {"platform": "taobao", "method": method, "kind": "shifting_page", "times": 1, "after": 1}
    raw.control("POST", "/faults", {"faults": [fault]}).raise_for_status()
    seen = set()
    for page in reversed(pages) if backwards else pages:
        content = raw.top(method, fields="tid", page_size=size, page_no=page, use_has_next="true", **window)
        seen |= {row["tid"] for row in content.get("trades", {}).get("trade", [])}
    raw.control("POST", "/faults", {"faults": []})
    # What moved was modified now: the window that ends now shows it.
    moved = raw.top(method, fields="tid", page_size=100, **modified_window(raw.now() + timedelta(seconds=1), 1))
    seen |= {row["tid"] for row in moved["trades"]["trade"]}
    assert (expected <= seen) is complete


# ------------------------------------------------------------------------------------------------------------ refunds, reviews


def test_refunds_by_modification_window(raw: RawClient) -> None:
    rows = all_refunds(raw)
    truth = raw.truth()
    assert len(rows) == truth["refunds"]
    assert sum(Decimal(row["refund_fee"]) for row in rows) == Decimal(truth["refund_fee"])
    times = [row["modified"] for row in rows]
    assert times == sorted(times, reverse=True)
    assert all(row["modified"] == row["end_time"] > row["created"] for row in rows)
    part = all_refunds(raw, start_modified="2025-11-01 00:00:00", end_modified="2025-12-31 23:59:59")
    assert part == [row for row in rows if "2025-11-01" <= row["modified"] <= "2025-12-31 23:59:59"]


def test_a_refund_names_a_line_of_the_same_item_or_a_trade_before_the_history(raw: RawClient) -> None:
    known = unknown = 0
    for row in all_refunds(raw)[:60]:
        content = raw.top("taobao.trade.fullinfo.get", fields="pay_time,orders", tid=row["tid"])
        if content.get("sub_code") == "isv.trade-not-exist":
            unknown += 1
            continue
        known += 1
        (line,) = [order for order in content["trade"]["orders"]["order"] if order["oid"] == row["oid"]]
        assert line["outer_iid"] == row["outer_id"]
        assert line["refund_status"] == "SUCCESS"
        assert content["trade"]["pay_time"] <= row["modified"]
    assert known > unknown > 0


def reviews(raw: RawClient, **business: Any) -> dict[str, Any]:
    return raw.top("taobao.traderates.get", **{"fields": "tid,oid,created,result,content,reply", "rate_type": "get", "role": "buyer", **business})  # fmt: skip


def test_reviews_reach_back_180_days_and_1500_rows(raw: RawClient) -> None:
    truth = raw.truth()
    first = reviews(raw, page_size=150)
    assert first["total_results"] == truth["reviews_readable"] < truth["reviews"]
    rows = first["trade_rates"]["trade_rate"]
    assert [row["created"] for row in rows] == sorted((row["created"] for row in rows), reverse=True)
    assert reviews(raw, end_date="2025-09-14 00:00:00")["total_results"] == 0
    raw.control("POST", "/settings", {"top_review_rows": 20}).raise_for_status()
    assert reviews(raw)["total_results"] == 20
    assert "trade_rates" not in reviews(raw, page_no=2, page_size=20)
    half = reviews(raw, start_date="2026-03-13 00:00:00")
    assert 0 < half["total_results"] < 20


def test_reviews_of_one_trade_and_of_one_kind(raw: RawClient) -> None:
    row = reviews(raw, page_size=1)["trade_rates"]["trade_rate"][0]
    own = reviews(raw, tid=row["tid"])["trade_rates"]["trade_rate"]
    assert row in own
    assert {other["tid"] for other in own} == {row["tid"]}
    good = reviews(raw, result="good")["total_results"]
    assert good > 0.8 * raw.truth()["reviews_readable"]
    assert reviews(raw, rate_type="give", role="seller")["total_results"] == 0


def test_items_and_seller(raw: RawClient) -> None:
    content = raw.top("taobao.items.onsale.get", fields="num_iid,title,outer_id", page_size=200)
    assert content["total_results"] == 4070
    assert len({item["num_iid"] for item in content["items"]["item"]}) == 200
    assert raw.top("taobao.items.onsale.get", fields="num_iid", page_size=200, page_no=101)["code"] == 41
    seller = raw.top("taobao.user.seller.get", fields="nick")["user"]
    assert seller == {"nick": raw.access["taobao"]["shop_nick"]}


# ------------------------------------------------------------------------------------------------------------ limits, faults


def test_call_limit_names_the_seconds(raw: RawClient) -> None:
    raw.control("POST", "/settings", {"top_rate": 3, "top_ban_seconds": 2}).raise_for_status()
    params = raw.top_params("taobao.trades.sold.get", fields="tid", page_size=1)
    params["sign"] = raw.top_sign(params)
    answers = [raw.top_post(params).json() for _ in range(12)]
    limited = [answer["error_response"] for answer in answers if "error_response" in answer]
    assert limited
    assert {error["code"] for error in limited} == {7}
    assert re.fullmatch(r"This ban will last for [12] more seconds", limited[0]["sub_msg"])
    assert limited[0]["sub_code"] == "accesscontrol.limited-by-app-api-access-count"
    assert "time_get_response" in json.dumps(
        raw.top_post(_signed(raw, raw.top_params("taobao.time.get"))).json()
    )  # other methods go on


def _signed(raw: RawClient, params: dict[str, str]) -> dict[str, str]:
    return {**params, "sign": raw.top_sign(params)}


@pytest.mark.parametrize(("kind", "code"), [("call_limit", 7), ("expired_session", 27), ("platform_busy", 15)])
def test_platform_faults(raw: RawClient, kind: str, code: int) -> None:
    fault = {"platform": "taobao", "method": "taobao.trades.*", "kind": kind, "times": 2, "after": 1, "seconds": 9}
    raw.control("POST", "/faults", {"faults": [fault]}).raise_for_status()
    answers = [raw.top("taobao.trades.sold.get", fields="tid", page_size=1) for _ in range(4)]
    assert [answer.get("code") for answer in answers] == [None, code, code, None]
    assert raw.control("GET", "/counters").json()["faults_fired"] == {"taobao": {kind: 2}}


def test_spoilt_rows(raw: RawClient) -> None:
    def page(kind: str) -> list[dict[str, Any]]:
        raw.control("POST", "/faults", {"faults": [{"platform": "taobao", "kind": kind}]}).raise_for_status()
        rows: list[dict[str, Any]] = raw.top(
            "taobao.trades.sold.get", fields="tid,tid_str,payment", page_size=3
        )["trades"]["trade"]  # fmt: skip
        return rows

    good = raw.top("taobao.trades.sold.get", fields="tid,tid_str,payment", page_size=3)["trades"]["trade"]
    assert page("duplicate_page") == good + good
    assert [set(row) for row in page("missing_id")] == [{"payment"}, set(good[0]), set(good[0])]
    assert page("bad_value")[0]["payment"] == "not a number"
    assert raw.top("taobao.trades.sold.get", fields="tid,tid_str,payment", page_size=3)["trades"]["trade"] == good


def benefit(raw: RawClient, unique_id: str, receiver: str, detail_id: str = "88001", **more: Any) -> dict[str, Any]:
    request = {
        "relation_id": "77001", "detail_id": detail_id, "benefit_type": "1", "send_count": 1, "unique_id": unique_id, **more,
    }  # fmt: skip
    return raw.top("taobao.promotion.benefit.activity.send", send_request=json.dumps(request), receiver_id=receiver)


def results(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return list(answer["result_list"]["benefit_send_result_ext"])


def open_uids(raw: RawClient, count: int) -> list[str]:
    rows = raw.top("taobao.trades.sold.get", fields="tid,buyer_nick", page_size=100)["trades"]["trade"]
    return list(dict.fromkeys(row["buyer_open_uid"] for row in rows))[:count]


def test_the_same_unique_id_returns_the_first_result_and_gives_nothing_more(raw: RawClient) -> None:
    first, second = open_uids(raw, 2)
    answer = benefit(raw, "run_1_send", first)
    assert (answer["is_success"], answer["unique_id"]) == (True, "run_1_send")
    assert results(answer) == [{"index_id": 0, "success_count": 1, "failure_count": 0}]
    assert results(benefit(raw, "run_1_send", first)) == results(answer)
    assert benefit(raw, "run_1_send", second)["sub_code"] == "isv.unique-id-conflict"
    counted = raw.control("GET", "/counters").json()["coupons"]
    assert counted["by_out_request_no"]["run_1_send"] == 1
    assert counted["calls_by_out_request_no"]["run_1_send"] == 3


def test_is_success_is_true_even_when_nobody_got_a_benefit(raw: RawClient) -> None:
    buyers = open_uids(raw, 5)
    assert results(benefit(raw, "a", buyers[0], "88002"))[0]["success_count"] == 1
    assert results(benefit(raw, "b", buyers[0], "88002"))[0]["error_code_list"] == {"string": ["EXCEED_USER_LIMIT"]}
    assert results(benefit(raw, "c", "AANOBODY", "88002"))[0]["error_code_list"] == {"string": ["RECEIVER_NOT_EXIST"]}
    for number, buyer in enumerate(buyers[1:4]):
        answer = benefit(raw, f"d{number}", buyer, "88002")
    assert answer["is_success"] is True
    assert results(answer)[0] | {"index_id": 0} == {
        "index_id": 0, "success_count": 0, "failure_count": 1, "error_code_list": {"string": ["BENEFIT_NOT_ENOUGH"]},
    }  # fmt: skip
    assert results(benefit(raw, "d2", buyers[3], "88001"))[0]["success_count"] == 1, "a refusal used up no unique_id"


def test_what_a_benefit_needs(raw: RawClient) -> None:
    (buyer,) = open_uids(raw, 1)
    assert benefit(raw, "", buyer)["code"] == 41
    assert benefit(raw, "x", buyer, send_count=2)["code"] == 41
    assert benefit(raw, "x", buyer, "12")["sub_code"] == "isv.benefit-not-exist"
    twice = raw.top("taobao.promotion.benefit.activity.send", send_request="{}", receiver_id=buyer, ouid="o")
    assert twice["code"] == 41
    query = json.dumps({"relation_id": "77001", "status": "VALID"})
    details = raw.top("taobao.promotion.benefit.activity.detail.get", query_request=query)["relation_benefit_details"]
    assert [row["detail_id"] for row in json.loads(details)] == ["88001", "88002"]
