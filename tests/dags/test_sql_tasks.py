"""SQL files run in Airflow as they run in warehouse.run_sql: bound parameters, one transaction, days of Shanghai."""

from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.sdk import DAG

from nightmarket.orchestration.sql import sql_task, task_id_of
from nightmarket.warehouse import Row, run_sql

PROBE = """-- ops.probe: what a session sees.
-- Params: business_date (date), note (text)
DELETE FROM ops.probe WHERE business_date = %(business_date)s::date;
INSERT INTO ops.probe (business_date, note, day_of_instant)
SELECT %(business_date)s::date, %(note)s::text || ' 5%%; {}', '2026-03-14 16:30:00+00'::timestamptz::date;
"""


@pytest.fixture
def probe(
    tmp_path: Path, db: psycopg.Connection[Row], pg: Any, environment: str, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A folder with one SQL file, its table, the Airflow connection, and a function that runs the task."""
    with psycopg.connect(pg.server.dsn(environment)) as owner:
        owner.execute("CREATE TABLE ops.probe (business_date date, note text, day_of_instant date)")
        owner.execute("GRANT ALL ON ops.probe TO nightmarket_etl")
    (tmp_path / "probe.sql").write_text(PROBE)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", pg.dsn(environment) + "?options=-c%20timezone%3DAsia/Shanghai")

    def run(text: str = PROBE) -> Any:
        (tmp_path / "probe.sql").write_text(text)
        with DAG("probe", schedule=None, template_searchpath=[str(tmp_path)]):
            operator = sql_task("probe.sql", {"business_date": "{{ day }}", "note": "it's"})
        operator.resolve_template_files()
        operator.render_template_fields({"day": "2026-03-14"})  # type: ignore[arg-type]
        return operator.execute({})

    return run


def test_parameters_are_bound_and_a_rerun_changes_nothing(probe: Any, db: psycopg.Connection[Row]) -> None:
    for _ in range(2):
        assert probe() is None
        rows = db.execute("SELECT note, day_of_instant::text AS day FROM ops.probe").fetchall()
        assert rows == [{"note": "it's 5%; {}", "day": "2026-03-15"}]  # 16:30 UTC is the next day in Shanghai


def test_a_failing_second_statement_rolls_the_first_back(probe: Any, db: psycopg.Connection[Row]) -> None:
    probe()
    with pytest.raises(psycopg.errors.DivisionByZero):
        probe(
            "DELETE FROM ops.probe WHERE business_date = %(business_date)s::date; SELECT 1 / 0 WHERE %(note)s::text <> ''"
        )
    assert db.execute("SELECT count(*) AS n FROM ops.probe").fetchone() == {"n": 1}


def test_run_sql_does_the_same(
    probe: Any, db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nightmarket import settings

    probe()
    monkeypatch.setenv("NIGHTMARKET_SQL_DIR", str(tmp_path))
    settings.get_settings.cache_clear()
    before = db.execute("SELECT * FROM ops.probe").fetchall()
    run_sql(db, "probe.sql", {"business_date": "2026-03-14", "note": "it's"})
    assert db.execute("SELECT * FROM ops.probe").fetchall() == before


def test_task_ids_follow_the_files() -> None:
    assert task_id_of("mart/member_rfm/load.sql") == "load_member_rfm"
    assert task_id_of("core/members/resolve.sql") == "members_resolve"
