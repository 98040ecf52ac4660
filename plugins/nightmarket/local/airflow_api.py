"""A small client of Airflow's public REST API: what the demo does, a person does in the UI."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import requests

from nightmarket.local.database import LocalError

FINISHED = ("success", "failed")


class AirflowApi:
    """Signed in as one user. Calls `check_alive` while waiting, so that a dead child is told at once."""

    def __init__(self, base_url: str, user: str, password: str, check_alive: Callable[[], None]) -> None:
        self._base_url = base_url
        self._check_alive = check_alive
        self._session = requests.Session()
        answer = self._session.post(f"{base_url}/auth/token", json={"username": user, "password": password}, timeout=30)
        answer.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        """One call below /api/v2. Raises LocalError with Airflow's own words when it is refused."""
        answer = self._session.request(method, f"{self._base_url}/api/v2{path}", json=body, params=query, timeout=60)
        if answer.status_code >= 400:
            raise LocalError(f"Airflow refused {method} {path}: {answer.status_code} {answer.text[:300]}")
        return dict(answer.json())

    def wait(self, what: str, ready: Callable[[], Any], seconds: float) -> Any:
        """Poll until `ready()` is truthy; return it. Raises LocalError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (result := ready()):
            self._check_alive()
            if time.monotonic() > deadline:
                raise LocalError(f"{what} took longer than {seconds:.0f} s; look at {self._base_url} or the task logs.")
            time.sleep(0.3)
        return result

    def wait_for_dags(self, dag_ids: set[str], seconds: float = 90) -> None:
        """Until the dag-processor has written every DAG; an import error is told in its own words."""

        def ready() -> bool:
            errors = self.call("GET", "/importErrors")["import_errors"]
            if errors:
                raise LocalError(f"{errors[0]['filename']} cannot be imported: {errors[0]['stack_trace'][-400:]}")
            known = {dag["dag_id"] for dag in self.call("GET", "/dags", limit=500)["dags"]}
            return dag_ids <= known

        self.wait("reading the DAG files", ready, seconds)

    def set_pools(self, pools: Mapping[str, Mapping[str, object]]) -> None:
        """Make the pools be these, as `airflow pools import` does; others stay."""
        entities = [{"name": name, **pool} for name, pool in pools.items()]
        create = {"action": "create", "entities": entities, "action_on_existence": "overwrite"}
        self.call("PATCH", "/pools", {"actions": [create]})

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a run as the form would, which takes now for its logical date; returns its run id.

        Of tasks that wait Airflow takes those of the older logical date first: what is started first is done first.
        """
        now = datetime.fromtimestamp(time.time(), UTC)  # by Airflow's clock, which nobody moves
        body = {"logical_date": now.isoformat(), "conf": conf}
        return str(self.call("POST", f"/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")

    def run_ids(self, dag_id: str) -> list[str]:
        """Runs of a DAG, oldest first."""
        runs = self.call("GET", f"/dags/{dag_id}/dagRuns", limit=100, order_by="run_after")["dag_runs"]
        return [run["dag_run_id"] for run in runs]

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        return list(self.call("GET", path, limit=200)["task_instances"])

    def wait_for_run(self, dag_id: str, run_id: str, seconds: float = 900) -> dict[str, Any]:
        """Until the run has finished. Raises LocalError naming the failed task and its error."""

        def finished() -> dict[str, Any] | None:
            run = self.run(dag_id, run_id)
            return run if run["state"] in FINISHED else None

        run: dict[str, Any] = self.wait(f"{dag_id} {run_id}", finished, seconds)
        if run["state"] == "failed":
            raise LocalError(self.why_failed(dag_id, run_id))
        return run

    def wait_for_new_run(self, dag_id: str, known: list[str], seconds: float = 180) -> str:
        """Until an asset event has started a run that was not there before."""

        def new() -> str | None:
            fresh = [run_id for run_id in self.run_ids(dag_id) if run_id not in known]
            return fresh[-1] if fresh else None

        return str(self.wait(f"the start of {dag_id}", new, seconds))

    def why_failed(self, dag_id: str, run_id: str) -> str:
        """One sentence: the first failed task and the last error line of its log."""
        for task in self.tasks(dag_id, run_id):
            if task["state"] == "failed":
                words = self._last_error(dag_id, run_id, task)
                return f"{dag_id}: task {task['task_id']} failed: {words}"
        return f"{dag_id}: run {run_id} failed; {self._base_url}/dags/{dag_id} shows where."

    def _last_error(self, dag_id: str, run_id: str, task: dict[str, Any]) -> str:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
        try:
            content = self.call("GET", path, map_index=task["map_index"])["content"]
        except LocalError as error:
            return str(error)
        for entry in reversed(content):
            if isinstance(entry, dict):
                details = entry.get("error_detail") or []
                if details:
                    return f"{details[0].get('exc_type')}: {details[0].get('exc_value')}"
                if str(entry.get("level")) == "error":
                    return str(entry.get("event"))
        return "its log says nothing more"

    def open_approvals(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        answer = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/hitlDetails", response_received=False)
        return list(answer["hitl_details"])

    def approve(self, dag_id: str, run_id: str, task_id: str, reason: str, choice: str = "Approve") -> None:
        """Answer an approval task, as the button in the UI does."""
        self.call(
            "PATCH",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails",
            {"chosen_options": [choice], "params_input": {"reason": reason}},
        )
