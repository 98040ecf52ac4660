"""The executor of the local stack: its workers have imported what tasks import, and it takes no more than they can do."""

import subprocess
import sys

SCRIPT = """
import sys
from types import SimpleNamespace
from airflow.executors import local_executor
from airflow.models.taskinstancekey import TaskInstanceKey
from nightmarket.orchestration.executor import WANTED, PreloadedExecutor

def dies_with_its_first_task(input, **_):
    input.get()
    print("missing", [name for name in WANTED if name not in sys.modules], flush=True)

local_executor._run_worker = dies_with_its_first_task
executor = PreloadedExecutor(parallelism=1)
executor.start()
(worker,) = executor.workers.values()
print("free", executor.slots_available, flush=True)
task, other = (SimpleNamespace(key=TaskInstanceKey("dag", name, "run")) for name in ("task", "other"))
executor.queued_tasks[task.key] = task
executor._process_workloads([task])
print("free", executor.slots_available, flush=True)
executor.success(task.key)
print("free", executor.slots_available, flush=True)
executor.running.add(other.key)  # nobody will say that it is over
worker.join(30)
executor.sync()
print("free", executor.slots_available, flush=True)
"""


def test_its_workers_have_everything_imported_and_their_tasks_take_its_slots() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("free", "missing"))]
    assert "missing []" in lines
    # idle; a task; the task is over; a worker died, and what it ran is forgotten
    assert [line for line in lines if line != "missing []"] == ["free 1", "free 0", "free 1", "free 1"]
