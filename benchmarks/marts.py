"""Marts: a full rebuild and a night with 1 % new orders, per table, at any number of members; beside it DuckDB and pandas.

    python benchmarks/marts.py [--members 10000] [--rounds 3] [--nights 3]
    python benchmarks/marts.py --members 10000,100000,1000000            # growth, and whether a plan changes its class
    python benchmarks/marts.py --members 100000 --data var/bench/marts   # keeps the loaded server there; again: reuses it
    python benchmarks/marts.py --members 100000 --data var/bench/marts --only member_rfm,member_tiers
    python benchmarks/marts.py --members 100000 --data var/bench/marts --night-only

Core is filled by benchmarks/marts_data.py. The server is the embedded one with exactly the settings of the local stack,
durability on. Every table of MART_TABLES is computed by its load.sql, one transaction each, by the loading role, in a process
of its own, as the night does. `full` starts from empty marts without marks; VACUUM (ANALYZE) follows; `night` is the next
business date after 1 % new orders (a few of them late), refunds, reviews and status changes came in through the triggers.

Rows of `full` are those of the table, rows of `night` are those it wrote. The plan of each statement is taken by EXPLAIN in
the last round, just before it runs and outside its time. Everything also goes to var/benchmarks/marts-<members>.txt, and a run of all
tables is compared with the largest smaller one that was kept there. A kept server has the migrations of its first run: delete its
folder when they were changed.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins"))

RESULTS = ROOT / "var" / "benchmarks"
CLASSES = {  # what counts as another class of plan: how rows are found and how they meet
    "Seq Scan": "seq", "Index Scan": "index", "Index Only Scan": "index", "Bitmap Heap Scan": "index",
    "Nested Loop": "nested loop", "Hash Join": "hash join", "Merge Join": "merge join",
}  # fmt: skip
PLANNED = re.compile(r"(WITH|SELECT|INSERT|UPDATE|DELETE|MERGE)\b|CREATE (TEMPORARY |UNLOGGED )?TABLE .*\bAS\b")
HEAVY = 0.10  # statements above this share of their table's time are shown and compared
MODEL = "member_predictions"  # computed in Python: a model a week, fitted by the first night of the week
FULL_SECONDS, NIGHT_SECONDS, NIGHT_SHARE, GROWTH = 240, 30, 0.15, 11  # what must be reached at a million members


# -------------------------------------------------------------------------------------------------- the measured process
@dataclass
class Statement:
    """One statement of a load.sql: its first words, what it took, the shape of its plan."""

    words: str
    seconds: float
    plan: list[str] = field(default_factory=list)  # indented node types
    classes: dict[str, int] = field(default_factory=dict)  # "seq core.orders" -> how often


@dataclass
class Load:
    """One table in one run."""

    table: str
    seconds: float
    rows: int
    written: int
    statements: list[Statement]


def compute(tables: Iterable[str], business_date: str, *, explain: bool) -> Iterator[Load]:
    """Run each table's load.sql in a transaction of its own, statement by statement."""
    from nightmarket.marts import load_path, mart_parameters
    from nightmarket.warehouse import connect, read_sql, split_statements

    parameters = mart_parameters(business_date)
    with connect(autocommit=True, application_name="nightmarket-bench") as connection:
        for table in tables:
            if table == MODEL:
                from nightmarket.predictions import predict_values

                started = time.perf_counter()
                done = predict_values(business_date)
                yield Load(table, time.perf_counter() - started, done.looked_at, done.written + done.deleted, [])
                continue
            statements, explaining, written = [], 0.0, 0
            started = time.perf_counter()
            with connection.transaction():
                for text in split_statements(read_sql(load_path(table))):
                    statement = Statement(first_words(text), 0)
                    if explain:
                        before = time.perf_counter()
                        statement.plan, statement.classes = plan_of(connection, text, parameters)
                        explaining += time.perf_counter() - before
                    before = time.perf_counter()
                    connection.execute(text, parameters)  # type: ignore[arg-type]
                    statement.seconds = time.perf_counter() - before
                    statements.append(statement)
                before = time.perf_counter()
                row = connection.execute(
                    "SELECT n_tup_ins + n_tup_upd + n_tup_del AS written FROM pg_stat_xact_user_tables WHERE relid = %s::regclass",
                    (f"mart.{table}",),
                ).fetchone()
                written = int(row["written"]) if row else 0
                explaining += time.perf_counter() - before
            seconds = time.perf_counter() - started - explaining
            row = connection.execute(f"SELECT count(*) AS rows FROM mart.{table}").fetchone()  # type: ignore[arg-type]
            assert row is not None
            yield Load(table, seconds, row["rows"], written, statements)


def first_words(text: str) -> str:
    from nightmarket.warehouse import COMMENTS

    return " ".join(COMMENTS.sub("", text).split())[:70]


def plan_of(connection: Any, text: str, parameters: Mapping[str, Any]) -> tuple[list[str], dict[str, int]]:
    """Node types of a statement's plan, indented, and how often each class occurs; empty for what has no plan."""
    if not PLANNED.match(first_words(text)):
        return [], {}
    row = connection.execute(f"EXPLAIN (FORMAT JSON, COSTS OFF) {text}", parameters).fetchone()
    lines: list[str] = []
    classes: Counter[str] = Counter()
    walk(row["QUERY PLAN"][0].get("Plan", {}), 0, lines, classes)
    return lines, dict(classes)


def walk(node: Mapping[str, Any], depth: int, lines: list[str], classes: Counter[str]) -> None:
    kind = node.get("Node Type")
    if kind is None:
        return
    relation = node.get("Relation Name") or node.get("CTE Name") or ""
    words = [
        node.get("Strategy", "").replace("Plain", ""),
        kind,
        node.get("Join Type", "").replace("Inner", ""),
        relation,
    ]
    lines.append(
        "  " * depth + " ".join(word for word in words if word) + (" (parallel)" if node.get("Parallel Aware") else "")
    )
    if kind in CLASSES:
        classes[f"{CLASSES[kind]} {node.get('Relation Name', '')}".strip()] += 1
    for child in node.get("Plans", ()):
        walk(child, depth + 1, lines, classes)


def child(tables: list[str], business_date: str, explain: bool) -> None:
    """What the measured process prints: one table a line, then itself."""
    for load in compute(tables, business_date, explain=explain):
        print(json.dumps(asdict(load)), flush=True)
    print(json.dumps({"peak_mb": peak_mb()}))


# ------------------------------------------------------------------------------------------------------------- the bench
@dataclass
class Run:
    """One full rebuild or one night."""

    loads: list[Load]
    client_mb: float
    server_mb: float  # largest private memory of one server process
    temporary_mb: float  # written to temporary files

    @property
    def seconds(self) -> float:
        return sum(load.seconds for load in self.loads)


class Bench:
    """A server with a filled core: a fresh one in a temporary folder, or the one kept in `data`."""

    def __init__(self, members: int, data: Path | None, seed: int) -> None:
        from marts_data import World
        from nightmarket.local.database import Server, free_port, new_password

        self.world = World(members, seed)
        self.is_kept = data is not None
        self.folder = (data / str(members)).resolve() if data else Path(tempfile.mkdtemp(prefix="nightmarket-bench-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.note = self.folder / "state.json"
        kept = json.loads(self.note.read_text()) if self.note.exists() else None
        self.state: dict[str, Any] = kept or {"password": new_password(), "night": 0, "seed": seed}
        self.server = Server(self.folder / "data", free_port(), self.state["password"])
        self.server.start()
        self.is_loaded = kept is not None

    def prepare(self, console: Console) -> None:
        from marts_data import load
        from nightmarket import settings
        from nightmarket.marts import MART_TABLES, load_path
        from nightmarket.warehouse import connect, migrate

        self.server.create_database("benchmark")
        self.admin = self.server.dsn("benchmark")
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = self.admin
        settings.get_settings.cache_clear()
        migrate(self.admin)
        self.server.grant_logins({"nightmarket_etl": self.state["password"]})
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = self.server.dsn(
            "benchmark", "nightmarket_etl", self.state["password"]
        )
        settings.get_settings.cache_clear()
        if not self.is_loaded:
            started = time.perf_counter()
            with connect(self.admin, autocommit=True) as connection:
                rows = load(connection, self.world)
            self.save()
            console.print(
                f"core filled in {time.perf_counter() - started:.0f} s, client {peak_mb():.0f} MB: "
                + ", ".join(f"{table.split('.')[1]} {count:,}" for table, count in rows.items())
            )

        with connect(self.admin) as connection:
            there = {
                row["tablename"]
                for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'mart'")
                if (settings.get_settings().sql_dir / load_path(row["tablename"])).exists()
            }
        self.tables = [*(table for table in MART_TABLES if table in there), MODEL]
        if missing := [table for table in MART_TABLES if table not in there]:
            console.print(f"left out, no table or no load.sql yet: {', '.join(missing)}")

    def save(self) -> None:
        if self.is_kept:
            self.note.write_text(json.dumps(self.state))
            self.note.chmod(0o600)

    @property
    def business_date(self) -> date:
        return self.world.last_day + timedelta(days=self.state["night"])

    def empty(self, tables: Iterable[str], *, keep_models: bool = False) -> None:
        """Empty marts that know nothing, the configuration in place, nothing waiting, the disk quiet."""
        from marts_data import ACCOUNT, SHOPS
        from nightmarket.marts import sync_config
        from nightmarket.warehouse import connect

        chosen = list(tables)
        with connect(self.admin) as connection:
            connection.execute(f"TRUNCATE {', '.join(f'mart.{table}' for table in chosen)} CASCADE")
            if chosen == self.tables:
                connection.execute(
                    "TRUNCATE mart.marks, core.touches, core.fact_touches, mart.touched_members, mart.touched_days, mart.restatements"
                )
                if not keep_models:
                    connection.execute("TRUNCATE mart.prediction_fits")
            else:
                connection.execute("DELETE FROM mart.marks WHERE mart = ANY(%s)", (chosen,))
            accounts = [(source, name, "shop") for source, name, *_ in SHOPS] + [(ACCOUNT, "wechat_official", "social")]
            sync_config(
                connection,
                [
                    SimpleNamespace(
                        source_id=source,
                        platform=name,
                        kind=kind,
                        name=source,
                        currency_code="CNY",
                        streams={},
                        is_store=source == "store_pos",
                    )
                    for source, name, kind in accounts
                ],
            )
        with connect(self.admin, autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    def rebuild(self) -> float:
        """Seconds of a rebuild as the product does it, predictions included."""
        from nightmarket.rebuild import run_night

        self.empty(self.tables)
        started = time.perf_counter()
        run_night(self.business_date)
        return time.perf_counter() - started

    def vacuum(self) -> float:
        from nightmarket.warehouse import connect

        started = time.perf_counter()
        with connect(self.admin, autocommit=True) as connection:
            for table in (*self.tables, "prediction_fits"):
                connection.execute(f"VACUUM (ANALYZE) mart.{table}")
        return time.perf_counter() - started

    def checksums(self) -> dict[str, tuple[int, str]]:
        """Rows and a sum of their hashes per table, without what says when a row was written."""
        from nightmarket.warehouse import connect

        found = {}
        with connect(self.admin) as connection:
            for table in self.tables:
                columns = connection.execute(
                    "SELECT string_agg(format('%%I', a.attname), ', ' ORDER BY a.attnum) AS names FROM pg_attribute AS a"
                    " LEFT JOIN pg_index AS i ON i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY(i.indkey)"
                    " WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped"
                    " AND (i.indrelid IS NOT NULL OR a.attname NOT IN ('business_date', 'computed_at'))",
                    (f"mart.{table}",),
                ).fetchone()
                assert columns is not None
                row = connection.execute(
                    f"SELECT count(*) AS rows, coalesce(sum(hashtextextended(t::text, 0)), 0)::text AS hash"
                    f" FROM (SELECT {columns['names']} FROM mart.{table}) AS t"
                ).fetchone()
                assert row is not None
                found[table] = (row["rows"], row["hash"])
        return found

    def check(self, console: Console, tables: list[str]) -> None:
        """Whether the tables that the nights left are those that a rebuild of the last date gives."""
        nights = self.checksums()
        self.empty(tables, keep_models=True)
        self.run(tables, explain=False)
        rebuilt = self.checksums()
        tables = [table for table in tables if not table.startswith("touched_")]
        other = [
            f"{table} ({nights[table][0]:,} rows, rebuilt {rebuilt[table][0]:,})"
            for table in tables
            if nights[table] != rebuilt[table]
        ]
        console.print(
            f"after {self.state['night']} nights against a rebuild: {len(tables) - len(other)} of {len(tables)} tables are the same"
            + (
                f"; others: {', '.join(other)}. A table that keeps the past of each night has less of it after a rebuild."
                if other
                else ""
            )
        )

    def add_night(self) -> tuple[float, dict[str, int]]:
        """The next day's facts, through the triggers; the business date moves on."""
        from marts_data import add_night
        from nightmarket.warehouse import connect

        started = time.perf_counter()
        with connect(autocommit=True) as connection:
            rows = add_night(connection, self.world, self.state["night"] + 1)
        self.state["night"] += 1
        self.save()
        return time.perf_counter() - started, rows

    def run(self, tables: Iterable[str], *, explain: bool) -> Run:
        """Compute tables in a process of its own and watch the server meanwhile."""
        command = [sys.executable, __file__, "--child", ",".join(tables), "--business-date", str(self.business_date)]
        before = self.temporary_bytes()
        with Watch(self.server.data) as watch:
            done = subprocess.run(
                [*command, *(["--explain"] if explain else [])], capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise SystemExit(f"a table could not be computed:\n{done.stdout[-300:]}\n{done.stderr[-3000:]}")
        *lines, last = [json.loads(line) for line in done.stdout.splitlines()]
        loads = [Load(**line | {"statements": [Statement(**part) for part in line["statements"]]}) for line in lines]
        return Run(loads, last["peak_mb"], watch.peak_mb, (self.temporary_bytes() - before) / 2**20)

    def compare(self, console: Console, full: Run) -> None:
        """DuckDB and pandas on the same rows, each in a process of its own, and whether they find what the marts say."""
        from marts_engines import COMPUTED, export, ours
        from nightmarket.marts import load_kpis
        from nightmarket.warehouse import connect

        folder = Path(tempfile.mkdtemp(prefix="nightmarket-bench-"))
        try:
            with connect() as connection:
                rules = connection.execute(
                    "SELECT r.tier, (r.enter_value * 100)::bigint AS enter, p.window_days FROM mart.tier_programmes AS p"
                    " JOIN mart.tier_rules AS r USING (programme) WHERE p.position = 1 ORDER BY r.rank"
                ).fetchall()
                enter = [(row["tier"], row["enter"]) for row in rules]
                wanted = ours(connection, enter)
                export(connection, folder)
            table = Table(title="the same RFM and days of reaching a tier, one run each", title_justify="left")
            for name in ("engine", "seconds", "of it reading", "peak MB", "finds the same"):
                table.add_column(name, justify="left" if name == "engine" else "right")
            seconds = sum(load.seconds for load in full.loads if load.table in COMPUTED)
            table.add_row(
                "PostgreSQL: the marts, with history and reasons, durable",
                f"{seconds:.1f}",
                "",
                f"{full.server_mb:.0f}",
                "",
            )
            for engine in ("duckdb", "pandas"):
                command = [
                    sys.executable,
                    str(Path(__file__).with_name("marts_engines.py")),
                    engine,
                    str(folder),
                    str(self.business_date),
                ]
                command += [
                    str(load_kpis().rfm.window_days),
                    str(rules[0]["window_days"]),
                    *(f"{tier}={amount}" for tier, amount in enter),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    table.add_row(engine, "failed", "", "", done.stderr.strip().splitlines()[-1][:60])
                    continue
                found = json.loads(done.stdout)
                other = [f"{part}: {found[part]} not {wanted[part]}" for part in wanted if found[part] != wanted[part]]
                table.add_row(
                    engine,
                    f"{found['seconds']:.1f}",
                    f"{found['read']:.1f}",
                    f"{found['peak_mb']:,.0f}",
                    "; ".join(other) or "yes",
                )
            console.print(table)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def temporary_bytes(self) -> int:
        from nightmarket.warehouse import connect

        time.sleep(0.2)  # until the session before has reported
        with connect(self.admin) as connection:
            row = connection.execute(
                "SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
        assert row is not None
        return int(row["temp_bytes"])

    def stop(self) -> None:
        self.server.stop()
        if not self.is_kept:
            shutil.rmtree(self.folder, ignore_errors=True)


class Watch:
    """The largest private memory of any one process of the server, looked at ten times a second (Linux; 0 elsewhere)."""

    def __init__(self, data: Path) -> None:
        self.peak_mb, self._data, self._over = 0.0, data, threading.Event()

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        postmaster = (self._data / "postmaster.pid").read_text().split()[0]
        while not self._over.wait(0.1):
            try:
                for process in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
                    for line in Path(f"/proc/{process}/status").read_text().splitlines():
                        if line.startswith("RssAnon"):
                            self.peak_mb = max(self.peak_mb, int(line.split()[1]) / 1024)
            except OSError:
                continue  # it ended between the two looks


def peak_mb() -> float:
    """The high-water mark of this process alone; what rusage says would include who started it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# ----------------------------------------------------------------------------------------------------------------- output
def show_runs(console: Console, title: str, runs: list[Run], written: bool) -> None:
    """Per table: rows, median seconds, spread, share."""
    table = Table(title=f"{title}, {len(runs)} round{'s' * (len(runs) > 1)}", title_justify="left")
    for name in ("table", "rows written" if written else "rows", "seconds", "spread", "share"):
        table.add_column(name, justify="left" if name == "table" else "right")
    total = statistics.median(run.seconds for run in runs)
    for position, load in enumerate(runs[-1].loads):
        seconds = sorted(run.loads[position].seconds for run in runs)
        middle = statistics.median(seconds)
        table.add_row(
            load.table, f"{load.written if written else load.rows:,}", f"{middle:.2f}", f"{seconds[0]:.2f}-{seconds[-1]:.2f}",
            f"{middle / total:.0%}",
        )  # fmt: skip
    totals = sorted(run.seconds for run in runs)
    table.add_row("all", "", f"{total:.2f}", f"{totals[0]:.2f}-{totals[-1]:.2f}", "", style="bold")
    console.print(table)
    console.print(
        f"client at most {max(run.client_mb for run in runs):.0f} MB; largest private memory of a server process "
        f"{max(run.server_mb for run in runs):.0f} MB; temporary files {max(run.temporary_mb for run in runs):,.0f} MB"
    )


def heavy(run: Run) -> Iterator[tuple[Load, int, Statement]]:
    """The statements that make up a table's time, with their place in its file."""
    for load in run.loads:
        for number, statement in enumerate(load.statements):
            if statement.plan and statement.seconds >= HEAVY * load.seconds:
                yield load, number, statement


def plan_text(title: str, run: Run) -> str:
    lines = [f"\nplans of the heaviest statements, {title}"]
    for load, number, statement in heavy(run):
        lines.append(f"-- {load.table}, statement {number + 1}, {statement.seconds:.2f} s: {statement.words}")
        lines += [f"   {line}" for line in statement.plan]
    return "\n".join(lines)


def show_plan_changes(console: Console, small: dict[str, Any], large: dict[str, Any]) -> None:
    """Which heavy statements find or join their rows in another way at the larger size."""
    changes = [change for kind in ("full", "night") for change in plan_changes(kind, small[kind], large[kind])]
    for change in changes:
        console.print(f"plan changed: {change}", highlight=False)
    console.print(
        f"plan classes between {small['members']:,} and {large['members']:,} members: "
        + (
            f"{len(changes)} statements changed; ! means: a scan or a nested loop that was not there"
            if changes
            else "none changed"
        )
    )


def plan_changes(kind: str, small: list[dict[str, Any]], large: list[dict[str, Any]]) -> Iterator[str]:
    before = {(load["table"], number): part for load in small for number, part in enumerate(load["statements"])}
    for load in large:
        for number, part in enumerate(load["statements"]):
            other = before.get((load["table"], number))
            if part["seconds"] < HEAVY * load["seconds"] or not other or other["words"] != part["words"]:
                continue  # not heavy, or the file was changed in between
            gone = Counter(other["classes"]) - Counter(part["classes"])
            new = Counter(part["classes"]) - Counter(other["classes"])
            if gone or new:
                sign = "! " if any(name.startswith(("seq ", "nested loop")) for name in new) else ""
                yield (
                    f"{sign}{kind}, {load['table']}, statement {number + 1} ({part['seconds']:.2f} s): "
                    f"{', '.join(sorted(gone)) or 'nothing'} -> {', '.join(sorted(new)) or 'nothing'}"
                )


def smaller_result(members: int) -> dict[str, Any] | None:
    """The whole run of the largest smaller size that was kept, of this day or an earlier one."""
    sizes = [int(path.stem.removeprefix("marts-")) for path in RESULTS.glob("marts-*.json")]
    size = max((size for size in sizes if size < members), default=None)
    return dict(json.loads((RESULTS / f"marts-{size}.json").read_text())) if size else None


def verdicts(console: Console, found: list[dict[str, Any]]) -> None:
    table = Table(title="against what the design demands (at a million members)", title_justify="left")
    for name in ("members", "full, s", "night, s", "night / full", "10 x the data: full", "night"):
        table.add_column(name, justify="right")
    for position, result in enumerate(found):
        grown = ["", ""]
        if position:
            smaller = found[position - 1]
            scale = 10 / (result["members"] / smaller["members"])
            grown = [
                f"{result[kind] / smaller[kind] * scale:.1f} x" if smaller[kind] else ""
                for kind in ("full_seconds", "night_seconds")
            ]
        share = result["night_seconds"] / result["full_seconds"] if result["full_seconds"] else 0
        table.add_row(
            f"{result['members']:,}",
            f"{result['full_seconds']:.1f}",
            f"{result['night_seconds']:.1f}",
            f"{share:.1%}" if share else "",
            *grown,
        )
    console.print(table)
    console.print(
        f"must: full <= {FULL_SECONDS} s, night <= {NIGHT_SECONDS} s and <= {NIGHT_SHARE:.0%} of full, 10 x the data <= {GROWTH} x the time"
    )


def measure(bench: Bench, console: Console, options: argparse.Namespace) -> dict[str, Any]:
    tables = [table for table in bench.tables if not options.only or table in options.only]
    if options.only and set(options.only) - set(tables):
        raise SystemExit(f"no such mart: {', '.join(sorted(set(options.only) - set(tables)))}")
    fulls: list[Run] = []
    nights: list[Run] = []
    if not options.night_only:
        for number in range(options.rounds):
            bench.empty(tables)
            fulls.append(bench.run(tables, explain=number == options.rounds - 1))
        show_runs(console, f"full rebuild as of {bench.business_date}", fulls, written=False)
        if not options.only:
            console.print(
                f"the same by `nightmarket marts --rebuild`, two tables at a time: {bench.rebuild():.1f} s",
                highlight=False,
            )
        console.print(f"VACUUM (ANALYZE) of the marts: {bench.vacuum():.1f} s")
        if not options.only and not options.no_compare:
            bench.compare(console, fulls[-1])
    for number in range(options.nights):
        seconds, rows = bench.add_night()
        arrived = ", ".join(f"{name.removeprefix('core.')} {count:,}" for name, count in rows.items())
        console.print(f"night of {bench.business_date}, brought in {seconds:.1f} s: {arrived}", highlight=False)
        nights.append(bench.run(tables, explain=number == options.nights - 1))
    if nights and options.check:
        bench.check(console, tables)
    if nights:
        show_runs(console, "night with 1 % new orders", nights, written=True)
    return {
        "members": bench.world.members,
        "full_seconds": statistics.median(run.seconds for run in fulls) if fulls else 0,
        "night_seconds": statistics.median(run.seconds for run in nights) if nights else 0,
        "full": [asdict(load) for load in fulls[-1].loads] if fulls else [],
        "night": [asdict(load) for load in nights[-1].loads] if nights else [],
        "plans": "\n".join(
            plan_text(title, runs[-1]) for title, runs in (("full rebuild", fulls), ("night", nights)) if runs
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", default="10000", help="one size, or several with commas")
    parser.add_argument("--rounds", type=int, default=3, help="full rebuilds")
    parser.add_argument("--nights", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, help="keep the loaded server below this folder, and use it again")
    parser.add_argument("--only", type=lambda text: text.split(","), help="these tables; those they read must be there")
    parser.add_argument("--night-only", action="store_true", help="no full rebuild before the nights")
    parser.add_argument("--check", action="store_true", help="rebuild after the nights and compare every table")
    parser.add_argument("--no-compare", action="store_true", help="neither DuckDB nor pandas")
    parser.add_argument("--plans", action="store_true", help="print the plans too; the file has them anyway")
    parser.add_argument("--child", type=lambda text: text.split(","), help=argparse.SUPPRESS)
    parser.add_argument("--business-date", help=argparse.SUPPRESS)
    parser.add_argument("--explain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.business_date, options.explain)
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for members in [int(size) for size in options.members.split(",")]:
        console = Console(width=132, record=True)
        console.print(
            f"{members:,} members. {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, PostgreSQL 18 embedded"
            f" on the same machine, fsync on; load before the start {os.getloadavg()[0]:.1f}"
        )
        bench = Bench(members, options.data, options.seed)
        try:
            bench.prepare(console)
            found.append(measure(bench, console, options))
        finally:
            bench.stop()
        is_whole = bool(found[-1]["full"] and found[-1]["night"]) and not options.only
        smaller = found[-2] if len(found) > 1 else smaller_result(members)
        if is_whole and smaller:
            show_plan_changes(console, smaller, found[-1])
        verdicts(console, [smaller, *found] if smaller and len(found) == 1 and is_whole else found)
        path = RESULTS / f"marts-{members}{'' if is_whole else '-part'}.txt"
        if options.plans:
            print(found[-1]["plans"])
        else:
            console.print(f"plans: {path.relative_to(ROOT)}")
        path.write_text(console.export_text() + found[-1]["plans"] + "\n", encoding="utf-8")
        if is_whole:
            path.with_suffix(".json").write_text(json.dumps(found[-1]), encoding="utf-8")


if __name__ == "__main__":
    main()
