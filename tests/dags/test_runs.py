"""Whole runs inside this process: what a task's XCom and state really are, not what we think they are."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, chain, task

from nightmarket.orchestration.approval import RecordedApproval
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
        ("record_learnings", {"run": "nobody", "learning": "something"}, "write_down"),
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


def test_what_the_form_says_is_kept_with_its_author(stored: Any, db: Any) -> None:
    import night_world as world

    world.seed_shop(db)
    world.seed_campaign(db)
    run = stored.dags["record_learnings"].test(
        run_conf={"run": world.RUN_ID, "learning": "The coupon alone is not enough."}
    )
    assert str(run.state) == "success"
    row = db.execute("SELECT learning, said_by FROM push.learnings").fetchone()
    assert row == {"learning": "The coupon alone is not enough.", "said_by": "dag_test"}


class Answered(RecordedApproval):
    """RecordedApproval that a person has answered already: the wait itself needs a scheduler."""

    answer = ""

    def execute(self, context: Any) -> Any:
        event = {
            "chosen_options": [self.answer],
            "params_input": {"reason": "because"},
            "responded_at": datetime(2026, 3, 15, tzinfo=UTC),
            "responded_by_user": {"id": "1", "name": "vera"},
        }
        return self.execute_complete(context, event)


@pytest.mark.parametrize(("answer", "sent"), [("Reject", "skipped"), ("Approve", "success")])
def test_both_answers_are_recorded_and_only_yes_sends(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, sent: str
) -> None:
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    monkeypatch.setattr(Answered, "answer", answer)
    recorded: list[dict[str, Any]] = []
    with DAG(f"proof_of_{answer.lower()}", schedule=None) as dag:

        @task.short_circuit
        def record_decision(**context: Any) -> bool:
            recorded.append(context["ti"].xcom_pull(task_ids="approve", key="decision"))
            return bool(recorded[-1]["approved"])

        @task
        def send() -> None: ...

        @task
        def check_laws() -> None: ...

        chain(
            Answered(task_id="approve", subject="send?", answer_within_hours=4), record_decision(), send(), check_laws()
        )
    own = DagBag(tmp_path, bundle_name="dags-folder")
    own.bag_dag(dag)
    sync_bag_to_db(own, "dags-folder", None)
    run = dag.test()
    assert states(run) == {"approve": "success", "record_decision": "success", "send": sent, "check_laws": sent}
    assert recorded == [{"approved": answer == "Approve", "by": "vera", "reason": "because", "is_timed_out": False}]
