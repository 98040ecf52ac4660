"""Given, run, expect: every folder test_<case> below tests/sql/<schema>/... is one case on a real PostgreSQL.

given.yaml (or given/*.yaml)   rows by table; see given.py
params.yaml                    bound parameters; a list runs the file once for each, in turn
expect.yaml                    {table: rows}, or rows of the table (of the result, for a file that only selects)
run.yaml                       the files to run, where the folder does not say it (core mappings)

Every file is run twice with its last parameters: the second run must not move a single row.
"""

from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from given import DEFAULTS, assert_rows, put, table_rows

from nightmarket.warehouse import Row, run_sql

CASES = Path(__file__).resolve().parent
SQL = CASES.parents[1] / "include" / "sql"
FOLDERS = sorted(path for path in CASES.rglob("test_*") if path.is_dir())


def files_of(case: Path) -> list[str]:
    """The SQL files a case runs, below include/sql."""
    place = case.parent.relative_to(CASES)
    if (case / "run.yaml").exists():
        return list(yaml.safe_load((case / "run.yaml").read_text(encoding="utf-8")))
    if (SQL / place / "load.sql").exists():
        return [f"{place}/load.sql"]
    return [f"{place}.sql"]


def read(path: Path, default: Any = None) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else default


@pytest.mark.parametrize("case", FOLDERS, ids=[str(path.relative_to(CASES)) for path in FOLDERS])
def test_case(case: Path, warehouse: psycopg.Connection[Row]) -> None:
    files = files_of(case)
    put(warehouse, read(case / "given.yaml", {}))
    for part in sorted((case / "given").glob("*.yaml")):
        put(warehouse, {part.stem: read(part)})
    given_parameters = read(case / "params.yaml", {})
    nights = given_parameters if isinstance(given_parameters, list) else [given_parameters]
    expected = read(case / "expect.yaml")
    target = ".".join(case.parent.relative_to(CASES).parts)
    by_table = expected if isinstance(expected, dict) else {target: expected}
    stored = {table for table in by_table if table.split(".")[0] in ("raw", "core", "mart", "push")}

    def run(parameters: dict[str, Any]) -> list[Row]:
        rows: list[Row] = []
        for file in files:
            rows = run_sql(warehouse, file, {**DEFAULTS["parameters"], **parameters})
        return rows

    for parameters in nights:
        result = run(parameters)
    before = {table: table_rows(warehouse, table) for table in stored}
    for table, rows in by_table.items():
        assert_rows(before.get(table, result), rows, f"{table} after the first run")

    again = run(nights[-1])
    for table in stored:
        assert table_rows(warehouse, table) == before[table], f"{table}: the second run moved rows"
    if not stored:
        assert_rows(again, expected, "the result of the second run")
