"""A limit of N calls a second, shared by 1, 2 and 4 workers, against the sandbox over HTTP: how much of it is used, is it kept?

    python benchmarks/limit.py [--limit 50] [--seconds 10] [--rounds 3]

Workers are processes with the real client of the Taobao platform, each signing its calls and taking its slots from the
account's row in PostgreSQL (nightmarket.accounts). The sandbox refuses call N + 1 of any of its seconds, as TOP does, and
writes down when each call arrived. "worst second": the most calls in any stretch of one second, wherever it begins.
"""

import argparse
import base64
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins"))
METHOD = "taobao.user.seller.get"


def serve(arguments: list[str]) -> None:
    """The sandbox, unchanged, with a clerk at the door who notes when each call came in."""
    sys.path.insert(0, str(ROOT / "include"))
    import sandbox.__main__ as start
    from sandbox.app import App
    from sandbox.wire import Answer, Request, json_answer

    arrivals: list[float] = []

    class Noting(App):
        async def answer(self, request: Request) -> Answer:
            if request.path == "/arrivals":
                noted = list(arrivals)
                arrivals.clear()
                return json_answer({"arrivals": noted})
            arrivals.append(time.monotonic())
            return await super().answer(request)

    start.App = Noting  # type: ignore[misc]
    sys.argv = ["sandbox", *arguments]
    start.main()


def work(limit: float, seconds: float) -> None:
    """One worker: calls as fast as it is let, for so long; prints when each of them started."""
    from nightmarket.accounts import Account
    from nightmarket.platforms import taobao
    from nightmarket.platforms.base import Transport
    from nightmarket.settings import credentials

    keys = credentials("taobao_flagship")
    started: list[float] = []

    class Noting(Account):
        def wait(self, method: str) -> None:
            super().wait(method)
            started.append(time.monotonic())

    with Noting("taobao", keys, calls_per_second=limit) as account:
        transport = Transport("taobao", max_requests=10**9, pace=account, tokens=account)
        client = taobao.connect(keys, transport, options=taobao.Options())
        client.call(METHOD, fields="nick")  # connections are open before it is measured
        started.clear()
        print("ready", flush=True)
        sys.stdin.readline()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            client.call(METHOD, fields="nick")
    print(json.dumps(started))


def worst_second(times: list[float]) -> int:
    times, first, worst = sorted(times), 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - 1:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


class Bench:
    def __init__(self, folder: Path, limit: int) -> None:
        from nightmarket import settings
        from nightmarket.local.connections import connection_environment
        from nightmarket.local.database import Server, free_port, new_password
        from nightmarket.warehouse import migrate

        self.limit = limit
        self.server = Server(folder / "pg", free_port(), new_password())
        self.server.start()
        self.server.create_database("bench")
        password = new_password()
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = self.server.dsn("bench")
        migrate(self.server.dsn("bench"))
        self.server.grant_logins({"nightmarket_etl": password})
        os.environ.update(
            NIGHTMARKET_WAREHOUSE_DSN=self.server.dsn("bench", "nightmarket_etl", password),
            NIGHTMARKET_TOKEN_KEY="a benchmark's key of more than thirty-two characters",
            NIGHTMARKET_VAULT_KEYS="k1:" + base64.b64encode(bytes(32)).decode(),
        )
        settings.get_settings.cache_clear()
        access_file = folder / "access.json"
        options = ["--port", "0", "--smtp-port", "0", "--access-file", str(access_file), "--customers", "100"]
        self.sandbox = subprocess.Popen(
            [sys.executable, __file__, "--serve", *options, "--now", "machine", "--top-rate", str(limit)]
        )
        deadline = time.monotonic() + 60
        while not access_file.exists():
            if self.sandbox.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the sandbox did not come up")
            time.sleep(0.1)
        self.access = json.loads(access_file.read_text())
        os.environ.update(connection_environment(self.access))

    def arrivals(self) -> list[float]:
        return list(requests.get(self.access["base_url"] + "/arrivals", timeout=10).json()["arrivals"])

    def round(self, workers: int, seconds: float) -> dict[str, float]:
        time.sleep(1.1)  # a second of the sandbox that is not part of it
        command = [sys.executable, __file__, "--work", str(self.limit), str(seconds)]
        team = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)
        ]
        for worker in team:
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise SystemExit("a worker did not come up")
        time.sleep(1.1)
        self.arrivals()
        for worker in team:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        started = [at for worker in team for at in json.loads(worker.communicate()[0])]
        arrived = self.arrivals()
        control = self.access["control"]
        counters = requests.get(
            control["url"] + "/counters", headers={"Authorization": f"Bearer {control['token']}"}, timeout=10
        ).json()
        refused = sum(counters["refused"].get("taobao", {}).values())
        return {
            "used": len(arrived) / (self.limit * seconds),
            "sender": worst_second(started),
            "receiver": worst_second(arrived),
            "refused": refused,
        }


def show(found: dict[int, list[dict[str, float]]], limit: int, seconds: float, rounds: int) -> None:
    console = Console(width=118)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    table = Table(
        title=f"a limit of {limit} calls/s for {seconds:.0f} s, {rounds} rounds in turns", title_justify="left"
    )
    for name in ("workers", "used, median", "spread", "worst second, sender", "worst second, receiver", "refused"):
        table.add_column(name, justify="right")
    for workers, results in found.items():
        used = sorted(result["used"] for result in results)
        table.add_row(
            str(workers),
            f"{statistics.median(used):.1%}",
            f"{used[0]:.1%}-{used[-1]:.1%}",
            f"{max(result['sender'] for result in results):.0f} of {limit}",
            f"{max(result['receiver'] for result in results):.0f} of {limit}",
            f"{max(result['refused'] for result in results):.0f}",
        )
    console.print(table)
    console.print("must: used >= 95 %, worst second at the sender and at the receiver <= the limit, nothing refused")


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
        return
    if sys.argv[1:2] == ["--work"]:
        work(float(sys.argv[2]), float(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nightmarket-bench-"))
    bench = Bench(folder, options.limit)
    found: dict[int, list[dict[str, float]]] = {1: [], 2: [], 4: []}
    try:
        for _ in range(options.rounds):
            for workers, results in found.items():
                results.append(bench.round(workers, options.seconds))
        show(found, options.limit, options.seconds, options.rounds)
    finally:
        bench.sandbox.terminate()
        bench.sandbox.wait(10)
        bench.server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
