"""Ingest: ready pages of trades to raw and core, against dlt's merge of the same pages and against the least any loader must do.

    python benchmarks/ingest.py [--records 20000] [--rounds 3] [--sizes 10000,100000] [--no-dlt] [--one-mapping]

The input is one file of JSON pages (100 trades each, about 1.2 KB and two lines a trade, five personal fields, as TOP
answers), written once, the same for everybody. Contestants take turns; each is a process of its own on an emptied database
with durability on; starting Python and connecting are not counted.

* floor: decode, COPY of the payload as jsonb, COPY of typed orders and lines into temporary tables, upsert. No versions,
  no tokens, no vault, no people, nothing rejected.
* ingest: what the land and map tasks do: landing (decode, hash, compare with the heads, tokenise, fill the vault, COPY to raw,
  cursor) with the mapping to core (identities, links, profiles, orders, lines, products, shipments) alongside, then the
  mapping of what is left.
* seen: the same window a second time, 1 % of its trades changed.
* dlt: pipeline.run() with write disposition merge and defaults (benchmarks/ingest_dlt.py); no tokens, no versions. It
  is installed into var/bench/dlt from benchmarks/requirements.txt, or say --dlt-python.

`--sizes` measures how the cost grows, each size on an emptied database.
"""

import argparse
import base64
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins"))

PAGE = 100
FLOOR_BATCH = 20  # pages in one transaction of the floor, as many as landing writes at once
SOURCE, STREAM = "taobao_flagship", "trades"
START = datetime(2026, 1, 1, tzinfo=UTC)
DLT_FOLDER = ROOT / "var" / "bench" / "dlt"
FLOOR_TABLES = """
CREATE TABLE IF NOT EXISTS floor_raw (key text PRIMARY KEY, payload jsonb NOT NULL);
CREATE TABLE IF NOT EXISTS floor_orders (LIKE core.orders INCLUDING DEFAULTS INCLUDING INDEXES);
CREATE TABLE IF NOT EXISTS floor_lines (LIKE core.order_lines INCLUDING DEFAULTS INCLUDING INDEXES);
"""
ORDER_COLUMNS = (
    "source_id", "order_id", "status", "status_original", "is_paid", "currency_code", "goods_amount", "paid_amount",
    "line_count", "unit_count", "created_at", "paid_at", "shipped_at", "signed_at", "modified_at", "batch_id", "loaded_at",
)  # fmt: skip
LINE_COLUMNS = (
    "source_id", "order_id", "line_id", "product_id", "title", "unit_price_amount", "quantity", "line_amount", "paid_amount",
    "status", "batch_id",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ input
def write_pages(path: Path, records: int, *, changed: bool = False) -> None:
    """One page a line. `changed`: every hundredth trade as it looks after somebody has remarked it a year later."""
    chance = random.Random(1)
    with path.open("wb") as file:
        for first in range(0, records, PAGE):
            rows = [trade(chance, number, records) for number in range(first, min(first + PAGE, records))]
            if changed:
                for row in rows[::PAGE]:
                    row["modified"] = "2027-01-01 00:00:00"
                    row["payment"] = "79.70"
            file.write(orjson.dumps({"trades": {"trade": rows}, "total_results": records}) + b"\n")


def trade(chance: random.Random, number: int, records: int) -> dict[str, Any]:
    """An invented trade of one of as many buyers as two fifths of the records, with an impossible phone number."""
    buyer = chance.randrange(max(records * 2 // 5, 1))
    tid = 4_000_000_000_000_000_000 + number * 10
    created = (START + timedelta(seconds=number)).strftime("%Y-%m-%d %H:%M:%S")
    lines = [
        {
            "oid": tid + line + 1, "num_iid": 610_000_000_000 + item, "outer_iid": f"A{item:04}",
            "title": f"WHITE HANGING HEART T-LIGHT {item:04}", "price": f"{chance.randrange(100, 9000) / 100:.2f}",
            "num": chance.randrange(1, 13), "divide_order_fee": "39.90", "status": "TRADE_FINISHED",
            "refund_status": "NO_REFUND", "logistics_company": "中通快递", "invoice_no": f"ZT{number:012d}",
            "consign_time": created,
        }
        for line, item in enumerate(chance.choices(range(4000), k=2))
    ]  # fmt: skip
    return {
        "tid": tid, "status": "TRADE_FINISHED", "type": "fixed", "created": created, "modified": created, "pay_time": created,
        "consign_time": created, "end_time": created, "payment": "79.80", "post_fee": "0.00", "seller_nick": "夜市旗舰店",
        "buyer_nick": f"买家{buyer}", "buyer_open_uid": f"AAH{buyer}", "receiver_name": f"王芳{buyer}",
        "receiver_mobile": f"100{buyer % 100_000_000:08d}", "receiver_phone": "", "receiver_address": f"西湖路{buyer}号",
        "receiver_state": "浙江省", "receiver_city": "杭州市", "orders": {"order": lines},
    }  # fmt: skip


def read_pages(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The trades of each page, decoded when it is its turn."""
    from nightmarket.platforms import taobao
    from nightmarket.platforms.base import parse_json

    with path.open("rb") as file:
        for number, page in enumerate(file):
            yield taobao.rows_of(parse_json("taobao", "benchmark", page, number), "trades", "trade")


# ------------------------------------------------------------------------------------------------------ contestants
def run_floor(pages: Path) -> dict[str, float]:
    """Decode, COPY the payload, upsert typed rows. Needs the owner's connection (the floor's tables are its own)."""
    from nightmarket.warehouse import connect

    with connect(os.environ["BENCH_ADMIN_DSN"], autocommit=True) as connection:
        started = time.perf_counter()
        waiting: list[dict[str, Any]] = []
        for page in read_pages(pages):
            waiting += page
            if len(waiting) >= FLOOR_BATCH * PAGE:
                write_floor(connection, waiting)
                waiting = []
        write_floor(connection, waiting)
        return {"seconds": time.perf_counter() - started}


def write_floor(connection: Any, rows: list[dict[str, Any]]) -> None:
    from nightmarket.warehouse import copy_rows

    if not rows:
        return
    with connection.transaction():
        connection.execute("CREATE TEMPORARY TABLE o (LIKE floor_orders INCLUDING DEFAULTS) ON COMMIT DROP")
        connection.execute("CREATE TEMPORARY TABLE l (LIKE floor_lines INCLUDING DEFAULTS) ON COMMIT DROP")
        copy_rows(
            connection, "floor_raw", ("key", "payload"), ((str(r["tid"]), orjson.dumps(r).decode()) for r in rows)
        )
        copy_rows(connection, "o", ORDER_COLUMNS, (typed_order(row) for row in rows))
        copy_rows(connection, "l", LINE_COLUMNS, (typed for row in rows for typed in typed_lines(row)))
        for table, temporary, columns, key in (
            ("floor_orders", "o", ORDER_COLUMNS, "source_id, order_id"),
            ("floor_lines", "l", LINE_COLUMNS, "source_id, order_id, line_id"),
        ):
            names = ", ".join(columns)
            changes = ", ".join(f"{name} = excluded.{name}" for name in columns)
            connection.execute(
                f"INSERT INTO {table} ({names}) SELECT {names} FROM {temporary} ON CONFLICT ({key}) DO UPDATE SET {changes}"
            )


def typed_order(row: dict[str, Any]) -> tuple[Any, ...]:
    lines = row["orders"]["order"]
    goods = sum(float(line["price"]) * line["num"] for line in lines)
    return (
        "shop", str(row["tid"]), "finished", row["status"], True, "CNY", f"{goods:.2f}", row["payment"], len(lines),
        sum(line["num"] for line in lines), row["created"], row["pay_time"], row["consign_time"], row["end_time"],
        row["modified"], 1, row["modified"],
    )  # fmt: skip


def typed_lines(row: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for line in row["orders"]["order"]:
        amount = f"{float(line['price']) * line['num']:.2f}"
        yield ("shop", str(row["tid"]), str(line["oid"]), str(line["num_iid"]), line["title"], line["price"], line["num"],
               amount, line["divide_order_fee"], "finished", 1)  # fmt: skip


def run_ingest(pages: Path) -> dict[str, float]:
    """Landing of the pages as one window, then the mapping of the source, as a night does both."""
    from nightmarket import dates, landing, mapping
    from nightmarket.dates import Window
    from nightmarket.platforms.base import Slice
    from nightmarket.sources import source
    from nightmarket.warehouse import connect

    config = source(SOURCE)
    if os.environ.get("BENCH_ONE_MAPPING"):
        mapping.PIECE = 10**12
    with connect(autocommit=True) as connection:
        connection.execute("SELECT 1")
        started = time.perf_counter()
        now = dates.now()
        with mapping.Alongside(SOURCE, STREAM, run_id="benchmark") as mapped:
            loader = landing.Loader(
                connection, config, config.stream(STREAM), "benchmark", False, committed=mapped.landed
            )
            loader.read(Slice("created", Window(START, now), lambda: read_pages(pages), {"": now}), None)
        loader.refresh_statistics()
        landed = time.perf_counter()
        mapping.map_source(SOURCE, run_id="benchmark")
        mapped = time.perf_counter()
        return {
            "seconds": mapped - started,
            "landing": landed - started,
            "mapping": mapped - landed,
            "changed": loader.summary.changed,
        }


def contestant(name: str, pages: Path) -> None:
    """One measured process: prints what it took as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = {"floor": run_floor, "ingest": run_ingest}[name](pages)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps(result | {"cpu": cpu, "peak_mb": after.ru_maxrss / 1024}))


# -------------------------------------------------------------------------------------------------------- the bench
def one_stream(folder: Path) -> Path:
    """A configuration that reads trades and nothing else: what is mapped is what was loaded."""
    blocks = yaml.safe_load((ROOT / "include" / "config" / "sources.yaml").read_text(encoding="utf-8"))
    block = blocks["sources"][SOURCE] | {"streams": {STREAM: {}}}
    config = folder / "config"
    config.mkdir()
    (config / "sources.yaml").write_text(
        yaml.safe_dump({"sources": {SOURCE: block}}, allow_unicode=True), encoding="utf-8"
    )
    return config


class Bench:
    """An embedded server with durability on, the input, and the contestants' turns."""

    def __init__(self, folder: Path, dlt_python: Path | None) -> None:
        from nightmarket import settings
        from nightmarket.local.database import Server, free_port, new_password
        from nightmarket.warehouse import migrate

        self.folder, self.dlt_python = folder, dlt_python
        self.server = Server(folder / "data", free_port(), new_password())
        self.server.start()
        self.server.create_database("benchmark")
        self.admin = self.server.dsn("benchmark")
        password = new_password()
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = self.admin
        migrate(self.admin)
        self.server.grant_logins({"nightmarket_etl": password})
        os.environ.update(
            BENCH_ADMIN_DSN=self.admin,
            NIGHTMARKET_WAREHOUSE_DSN=self.server.dsn("benchmark", "nightmarket_etl", password),
            NIGHTMARKET_CONFIG_DIR=str(one_stream(folder)),
            NIGHTMARKET_TOKEN_KEY="a key for a benchmark, not for people",
            NIGHTMARKET_VAULT_KEYS="k1:" + base64.b64encode(bytes(32)).decode(),
        )
        settings.get_settings.cache_clear()
        from nightmarket.warehouse import connect

        with connect(self.admin) as connection:
            connection.execute(FLOOR_TABLES)

    def pages(self, records: int, *, changed: bool = False) -> Path:
        path = self.folder / f"pages-{records}{'-changed' if changed else ''}.jsonl"
        if not path.exists():
            write_pages(path, records, changed=changed)
        return path

    def empty(self) -> None:
        """Everything away, and the disk quiet: no contestant pays for another's checkpoint."""
        from nightmarket.warehouse import connect

        with connect(self.admin, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS bench_dlt CASCADE")
            connection.execute("DROP SCHEMA IF EXISTS bench_dlt_staging CASCADE")
            row = connection.execute(
                "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') AS names FROM pg_tables"
                " WHERE schemaname IN ('raw', 'core', 'vault') OR tablename LIKE 'floor_%'"
            ).fetchone()
            assert row is not None
            connection.execute(f"TRUNCATE {row['names']} RESTART IDENTITY CASCADE")
            connection.execute("CHECKPOINT")

    def turn(self, name: str, pages: Path) -> dict[str, Any]:
        command = [sys.executable, str(Path(__file__)), "--contestant", name, "--pages", str(pages)]
        if name == "dlt":
            command = [str(self.dlt_python), str(Path(__file__).with_name("ingest_dlt.py")), str(pages), self.admin]
        before = self.server_cpu()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        time.sleep(0.2)  # until the server has noticed that its client is gone
        return dict(json.loads(done.stdout.splitlines()[-1])) | {"server_cpu": self.server_cpu() - before}

    def server_cpu(self) -> float:
        """CPU seconds of the server's sessions that have ended (Linux; 0 elsewhere)."""
        try:
            pid = (self.server.data / "postmaster.pid").read_text().split()[0]
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def judge(self, records: int, result: dict[str, Any], changed: int) -> None:
        """A benchmark that loaded nothing would be fast."""
        from nightmarket.warehouse import connect

        with connect(self.admin) as connection:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM core.orders) AS orders, (SELECT count(*) FROM core.order_lines) AS lines,"
                " (SELECT count(*) FROM raw.rejects) AS rejects,"
                " (SELECT count(*) FROM raw.records WHERE payload::text LIKE '%%\"100________\"%%') AS clear"
            ).fetchone()
        assert row is not None
        expected = {"orders": records, "lines": 2 * records, "rejects": 0, "clear": 0}
        if row != expected or result["changed"] != changed:
            raise SystemExit(f"ingest is wrong, so its speed means nothing: {row}, {result['changed']} changed")

    def dlt_rows(self) -> dict[str, int]:
        from nightmarket.warehouse import connect

        with connect(self.admin) as connection:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM bench_dlt.trades) AS trades, (SELECT count(*) FROM bench_dlt.trades__orders__order) AS lines"
            ).fetchone()
        assert row is not None
        return row


def dlt_environment(given: Path | None) -> Path | None:
    """The Python that has dlt; made on first use. None, with a sentence, when it cannot be installed."""
    python = given or DLT_FOLDER / "bin" / "python"
    if python.exists():
        return python
    print(f"installing what benchmarks/requirements.txt names into {DLT_FOLDER.relative_to(ROOT)}")
    steps = (
        [sys.executable, "-m", "venv", str(DLT_FOLDER)],
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(ROOT / "benchmarks" / "requirements.txt")],
    )  # fmt: skip
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            shutil.rmtree(DLT_FOLDER, ignore_errors=True)
            print("dlt could not be installed; the comparison with it is left out")
            return None
    return python


def measure(bench: Bench, records: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every contestant's turns. The first, small round warms the disk cache and is not counted."""
    results: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds + 1):
        size = records if number else min(records, 2 * PAGE)
        pages, changed = bench.pages(size), bench.pages(size, changed=True)
        found: dict[str, dict[str, Any]] = {}
        bench.empty()
        found["floor"] = bench.turn("floor", pages)
        bench.empty()
        found["ingest"] = bench.turn("ingest", pages)
        bench.judge(size, found["ingest"], size)
        found["seen"] = bench.turn("ingest", changed)
        bench.judge(size, found["seen"], -(-size // PAGE))
        if bench.dlt_python:
            bench.empty()
            found["dlt"] = bench.turn("dlt", pages)
            if bench.dlt_rows() != {"trades": size, "lines": 2 * size}:
                raise SystemExit(f"dlt loaded something else: {bench.dlt_rows()}")
        if number:
            for name, result in found.items():
                results.setdefault(name, []).append(result)
    bench.empty()
    return results


def growth(bench: Bench, sizes: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for size in sizes:
        bench.empty()
        result = bench.turn("ingest", bench.pages(size))
        bench.judge(size, result, size)
        found.append((size, result))
    return found


def median(results: list[dict[str, Any]], name: str = "seconds") -> float:
    return statistics.median(result[name] for result in results)


def ratio(results: dict[str, list[dict[str, Any]]], slow: str, fast: str) -> tuple[float, str]:
    """Median and spread over rounds of (seconds of `slow` / seconds of `fast`)."""
    values = sorted(a["seconds"] / b["seconds"] for a, b in zip(results[slow], results[fast], strict=True))
    return statistics.median(values), f"{values[0]:.2f}-{values[-1]:.2f}"


def show(results: dict[str, list[dict[str, Any]]], records: int, page_bytes: int) -> None:
    console = Console(width=132)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, PostgreSQL 18 embedded on the same"
        f" machine, fsync on; load before the start {os.getloadavg()[0]:.1f}"
    )
    table = Table(
        title=f"{records:,} trades of {page_bytes / records:,.0f} bytes with 2 lines, {len(results['floor'])} rounds in turns",
        title_justify="left",
    )
    for name in ("what", "median", "spread", "µs a trade", "CPU µs loader", "CPU µs server", "peak MB"):
        table.add_column(name, justify="left" if name == "what" else "right")
    rows = {
        "floor: COPY payload + typed upsert": ("floor", "seconds"),
        "ingest: raw, versions, tokens, vault, core with people": ("ingest", "seconds"),
        "  of it landing, with mapping alongside": ("ingest", "landing"),
        "  of it the mapping of what was left": ("ingest", "mapping"),
        "seen: the same window, 1 % changed": ("seen", "seconds"),
        "dlt: merge, no tokens, no versions": ("dlt", "seconds"),
    }
    for words, (name, part) in rows.items():
        if name in results:
            seconds = [result[part] for result in results[name]]
            rates = sorted(records / value for value in seconds)
            whole = part == "seconds"
            table.add_row(
                words,
                f"{statistics.median(rates):,.0f}/s",
                f"{rates[0]:,.0f}-{rates[-1]:,.0f}",
                f"{statistics.median(seconds) / records * 1e6:.0f}",
                f"{median(results[name], 'cpu') / records * 1e6:.0f}" if whole else "",
                f"{median(results[name], 'server_cpu') / records * 1e6:.0f}" if whole else "",
                f"{median(results[name], 'peak_mb'):.0f}" if whole else "",
            )
    console.print(table)
    verdicts = Table(title="against what the design demands, ratios within each round", title_justify="left")
    for name in ("ratio", "median", "spread", "must", "aim"):
        verdicts.add_column(name, justify="left" if name == "ratio" else "right")
    share, spread = ratio(results, "floor", "ingest")
    verdicts.add_row("speed of ingest / speed of the floor", f"{share:.2f}", spread, ">= 0.30", ">= 0.50")
    if "dlt" in results:
        times, spread = ratio(results, "dlt", "ingest")
        verdicts.add_row("speed of ingest / speed of dlt's merge", f"{times:.1f}", spread, ">= 3", ">= 8")
    times, spread = ratio(results, "ingest", "seen")
    verdicts.add_row("seen window / its first load, speed", f"{times:.1f}", spread, ">= 4", ">= 10")
    peak = max(result["peak_mb"] for name in ("ingest", "seen") for result in results[name])
    verdicts.add_row("peak memory of the loading process, MB", f"{peak:.0f}", "", "<= 300", "<= 150")
    console.print(verdicts)


def show_growth(found: list[tuple[int, dict[str, Any]]]) -> None:
    console = Console(width=132)
    table = Table(title="how the cost grows, one run each", title_justify="left")
    for name in ("trades", "seconds", "µs a trade", "landing", "mapping", "peak MB", "10 x the data takes"):
        table.add_column(name, justify="right")
    before: tuple[int, float] | None = None
    for size, result in found:
        per = {part: result[part] / size * 1e6 for part in ("seconds", "landing", "mapping")}
        times = "" if before is None else f"{(result['seconds'] / before[1]) / (size / before[0]) * 10:.1f} x"
        table.add_row(
            f"{size:,}", f"{result['seconds']:.1f}", f"{per['seconds']:.0f}", f"{per['landing']:.0f}", f"{per['mapping']:.0f}",
            f"{result['peak_mb']:.0f}", times,
        )  # fmt: skip
        before = size, result["seconds"]
    console.print(table)
    console.print("must be <= 11 x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="", help="also measure these sizes, e.g. 10000,100000,1000000")
    parser.add_argument("--no-dlt", action="store_true")
    parser.add_argument("--dlt-python", type=Path)
    parser.add_argument("--one-mapping", action="store_true", help="map once after landing, nothing alongside")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--pages", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant(options.contestant, options.pages)
        return
    if options.one_mapping:
        os.environ["BENCH_ONE_MAPPING"] = "1"
    records = max(options.records // PAGE, 1) * PAGE
    folder = Path(tempfile.mkdtemp(prefix="nightmarket-bench-"))
    bench = Bench(folder, None if options.no_dlt else dlt_environment(options.dlt_python))
    try:
        if options.rounds:
            results = measure(bench, records, options.rounds)
            show(results, records, bench.pages(records).stat().st_size)
        if options.sizes:
            show_growth(growth(bench, [int(size) for size in options.sizes.split(",")]))
    finally:
        bench.server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
