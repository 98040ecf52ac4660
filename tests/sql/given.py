"""Rows for SQL tests: given.yaml into tables, tables into comparable rows."""

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.types.datetime import DateLoader
from psycopg.types.json import Jsonb

from nightmarket.warehouse import Row

DEFAULTS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "defaults.yaml").read_text(encoding="utf-8"))
EXACT_DECIMALS = 6  # an expected number with so many decimals or more is compared to its own precision


class OpenDates(DateLoader):
    """-infinity and infinity, which no date of Python can say, as text."""

    def load(self, data: Buffer) -> Any:
        text = bytes(data).decode()
        return text if text.endswith("infinity") else super().load(data)


def put(connection: psycopg.Connection[Row], given: Mapping[str, Any]) -> None:
    """Insert rows by table, in the order given. `people: [1, 2]` makes members 1, 2 with an identity of the same number.

    A row may leave columns out: tests/sql/defaults.yaml fills them; "=paid_at" there means the value of that column.
    """
    for table, rows in given.items():
        if table == "people":
            put(connection, _people(rows))
        else:
            insert(connection, table, rows)


def insert(connection: psycopg.Connection[Row], table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows into `schema.table`, with the defaults of the tests."""
    for row in rows:
        full = _filled(table, row)
        connection.execute(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})").format(
                sql.Identifier(*table.split(".")),
                sql.SQL(", ").join(map(sql.Identifier, full)),
                sql.SQL(", ").join(sql.Placeholder() * len(full)),
            ),
            [Jsonb(value) if isinstance(value, dict | list) else value for value in full.values()],
        )


def _filled(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    full = dict(row)
    for column, default in DEFAULTS["tables"].get(table, {}).items():
        if column not in full:
            choices = default if isinstance(default, list) else [default]
            values = [full.get(c[1:]) if isinstance(c, str) and c.startswith("=") else c for c in choices]
            full[column] = next((value for value in values if value is not None), None)
    return {column: value for column, value in full.items() if value is not None or column in row}


def _people(members: Iterable[int]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {"core.identities": [], "core.members": [], "core.member_identities": []}
    for member in members:
        rows["core.identities"].append({"identity_id": member, "value": f"uid-{member}"})
        rows["core.members"].append({"member_id": member})
        rows["core.member_identities"].append({"identity_id": member, "member_id": member})
    return rows


def table_rows(connection: psycopg.Connection[Row], table: str) -> list[Row]:
    """Every row of a table with its place on disk: a row that was rewritten without need has moved."""
    connection.adapters.register_loader("date", OpenDates)
    query = sql.SQL("SELECT ctid::text AS ctid, t.* FROM {} AS t ORDER BY ctid").format(
        sql.Identifier(*table.split("."))
    )
    return connection.execute(query).fetchall()


def assert_rows(found: list[Row], expected: list[dict[str, Any]], what: str) -> None:
    """The same rows in any order, by the columns that are expected; the first difference is shown."""
    columns = list(dict.fromkeys(column for row in expected for column in row))
    missing = [column for column in columns if found and column not in found[0]]
    assert not missing, f"{what}: there is no column {missing}"
    left = [tuple(_shown(row[column]) for column in columns) for row in found]
    problems = []
    for row in expected:
        wanted = tuple(row.get(column) for column in columns)
        match = next((candidate for candidate in left if all(map(_same, candidate, wanted))), None)
        if match is None:
            problems.append(f"expected {dict(zip(columns, wanted, strict=True))}")
        else:
            left.remove(match)
    problems += [f"not expected {dict(zip(columns, row, strict=True))}" for row in left]
    assert not problems, f"{what}:\n  " + "\n  ".join(map(str, problems))


def _shown(value: Any) -> Any:
    return Decimal(str(value)) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else value


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, int | float | Decimal) and not isinstance(expected, bool):
        wanted = Decimal(str(expected))
        if not isinstance(found, Decimal):
            return False
        places = -int(wanted.as_tuple().exponent)
        return bool(round(found, places) == wanted if places >= EXACT_DECIMALS else found == wanted)
    if isinstance(expected, datetime) and isinstance(found, datetime):
        return found == (expected if expected.tzinfo else expected.replace(tzinfo=found.tzinfo))
    if isinstance(found, date) and isinstance(expected, str):
        return str(found) == expected
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(_shown(found[key]), expected[key]) for key in found)
    return bool(found == expected and isinstance(found, bool) == isinstance(expected, bool))
