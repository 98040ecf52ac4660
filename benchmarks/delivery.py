"""Messages a second through the outbox, against a bare loop that only makes the same calls.

    python benchmarks/delivery.py [--messages 20000] [--rounds 3]

A receiver of its own process answers WeChat's customer-service call at once. Contestants take turns:

* outbox: claim with every gate, open the vault, render, write down the attempt, call, record the answer (deliver()). No limit set.
* aiohttp, bare: one loop, 64 connections, the body made in advance. No database.
* requests, bare: one session, one call after the other (a tenth of the messages).

CPU is that of the sending process. The database runs with durability on.
"""

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import requests
from aiohttp import web
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins"))
CONNECTIONS = 64


def receive(port: int, ready: Any) -> None:
    """A receiver that answers at once and counts openids."""
    accepted = b'{"errcode":0,"errmsg":"ok"}'
    seen: dict[str, int] = {}

    async def token(_: web.Request) -> web.Response:
        return web.json_response({"access_token": "BENCH", "expires_in": 7200})

    async def send(request: web.Request) -> web.Response:
        body = await request.json()
        seen[body["touser"]] = seen.get(body["touser"], 0) + 1
        return web.Response(body=accepted, content_type="application/json")

    async def count(_: web.Request) -> web.Response:
        answer = {"receivers": len(seen), "most": max(seen.values(), default=0)}
        seen.clear()
        return web.json_response(answer)

    async def serve() -> None:
        app = web.Application()
        app.add_routes(
            [
                web.post("/cgi-bin/stable_token", token),
                web.post("/cgi-bin/message/custom/send", send),
                web.get("/count", count),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()
        await asyncio.Event().wait()

    asyncio.run(serve())


class Bench:
    """A warehouse with members whose customer-service window is open, and a receiver."""

    def __init__(self, folder: Path, messages: int, receiver: str) -> None:
        self.messages, self.receiver = messages, receiver
        from nightmarket import settings
        from nightmarket.local.database import Server, free_port, new_password
        from nightmarket.warehouse import migrate

        self.server = Server(folder / "pg", free_port(), new_password())
        self.server.start({"shared_buffers": "256MB", "synchronous_commit": "on"})
        self.server.create_database("bench")
        password = new_password()
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = self.server.dsn("bench")
        migrate(self.server.dsn("bench"))
        self.server.grant_logins(dict.fromkeys(("nightmarket_etl", "nightmarket_delivery"), password))
        config = folder / "config"
        shutil.copytree(ROOT / "include" / "config", config)
        channels = (config / "channels.yaml").read_text()
        (config / "channels.yaml").write_text(channels.replace("rate_per_second: 500", "rate_per_second: 1000000", 1))
        os.environ.update(
            NIGHTMARKET_WAREHOUSE_DSN=self.server.dsn("bench", "nightmarket_etl", password),
            NIGHTMARKET_VAULT_DSN=self.server.dsn("bench", "nightmarket_delivery", password),
            NIGHTMARKET_TOKEN_KEY="a benchmark's key of more than thirty-two characters",
            NIGHTMARKET_VAULT_KEYS="k1:" + base64.b64encode(bytes(32)).decode(),
            NIGHTMARKET_CONFIG_DIR=str(config),
            AIRFLOW_CONN_WECHAT_OFFICIAL=json.dumps(
                {"conn_type": "http", "host": receiver, "login": "wxbench", "password": "x"}
            ),
        )
        settings.get_settings.cache_clear()

    def fill(self) -> None:
        """Members with an openid, a name in the vault, and a message to us an hour ago."""
        from nightmarket import dates
        from nightmarket.privacy import Keyring, Tokenizer, store_secrets
        from nightmarket.warehouse import connect

        tokens = Tokenizer.from_settings()
        names = [tokens.token("name", f"王小{number}") for number in range(self.messages)]
        now = dates.now()
        with connect() as connection:
            store_secrets(connection, tokens.secrets, Keyring.from_settings())
            parameters = {"n": self.messages, "at": now - timedelta(hours=1), "names": names}
            for statement in (
                "INSERT INTO core.members (first_seen_at) SELECT %(at)s FROM generate_series(1, %(n)s)",
                "INSERT INTO core.identities (kind, value, source_id, first_seen_at)"
                " SELECT 'wechat_openid', 'oBENCH' || lpad(m::text, 22, '0'), 'wechat_official', %(at)s FROM generate_series(1, %(n)s) AS m",
                "INSERT INTO core.member_identities (identity_id, member_id, linked_at) SELECT m, m, %(at)s FROM generate_series(1, %(n)s) AS m",
                "INSERT INTO core.followers (source_id, openid, identity_id, is_following, followed_at, batch_id)"
                " SELECT 'wechat_official', value, identity_id, true, %(at)s::timestamptz - INTERVAL '9 days', 1 FROM core.identities",
                "INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at)"
                " SELECT 'wechat_official', 'c' || m, m, 'wechat', 'marketing', true, 'followed', %(at)s FROM generate_series(1, %(n)s) AS m",
                "INSERT INTO core.interactions (source_id, event_id, identity_id, kind, occurred_at)"
                " SELECT 'own_pages', 'w' || m, m, 'message', %(at)s FROM generate_series(1, %(n)s) AS m",
                "INSERT INTO core.profiles (identity_id, source_id, name, observed_at)"
                " SELECT m, 'own_pages', (%(names)s::text[])[m], %(at)s FROM generate_series(1, %(n)s) AS m",
            ):
                connection.execute(statement, parameters)
        with connect(self.server.dsn("bench"), autocommit=True) as connection:
            connection.execute("ANALYZE")

    def run(self, number: int) -> str:
        """A fresh approved run with one queued message per member; earlier ones are out of the way of the caps."""
        from psycopg.types.json import Jsonb

        from nightmarket import dates
        from nightmarket.campaigns.audience import freeze
        from nightmarket.campaigns.config import SendWindow, load_campaign, load_channels
        from nightmarket.warehouse import connect

        campaign = load_campaign("winback_gold").model_copy(
            update={
                "channels": ("wechat_service",),
                "coupon": None,
                "send_window": SendWindow.model_validate({"opens": "00:00", "closes": "00:00"}),
            }
        )
        run_id, now = f"bench@{number}", dates.now()
        with connect() as connection:
            connection.execute("DELETE FROM push.attempts")
            connection.execute("DELETE FROM push.messages")
            connection.execute(
                "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by,"
                " created_at, expires_at) VALUES (%s, %s, 'live', %s, %s, %s, 'x', 'sending', 'bench', %s, %s)",
                (
                    run_id,
                    run_id,
                    now.date(),
                    now,
                    Jsonb(freeze(campaign, load_channels())),
                    now,
                    now + timedelta(days=1),
                ),
            )
            connection.execute(
                "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
                " variables, not_before, expires_at, queued_at, updated_at)"
                " SELECT %(run)s || '/' || m, %(run)s, m, 'send', 'wechat_service', 'wechat_official', 'marketing',"
                " 'oBENCH' || lpad(m::text, 22, '0'), 'winback_gift', 'zh',"
                " jsonb_build_object('member', jsonb_build_object('name', p.name, 'tier', null), 'coupon', null),"
                " %(now)s, %(now)s::timestamptz + INTERVAL '1 day', %(now)s, %(now)s"
                " FROM generate_series(1, %(n)s) AS m JOIN core.profiles AS p ON p.identity_id = m",
                {"run": run_id, "n": self.messages, "now": now},
            )
        with connect(self.server.dsn("bench"), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE push.messages, push.attempts")
        return run_id

    def outbox(self, number: int) -> int:
        from nightmarket.campaigns.delivery import deliver

        result = deliver(f"bench@{number}", "bench", 600)
        assert result["accepted"] == self.messages, result
        return self.messages

    def bodies(self, count: int) -> list[bytes]:
        text = (
            "王小明，您好！\n\n最近的新品，您可能会喜欢。\n\n去看看：https://m.nightmarket.test/r/bench\n\n夜市旗舰店"
        )
        return [
            json.dumps(
                {"touser": f"o{number}", "msgtype": "text", "text": {"content": text}}, ensure_ascii=False
            ).encode()
            for number in range(count)
        ]

    def bare_aiohttp(self, _number: int) -> int:
        bodies = self.bodies(self.messages)

        async def loop() -> None:
            pending = iter(bodies)
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:

                async def worker() -> None:
                    for body in pending:
                        async with session.post(self.receiver + "/cgi-bin/message/custom/send", data=body) as answer:
                            json.loads(await answer.read())

                await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))

        asyncio.run(loop())
        return self.messages

    def bare_requests(self, _number: int) -> int:
        bodies = self.bodies(self.messages // 10)
        with requests.Session() as session:
            for body in bodies:
                session.post(self.receiver + "/cgi-bin/message/custom/send", data=body, timeout=10).json()
        return len(bodies)


def measure(work: Callable[[int], int], number: int) -> tuple[float, float]:
    """(messages a second, CPU microseconds a message) of this process."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    count = work(number)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return count / seconds, cpu / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from nightmarket.local.database import free_port

    folder = Path(tempfile.mkdtemp(prefix="nightmarket-bench-"))
    port, ready = free_port(), multiprocessing.Event()
    receiver = multiprocessing.Process(target=receive, args=(port, ready), daemon=True)
    receiver.start()
    assert ready.wait(10), "the receiver did not start"
    address = f"http://127.0.0.1:{port}"
    bench = Bench(folder, options.messages, address)
    results: dict[str, list[tuple[float, float]]] = {"outbox": [], "aiohttp, bare": [], "requests, bare": []}
    try:
        bench.fill()
        for number in range(options.rounds):
            bench.run(number)
            results["outbox"].append(measure(bench.outbox, number))
            counted = requests.get(address + "/count", timeout=10).json()
            assert counted == {"receivers": options.messages, "most": 1}, counted
            results["aiohttp, bare"].append(measure(bench.bare_aiohttp, number))
            results["requests, bare"].append(measure(bench.bare_requests, number))
            requests.get(address + "/count", timeout=10)
    finally:
        bench.server.stop()
        receiver.terminate()
        shutil.rmtree(folder, ignore_errors=True)
    table = Table(
        title=f"delivery: {options.messages:,} messages, {options.rounds} rounds in turns, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    for column in (
        "contestant",
        "messages/s, median",
        "lowest",
        "highest",
        "CPU µs/message",
        "of bare aiohttp",
        "times requests",
    ):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    median = {name: statistics.median(rate for rate, _cpu in rows) for name, rows in results.items()}
    for name, rows in results.items():
        rates = [rate for rate, _cpu in rows]
        table.add_row(
            name, f"{median[name]:,.0f}", f"{min(rates):,.0f}", f"{max(rates):,.0f}",
            f"{statistics.median(cpu for _rate, cpu in rows):,.0f}", f"{median[name] / median['aiohttp, bare']:.0%}",
            f"{median[name] / median['requests, bare']:.1f}",
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
