"""The DAGs as the dag-processor sees them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DAGS = ROOT / "dags"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker for this folder: Airflow is imported, and its DAGs parsed, once."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("airflow"))


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's own tables in SQLite, in the tests' throw-away home."""
    from airflow.utils import db

    db.initdb()


PARSING_CONTEXT = ("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "_AIRFLOW_PARSING_CONTEXT_TASK_ID")


@pytest.fixture(autouse=True)
def _no_parsing_context_is_left() -> Iterator[None]:
    """Airflow 3.3 sets these for a while and leaves them set when they were not before: the next test would build one DAG only."""
    yield
    for name in PARSING_CONTEXT:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def bag() -> Any:
    """All DAGs, parsed once, with every way out of the process closed: parsing reads files and nothing else."""
    import socket

    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk import Connection, Variable

    def closed(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("parsing a DAG must not open a socket or read a Variable or Connection")

    with pytest.MonkeyPatch.context() as patch:
        for name in PARSING_CONTEXT:
            patch.delenv(name, raising=False)
        patch.setattr(socket.socket, "connect", closed)
        patch.setattr(Variable, "get", closed)
        patch.setattr(Connection, "get", closed)
        return DagBag(DAGS, bundle_name="dags-folder")
