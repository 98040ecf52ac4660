"""Workers in a moment: a process that has imported everything forks one per line of its standard input.

Starting Python takes half a second, which is most of a worker's life when a thousand of them are to be killed. A child is
a process like any other: it opens its own connections, and `kill -9` ends it wherever it is.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ("NIGHTMARKET_", "AIRFLOW_CONN_")


def work(what: str, run_id: str, name: str) -> None:
    """What a worker does: one step of a run, or every step of a campaign from the audience on, each as its task would."""
    from datetime import date

    from nightmarket.campaigns import coupons, delivery, outbox, results
    from nightmarket.campaigns.audience import build_run, record_decision
    from nightmarket.report import write_night_report
    from nightmarket.warehouse import connect

    if what.endswith("on a full disk"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file may grow any more
    if what == "report on a full disk":
        write_night_report(Path(run_id), [date.fromisoformat("2026-03-14")])
        return
    if what == "ask":
        delivery.ask(name, 60)
        return
    steps = {
        "reserve": coupons.reserve,
        "issue": coupons.issue,
        "enqueue": outbox.enqueue,
        "recover": lambda _: outbox.recover(),
    }
    if what in steps:
        steps[what](run_id)
        return
    if what == "campaign":  # run_id is the request: every task of one DAG run asks for the same run
        day = date.fromisoformat("2026-03-14")
        request, run_id = run_id, build_run("winback_gold", day, "live", "tester", request_id=run_id)
        report = results.dry_run_report(run_id)
        with connect() as connection:
            row = connection.execute(
                "SELECT state FROM push.campaign_runs WHERE request_id = %s", (request,)
            ).fetchone()
        if row and row["state"] == "awaiting_approval":
            record_decision(run_id, True, "tester", "looks right", report["content_hash"])
        coupons.reserve(run_id)
        coupons.issue(run_id)
        outbox.enqueue(run_id)
    delivery.deliver(run_id, name, 60)


def _child(order: dict[str, Any]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.update(order["environment"])
        logging.basicConfig(
            level="INFO", format=f"{order['name']} %(asctime)s %(message)s", filename=order["log"], force=True
        )
        work(order["what"], order["run_id"], order["name"])
        code = 0
    except Exception:
        logging.exception("%s ended", order["name"])
    finally:
        os._exit(code)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    sys.path.insert(0, str(ROOT / "plugins"))
    import sqlparse  # noqa: F401

    from nightmarket import report  # noqa: F401
    from nightmarket.campaigns import coupons, delivery, results  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _child(json.loads(line))
        print(pid, flush=True)


class Nursery:
    """Forks workers and kills them."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process, self._log, self._count = process, log, 0

    def worker(self, what: str, run_id: str) -> int:
        """A new worker; returns its process id."""
        self._count += 1
        environment = {key: value for key, value in os.environ.items() if key.startswith(ENVIRONMENT)}
        order = {
            "what": what,
            "run_id": run_id,
            "name": f"w{self._count}",
            "log": str(self._log),
            "environment": environment,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int) -> bool:
    """kill -9; False when the worker had ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def nursery(log: Path) -> Iterator[Nursery]:
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield Nursery(process, log)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


if __name__ == "__main__":
    main()
