"""When a task has failed for good: one sentence in its log, one row in push.audit_log that the console shows, and one alert per run."""

import json
import logging
import re
from datetime import timedelta
from typing import Any

log = logging.getLogger(__name__)


def first_line(error: BaseException | str | None, limit: int = 500) -> str:
    """The first line of an error: our own errors say everything in it, a driver's next lines may quote data."""
    lines = str(error or "").strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:limit]


def record_failure(context: Any) -> None:
    """Failure callback of every task. Must not fail itself: with the warehouse down, the log still has the sentence."""
    from nightmarket import dates
    from nightmarket.robots import tell
    from nightmarket.warehouse import connect

    task, error = context["ti"], context.get("exception")
    sentence = f"{task.dag_id}: task {task.task_id} failed after attempt {task.try_number}: {first_line(error)}"
    runbook = re.search(r"docs/runbook\.md#[\w-]+", getattr(context.get("dag"), "doc_md", None) or "")
    log.critical("ALERT %s | what to do: %s", sentence, runbook.group() if runbook else "docs/runbook.md")
    tell(
        f"任务失败 / task failed: {task.dag_id}",
        [
            f"{task.task_id}: {first_line(error)}",
            f"run: {task.run_id}",
            runbook.group() if runbook else "docs/runbook.md",
        ],
        about=f"{task.dag_id}/{task.run_id}",
        quiet=timedelta(days=1),  # the first failure of a run says it; the others follow from it
    )
    detail = {"error": type(error).__name__, "sentence": first_line(error), "attempt": task.try_number}
    try:
        with connect(application_name="nightmarket-alert") as connection:
            connection.execute(
                "INSERT INTO push.audit_log (occurred_at, actor, action, subject, detail)"
                " VALUES (%s, 'airflow', 'task_failed', %s, %s::jsonb)",
                (dates.now(), f"{task.dag_id}/{task.run_id}/{task.task_id}", json.dumps(detail, ensure_ascii=False)),
            )
    except Exception as broken:  # the alert of a failure must never hide the failure
        log.warning("the alert could not be written to push.audit_log: %s", first_line(broken))
