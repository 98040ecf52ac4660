"""Rows a second of ingest, against the least that any loader has to do with the same records.

    python benchmarks/ingest.py [--trades 8000] [--rounds 3]

Input: pages of 100 trades as JSON bytes, 1.5 KB and two lines each, five personal fields, every second buyer new to the
vault; made anew for each round. Variants take turns, each on an emptied database with durability on:

* floor: decode, COPY of the payload as jsonb, COPY of typed orders and lines into temporary tables, upsert. No versions,
  no tokens, no vault, nothing rejected.
* ingest: what a night does: decode, hash, compare with the heads, tokenise, fill the vault, COPY to raw, heads, cursor; then
  the SQL of core.orders and core.order_lines. "+ people" adds identities, links, profiles, products, shipments and members.
* again: the same pages a second time, as an overlap or a repeated night reads them.
"""

import argparse
import base64
import os
import platform
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins"))

PAGE = 100
START = datetime(2026, 1, 1, tzinfo=UTC)
FLOOR_TABLES = """
CREATE TABLE floor_raw (key text PRIMARY KEY, payload jsonb NOT NULL);
CREATE TABLE floor_orders (LIKE core.orders INCLUDING DEFAULTS INCLUDING INDEXES);
CREATE TABLE floor_lines (LIKE core.order_lines INCLUDING DEFAULTS INCLUDING INDEXES);
"""
ORDER_COLUMNS = (
    "source_id", "order_id", "status", "status_original", "is_paid", "currency_code", "goods_amount", "paid_amount",
    "line_count", "unit_count", "created_at", "paid_at", "shipped_at", "signed_at", "modified_at", "batch_id", "loaded_at",
)  # fmt: skip
LINE_COLUMNS = (
    "source_id", "order_id", "line_id", "product_id", "title", "unit_price_amount", "quantity", "line_amount", "paid_amount",
    "status", "batch_id",
)  # fmt: skip


def make_pages(trades: int, seed: int) -> list[bytes]:
    """JSON pages as TOP answers them; invented people with impossible numbers."""
    chance = random.Random(seed)
    pages = []
    for first in range(0, trades, PAGE):
        rows = [trade(chance, seed, number) for number in range(first, min(first + PAGE, trades))]
        pages.append(orjson.dumps({"trades": {"trade": rows}, "total_results": trades}))
    return pages


def trade(chance: random.Random, seed: int, number: int) -> dict[str, Any]:
    buyer = seed * 1_000_000 + chance.randrange(max(number, 2) // 2 + 1)
    tid = 4_000_000_000_000_000_000 + seed * 10_000_000 + number
    created = (START + timedelta(seconds=number * 37)).strftime("%Y-%m-%d %H:%M:%S")
    lines = [
        {
            "oid": tid + line + 1, "num_iid": 610_000_000_000 + chance.randrange(4000), "outer_iid": f"A{chance.randrange(4000)}",
            "title": "WHITE HANGING HEART T-LIGHT HOLDER", "price": f"{chance.randrange(100, 9000) / 100:.2f}",
            "num": chance.randrange(1, 13), "payment": "39.90", "divide_order_fee": "39.90", "total_fee": "39.90",
            "status": "TRADE_FINISHED", "refund_status": "NO_REFUND", "discount_fee": "0.00", "adjust_fee": "0.00",
            "logistics_company": "中通快递", "invoice_no": f"ZT{number:012d}", "consign_time": created, "end_time": created,
            "buyer_rate": False, "seller_type": "B", "order_from": "WAP,TAOBAO", "cid": 50012345,
        }
        for line in range(2)
    ]  # fmt: skip
    return {
        "tid": tid, "status": "TRADE_FINISHED", "type": "fixed", "created": created, "modified": created, "pay_time": created,
        "consign_time": created, "end_time": created, "payment": "79.80", "total_fee": "79.80", "post_fee": "0.00",
        "received_payment": "79.80", "seller_nick": "夜市旗舰店", "buyer_nick": f"买家{buyer}", "buyer_open_uid": f"AAH{buyer}",
        "receiver_name": f"王芳{buyer}", "receiver_mobile": f"100{buyer % 100_000_000:08d}", "receiver_phone": "",
        "receiver_address": f"西湖路{buyer}号", "receiver_state": "浙江省", "receiver_city": "杭州市", "receiver_zip": "310000",
        "orders": {"order": lines},
    }  # fmt: skip


def run_floor(connection: Any, pages: list[bytes]) -> None:
    """Decode, COPY the payload, upsert typed rows; 20 pages a transaction, as ingest does."""
    from nightmarket.warehouse import copy_rows

    for first in range(0, len(pages), 20):
        with connection.transaction():
            connection.execute("CREATE TEMPORARY TABLE o (LIKE floor_orders INCLUDING DEFAULTS) ON COMMIT DROP")
            connection.execute("CREATE TEMPORARY TABLE l (LIKE floor_lines INCLUDING DEFAULTS) ON COMMIT DROP")
            rows = [row for page in pages[first : first + 20] for row in orjson.loads(page)["trades"]["trade"]]
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


def run_landing(connection: Any, pages: list[bytes]) -> int:
    """Landing of the pages as one window; how many versions were new."""
    from nightmarket import dates, landing
    from nightmarket.dates import Window
    from nightmarket.platforms import taobao
    from nightmarket.platforms.base import Slice, parse_json

    loader = landing.Loader(connection, landing.source("taobao_flagship"), taobao.TRADES, "benchmark", False)

    def decoded() -> Iterator[list[dict[str, Any]]]:
        for number, page in enumerate(pages):
            yield taobao.rows_of(parse_json("taobao", "benchmark", page, number), "trades", "trade")

    now = dates.now()
    loader.read(Slice("created", Window(START, now), decoded, {"": now}), None)
    return loader.summary.changed


def run_mapping(paths: tuple[str, ...]) -> None:
    from nightmarket import dates, landing
    from nightmarket.warehouse import connect, run_sql

    parameters = landing.mapping_parameters(landing.source("taobao_flagship"), "benchmark", dates.now())
    for path in paths:
        with connect() as connection:
            run_sql(connection, path, parameters)


ORDERS = ("core/taobao/orders.sql", "core/taobao/order_lines.sql")
PEOPLE = (
    "core/taobao/identities.sql",
    "core/taobao/products.sql",
    "core/taobao/shipments.sql",
    "core/members/members.sql",
)


def measure(admin: str, trades: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant and round."""
    from nightmarket.warehouse import connect

    with connect(admin) as connection:
        connection.execute(FLOOR_TABLES)
    seconds: dict[str, list[float]] = {name: [] for name in ("floor", "landing", "orders", "people", "again")}

    def timed(name: str, action: Callable[[], object]) -> object:
        started = time.perf_counter()
        result = action()
        seconds[name].append(time.perf_counter() - started)
        return result

    for number in range(rounds + 1):
        pages = make_pages(trades if number else PAGE * 5, number + 1)
        with connect(admin) as connection:
            names = connection.execute(
                "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') AS names FROM pg_tables"
                " WHERE schemaname IN ('raw', 'core', 'vault') OR tablename LIKE 'floor_%'"
            ).fetchone()
            assert names is not None
            connection.execute(f"TRUNCATE {names['names']} CASCADE")
        with connect(admin, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            timed("floor", lambda: run_floor(connection, pages))  # noqa: B023 - called at once
        with connect(autocommit=True) as connection:
            connection.execute("SELECT 1")
            fresh = timed("landing", lambda: run_landing(connection, pages))  # noqa: B023
            timed("orders", lambda: run_mapping(ORDERS))
            timed("people", lambda: run_mapping(PEOPLE))
            again = timed("again", lambda: (run_landing(connection, pages), run_mapping(ORDERS + PEOPLE))[0])  # noqa: B023
            if (fresh, again) != (len(pages) * PAGE, 0):
                raise SystemExit(f"ingest wrote {fresh} versions, and {again} the second time: the benchmark is wrong")
        if number == 0:  # the first round warms caches and prepared plans; it is not counted
            seconds = {name: [] for name in seconds}
    return seconds


def show(seconds: dict[str, list[float]], trades: int) -> None:
    table = Table(title=f"ingest of {trades:,} trades with two lines each, {len(seconds['floor'])} rounds in turns")
    for name in ("what", "median", "spread", "share of the floor"):
        table.add_column(name, justify="left" if name == "what" else "right")
    both = [a + b for a, b in zip(seconds["landing"], seconds["orders"], strict=True)]
    whole = [a + b for a, b in zip(both, seconds["people"], strict=True)]
    variants = {
        "floor: COPY payload + typed upsert": seconds["floor"],
        "ingest: raw, versions, tokens, vault, orders, lines": both,
        "  of it landing": seconds["landing"],
        "  of it mapping in SQL": seconds["orders"],
        "ingest + people, products, shipments, members": whole,
        "again: the same window, nothing changed": seconds["again"],
    }
    for name, values in variants.items():
        rates = sorted(trades / value for value in values)
        share = statistics.median(f / v for f, v in zip(seconds["floor"], values, strict=True))
        table.add_row(
            name, f"{statistics.median(rates):,.0f} trades/s", f"{rates[0]:,.0f}-{rates[-1]:,.0f}", f"{share:.0%}"
        )
    console = Console(width=118)
    console.print(table)
    faster = statistics.median(w / a for w, a in zip(whole, seconds["again"], strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(
        f"A window already seen is {faster:.1f} x faster than its first load. Peak memory of this process {memory:.0f} MB."
    )
    console.print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; the embedded PostgreSQL on the same machine."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trades", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    trades = max(options.trades // PAGE, 1) * PAGE
    os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = "postgresql://unset"
    from nightmarket import settings
    from nightmarket.local.database import Server, free_port, new_password
    from nightmarket.warehouse import migrate

    folder = Path(tempfile.mkdtemp(prefix="nightmarket-bench-"))
    server = Server(folder / "data", free_port(), new_password())
    server.start()
    try:
        server.create_database("benchmark")
        migrate(server.dsn("benchmark"))
        password = new_password()
        server.grant_logins({"nightmarket_etl": password})
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = server.dsn("benchmark", "nightmarket_etl", password)
        os.environ["NIGHTMARKET_TOKEN_KEY"] = "a key for a benchmark, not for people"
        os.environ["NIGHTMARKET_VAULT_KEYS"] = "k1:" + base64.b64encode(bytes(32)).decode()
        settings.get_settings.cache_clear()
        show(measure(server.dsn("benchmark"), trades, options.rounds), trades)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
