"""Extraction as Airflow runs it: a night, a backfill in mapped pieces, a dry run, a check of the accounts."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest

from nightmarket import dates
from nightmarket.orchestration.extraction import pieces_of
from nightmarket.settings import use_credentials_from
from nightmarket.warehouse import Row

pytestmark = pytest.mark.slow
DAG_ID = "extract_own_pages"


@pytest.fixture(scope="module")
def stored(bag: Any, airflow_database: None) -> Any:
    """The DAGs, known to Airflow's database as after a round of the dag-processor."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(bag, "dags-folder", None)
    return bag


@pytest.fixture(autouse=True)
def own_credentials(pg: Any, environment: str, sandbox: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tasks of this process make the library ask Airflow for accounts; the next test gets its own way back."""
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", pg.dsn(environment) + "?options=-c%20timezone%3DAsia/Shanghai")
    yield
    use_credentials_from(None)


def run(stored: Any, dag_id: str, conf: dict[str, Any]) -> Any:
    return stored.dags[dag_id].test(run_conf=conf)


def one(db: psycopg.Connection[Row], query: str) -> Any:
    row = db.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return next(iter(row.values()))


def test_a_night_then_a_backfill_in_pieces(stored: Any, db: psycopg.Connection[Row]) -> None:
    night = run(stored, DAG_ID, {})
    assert str(night.state) == "success"
    landed = [task for task in night.get_task_instances() if task.task_id == "land"]
    assert [task.rendered_map_index for task in landed] == ["events"]
    events = one(db, "SELECT count(*) FROM core.consents")
    assert events > 0
    read_to = one(db, "SELECT watermark FROM raw.cursors WHERE source_id = 'own_pages'")

    day = dates.today() - timedelta(days=30)
    conf = {"backfill_from": day.isoformat(), "backfill_to": (day + timedelta(days=2)).isoformat()}
    again = run(stored, DAG_ID, conf)
    assert str(again.state) == "success"
    pieces = sorted(task.rendered_map_index for task in again.get_task_instances() if task.task_id == "land")
    assert pieces == [f"events {day + timedelta(days=n)} to {day + timedelta(days=n)}" for n in range(3)]
    assert one(db, "SELECT watermark FROM raw.cursors WHERE source_id = 'own_pages'") == read_to
    assert one(db, "SELECT count(*) FROM core.consents") == events


def test_a_dry_run_writes_nothing(stored: Any, db: psycopg.Connection[Row]) -> None:
    done = run(stored, DAG_ID, {"dry_run": True})
    assert str(done.state) == "success"
    assert one(db, "SELECT count(*) FROM raw.records") == 0
    states = {task.task_id: str(task.state) for task in done.get_task_instances()}
    assert states["land"] == "success"
    assert states["into_core"] == "skipped"


def test_a_backfill_that_makes_no_sense_stops_at_its_plan(stored: Any, db: psycopg.Connection[Row]) -> None:
    done = run(stored, DAG_ID, {"backfil_from": "2026-03-01"})
    assert str(done.state) == "failed"
    assert {task.task_id for task in done.get_task_instances() if str(task.state) == "failed"} == {"plan"}
    assert one(db, "SELECT count(*) FROM raw.batches") == 0


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        ("2026-03-01", None, "needs both dates"),
        (None, "2026-03-01", "needs both dates"),
        ("2026-03-02", "2026-03-01", "ends .* before it begins"),
        ("2999-01-01", "2999-01-02", "begins in the future"),
    ],
)
def test_dates_that_make_no_sense_are_told(first: str | None, last: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pieces_of({"backfill_from": first, "backfill_to": last, "streams": ["events"]})


@pytest.mark.parametrize(("days", "count"), [(1, 1), (24, 24), (25, 13), (730, 24)])
def test_a_stretch_is_cut_into_pieces_without_holes(days: int, count: int) -> None:
    first = date(2024, 1, 1)
    last = first + timedelta(days=days - 1)
    pieces = pieces_of({"backfill_from": first.isoformat(), "backfill_to": last.isoformat(), "streams": ["a", "b"]})
    mine = [piece for piece in pieces if piece["stream"] == "a"]
    assert len(mine) == count
    assert len(pieces) == 2 * count
    covered = [
        date.fromisoformat(piece["from"]) + timedelta(days=n)
        for piece in mine
        for n in range((date.fromisoformat(piece["to"]) - date.fromisoformat(piece["from"])).days + 1)
    ]
    assert covered == [first + timedelta(days=n) for n in range(days)]


def test_the_check_asks_every_ticked_account(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good = run(stored, "check_sources", {"sources": ["own_pages", "taobao_flagship"]})
    assert str(good.state) == "success"
    monkeypatch.delenv("AIRFLOW_CONN_OWN_PAGES")
    bad = run(stored, "check_sources", {"sources": ["own_pages", "taobao_flagship"]})
    found = {
        task.rendered_map_index or task.map_index: str(task.state)
        for task in bad.get_task_instances()
        if task.task_id == "check"
    }
    assert sorted(found.values()) == ["failed", "success"]
