"""The loader without a network: windows and gaps, fields that come, go and change, memory that stays flat."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from nightmarket import dates, landing, mapping
from nightmarket.dates import Window
from nightmarket.drift import FieldWatch, mark_required, write_fields
from nightmarket.platforms.base import Slice
from nightmarket.settings import ROOT
from nightmarket.sources import source
from nightmarket.warehouse import Row, connect, run_sql

SOURCE = "taobao_flagship"


def trade(tid: int, **changes: Any) -> dict[str, Any]:
    """A trade as TOP gives it; a change to None takes the field away."""
    row: dict[str, Any] = {
        "tid": tid,
        "status": "TRADE_FINISHED",
        "created": "2026-03-01 10:00:00",
        "modified": "2026-03-01 11:00:00",
        "pay_time": "2026-03-01 10:01:00",
        "payment": "10.00",
        "post_fee": "0.00",
        "buyer_open_uid": f"AAH{tid}",
        "receiver_mobile": f"100{tid:08d}",
        "orders": {"order": [{"oid": tid + 1, "num_iid": 7, "title": "a mug", "price": "10.00", "num": 1}]},
    }
    return {name: value for name, value in (row | changes).items() if value is not None}


def window(first: int, last: int) -> Window:
    """Hours before now, counted from 100 hours ago."""
    origin = dates.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=100)
    return Window(origin + timedelta(hours=first), origin + timedelta(hours=last))


def load(
    db: psycopg.Connection[Row], *trades: dict[str, Any], part: Window | None = None, is_backfill: bool = False
) -> landing.Loader:
    """One run that reads one window with these trades."""
    config = source(SOURCE)
    loader = landing.Loader(db, config, config.stream("trades"), "test", False)
    piece = part or window(0, 10)
    loader.read(Slice("modified", piece, lambda: iter([list(trades)]), {} if is_backfill else {"": piece.end}), None)
    return loader


def fields(db: psycopg.Connection[Row]) -> dict[str, str]:
    return {row["path"]: row["json_type"] for row in db.execute("SELECT path, json_type FROM raw.fields")}


def gate(db: psycopg.Connection[Row]) -> Row:
    with connect() as connection:
        return run_sql(connection, "checks/core/required_fields_present.sql", {"business_date": dates.today()})[0]


# ----------------------------------------------------------------------------------------------------------- fields
def test_a_new_field_is_kept_and_told_once(db: psycopg.Connection[Row]) -> None:
    first = load(db, trade(1), trade(2, end_time="2026-03-01 12:00:00"))
    assert first.news() == [], "on a first load everything is new"
    assert fields(db)["orders.order"] == "array"
    assert fields(db)["payment"] == "string"
    unchanged = load(db, trade(1), trade(2, end_time="2026-03-01 12:00:00"))
    assert unchanged.news() == []
    assert unchanged.summary.changed == 0
    second = load(db, trade(1, gift_wrap=True, orders={"order": [], "source": "live"}))
    assert second.news() == ["gift_wrap", "orders.source"]
    row = db.execute(
        "SELECT payload -> 'gift_wrap' AS kept FROM raw.records ORDER BY record_id DESC LIMIT 1"
    ).fetchone()
    assert row is not None
    assert row["kept"] is True
    assert load(db, trade(3, gift_wrap=False)).news() == []


def test_a_dry_run_tells_new_fields_and_keeps_none(db: psycopg.Connection[Row]) -> None:
    load(db, trade(1))
    before = fields(db)
    config = source(SOURCE)
    loader = landing.Loader(db, config, config.stream("trades"), "dry", True)
    loader.read(Slice("modified", window(0, 10), lambda: iter([[trade(1, gift_wrap=True)]])), None)
    assert loader.news() == ["gift_wrap"]
    assert fields(db) == before


def test_a_required_field_that_vanishes_fails_the_gate_with_its_name(
    db: psycopg.Connection[Row], set_clock: Any
) -> None:
    set_clock("2026-03-14T02:00:00+08:00")
    load(db, trade(1), trade(2))
    assert gate(db)["is_passed"] is True
    set_clock("2026-03-15T02:00:00+08:00")
    load(db, trade(1, payment=None, modified="2026-03-02 00:00:00"), trade(2))
    red = gate(db)
    assert (red["is_passed"], red["observed"]) == (
        False,
        "taobao_flagship trades: field payment is gone, last seen 2026-03-14 02:00",
    )
    set_clock("2026-03-15T03:00:00+08:00")
    load(db, trade(1, modified="2026-03-02 00:00:01"))
    assert gate(db)["is_passed"] is True


def test_one_broken_record_among_good_ones_does_not_stop_a_night(db: psycopg.Connection[Row], set_clock: Any) -> None:
    set_clock("2026-03-14T02:00:00+08:00")
    load(db, trade(1))
    set_clock("2026-03-15T02:00:00+08:00")
    load(db, trade(2, payment=None), trade(3))
    assert gate(db)["is_passed"] is True


def test_a_field_that_is_not_required_any_more_stops_nobody(db: psycopg.Connection[Row], set_clock: Any) -> None:
    set_clock("2026-03-14T02:00:00+08:00")
    watch = FieldWatch.open(db, SOURCE, "trades", ["a.b", "c"])
    watch.see({"a": [{"b": 1}], "c": 1})
    write_fields(db, SOURCE, "trades", watch.take(), dates.now())
    set_clock("2026-03-15T02:00:00+08:00")
    later = FieldWatch.open(db, SOURCE, "trades", ["c"])
    later.see({"c": 2})
    mark_required(db, SOURCE, "trades", ["c"])
    write_fields(db, SOURCE, "trades", later.take(), dates.now())
    assert gate(db)["is_passed"] is True
    third = FieldWatch.open(db, SOURCE, "trades", ["a.b", "c"])
    mark_required(db, SOURCE, "trades", ["a.b", "c"])
    third.see({"a": [{"b": None}], "c": 3})
    write_fields(db, SOURCE, "trades", third.take(), dates.now())
    assert "field a.b is gone" in gate(db)["observed"]


def test_names_that_are_data_are_not_kept(db: psycopg.Connection[Row]) -> None:
    watch = FieldWatch.open(db, SOURCE, "trades", [])
    watch.see({"by_phone": {"10012345678": 1, "10087654321": 2}, "mail@shop.test": 1})
    write_fields(db, SOURCE, "trades", watch.take(), dates.now())
    assert set(fields(db)) == {"by_phone", "by_phone.*", "*"}


def test_a_changed_type_is_told_and_goes_to_rejects(db: psycopg.Connection[Row]) -> None:
    load(db, trade(1), trade(2))
    mapping.map_source(SOURCE, run_id="first")
    loader = load(db, trade(1, payment={"amount": 10}, modified="2026-03-03 00:00:00"))
    assert loader.news() == ["payment (now object)", "payment.amount"]
    mapping.map_source(SOURCE, run_id="second")
    rejects = db.execute("SELECT record_key, reason FROM raw.rejects WHERE stage = 'mapping'").fetchall()
    assert [(row["record_key"], row["reason"]) for row in rejects] == [
        ("1", "core.orders: payment is missing or not a number")
    ]
    kept = db.execute("SELECT order_id, paid_amount FROM core.orders ORDER BY order_id").fetchall()
    assert [(row["order_id"], row["paid_amount"]) for row in kept] == [("1", 10), ("2", 10)], (
        "the last good version stays"
    )


# ------------------------------------------------------------------------------------------------------------- gaps
def test_what_was_never_read_is_a_gap_until_it_is(db: psycopg.Connection[Row]) -> None:
    assert landing.gaps() == []
    load(db, trade(1), part=window(0, 10))
    load(db, part=window(9, 20))  # overlapping, empty, complete
    assert landing.gaps() == []
    load(db, part=window(30, 40))
    load(db, part=window(50, 60))
    found = landing.gaps(SOURCE)
    assert [(gap.stream, gap.window) for gap in found] == [("trades", window(20, 30)), ("trades", window(40, 50))]
    assert found[0].sentence().startswith("taobao_flagship trades: ")
    assert found[0].sentence().endswith(" was never read.")
    load(db, part=window(18, 31), is_backfill=True)
    assert [gap.window for gap in landing.gaps()] == [window(40, 50)]
    assert landing.gaps("own_pages") == []


def test_a_window_that_was_left_half_read_is_a_gap(
    db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing, "BATCH_RECORDS", 2)
    load(db, part=window(0, 10))
    config = source(SOURCE)
    loader = landing.Loader(db, config, config.stream("trades"), "test", False)

    def pages() -> Iterator[list[Any]]:
        yield [trade(1), trade(2), trade(3)]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        loader.read(Slice("modified", window(10, 20), pages, {}), None)
    load(db, part=window(20, 30))
    assert [gap.window for gap in landing.gaps()] == [window(10, 20)]
    snapshot = window(5, 30)
    loader.read(Slice("snapshot", snapshot, lambda: iter([]), {"": snapshot.end}), None)
    assert [gap.window for gap in landing.gaps()] == [window(10, 20)], "a snapshot covers no time"


# ----------------------------------------------------------------------------------------------------------- memory
HUGE = """
import sys
sys.path.insert(0, sys.argv[2])
from test_landing import trade, window, SOURCE
from nightmarket import landing
from nightmarket.platforms.base import Slice
from nightmarket.sources import source
from nightmarket.warehouse import connect
pages = int(sys.argv[1])
def made():
    for page in range(pages):
        yield [trade(1 + page * 100 + number, receiver_name=f"王芳{page}/{number}", buyer_message="x" * 600) for number in range(100)]
config = source(SOURCE)
with connect(autocommit=True) as connection:
    loader = landing.Loader(connection, config, config.stream("trades"), "huge", False)
    loader.read(Slice("modified", window(0, 10), made), None)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss would be the parent's
print(loader.summary.changed, peak // 1024)
"""


@pytest.mark.slow
def test_a_huge_window_takes_no_more_memory_than_a_large_one(db: psycopg.Connection[Row]) -> None:
    peaks = {}
    for pages in (80, 320):  # 8 and 32 thousand records in one window
        done = subprocess.run(
            [sys.executable, "-c", HUGE, str(pages), str(ROOT / "tests" / "unit")],
            env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        changed, peaks[pages] = map(int, done.stdout.split())
        db.execute("TRUNCATE raw.heads")  # so that the second, longer one is new as well
        assert changed == pages * 100
    assert max(peaks.values()) <= 300
    assert peaks[320] <= peaks[80] + 60, f"memory grows with the window: {peaks} MB"


# -------------------------------------------------------------------------------------------------- mapping alongside
def load_alongside(db: psycopg.Connection[Row], count: int) -> None:
    config = source(SOURCE)
    with mapping.Alongside(SOURCE, "trades", run_id="test") as mapped:
        loader = landing.Loader(db, config, config.stream("trades"), "test", False, committed=mapped.landed)
        pages = [[trade(page * 100 + number) for number in range(1, 100)] for page in range(count // 99)]
        loader.read(Slice("modified", window(0, 10), lambda: iter(pages), {}), None)


def test_a_long_first_load_is_mapped_while_it_is_landed(
    db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing, "BATCH_RECORDS", 50)
    monkeypatch.setattr(mapping, "PIECE", 300)
    load_alongside(db, 990)
    half = db.execute("SELECT count(*) AS orders FROM core.orders").fetchone()
    assert half is not None
    assert 300 <= half["orders"] <= 990
    mapping.map_source(SOURCE, run_id="test")
    whole = db.execute(
        "SELECT count(*) AS orders, count(DISTINCT identity_id) AS buyers, sum(goods_amount) AS goods FROM core.orders"
    ).fetchone()
    assert whole == {"orders": 990, "buyers": 990, "goods": 9900}
    rejects = db.execute("SELECT count(*) AS n FROM raw.rejects").fetchone()
    assert rejects == {"n": 0}


def test_a_night_maps_nothing_alongside_and_a_failure_there_stops_no_landing(
    db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_alongside(db, 198)
    assert db.execute("SELECT count(*) AS n FROM core.orders").fetchone() == {"n": 0}

    def fail(*_: Any) -> None:
        raise psycopg.errors.DeadlockDetected

    monkeypatch.setattr(mapping, "PIECE", 100)
    monkeypatch.setattr(landing, "BATCH_RECORDS", 50)
    monkeypatch.setattr(mapping, "run_mapping", fail)
    load_alongside(db, 495)
    assert db.execute("SELECT count(*) AS n FROM raw.heads").fetchone() == {"n": 495}
    assert db.execute("SELECT count(*) AS n FROM core.orders").fetchone() == {"n": 0}
