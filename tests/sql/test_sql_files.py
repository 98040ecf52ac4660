"""What must be true of the SQL and the descriptions of marts, checks and segments as a whole."""

import re
from pathlib import Path

import psycopg
import pytest
import yaml
from lineage import header, header_reads, parameters_of, sql_lineage
from test_cases import CASES, SQL

from nightmarket.marts import MART_TABLES, MODEL_TABLES, load_path, mart_parameters
from nightmarket.quality import GATES, TableDoc, load_sql_checks, load_tables
from nightmarket.warehouse import Row

READABLE = {  # folder -> schemas its files may read: nothing reads to its right (docs/architecture.md)
    "core": {"raw", "core"},
    "mart": {"core", "mart"},
    "predictions": {"core", "mart"},
    "segments": {"core", "mart"},
    "checks/core": {"raw", "core"},
    "checks/mart": {"core", "mart"},
    "checks/push": {"core", "push"},
}
# Tables of the schema mart that are no marts: nobody reads a figure from them, so no table.yaml describes them.
RULES = {
    "tier_programmes",
    "tier_rules",
    "point_rules",
    "category_rules",
    "kpi_definitions",
    "portrait_rules",
}  # from the YAML files
BOOKKEEPING = {  # what a night has to look at, how far each mart is, what came out differently; and which marts write it
    "marks": set(MART_TABLES),
    "touched_days": {"touched_members"},
    "moved_days": {"kpi_values", "stage_transitions"},
    "restatements": {"member_tiers", "kpi_values"},
}
FILES = sorted(path for folder in READABLE for path in (SQL / folder).rglob("*.sql"))
OURS = sorted(
    path for folder in ("mart", "predictions", "segments", "checks") for path in (SQL / folder).rglob("*.sql")
)


def place(path: Path) -> str:
    return path.relative_to(SQL).as_posix()


def primary_key(connection: psycopg.Connection[Row], table: str) -> list[str]:
    rows = connection.execute(
        "SELECT a.attname FROM pg_index AS i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k (number, position)"
        " JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number"
        " WHERE i.indrelid = %s::regclass AND i.indisprimary ORDER BY k.position",
        (table,),
    )
    return [row["attname"] for row in rows]


@pytest.mark.parametrize("path", FILES, ids=place)
def test_header_names_exactly_the_tables_that_are_read(path: Path) -> None:
    reads, writes = sql_lineage(path)
    assert header_reads(path) - writes == reads - writes  # that a file looks at what it writes goes without saying


@pytest.mark.parametrize("path", FILES, ids=place)
def test_nothing_reads_to_its_right(path: Path) -> None:
    folder = next(folder for folder in READABLE if place(path).startswith(folder + "/"))
    reads, writes = sql_lineage(path)
    assert {table.split(".")[0] for table in reads} <= READABLE[folder]
    if folder in ("predictions", "segments", "checks/core", "checks/mart", "checks/push"):
        assert writes == set()


def test_a_mart_writes_itself_and_reads_only_marts_to_its_left() -> None:
    for position, table in enumerate(MART_TABLES):
        reads, writes = sql_lineage(SQL / load_path(table))
        kept = {f"mart.{name}" for name, writers in BOOKKEEPING.items() if table in writers}
        taken = {"touched_members": {"core.touches"}, "touched_facts": {"core.fact_touches"}}.get(table, set())
        assert f"mart.{table}" in writes
        assert writes - {f"mart.{table}"} <= kept | taken
        left = {f"mart.{name}" for name in (*MART_TABLES[: position + 1], *RULES, *BOOKKEEPING)}
        assert {name for name in reads if name.startswith("mart.")} <= left


@pytest.mark.parametrize("path", OURS, ids=place)
def test_header_says_what_grain_params_and_rerun(path: Path) -> None:
    words = header(path)
    assert words[""], "the first line says what this is"
    named = set(re.findall(r"[a-z_]+", words["Params"]))
    assert parameters_of(path) <= named, "Params names every bound parameter"
    if not place(path).startswith("checks/"):
        assert words["Grain"].startswith("one row per ")
        assert words["Rerun"]


def test_every_parameter_of_a_mart_is_given_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nowhere")
    given = mart_parameters("2026-03-14")
    wanted = {name for table in MART_TABLES for name in parameters_of(SQL / load_path(table))}
    assert wanted == set(given), "mart_parameters() gives what the SQL asks for, and nothing else"
    assert set(parameters_of(SQL / "segments" / "sleeping_valuable.sql")) - set(given) == {
        "min_days", "max_days", "min_net_amount",
    }  # fmt: skip


def test_every_mart_segment_and_check_has_a_case() -> None:
    files = [path.parent if path.name == "load.sql" else path.with_suffix("") for path in OURS]
    without = [place(path) for path in files if not list((CASES / place(path)).glob("test_*/expect.yaml"))]
    assert without == []


@pytest.mark.parametrize("path", sorted((SQL / "checks").rglob("*.sql")), ids=place)
def test_every_check_can_pass_and_can_fail(path: Path) -> None:
    cases = (CASES / place(path.with_suffix(""))).glob("test_*/expect.yaml")
    assert {yaml.safe_load(case.read_text(encoding="utf-8"))[0]["is_passed"] for case in cases} == {True, False}


def test_every_table_of_mart_is_computed_and_described(warehouse: psycopg.Connection[Row]) -> None:
    stored = {
        row["table_name"]
        for row in warehouse.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'mart' AND table_type = 'BASE TABLE'"
        )
    }
    assert stored == set(MART_TABLES) | set(MODEL_TABLES) | RULES | set(BOOKKEEPING)
    assert {doc.table for doc in load_tables("mart")} == {f"mart.{table}" for table in (*MART_TABLES, *MODEL_TABLES)}


def documents() -> list[TableDoc]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nowhere")
        return [doc for gate in GATES for doc in load_tables(gate)]


@pytest.mark.parametrize("doc", documents(), ids=lambda doc: doc.table)
def test_table_yaml_is_the_table(doc: TableDoc, warehouse: psycopg.Connection[Row]) -> None:
    columns = {
        row["column_name"]: row["is_nullable"] == "YES"
        for row in warehouse.execute(
            "SELECT column_name, is_nullable FROM information_schema.columns"
            " WHERE table_schema || '.' || table_name = %s",
            (doc.table,),
        )
    }
    key = primary_key(warehouse, doc.table)
    assert set(doc.columns) == set(columns)
    assert doc.grain == key, "the grain is the primary key"
    for check in doc.checks:
        if check.kind == "not_null":
            assert columns[check.column], f"{check.name} cannot fail: the column is NOT NULL"
        if check.kind == "unique":
            assert not (check.where is None and set(key) <= set(check.columns)), (
                f"{check.name} cannot fail: it is the key"
            )


def test_names_of_checks_are_unique_within_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nowhere")
    for gate in GATES:
        names = [(doc.table, check.name) for doc in load_tables(gate) for check in doc.checks]
        names += [(check.table, check.name) for check in load_sql_checks(gate)]
        assert len(names) == len(set(names))
