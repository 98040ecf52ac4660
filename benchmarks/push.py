"""Campaigns at size: the audience with every gate, the outbox, sending without a limit and with one.

    python benchmarks/push.py [--members 20000] [--messages 10000] [--rounds 3] [--limit 500] [--seconds 8] [--only sending]

`--members 1000000 --messages 50000 --rounds 5 --limit 1000 --seconds 20` is the size that docs/scale.md speaks of.

* audience: build_run() of a campaign over all members: three identities and four consents each, five messages each in the
  last thirty days, suppressions, hold-outs, two channels. outbox: enqueue() of whoever is left.
* sending, contestants in turns, against a receiver of its own process that answers at once:
  outbox: deliver(), everything included. aiohttp, bare: the same calls with bodies made in advance, no database.
  requests, bare: one call after the other. requests, same duties: a loop that claims one message, opens the vault, renders,
  writes down the attempt, calls, and records the answer before it takes the next one.
* limit: four workers share one account's limit; how much of it is used, and the worst stretch of one second, wherever it
  begins, by the clocks of the senders and of the receiver.

CPU is that of the sending process; the database and the receiver have theirs beside it. The database runs with durability on.
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import requests
import yaml
from aiohttp import web
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins"))
CONNECTIONS = 64
WORKERS = 4
SEND = "/cgi-bin/message/custom/send"
CAMPAIGN = "winback_gold"


def receive(port: int, ready: Any) -> None:
    """A receiver that answers at once, counts openids and notes when each call came."""
    accepted = b'{"errcode":0,"errmsg":"ok"}'
    seen: dict[str, int] = {}
    arrivals: list[float] = []

    async def token(_: web.Request) -> web.Response:
        return web.json_response({"access_token": "BENCH", "expires_in": 7200})

    async def send(request: web.Request) -> web.Response:
        arrivals.append(time.monotonic())
        body = await request.json()
        seen[body["touser"]] = seen.get(body["touser"], 0) + 1
        return web.Response(body=accepted, content_type="application/json")

    async def count(_: web.Request) -> web.Response:
        answer = {"receivers": len(seen), "most": max(seen.values(), default=0), "arrivals": list(arrivals)}
        seen.clear()
        arrivals.clear()
        return web.json_response(answer)

    async def serve() -> None:
        app = web.Application()
        app.add_routes([web.post("/cgi-bin/stable_token", token), web.post(SEND, send), web.get("/count", count)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()
        await asyncio.Event().wait()

    asyncio.run(serve())


# What a brand of so many members looks like after a month of campaigns. Every statement is set-based; %(n)s members.
WORLD = (
    "INSERT INTO core.members (first_seen_at) SELECT %(at)s::timestamptz - INTERVAL '400 days' FROM generate_series(1, %(n)s)",
    # a shop's id for everybody, an openid for 80 %, a mail address for half
    "INSERT INTO core.identities (kind, value, source_id, first_seen_at)"
    " SELECT 'taobao_open_uid', 'AAOPEN' || m, 'taobao_flagship', %(at)s::timestamptz - INTERVAL '400 days' FROM generate_series(1, %(n)s) AS m",
    "INSERT INTO core.identities (kind, value, source_id, first_seen_at)"
    " SELECT 'wechat_openid', 'oBENCH' || lpad(m::text, 22, '0'), 'wechat_official', %(at)s::timestamptz - INTERVAL '300 days'"
    " FROM generate_series(1, %(n)s) AS m WHERE m %% 5 > 0",
    "INSERT INTO core.identities (kind, value, source_id, first_seen_at)"
    " SELECT 'email', 'email:bench' || m, 'own_pages', %(at)s::timestamptz - INTERVAL '200 days' FROM generate_series(1, %(n)s) AS m WHERE m %% 2 = 0",
    "INSERT INTO core.member_identities (identity_id, member_id, linked_at)"
    " SELECT identity_id, regexp_replace(value, '\\D', '', 'g')::bigint, %(at)s FROM core.identities",
    "INSERT INTO core.followers (source_id, openid, identity_id, is_following, followed_at, language, batch_id)"
    " SELECT 'wechat_official', value, identity_id, TRUE, %(at)s::timestamptz - INTERVAL '300 days', 'zh_CN', 1"
    " FROM core.identities WHERE kind = 'wechat_openid'",
    "INSERT INTO core.follow_events (source_id, event_id, identity_id, kind, occurred_at)"
    " SELECT 'wechat_official', 'f' || identity_id, identity_id, 'follow', %(at)s::timestamptz - INTERVAL '300 days'"
    " FROM core.identities WHERE kind = 'wechat_openid'",
    # one openid and one address in three say something twice, five in a hundred say no
    "INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at)"
    " SELECT 'own_pages', 'c' || i.identity_id || '/' || x.n, i.identity_id, CASE i.kind WHEN 'email' THEN 'email' ELSE 'wechat' END,"
    " p.purpose, (i.identity_id + x.n) %% 20 > 0, 'benchmark form', %(at)s::timestamptz - make_interval(days => 100 - x.n)"
    " FROM core.identities AS i CROSS JOIN (VALUES ('marketing'), ('service')) AS p (purpose)"
    " CROSS JOIN generate_series(1, 2) AS x (n) WHERE i.kind <> 'taobao_open_uid' AND (x.n = 1 OR i.identity_id %% 3 = 0)",
    "INSERT INTO core.interactions (source_id, event_id, identity_id, kind, occurred_at)"
    " SELECT 'own_pages', 'w' || identity_id, identity_id, 'message', %(at)s::timestamptz - INTERVAL '1 hour'"
    " FROM core.identities WHERE kind = 'wechat_openid'",
    "INSERT INTO core.profiles (identity_id, source_id, name, language, observed_at)"
    " SELECT identity_id, 'own_pages', 'name:bench' || identity_id, CASE WHEN identity_id %% 10 = 0 THEN 'en' ELSE 'zh' END, %(at)s"
    " FROM core.identities WHERE kind = 'taobao_open_uid'",
    "INSERT INTO core.suppression_events (source_id, event_id, channel, kind, address, is_suppressed, reason, origin, evidence, occurred_at)"
    " SELECT 'bench', value, 'wechat', kind, value, TRUE, 'complaint', 'platform', 'benchmark', %(at)s::timestamptz - INTERVAL '20 days'"
    " FROM core.identities WHERE kind = 'wechat_openid' AND identity_id %% 100 = 0",
    "INSERT INTO mart.member_days (member_id, day, order_count, gross_amount, refund_amount, net_amount)"
    " SELECT m, %(at)s::date - 90 - d * 30, 1, 400, 0, 400 FROM generate_series(1, %(n)s) AS m CROSS JOIN generate_series(0, 2) AS d",
    "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at, expires_at)"
    " SELECT 'old@' || r, 'old', 'live', %(at)s::date - 6 * r, %(at)s, '{}', 'x', 'finished', 'bench', %(at)s, %(at)s"
    " FROM generate_series(1, 5) AS r",
    "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language, variables,"
    " state, not_before, expires_at, queued_at, accepted_at, updated_at)"
    " SELECT 'old@' || r || '/' || m, 'old@' || r, m, 'send', 'email', 'email', 'marketing', 'email:bench' || m, 'winback_gift', 'zh', '{}',"
    " 'accepted', x.at, x.at, x.at, x.at, x.at FROM generate_series(1, 5) AS r CROSS JOIN generate_series(1, %(n)s) AS m"
    " CROSS JOIN LATERAL (SELECT %(at)s::timestamptz - make_interval(days => 6 * r, hours => (m %% 24)::integer) AS at) AS x",
)  # fmt: skip


class Bench:
    """A warehouse of `members` members, a receiver, and a configuration without limits."""

    def __init__(self, folder: Path, options: argparse.Namespace, receiver: str) -> None:
        self.options, self.receiver, self.messages = options, receiver, options.messages
        from nightmarket import settings
        from nightmarket.local.database import Server, free_port, new_password
        from nightmarket.warehouse import migrate

        self.server = Server(folder / "pg", free_port(), new_password())
        self.server.start(
            {"synchronous_commit": "on", "shared_buffers": "1GB" if options.members > 200_000 else "256MB"}
        )
        self.server.create_database("bench")
        password = new_password()
        os.environ["NIGHTMARKET_WAREHOUSE_DSN"] = self.server.dsn("bench")
        migrate(self.server.dsn("bench"))
        self.server.grant_logins(dict.fromkeys(("nightmarket_etl", "nightmarket_delivery"), password))
        self.config = folder / "config"
        shutil.copytree(ROOT / "include" / "config", self.config)
        self.set_rate(1_000_000)
        os.environ.update(
            NIGHTMARKET_WAREHOUSE_DSN=self.server.dsn("bench", "nightmarket_etl", password),
            NIGHTMARKET_VAULT_DSN=self.server.dsn("bench", "nightmarket_delivery", password),
            NIGHTMARKET_TOKEN_KEY="a benchmark's key of more than thirty-two characters",
            NIGHTMARKET_VAULT_KEYS="k1:" + base64.b64encode(bytes(32)).decode(),
            NIGHTMARKET_CONFIG_DIR=str(self.config),
            NIGHTMARKET_VAR=str(folder),
            AIRFLOW_CONN_WECHAT_OFFICIAL=json.dumps(
                {"conn_type": "http", "host": receiver, "login": "wxbench", "password": "x"}
            ),
        )
        settings.get_settings.cache_clear()

    def set_rate(self, rate: int) -> None:
        path = self.config / "channels.yaml"
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        data["channels"]["wechat_service"].update(rate_per_second=rate, connections=CONNECTIONS)
        path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")

    def fill(self) -> None:
        from nightmarket import dates
        from nightmarket.privacy import Keyring, Tokenizer, store_secrets
        from nightmarket.warehouse import connect

        tokens = Tokenizer.from_settings()
        self.names = [tokens.token("name", f"王小{number}") for number in range(self.messages)]
        path = self.config / "campaigns" / f"{CAMPAIGN}.yaml"
        campaign = yaml.safe_load(path.read_text(encoding="utf-8"))
        del campaign["coupon"]
        campaign |= {
            "channels": ["wechat_service", "email"],
            "budget": {"messages": 10_000_000, "amount": 10_000_000},
            "holdout_share": 0.05,
        }
        path.write_text(yaml.safe_dump(campaign, allow_unicode=True), encoding="utf-8")
        self.as_of = dates.today() - timedelta(days=1)
        with connect() as connection:
            store_secrets(connection, tokens.secrets, Keyring.from_settings())
            for statement in WORLD:
                connection.execute(statement, {"n": self.options.members, "at": dates.now()})  # type: ignore[arg-type]
            connection.execute(
                "INSERT INTO ops.gate_results (business_date, gate, table_name, check_name, severity, is_passed, observed, message,"
                " run_id, checked_at) VALUES (%s, 'mart', 'mart.member_days', 'unique', 'fail', TRUE, '0', 'bench', 'bench', %s)",
                (self.as_of, dates.now()),
            )
        self.settle()

    def settle(self) -> None:
        """As autovacuum would, given time: statistics of what was just written in bulk."""
        from nightmarket.warehouse import connect

        with connect(self.server.dsn("bench"), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")

    # ---------------------------------------------------------------------------------------------- audience, outbox
    def audience(self, number: int) -> dict[str, float]:
        """One dry run's audience, and one live run with its outbox; seconds, rows, and the server process's peak memory."""
        from nightmarket.campaigns import outbox
        from nightmarket.campaigns.audience import build_run, record_decision
        from nightmarket.campaigns.results import dry_run_report
        from nightmarket.warehouse import connect

        started = time.perf_counter()
        run_id = build_run(CAMPAIGN, self.as_of, "live", "bench")
        built = time.perf_counter() - started
        started = time.perf_counter()
        report = dry_run_report(run_id)
        reported = time.perf_counter() - started
        record_decision(run_id, True, "bench", "go", report["content_hash"])
        started = time.perf_counter()
        count = outbox.enqueue(run_id)
        enqueued = time.perf_counter() - started
        outbox.cancel(run_id, "bench", "measured")
        with connect(self.server.dsn("bench"), autocommit=True) as connection:
            connection.execute("DELETE FROM push.messages WHERE run_id = %s", (run_id,))
            connection.execute("DELETE FROM push.audiences WHERE run_id = %s", (run_id,))
            connection.execute("DELETE FROM push.campaign_runs WHERE run_id = %s", (run_id,))
            connection.execute("VACUUM push.messages, push.audiences")
        return {"audience": built, "report": reported, "outbox": enqueued, "rows": count}

    # ------------------------------------------------------------------------------------------------------- sending
    def run(self, number: int) -> str:
        """A fresh approved run with one queued message per member; the earlier ones are out of the way of the caps."""
        from psycopg.types.json import Jsonb

        from nightmarket import dates
        from nightmarket.campaigns.audience import freeze
        from nightmarket.campaigns.config import SendWindow, load_campaign, load_channels
        from nightmarket.warehouse import connect

        always = SendWindow.model_validate({"opens": "00:00", "closes": "00:00"})
        campaign = load_campaign(CAMPAIGN).model_copy(update={"channels": ("wechat_service",), "send_window": always})
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
                " SELECT %(run)s || '/' || o.n, %(run)s, mi.member_id, 'send', 'wechat_service', 'wechat_official', 'service', o.openid,"
                " 'winback_gift', 'zh', jsonb_build_object('member', jsonb_build_object('name', (%(names)s::text[])[o.n], 'tier', null),"
                " 'coupon', null), %(now)s, %(now)s::timestamptz + INTERVAL '1 day', %(now)s, %(now)s"
                " FROM (SELECT f.openid, f.identity_id, row_number() OVER (ORDER BY f.identity_id) AS n"
                " FROM core.followers AS f WHERE f.identity_id %% 20 < 18 AND f.identity_id %% 100 > 0 ORDER BY f.identity_id"
                " LIMIT %(n)s) AS o JOIN core.member_identities AS mi ON mi.identity_id = o.identity_id",
                {"run": run_id, "n": self.messages, "now": now, "names": self.names},
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
            json.dumps({"touser": f"o{n}", "msgtype": "text", "text": {"content": text}}, ensure_ascii=False).encode()
            for n in range(count)
        ]

    def bare_aiohttp(self, _number: int) -> int:
        bodies = self.bodies(self.messages)

        async def loop() -> None:
            pending = iter(bodies)
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:

                async def worker() -> None:
                    for body in pending:
                        async with session.post(self.receiver + SEND, data=body) as answer:
                            json.loads(await answer.read())

                await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))

        asyncio.run(loop())
        return self.messages

    def bare_requests(self, _number: int) -> int:
        bodies = self.bodies(self.messages // 10)
        with requests.Session() as session:
            for body in bodies:
                session.post(self.receiver + SEND, data=body, timeout=10).json()
        return len(bodies)

    def dutiful_requests(self, number: int) -> int:
        """What a careful loop does without an outbox of many at once: every duty for one message, then the next."""
        from nightmarket.campaigns.audience import frozen_template
        from nightmarket.campaigns.config import Channel
        from nightmarket.campaigns.outbox import Lane, runs_to_deliver
        from nightmarket.campaigns.rendering import CompiledTemplate, clean, signed_link
        from nightmarket.channels.base import Outcome
        from nightmarket.privacy import Keyring, open_secrets
        from nightmarket.warehouse import connect_vault

        count, keyring = self.messages // 20, Keyring.from_settings()
        with connect_vault(autocommit=True) as connection, requests.Session() as session:
            (run,) = runs_to_deliver(connection, f"bench@{number}")
            config = run["config"]
            channel = Channel.model_validate(config["channels"]["wechat_service"])
            lane = Lane(run, "wechat_service", channel, "loop", timedelta(seconds=60))
            template = CompiledTemplate(frozen_template(config, channel.templates, "winback_gift"))
            for _ in range(count):
                with connection.transaction():
                    (row,) = lane.claim(connection, 1)
                token = row["variables"]["member"]["name"]
                clear = open_secrets(connection, {token}, keyring)
                shop = {"name": config["brand"]["name"]["zh"], "contact": config["brand"]["contact"]["zh"]}
                key = row["message_key"]
                variables = {
                    **row["variables"],
                    "member": {**row["variables"]["member"], "name": clean(clear.get(token, ""), is_name=True)},
                    "order": None,
                    "shop": shop,
                    "link": signed_link(config["link_base_url"], "r", key),
                    "unsubscribe_link": signed_link(config["link_base_url"], "u", key),
                }
                body = {
                    "touser": row["address"],
                    "msgtype": "text",
                    "text": {"content": template.render("zh", variables).text},
                }
                numbers, _last = lane.record_attempts(connection, [row["message_id"]])
                data = json.dumps(body, ensure_ascii=False).encode()
                answer = session.post(self.receiver + SEND, data=data, timeout=10).json()
                outcome = Outcome("accepted" if answer["errcode"] == 0 else "refused", code=str(answer["errcode"]))
                with connection.transaction():
                    lane.record_answers(connection, [lane.answer(row, numbers[row["message_id"]], outcome)])
        return count

    # --------------------------------------------------------------------------------------------------------- limit
    def limited(self, number: int) -> dict[str, float]:
        """Four workers send one run at the limit."""
        self.run(number)
        requests.get(self.receiver + "/count", timeout=30)
        command = [sys.executable, __file__, "--work", f"bench@{number}"]
        team = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) for _ in range(WORKERS)
        ]
        for worker in team:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n", "a worker did not come up"
        for worker in team:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        started = [at for worker in team for at in json.loads(worker.communicate()[0])]
        counted = requests.get(self.receiver + "/count", timeout=30).json()
        arrived = sorted(counted["arrivals"])
        assert (counted["receivers"], counted["most"], len(started)) == (self.messages, 1, self.messages), (
            "not once each"
        )
        return {
            "used": (len(arrived) - 1) / (arrived[-1] - arrived[0]) / self.options.limit,
            "sender": worst_second(started),
            "receiver": worst_second(arrived),
        }


def work(run_id: str) -> None:
    """One of several workers of a run; prints when each of its calls began."""
    from nightmarket.campaigns.delivery import deliver
    from nightmarket.channels.base import Call, Outcome
    from nightmarket.channels.wechat_service import WeChatService

    started: list[float] = []
    send = WeChatService.send

    async def noting(self: WeChatService, call: Call) -> Outcome:
        started.append(time.monotonic())
        return await send(self, call)

    WeChatService.send = noting  # type: ignore[method-assign]
    print("ready", flush=True)
    sys.stdin.readline()
    deliver(run_id, f"worker {os.getpid()}", 600)
    print(json.dumps(started))


def worst_second(times: list[float]) -> int:
    """The most events in any stretch of one second."""
    times, first, worst = sorted(times), 0, 0
    for last, at in enumerate(times):
        while times[first] <= at - 1:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


def measure(work: Callable[[int], int], number: int) -> tuple[float, float]:
    """(messages a second, CPU microseconds a message) of this process."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    count = work(number)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return count / seconds, cpu / count * 1e6


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def audience_part(console: Console, bench: Bench, rounds: int) -> None:
    found = [bench.audience(number) for number in range(rounds)]
    table = Table(
        title=f"{bench.options.members:,} members, {rounds} rounds: median (lowest-highest)", title_justify="left"
    )
    for name in ("step", "rows", "seconds", "per million rows", "must, per million"):
        table.add_column(name, justify="left" if name == "step" else "right")
    rows = int(found[0]["rows"])
    for step, title, count, must in (
        ("audience", "audience: segment, every gate, arms, checksum", bench.options.members, "15 s"),
        ("report", "dry-run report", bench.options.members, "-"),
        ("outbox", "outbox: one row per message", rows, "20 s"),
    ):
        seconds = [one[step] for one in found]
        table.add_row(
            title, f"{count:,}", spread(seconds, ".2f"), f"{statistics.median(seconds) / count * 1e6:.1f} s", must
        )
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"peak memory of the client process: {peak:.0f} MB")


def sending_part(console: Console, bench: Bench, rounds: int) -> None:
    contestants: dict[str, Callable[[int], int]] = {
        "outbox": bench.outbox,
        "aiohttp, bare": bench.bare_aiohttp,
        "requests, bare": bench.bare_requests,
        "requests, same duties": bench.dutiful_requests,
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, work in contestants.items():
            if name in ("outbox", "requests, same duties"):
                bench.run(number * 10 + len(name))
            results[name].append(measure(work, number * 10 + len(name)))
            counted = requests.get(bench.receiver + "/count", timeout=30).json()
            assert counted["most"] == 1, f"{name}: somebody got a message twice"
    table = Table(
        title=f"sending without a limit: {bench.messages:,} messages, {rounds} rounds in turns", title_justify="left"
    )
    for name in ("contestant", "messages/s: median (lowest-highest)", "CPU µs/message", "outbox is"):
        table.add_column(name, justify="left" if name == "contestant" else "right")
    ours = statistics.median(rate for rate, _cpu in results["outbox"])
    for name, measured in results.items():
        rates = [rate for rate, _cpu in measured]
        cpu = statistics.median(cpu for _rate, cpu in measured)
        ratio = ours / statistics.median(rates)
        table.add_row(name, spread(rates, ",.0f"), f"{cpu:,.0f}", "" if name == "outbox" else f"{ratio:.2f} x")
    console.print(table)
    console.print("must: 2,500 messages/s; 5 x requests, bare; 10 x requests with the same duties")


def limit_part(console: Console, bench: Bench, rounds: int) -> None:
    limit = bench.options.limit
    bench.set_rate(limit)
    bench.messages = limit * bench.options.seconds
    found = [bench.limited(10_000 + number) for number in range(rounds)]
    table = Table(
        title=f"a limit of {limit:,}/s, {WORKERS} workers, {bench.options.seconds} s, {rounds} rounds",
        title_justify="left",
    )
    for name in ("used: median (lowest-highest)", "worst second, senders", "worst second, receiver"):
        table.add_column(name, justify="right")
    worst = {clock: max(one[clock] for one in found) for clock in ("sender", "receiver")}
    table.add_row(
        spread([one["used"] for one in found], ".1%"),
        *(f"{worst[clock]:,.0f} ({worst[clock] / limit - 1:+.1%})" for clock in ("sender", "receiver")),
    )
    console.print(table)
    console.print("must: used >= 94 %; never over the limit at the senders, at most 2 % over it at the receiver")


PARTS = {"audience": audience_part, "sending": sending_part, "limit": limit_part}


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=20_000)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=500, help="calls a second, shared by four workers")
    parser.add_argument("--seconds", type=int, default=8, help="how long the limited run takes")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="default: all")
    options = parser.parse_args()
    needed = max(options.messages, options.limit * options.seconds)
    if needed > options.members * 0.65:
        parser.error(f"{needed:,} messages need {needed / 0.65:,.0f} members; give more --members")
    from nightmarket.local.database import free_port

    console = Console(width=118)
    folder = Path(tempfile.mkdtemp(prefix="nightmarket-bench-"))
    port, ready = free_port(), multiprocessing.Event()
    receiver = multiprocessing.Process(target=receive, args=(port, ready), daemon=True)
    receiver.start()
    assert ready.wait(10), "the receiver did not start"
    bench = Bench(folder, options, f"http://127.0.0.1:{port}")
    try:
        started = time.perf_counter()
        options.messages = bench.messages = needed
        bench.fill()
        bench.messages = parser.parse_args().messages
        console.print(
            f"hardware: {os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()};"
            f" load {os.getloadavg()[0]:.1f}; world filled in {time.perf_counter() - started:.0f} s"
        )
        for name in options.only or PARTS:
            PARTS[name](console, bench, options.rounds)
    finally:
        bench.server.stop()
        receiver.terminate()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
