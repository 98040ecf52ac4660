"""Seconds of each step of the night, from a real run of the demo under the real scheduler.

python benchmarks/night.py            runs `make demo` first (about 3 minutes)
python benchmarks/night.py --last     prints the last run of `make demo`
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = ROOT / "var" / "demo" / "summary.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--last", action="store_true", help="print the last demo instead of running one")
    if not parser.parse_args().last or not SUMMARY.exists():
        subprocess.run([sys.executable, "-m", "nightmarket.local", "demo"], check=True, cwd=ROOT)
    result = json.loads(SUMMARY.read_text())
    console = Console()
    console.print(f"hardware: {os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}")
    chapters = Table(title="chapters of the demo", title_justify="left")
    chapters.add_column("chapter")
    chapters.add_column("seconds", justify="right")
    for name, seconds in result["seconds"].items():
        chapters.add_row(name, f"{seconds:.1f}")
    console.print(chapters)
    for chapter, tasks in result["task_seconds"].items():
        total = sum(tasks.values())
        table = Table(title=f"{chapter}: seconds inside tasks (they overlap)", title_justify="left")
        table.add_column("task")
        table.add_column("seconds", justify="right")
        table.add_column("share", justify="right")
        for task, seconds in sorted(tasks.items(), key=lambda item: -item[1]):
            table.add_row(task, f"{seconds:.2f}", f"{seconds / total:.0%}" if total else "-")
        console.print(table)


if __name__ == "__main__":
    main()
