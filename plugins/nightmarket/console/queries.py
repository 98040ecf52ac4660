"""Reading for people: every figure of the console and the night report is one file of include/sql/console.

One Reader is one look at the warehouse: a read-only snapshot, so that all figures of a page agree with each other.
It remembers which files it ran with which parameters; the report prints them so that anybody can run them again.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from nightmarket.settings import get_settings
from nightmarket.warehouse import Row, connect, run_sql

FILE_NAME = re.compile(r"[a-z_]+")


class Reader:
    """Runs files of include/sql/console in one read-only snapshot."""

    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._connection = connection
        self.used: dict[str, dict[str, Any]] = {}

    def rows(self, name: str, **parameters: Any) -> list[Row]:
        """Rows of include/sql/console/<name>.sql."""
        self.used.setdefault(name, parameters)
        return run_sql(self._connection, f"console/{name}.sql", parameters)

    def run(self, file: str, **parameters: Any) -> Row:
        """The one row of a file of include/sql that only reads."""
        return run_sql(self._connection, file, parameters)[0]

    def row(self, name: str, **parameters: Any) -> Row | None:
        """The first row of include/sql/console/<name>.sql, or None."""
        rows = self.rows(name, **parameters)
        return rows[0] if rows else None


@contextmanager
def reader() -> Iterator[Reader]:
    """A Reader on the warehouse, as the reading role where one is configured (NIGHTMARKET_READER_DSN)."""
    settings = get_settings()
    dsn = settings.reader_dsn.get_secret_value() if settings.reader_dsn else None
    with connect(dsn, application_name="nightmarket-console") as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield Reader(connection)
