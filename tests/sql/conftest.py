"""The harness of the SQL cases: one database for all of them, one transaction per test, rolled back."""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from nightmarket import settings as settings_module
from nightmarket.warehouse import Row, connect


@pytest.fixture(scope="session")
def sql_database(pg: Any) -> Iterator[str]:
    """A migrated database that stays empty: every test rolls back what it wrote. Yields its DSN (the loading role's)."""
    name = f"sql_{uuid.uuid4().hex[:12]}"
    pg.create_database(name)
    yield pg.dsn(name)
    pg.server.drop_database(name)


@pytest.fixture
def warehouse(sql_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Row]]:
    """A connection of the loading role inside a transaction that is rolled back at the end."""
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", sql_database)
    settings_module.get_settings.cache_clear()
    with connect(sql_database, application_name="sql-case") as connection:
        yield connection
        connection.rollback()
    settings_module.get_settings.cache_clear()
