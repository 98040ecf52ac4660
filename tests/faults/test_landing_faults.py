"""Data in survives: killed processes, lists that move, records nobody can use, two runs at once. The next run repairs by itself."""

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nightmarket import dates, landing, mapping, sources
from nightmarket.warehouse import Row, connect
from nursery import Nursery

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "platforms"))

from nights import SOURCES, assert_truth, business, everything, land_all, map_all, night, one  # noqa: E402

pytestmark = pytest.mark.slow

BUSY_WINDOW = {"trades": 0, "refunds": 20, "events": 7}  # answers of a first load before one with records in it
# Runs landing in a process of its own that kills itself, without any farewell, at a chosen moment of a chosen batch.
VICTIM = """
import os, signal, sys
from nightmarket import dates, landing, mapping, sources
moment, batch, stream = sys.argv[1], int(sys.argv[2]), sys.argv[3]
landing.BATCH_RECORDS = 40
count = 0
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
name = {"before_rows": "_insert_records", "before_commit": "_move_cursors", "after_commit": "_write"}[moment]
original = getattr(landing.Loader, name)
def counted(self, *arguments, **options):
    global count
    count += 1
    if moment == "after_commit":
        result = original(self, *arguments, **options)
        if count == batch:
            die()
        return result
    if count == batch:
        die()
    return original(self, *arguments, **options)
setattr(landing.Loader, name, counted)
landing.land("taobao_flagship", stream, run_id="victim", until=dates.now())
"""


def fault(sandbox: Any, platform: str, kind: str, **more: Any) -> None:
    sandbox.control("POST", "/faults", {"faults": [{"platform": platform, "kind": kind, **more}]})


def move(sandbox: Any, set_clock: Any, moment: str) -> None:
    set_clock(moment)
    sandbox.control("POST", "/clock", {"now": moment})


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """The rows of an undisturbed night, remembered by the first test of this module that makes one."""
    return {}


def undisturbed(expected: dict[str, Any], db: psycopg.Connection[Row]) -> dict[str, Any]:
    """What an undisturbed night gives, made once; leaves the warehouse empty."""
    if not expected:
        night("undisturbed")
        expected.update(business(db))
        from nightmarket import settings

        admin = settings.get_settings().admin_dsn
        assert admin is not None
        with connect(admin.get_secret_value()) as connection:
            names = one(
                connection,
                "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables WHERE schemaname IN ('raw', 'core', 'vault')",
            )
            connection.execute(f"TRUNCATE {names} RESTART IDENTITY CASCADE")  # type: ignore[arg-type]
    return expected


@pytest.mark.parametrize(
    ("moment", "batch", "stream"),
    [
        ("before_rows", 9, "trades"),
        ("before_commit", 4, "trades"),
        ("after_commit", 24, "trades"),
        ("before_rows", 3, "refunds"),
        ("after_commit", 6, "refunds"),
    ],
)
def test_a_killed_landing_is_completed_by_the_next_run(
    db: psycopg.Connection[Row],
    sandbox: Any,
    workers: Nursery,
    expected: dict[str, Any],
    moment: str,
    batch: int,
    stream: str,
) -> None:
    rows = undisturbed(expected, db)
    victim = workers.script(VICTIM, moment, str(batch), stream)
    assert victim.wait(120) == -signal.SIGKILL, victim.log.read_text()[-500:]
    half = one(db, "SELECT count(*) FROM raw.records")
    assert half == one(db, "SELECT coalesce(sum(changed_count), 0) FROM raw.batches"), "half a batch was committed"
    night("after")
    assert business(db) == rows
    doubled = one(
        db,
        "SELECT count(*) FROM (SELECT 1 FROM raw.records GROUP BY source_id, stream, record_key, content_hash HAVING count(*) > 1) AS d",
    )
    assert doubled == 0


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_mapping_that_stopped_halfway_goes_on(
    db: psycopg.Connection[Row], sandbox: Any, expected: dict[str, Any], done: int
) -> None:
    rows = undisturbed(expected, db)
    land_all("first")
    config = sources.source("taobao_flagship")
    steps = mapping.mappings_of(config)
    for step in steps[:done]:
        with connect() as connection:
            mapping.run_mapping(connection, config, step, "first", dates.now())
    if done < len(steps):  # and one more was in the middle
        with connect() as connection:
            mapping.run_mapping(connection, config, steps[done], "first", dates.now())
            connection.rollback()
    map_all("second")
    assert business(db) == rows


def test_duplicate_and_shifting_pages_lose_and_double_nothing(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Any, expected: dict[str, Any]
) -> None:
    rows = undisturbed(expected, db)
    faults = [
        {
            "platform": platform,
            "method": "*",
            "kind": "duplicate_page",
            "times": 6,
            "after": 20 if platform == "taobao" else 0,
        }
        for platform in ("taobao", "wechat_official", "own_pages")
    ]
    sandbox.control("POST", "/faults", {"faults": faults})
    night("duplicates", page_sizes={"*": 20})
    assert business(db) == rows
    sandbox.control("POST", "/settings", {"purchase_base": 0.3})
    move(sandbox, set_clock, "2026-03-16T02:30:00+08:00")
    # with every answer three more trades change and so leave the window that is being paged
    fault(sandbox, "taobao", "shifting_page", method="taobao.trades.sold.increment.get", times=6)
    landing.land("taobao_flagship", "trades", run_id="shifting", until=dates.now(), page_sizes={"*": 4})
    sandbox.control("POST", "/faults", {"faults": []})
    move(sandbox, set_clock, "2026-03-16T03:00:00+08:00")
    night("after")
    assert_truth(db, sandbox.control("GET", "/truth"))
    modified = one(
        db,
        "SELECT count(*) FROM core.orders AS o JOIN raw.heads AS h ON h.stream = 'trades' AND h.record_key = o.order_id"
        " WHERE h.batch_id <> o.batch_id",
    )
    assert modified == 0


@pytest.mark.parametrize(
    ("platform", "source", "stream", "method", "missing"),
    [
        ("taobao", "taobao_flagship", "trades", "taobao.trades.sold.history.get", "tid"),
        ("taobao", "taobao_flagship", "trades", "taobao.trades.sold.get", "tid"),
        ("taobao", "taobao_flagship", "refunds", "taobao.refunds.receive.get", "refund_id"),
        ("taobao", "taobao_flagship", "rates", "taobao.traderates.get", "oid"),
        ("wechat_official", "wechat_official", "followers", "cgi-bin/user/info/batchget", "openid"),
        ("own_pages", "own_pages", "events", "events", "event_id"),
    ],
)
def test_a_record_without_an_id_is_rejected_and_comes_in_with_the_next_run(
    db: psycopg.Connection[Row],
    sandbox: Any,
    set_clock: Any,
    platform: str,
    source: str,
    stream: str,
    method: str,
    missing: str,
) -> None:
    healthy = landing.land(source, stream, run_id="dry", until=dates.now(), dry_run=True)
    fault(sandbox, platform, "missing_id", method=method, times=-1)
    broken = landing.land(source, stream, run_id="broken", until=dates.now())
    assert broken.rejected > 0
    assert broken.changed + broken.rejected == healthy.changed
    assert "rejected because they have no id" in broken.sentence()
    reject = db.execute("SELECT stage, reason, payload::text AS text, resolved_at FROM raw.rejects LIMIT 1").fetchone()
    assert reject is not None
    assert (reject["stage"], reject["reason"]) == ("landing", f"the record has no {missing}")
    assert reject["resolved_at"] is None
    rejects = one(db, "SELECT count(*) FROM raw.rejects")
    move(sandbox, set_clock, "2026-03-15T02:40:00+08:00")
    landing.land(source, stream, run_id="still broken", until=dates.now())
    assert one(db, "SELECT count(*) FROM raw.rejects") == rejects, "the same rejects were written again"
    sandbox.control("POST", "/faults", {"faults": []})
    move(sandbox, set_clock, "2026-03-15T02:50:00+08:00")
    landing.land(source, stream, run_id="repaired", until=dates.now())
    assert one(db, "SELECT count(*) FROM raw.heads") == healthy.changed
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


def test_an_increment_without_an_id_is_repaired_too(db: psycopg.Connection[Row], sandbox: Any, set_clock: Any) -> None:
    sandbox.control("POST", "/settings", {"purchase_base": 0.2})
    night("one")
    move(sandbox, set_clock, "2026-03-16T02:30:00+08:00")
    fault(sandbox, "taobao", "missing_id", method="taobao.trades.sold.increment.get", times=-1)
    assert landing.land("taobao_flagship", "trades", run_id="two", until=dates.now()).rejected > 0
    sandbox.control("POST", "/faults", {"faults": []})
    move(sandbox, set_clock, "2026-03-18T02:30:00+08:00")
    night("three")
    assert_truth(db, sandbox.control("GET", "/truth"))
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


@pytest.mark.parametrize(
    ("platform", "source", "stream", "table", "reason"),
    [
        ("taobao", "taobao_flagship", "trades", "core.orders", "core.orders: payment is missing or not a number"),
        ("taobao", "taobao_flagship", "refunds", "core.refunds", "core.refunds: refund_fee is missing or not a number"),
        ("own_pages", "own_pages", "events", "raw.heads", "core.interactions: received_at is missing or not a time"),
    ],
)
def test_a_value_nobody_can_use_is_rejected_with_its_field_and_repaired(
    db: psycopg.Connection[Row],
    sandbox: Any,
    set_clock: Any,
    platform: str,
    source: str,
    stream: str,
    table: str,
    reason: str,
) -> None:
    methods = {"trades": "taobao.trades.sold.get", "refunds": "taobao.refunds.receive.get", "events": "events"}
    fault(sandbox, platform, "bad_value", method=methods[stream], times=1, after=BUSY_WINDOW[stream])
    night("broken")
    open_rejects = db.execute("SELECT stage, reason, record_key FROM raw.rejects").fetchall()
    assert [(row["stage"], row["reason"]) for row in open_rejects] == [("mapping", reason)]
    if table != "raw.heads":
        key = {"core.orders": "order_id", "core.refunds": "refund_id"}[table]
        assert one(db, f"SELECT count(*) FROM {table} WHERE {key} = %s", (open_rejects[0]["record_key"],)) == 0
        assert (
            one(db, "SELECT count(*) FROM core.order_lines WHERE order_id NOT IN (SELECT order_id FROM core.orders)")
            == 0
        )
    move(sandbox, set_clock, "2026-03-15T02:40:00+08:00")
    night("repaired")
    assert one(db, "SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0
    assert_truth(db, sandbox.control("GET", "/truth"))


def test_a_broken_newer_version_leaves_the_last_good_one(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Any
) -> None:
    night("one")
    before = business(db)["core.orders"]
    fault(sandbox, "taobao", "bad_value", method="taobao.refunds.receive.get", times=1, after=BUSY_WINDOW["refunds"])
    db.execute("DELETE FROM raw.cursors WHERE stream = 'refunds'")
    summary = landing.land("taobao_flagship", "refunds", run_id="two", until=dates.now())
    assert summary.changed == 1
    mapping.map_source("taobao_flagship", run_id="two")
    assert_truth(db, sandbox.control("GET", "/truth"))
    assert business(db)["core.orders"] == before
    for source in SOURCES:
        mapping.reset_mappings(db, source)
    map_all("remap")
    assert_truth(db, sandbox.control("GET", "/truth"))
    assert one(db, "SELECT count(*) FROM raw.rejects") == 1


def test_two_runs_of_one_stream_do_not_meet(db: psycopg.Connection[Row], sandbox: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(landing, "LOCK_SECONDS", 1)
    fault(sandbox, "taobao", "slow", times=1, seconds=3)
    first: list[landing.LandingSummary] = []
    thread = threading.Thread(
        target=lambda: first.append(landing.land("taobao_flagship", "rates", run_id="first", until=dates.now()))
    )
    thread.start()
    for _ in range(200):
        if one(db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"):
            break
        threading.Event().wait(0.01)
    with pytest.raises(landing.LandingError, match="another run is reading this stream"):
        landing.land("taobao_flagship", "rates", run_id="second", until=dates.now())
    landing.land("taobao_flagship", "refunds", run_id="second", until=dates.now())  # another stream is free
    thread.join()
    assert first[0].changed > 0
    assert landing.land("taobao_flagship", "rates", run_id="third", until=dates.now()).changed == 0


def test_streams_that_load_the_same_people_at_once_do_not_block_each_other(
    db: psycopg.Connection[Row], sandbox: Any
) -> None:
    errors: list[BaseException] = []

    def run(source: str, stream: str) -> None:
        try:
            landing.land(source, stream, run_id="together", until=dates.now(), page_sizes={"*": 25})
        except BaseException as error:  # reported by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(s, t)) for s, streams in SOURCES.items() for t in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    maps = [threading.Thread(target=lambda s=s: mapping.map_source(s, run_id="together")) for s in SOURCES]  # type: ignore[misc]
    for thread in maps:
        thread.start()
    for thread in maps:
        thread.join()
    assert errors == []
    mapping.resolve_members(run_id="together")
    assert_truth(db, sandbox.control("GET", "/truth"))


def test_an_old_answer_does_not_bring_back_an_old_state(
    db: psycopg.Connection[Row], sandbox: Any, set_clock: Any
) -> None:
    """The same trade again, as it was before its last change: raw keeps the version, core keeps the newest."""
    night("one")
    trade = db.execute(
        "SELECT order_id, status, modified_at FROM core.orders WHERE status = 'finished' ORDER BY order_id LIMIT 1"
    ).fetchone()
    assert trade is not None
    db.execute(
        """
        WITH batch AS (
            INSERT INTO raw.batches (source_id, stream, part, run_id, loaded_at)
            VALUES ('taobao_flagship', 'trades', 'modified', 'late', now()) RETURNING batch_id)
        INSERT INTO raw.records (batch_id, source_id, stream, record_key, payload, content_hash, observed_at, run_id)
        SELECT b.batch_id, r.source_id, r.stream, r.record_key,
               r.payload || '{"status": "WAIT_BUYER_CONFIRM_GOODS", "modified": "2024-01-01 00:00:00"}', 'x', now(), 'late'
        FROM raw.records AS r CROSS JOIN batch AS b WHERE r.stream = 'trades' AND r.record_key = %s
        """,
        (trade["order_id"],),
    )
    before = everything(db)["core.orders"]
    map_all("late")
    assert everything(db)["core.orders"] == before
    mapping.reset_mappings(db, "taobao_flagship")
    map_all("remap")
    assert everything(db)["core.orders"] == before
