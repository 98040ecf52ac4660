"""The executor of the local stack: its workers have imported what tasks import."""

import subprocess
import sys

IN_A_WORKER = """
import sys
from airflow.executors import local_executor
from nightmarket.orchestration.executor import WANTED, PreloadedExecutor

def instead_of_tasks(**_):
    missing = [name for name in WANTED if name not in sys.modules]
    print("missing", missing, flush=True)

local_executor._run_worker = instead_of_tasks
executor = PreloadedExecutor(parallelism=1)
executor.start()
for worker in executor.workers.values():
    worker.join(30)
"""


def test_its_workers_are_forked_with_everything_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_WORKER], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "missing []"
