"""The stores' tills, from the files they drop to core: what the world says was sold is there, to the fen."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nightmarket import dates, landing, mapping
from nightmarket.platforms.base import BadPayload
from nightmarket.warehouse import Row

STREAMS = ("orders", "refunds", "customers")


def night(run_id: str) -> dict[str, landing.LandingSummary]:
    summaries = {name: landing.land("pos_stores", name, run_id=run_id, until=dates.now()) for name in STREAMS}
    mapping.map_source("pos_stores", run_id=run_id)
    return summaries


def move(sandbox: Any, set_clock: Any, moment: str) -> None:
    set_clock(moment)
    sandbox.control("POST", "/clock", {"now": moment})


def figures(db: psycopg.Connection[Row]) -> dict[str, Any]:
    row = db.execute(
        """
        SELECT o.*, l.lines, r.*, c.customers
        FROM (SELECT count(*) AS orders, count(*) FILTER (WHERE is_paid) AS paid_orders, sum(paid_amount) AS paid_amount,
                     sum(goods_amount) AS goods_amount, count(DISTINCT identity_id) AS buyers
              FROM core.orders WHERE source_id = 'pos_stores') AS o,
             (SELECT count(*) AS lines FROM core.order_lines WHERE source_id = 'pos_stores') AS l,
             (SELECT count(*) AS refunds, count(*) FILTER (WHERE is_money) AS refunds_settled,
                     sum(refund_amount) FILTER (WHERE is_money) AS refund_amount FROM core.refunds WHERE source_id = 'pos_stores') AS r,
             (SELECT count(*) AS customers FROM core.customers WHERE source_id = 'pos_stores') AS c
        """
    ).fetchone()
    assert row is not None
    return dict(row)


def assert_truth(db: psycopg.Connection[Row], sandbox: Any) -> None:
    truth, found = sandbox.control("GET", "/truth")["shops"]["pos"], figures(db)
    assert {name: (value, truth[name]) for name, value in found.items() if Decimal(value) != Decimal(truth[name])} == {}
    assert db.execute("SELECT count(*) AS n FROM raw.rejects").fetchone() == {"n": 0}


def test_the_files_of_the_tills_equal_the_world_night_after_night(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Any
) -> None:
    folder = Path(sandbox.access["pos"]["folder"])
    first = night("one")
    assert first["orders"].changed > 50
    assert_truth(db, sandbox)
    assert [path.name for path in folder.iterdir()] == ["archive"], "everything is taken, with its marks"
    assert {name: summary.seen for name, summary in night("again").items()} == dict.fromkeys(STREAMS, 0)
    for day in ("2026-03-16", "2026-03-17", "2026-03-20"):  # two nights were missed
        move(sandbox, set_clock, f"{day}T02:30:00+08:00")
        night(day)
        assert_truth(db, sandbox)
    tied = db.execute(
        "SELECT count(*) AS n FROM core.identity_links AS l JOIN core.identities AS i ON i.identity_id = l.identity_b"
        " OR i.identity_id = l.identity_a WHERE i.kind = 'phone' AND l.source_id = 'pos_stores'"
    ).fetchone()
    assert tied is not None
    assert tied["n"] == figures(db)["customers"], "every card is tied to its owner's phone"


def test_half_a_day_is_replaced_by_the_whole_day(db: psycopg.Connection[Row], sandbox: Any, set_clock: Any) -> None:
    night("one")
    for hour in ("12", "17"):
        move(sandbox, set_clock, f"2026-03-20T{hour}:00:00+08:00")
        assert "小票_20260320.csv" in sandbox.control("POST", "/pos")["files"]
        night(hour)
        assert_truth(db, sandbox)
    move(sandbox, set_clock, "2026-03-21T02:30:00+08:00")
    night("whole")
    assert_truth(db, sandbox)


def test_a_night_without_files_is_told_and_caught_up(db: psycopg.Connection[Row], sandbox: Any, set_clock: Any) -> None:
    night("one")
    folder = Path(sandbox.access["pos"]["folder"])
    move(sandbox, set_clock, "2026-03-17T02:30:00+08:00")
    kept = {}
    for path in folder.glob("*_20260315.*"):
        kept[path.name] = path.read_bytes()
        path.unlink()
    with pytest.raises(
        BadPayload, match="pos_stores, orders: no orders file and no lines file for 2026-03-15; ask for it"
    ):
        night("gap")
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    night("caught up")
    assert_truth(db, sandbox)


def test_the_same_world_writes_the_same_bytes(sandbox: Any) -> None:
    folder = Path(sandbox.access["pos"]["folder"])
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(first) == 8
    sandbox.control("POST", "/reset", {})
    assert list(folder.iterdir()) == []
    sandbox.control("POST", "/clock", {"now": "2026-03-15T02:30:00+08:00"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_check_looks_into_the_folder(db: psycopg.Connection[Row], sandbox: Any) -> None:
    sentence = landing.check_source("pos_stores")
    assert "with 4 files (2 for orders, 1 for refunds, 1 for customers" in sentence
    assert "would be rejected" not in sentence
    assert "columns that nobody named and nobody stores: 序号, 应收, 优惠" in sentence
