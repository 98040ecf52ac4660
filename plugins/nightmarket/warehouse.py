"""The PostgreSQL warehouse: connections, COPY, upsert by temporary table, advisory locks, SQL files.

Parameters are always bound. Dates and instants of a run travel as parameters: no SQL of ours calls now() for a
business decision, because a rerun must give the same rows.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from nightmarket.settings import ConfigError, get_settings

Row = dict[str, Any]
COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


@contextmanager
def connect(
    dsn: str | None = None, *, autocommit: bool = False, application_name: str = "nightmarket"
) -> Iterator[psycopg.Connection[Row]]:
    """A connection whose rows are dicts; commits at the end of the block, rolls back on an exception.

    The session's time zone is the business zone, so that casting an instant to a date gives the business day.
    """
    settings = get_settings()
    with psycopg.connect(
        dsn or settings.warehouse_dsn.get_secret_value(),
        autocommit=autocommit,
        row_factory=dict_row,
        application_name=application_name,
        connect_timeout=10,
        options=f"-c timezone={settings.timezone}",
    ) as connection:
        yield connection


@contextmanager
def connect_vault(
    application_name: str = "nightmarket-delivery", *, autocommit: bool = False
) -> Iterator[psycopg.Connection[Row]]:
    """A connection that may read the vault: for delivery and erasure, nobody else."""
    dsn = get_settings().vault_dsn
    if dsn is None:
        raise ConfigError("NIGHTMARKET_VAULT_DSN is not set: this process may not open the vault.")
    with connect(dsn.get_secret_value(), autocommit=autocommit, application_name=application_name) as connection:
        yield connection


def read_sql(name: str) -> str:
    """The text of include/sql/<name>."""
    path = get_settings().sql_dir / name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"include/sql/{name}: this file does not exist.") from None


def run_sql(connection: psycopg.Connection[Row], name: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
    """Run every statement of include/sql/<name> in the current transaction; rows of the last one, if it returns any."""
    rows: list[Row] = []
    for statement in split_statements(read_sql(name)):
        cursor = connection.execute(statement, parameters)  # type: ignore[arg-type]
        rows = cursor.fetchall() if cursor.description else []
    return rows


@lru_cache(maxsize=256)  # parsing takes longer than most of our statements
def split_statements(text: str) -> list[str]:
    """Statements of an SQL text, split by sqlparse, which Airflow's SQL operators use too; comments-only pieces dropped."""
    import sqlparse

    return [
        piece
        for piece in (part.strip().rstrip(";") for part in sqlparse.split(text))
        if COMMENTS.sub("", piece).strip()
    ]


def copy_rows(
    connection: psycopg.Connection[Row], table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> int:
    """COPY rows into `schema.table` (or a temporary table); returns how many."""
    count = 0
    with connection.cursor().copy(_copy_into(table, columns)) as copy:
        for row in rows:
            copy.write_row(row)
            count += 1
    return count


COPY_NULL = b"\\N"


def copy_text(value: str | bytes) -> bytes:
    """A text (bytes are UTF-8) as a field of a line for copy_lines."""
    data = value.encode() if isinstance(value, str) else value
    for character, escaped in ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n"), (b"\r", b"\\r")):
        if character in data:
            data = data.replace(character, escaped)
    return data


def copy_bytea(value: bytes) -> bytes:
    """Binary data as a field of a line for copy_lines."""
    return b"\\\\x" + value.hex().encode()


def copy_lines(connection: psycopg.Connection[Row], table: str, columns: Sequence[str], lines: Sequence[bytes]) -> None:
    """COPY ready lines of tab-separated fields (copy_text, copy_bytea, COPY_NULL): less work than copy_rows for wide rows."""
    with connection.cursor().copy(_copy_into(table, columns)) as copy:
        copy.write(b"\n".join(lines) + b"\n")


def _copy_into(table: str, columns: Sequence[str]) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(*table.split(".")), sql.SQL(", ").join(map(sql.Identifier, columns))
    )


def advisory_lock(connection: psycopg.Connection[Row], name: str, *, wait: bool = True, shared: bool = False) -> bool:
    """Take the transaction-level advisory lock of `name`; without `wait`, False when somebody else holds it.

    A `shared` one is held by any number at once, but never beside one that is not shared.
    """
    key = _lock_key(name)
    if shared:
        connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (key,))
        return True
    if wait:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (key,))
        return True
    row = connection.execute("SELECT pg_try_advisory_xact_lock(%s) AS taken", (key,)).fetchone()
    return bool(row and row["taken"])


@contextmanager
def session_lock(connection: psycopg.Connection[Row], name: str, seconds: int) -> Iterator[None]:
    """Hold the advisory lock of `name` over several transactions of an autocommit connection.

    Raises psycopg.errors.LockNotAvailable when somebody else holds it for longer than `seconds`.
    """
    key = _lock_key(name)
    connection.execute(f"SET lock_timeout = '{seconds}s'")
    try:
        connection.execute("SELECT pg_advisory_lock(%s)", (key,))
    finally:
        connection.execute("SET lock_timeout = 0")
    try:
        yield
    finally:
        if not connection.closed and not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(%s)", (key,))


def _lock_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def migrate(dsn: str | None = None, revision: str = "head") -> None:
    """Bring the schemas to `revision` with Alembic (include/sql/migrations). Safe to run at every start."""
    from alembic import command
    from alembic.config import Config

    settings = get_settings()
    owner = dsn or (settings.admin_dsn.get_secret_value() if settings.admin_dsn else None)
    if owner is None:
        raise ConfigError("NIGHTMARKET_ADMIN_DSN is not set: migrations need the owner of the schemas.")
    config = Config()
    config.set_main_option("script_location", str(Path(settings.sql_dir) / "migrations"))
    config.attributes["dsn"] = owner
    command.upgrade(config, revision)
