"""Shared fixtures: a real PostgreSQL, a database per test, a sandbox over HTTP. Nothing here is a mock."""

import base64
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins"))

from nightmarket import settings as settings_module  # noqa: E402
from nightmarket.local.database import LocalError, Server, free_port, new_password  # noqa: E402
from nightmarket.warehouse import Row, connect, migrate  # noqa: E402
from nursery import Nursery, nursery  # noqa: E402
from sandbox_process import Sandbox, start_sandbox  # noqa: E402

LOGINS = ("nightmarket_etl", "nightmarket_delivery", "nightmarket_reader")
ANCHOR = "2026-03-14"  # the last day of data in the test worlds
# How long an example takes says something about the machine; what a test writes in one example, the next one clears itself.
settings.register_profile(
    "nightmarket", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("nightmarket")
AIRFLOW_HOME = Path(tempfile.gettempdir()) / f"nightmarket-airflow-{os.getpid()}"


def pytest_configure() -> None:
    """Airflow reads its settings at its first import: tests get a home of their own, never the user's."""
    AIRFLOW_HOME.mkdir(exist_ok=True)
    os.environ.update(
        AIRFLOW_HOME=str(AIRFLOW_HOME),
        AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "dags"),
        AIRFLOW__CORE__PLUGINS_FOLDER=str(ROOT / "plugins"),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT="250",  # two seconds, but not on a busy machine
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{AIRFLOW_HOME}/airflow.db",
        AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR",
        AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
    )


def pytest_unconfigure() -> None:
    shutil.rmtree(AIRFLOW_HOME, ignore_errors=True)


@dataclass
class TestServer:
    server: Server
    password: str  # of every login
    settings: dict[str, str]

    def dsn(self, database: str, user: str = "nightmarket_etl") -> str:
        return self.server.dsn(database, user, self.password)

    def create_database(self, name: str) -> None:
        """A copy of the migrated template. By file: through the log, which is the default, costs twice as much."""
        with psycopg.connect(self.server.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template_nightmarket STRATEGY file_copy')

    def restart(self) -> None:
        self.server.stop()
        start(self.server, self.settings)


def start(server: Server, settings: dict[str, str]) -> None:
    """Again when the port is taken at this moment: every call that goes out from this machine has one of its own."""
    for attempt in range(20):
        try:
            server.start(settings)
            break
        except LocalError:
            if attempt == 19:
                raise
            time.sleep(1)


@pytest.fixture(scope="session")
def pg() -> Iterator[TestServer]:
    """An embedded PostgreSQL 18 with a migrated template database; durability off, because nothing here is kept.

    Not below pytest's own folder: a second pytest that starts as root takes that folder's rights away from the user
    the server runs as, and the server dies.
    """
    folder = Path(tempfile.mkdtemp(prefix="nightmarket-pg-"))
    server = Server(folder / "data", free_port(), new_password())
    not_durable = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "256MB"}
    not_durable["scram_iterations"] = "1"  # a test connects dozens of times
    start(server, not_durable)
    try:
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = server.dsn("postgres")
        settings_module.get_settings.cache_clear()
        server.create_database("template_nightmarket")
        migrate(server.dsn("template_nightmarket"))
        password = new_password()
        server.grant_logins(dict.fromkeys(LOGINS, password) | {"postgres": server.password})
        yield TestServer(server, password, not_durable)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(pg: TestServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A fresh migrated database, and the process environment that points at it; yields the database's name."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    pg.create_database(name)
    values = {
        "NIGHTMARKET_WAREHOUSE_DSN": pg.dsn(name),
        "NIGHTMARKET_VAULT_DSN": pg.dsn(name, "nightmarket_delivery"),
        "NIGHTMARKET_ADMIN_DSN": pg.server.dsn(name),
        "NIGHTMARKET_TOKEN_KEY": "a test key of more than thirty-two characters",
        "NIGHTMARKET_VAULT_KEYS": "k1:" + base64.b64encode(bytes(32)).decode(),
        "NIGHTMARKET_VAR": str(tmp_path),
        "NIGHTMARKET_CLOCK_FILE": str(tmp_path / "clock"),
    }
    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    settings_module.get_settings.cache_clear()
    yield name
    settings_module.get_settings.cache_clear()
    pg.server.drop_database(name)


@pytest.fixture
def db(environment: str) -> Iterator[psycopg.Connection[Row]]:
    """A connection of the loading role to a fresh database; autocommit, so that code under test sees what tests write."""
    with connect(autocommit=True, application_name="test") as connection:
        yield connection


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where processes come from that work, compete and are killed."""
    with nursery(tmp_path_factory.mktemp("workers") / "workers.log") as made:
        yield made


@pytest.fixture(scope="session")
def sandbox_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One small world (150 customers), shared by all tests of this run."""
    folder = tmp_path_factory.mktemp("sandbox")
    process, sandbox = start_sandbox(folder, "--customers", "150", "--seed", "7", "--anchor", ANCHOR)
    yield sandbox
    process.terminate()
    process.wait(10)


@pytest.fixture
def sandbox(
    sandbox_process: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_clock: Callable[[str], None]
) -> Iterator[Sandbox]:
    """The shared sandbox, reset to its first state, its clock and ours at 02:30 in Shanghai on the day after the data."""
    sandbox_process.control("POST", "/reset", {})
    for variable, value in sandbox_process.connections().items():
        monkeypatch.setenv(variable, value)
    moment = "2026-03-15T02:30:00+08:00"
    set_clock(moment)
    sandbox_process.control("POST", "/clock", {"now": moment})
    yield sandbox_process
    sandbox_process.control("POST", "/faults", {"faults": []})


@pytest.fixture
def set_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Move our own clock: set_clock("2026-03-15T10:00:00+08:00")."""
    from datetime import UTC, datetime

    clock_file = tmp_path / "clock"
    monkeypatch.setenv("NIGHTMARKET_CLOCK_FILE", str(clock_file))

    def move(moment: str) -> None:
        offset = datetime.fromisoformat(moment) - datetime.now(UTC)  # noqa: TID251 - this is what moves the clock
        fresh = clock_file.with_suffix(".new")
        fresh.write_text(str(offset.total_seconds()))
        fresh.replace(clock_file)  # a worker that reads it meanwhile never finds half of it

    return move
