"""Whole runs inside this process: what a task's XCom and state really are, not what we think they are."""

from collections.abc import Iterator
from typing import Any

import pytest

from nightmarket.settings import use_credentials_from

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stored(bag: Any, airflow_database: None) -> Any:
    """The DAGs, known to Airflow's database as after a round of the dag-processor."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(bag, "dags-folder", None)
    return bag


@pytest.fixture(autouse=True)
def own_credentials() -> Iterator[None]:
    """Tasks of this process make the library ask Airflow for accounts; the next test gets its own way back."""
    yield
    use_credentials_from(None)


def states(run: Any) -> dict[str, str]:
    return {task.task_id: str(task.state) for task in run.get_task_instances()}


@pytest.mark.parametrize(
    ("dag_id", "conf", "first"),
    [
        ("push_campaign", {"campaign": "winback_gold", "dryrun": False}, "check_request"),
        ("erase_person", {"tokens": ["10012345678"], "reason": "asked"}, "check_request"),
    ],
)
def test_a_wrong_form_stops_at_its_first_task(
    stored: Any, environment: str, dag_id: str, conf: dict[str, Any], first: str
) -> None:
    run = stored.dags[dag_id].test(run_conf=conf)
    found = states(run)
    assert str(run.state) == "failed"
    assert found.pop(first) == "failed"
    assert set(found.values()) <= {"upstream_failed"}
