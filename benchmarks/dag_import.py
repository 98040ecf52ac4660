"""What reading dags/ costs, against a bare `import airflow.sdk`, with 1 and with 200 campaigns, some or all with a schedule.

    python benchmarks/dag_import.py [--rounds 9]

Every figure is the wall time of a fresh process; the variants take turns, so that a busy moment of the machine hits all
of them. "one file in a task process" is what a task pays on top of Airflow's own start: the slowest of our files, parsed
as a worker does (only the DAG it needs), inside a process that has imported Airflow already.
"""

import argparse
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

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
FILES = [str(path) for path in sorted((ROOT / "dags").glob("*.py"))]
BY_HAND, BY_ITSELF = "winback_gold", "tier_up_gift"  # campaigns of ours without and with a schedule
BARE = "import airflow.sdk"
ALL = f"import airflow.sdk, runpy\nfor path in {FILES!r}: runpy.run_path(path)"
ONE = f"""
import json, runpy, time
import airflow.sdk
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
seconds = {{}}
for path in {FILES!r}:
    with _airflow_parsing_context_manager(dag_id="extract_own_pages", task_id="any"):
        started = time.perf_counter()
        runpy.run_path(path)
        seconds[path.rsplit("/", 1)[1]] = time.perf_counter() - started
print(json.dumps(seconds))
"""


def config_with(campaigns: int, scheduled: int, folder: Path) -> Path:
    """A copy of include/config whose campaigns folder holds so many campaigns, of them so many with a schedule."""
    shutil.copytree(ROOT / "include" / "config", folder)
    texts = {name: (folder / "campaigns" / f"{name}.yaml").read_text(encoding="utf-8") for name in (BY_HAND, BY_ITSELF)}
    for path in (folder / "campaigns").glob("*.yaml"):
        path.unlink()
    for number in range(campaigns):
        model = BY_ITSELF if number < scheduled else BY_HAND
        name = f"{model}_{number:03d}"
        (folder / "campaigns" / f"{name}.yaml").write_text(texts[model].replace(model, name), encoding="utf-8")
    return folder


def run(code: str, environment: dict[str, str]) -> tuple[float, str]:
    """(wall seconds of a fresh Python that runs `code`, what it printed)."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"the measured process failed:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW") and k != "PYTHONDONTWRITEBYTECODE"}
        clean |= {"AIRFLOW_HOME": str(folder / "airflow"), "PYTHONPATH": str(ROOT / "plugins")}
        one = clean | {"NIGHTMARKET_CONFIG_DIR": str(config_with(1, 0, folder / "one"))}
        many = clean | {"NIGHTMARKET_CONFIG_DIR": str(config_with(200, 20, folder / "many"))}
        every = clean | {"NIGHTMARKET_CONFIG_DIR": str(config_with(200, 200, folder / "every"))}
        variants = {
            "bare `import airflow.sdk`": (BARE, clean),
            "dags/ with 1 campaign": (ALL, one),
            "dags/ with 200 campaigns, 20 scheduled": (ALL, many),
            "dags/ with 200 campaigns, all scheduled": (ALL, every),
        }
        for code, environment in variants.values():  # warm the disk cache, write the bytecode
            run(code, environment)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        per_file: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, (code, environment) in variants.items():
                seconds[name].append(run(code, environment)[0])
            for file, value in json.loads(run(ONE, many)[1].splitlines()[-1]).items():
                per_file.setdefault(file, []).append(value)
    show(seconds, per_file, rounds)


def show(seconds: dict[str, list[float]], per_file: dict[str, list[float]], rounds: int) -> None:
    console = Console(width=100)
    console.print(
        f"hardware: {os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}; {rounds} rounds"
    )
    table = Table(title="reading dags/, fresh processes", title_justify="left")
    for column in ("variant", "median s", "min", "max", "ratio of medians", "must"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    bare = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        ratio = statistics.median(values) / bare
        must = "" if name.startswith("bare") else "<= 2.00"
        table.add_row(
            name, f"{statistics.median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}", f"{ratio:.2f}", must
        )
    console.print(table)
    file, values = max(per_file.items(), key=lambda item: statistics.median(item[1]))
    console.print(
        f"one file in a task process, the slowest ({file}), 200 campaigns: median {statistics.median(values):.3f} s, "
        f"{min(values):.3f} to {max(values):.3f}; must be <= 0.5 s"
    )


if __name__ == "__main__":
    main()
