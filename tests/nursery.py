"""Workers in a moment: a process that has imported everything forks one per line of its standard input.

Starting Python takes a second of a core, which is most of a worker's life. A child is a process like any other: it opens
its own connections, and `kill -9` ends it wherever it is.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


def _script(order: dict[str, Any]) -> None:
    """Run a script as `python -c` would, its output in a file."""
    for path, descriptor in ((os.devnull, 0), (order["output"], 1), (order["log"], 2)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, descriptor)
    sys.argv = ["-c", *order["arguments"]]
    exec(compile(order["script"], "<worker>", "exec"), {"__name__": "__main__"})


def _child(order: dict[str, Any]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.update(order["environment"])
        logging.basicConfig(
            level="INFO", format=f"{order['name']} %(asctime)s %(message)s", filename=order["log"], force=True
        )
        if "script" in order:
            _script(order)
        else:
            work(order["what"], order["run_id"], order["name"])
        code = 0
    except Exception:
        logging.exception("%s ended", order["name"])
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    ended: dict[int, int] = {}

    def reap(*_: Any) -> None:
        """At once, so that nobody takes who has ended for alive."""
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                ended[found[0]] = os.waitstatus_to_exitcode(found[1])
        except ChildProcessError:
            return

    signal.signal(signal.SIGCHLD, reap)
    sys.path.insert(0, str(ROOT / "plugins"))
    import sqlparse  # noqa: F401

    from nightmarket import landing, mapping, report  # noqa: F401
    from nightmarket.campaigns import coupons, delivery, results  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        if "ended" in order:
            print(ended.get(order["ended"], ""), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _child(order)
        print(pid, flush=True)


@dataclass(frozen=True)
class Worker:
    """A script in a process of its own."""

    pid: int
    output: Path  # what it printed
    log: Path
    nursery: "Nursery"

    def poll(self) -> int | None:
        """How it ended, as subprocess says it; None while it runs."""
        answer = self.nursery.ask({"ended": self.pid})
        return int(answer) if answer else None

    def wait(self, seconds: float = 90) -> int:
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, f"a worker did not end within {seconds} s"
            time.sleep(0.01)
        return code

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Nursery:
    """Forks workers and kills them."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process, self._log, self._count = process, log, 0

    def ask(self, order: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def _fork(self, log: Path, **order: Any) -> int:
        environment = {key: value for key, value in os.environ.items() if key.startswith(ENVIRONMENT)}
        return int(self.ask({"name": f"w{self._count}", "log": str(log), "environment": environment, **order}))

    def worker(self, what: str, run_id: str) -> int:
        """A new worker; returns its process id."""
        self._count += 1
        return self._fork(self._log, what=what, run_id=run_id)

    def script(self, script: str, *arguments: str) -> Worker:
        """A new process with a script of its own."""
        self._count += 1
        output, log = (self._log.parent / f"{self._count}.{kind}" for kind in ("out", "log"))
        output.touch()
        return Worker(self._fork(log, script=script, arguments=arguments, output=str(output)), output, log, self)


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
