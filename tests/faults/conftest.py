"""A campaign ready to go wrong: real openids of the sandbox, real mail, workers as processes that can be killed."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_world import MORNING, ConfigFolder, People, green_night, sandbox_openids, start_run, write_config
from nightmarket.warehouse import Row, connect
from nursery import Nursery, Worker

WORKER = """
import json, sys
from nightmarket.campaigns import coupons, delivery
run_id, name = sys.argv[2], sys.argv[3]
result = delivery.deliver(run_id, name, 60) if sys.argv[1] == "deliver" else coupons.issue(run_id)
print(json.dumps(result))
"""


class Stage:
    """The database, the sandbox, the configuration and the clock of one test."""

    def __init__(
        self,
        pg: Any,
        db: psycopg.Connection[Row],
        sandbox: Any,
        config: ConfigFolder,
        set_clock: Callable[[str], None],
        connections: ExitStack,
        nursery: Nursery,
    ) -> None:
        self.pg, self.db, self.sandbox, self.config, self._set_clock = pg, db, sandbox, config, set_clock
        self._connections, self._nursery = connections, nursery
        self.people = People(db)
        self.workers: list[Worker] = []
        self.clock(MORNING)

    def clock(self, moment: str) -> None:
        """Move our clock and the sandbox's."""
        self._set_clock(moment)
        self.sandbox.control("POST", "/clock", {"now": moment})

    def later(self, **units: float) -> None:
        self.clock((datetime.fromisoformat(MORNING) + timedelta(**units)).isoformat())

    def fault(self, **fault: Any) -> None:
        self.sandbox.control("POST", "/faults", {"faults": [fault] if fault else []})

    def audience(self, channel: str, count: int) -> list[int]:
        """`count` members who are reached on one channel."""
        if channel == "email":
            members = [self.people.add(email=f"p{number}@mail.test") for number in range(count)]
        elif channel.startswith("sms_"):
            members = [self.people.add(phone=f"1000000{number:04d}") for number in range(count)]
        elif channel in ("jpush", "wecom_broadcast"):
            name, list_name = ("alias", "aliases") if channel == "jpush" else ("contact", "contacts")
            known = self.sandbox.access[channel.partition("_")[0]][list_name]
            assert len(known) >= count
            members = [self.people.add(**{name: value}) for value in known[:count]]
        else:
            wrote = datetime.fromisoformat("2026-03-14T22:00:00+08:00") if channel == "wechat_service" else None
            openids = sandbox_openids(self.sandbox)
            assert len(openids) >= count
            members = [self.people.add(openid=openid, wrote_at=wrote) for openid in openids[:count]]
        self.config.campaign(channels=[channel])
        return members

    def run(self, channel: str, count: int, **options: Any) -> str:
        """A live run of `count` messages on one channel, in the outbox."""
        self.audience(channel, count)
        return start_run(**options)

    def script(self, script: str, *arguments: str) -> Worker:
        """A process of its own, which does not outlive the test."""
        self.workers.append(self._nursery.script(script, *arguments))
        return self.workers[-1]

    def worker(self, run_id: str, name: str, what: str = "deliver") -> Worker:
        """A worker in a process of its own."""
        return self.script(WORKER, what, run_id, name)

    def finish(self, worker: Worker) -> dict[str, Any]:
        """Wait for a worker and read its result."""
        assert worker.wait() == 0, worker.log.read_text()[-2000:]
        return dict(json.loads(worker.printed()))

    def kill(self, worker: Worker) -> None:
        """kill -9; its database sessions end too, as they do when a machine goes away."""
        assert worker.poll() is None, "the worker ended before it could be killed"
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
        self.drop_sessions()

    def drop_sessions(self) -> int:
        """End the database sessions of workers; how many there were."""
        with psycopg.connect(os.environ["NIGHTMARKET_ADMIN_DSN"], autocommit=True) as admin:
            rows = admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name LIKE 'nightmarket-%'"
            ).fetchall()
        return len(rows)

    def reconnect(self) -> None:
        """A new connection of the test's own, after the server has dropped all of them."""
        self.db.close()
        self.db = self._connections.enter_context(connect(autocommit=True, application_name="test"))

    def restart_database(self) -> None:
        """The server ends and begins again; whoever was connected finds out."""
        self.pg.restart()
        self.reconnect()

    def crash_database(self) -> None:
        """One of the server's processes dies: the server ends all sessions and recovers from its log."""
        with psycopg.connect(os.environ["NIGHTMARKET_ADMIN_DSN"], autocommit=True) as admin:
            os.kill(admin.info.backend_pid, signal.SIGKILL)
        self.wait_until(self._is_up)
        self.reconnect()

    def _is_up(self) -> bool:
        try:
            psycopg.connect(os.environ["NIGHTMARKET_ADMIN_DSN"]).close()
        except psycopg.OperationalError:
            return False
        return True

    def snapshot(self) -> None:
        """Keep the database as it is now."""
        self._between_sessions("DROP DATABASE IF EXISTS {copy} WITH (FORCE)", "CREATE DATABASE {copy} TEMPLATE {name}")

    def restore(self) -> None:
        """Put the kept database back in the place of the one that went on."""
        self._between_sessions("DROP DATABASE {name} WITH (FORCE)", "ALTER DATABASE {copy} RENAME TO {name}")

    def _between_sessions(self, *statements: str) -> None:
        name = self.db.info.dbname
        self.db.close()
        self.drop_sessions()
        with psycopg.connect(self.pg.server.dsn("postgres"), autocommit=True) as admin:
            for statement in statements:
                admin.execute(statement.format(name=f'"{name}"', copy=f'"{name}_copy"'))
        self.reconnect()

    def keep_commits(self) -> None:
        """What is committed survives a crash; for speed the tests' server is not asked for that otherwise."""
        with psycopg.connect(os.environ["NIGHTMARKET_ADMIN_DSN"], autocommit=True) as admin:
            admin.execute(f'ALTER DATABASE "{admin.info.dbname}" SET synchronous_commit = on')

    def hold(self, table: str, event: str, condition: str) -> None:
        """From now on, statements of this kind stop inside their transaction, before they do anything."""
        with psycopg.connect(os.environ["NIGHTMARKET_ADMIN_DSN"], autocommit=True) as admin:
            admin.execute(
                "CREATE OR REPLACE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$"
            )
            admin.execute(
                f"CREATE TRIGGER hold BEFORE {event} ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION public.hold()"
            )

    def let_go(self, table: str) -> None:
        with psycopg.connect(os.environ["NIGHTMARKET_ADMIN_DSN"], autocommit=True) as admin:
            admin.execute(f"DROP TRIGGER IF EXISTS hold ON {table}")

    def wait_until(self, what: Callable[[], Any], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.05)

    def is_held(self) -> bool:
        """Does a session sleep in hold()?"""
        with psycopg.connect(os.environ["NIGHTMARKET_ADMIN_DSN"], autocommit=True) as admin:
            row = admin.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            ).fetchone()
        return bool(row and row[0])

    def received_keys(self) -> dict[str, int]:
        """How often each message arrived: message key of its link (or openid and group), as the sandbox counted."""
        counts: dict[str, int] = {}
        for message in self.sandbox.control("GET", "/messages")["messages"]:
            if message["channel"] == "wechat_mass":
                key = f"{message['key']} {message['receiver']}"
            elif message["channel"] == "wecom_broadcast":
                key = f"wecom {message['receiver']}"
            else:
                key = message.get("link_key") or message["key"]  # an SMS has no link, but our key as its out-id
            counts[key] = counts.get(key, 0) + 1
        return counts

    def messages(self, run_id: str) -> dict[str, str]:
        """Key as in received_keys -> state."""
        rows = self.db.execute(
            "SELECT message_key, group_key, address, channel, state FROM push.messages WHERE run_id = %s", (run_id,)
        )
        found = {}
        for row in rows:
            group = "wecom" if row["channel"] == "wecom_broadcast" else row["group_key"]
            found[f"{group} {row['address']}" if row["group_key"] else row["message_key"]] = row["state"]
        return found

    def judge_unsent(self, run_id: str) -> dict[str, int]:
        """As judge, for faults that lose the message itself: what is unknown may not have arrived."""
        arrived, states = self.received_keys(), self.messages(run_id)
        assert max(arrived.values(), default=0) <= 1
        assert {key for key, state in states.items() if state == "accepted"} == set(arrived)
        return {state: list(states.values()).count(state) for state in set(states.values())}

    def judge(self, run_id: str) -> dict[str, int]:
        """Nothing twice, nothing lost unlisted: every message is accepted and arrived once, or is listed as unknown."""
        from nightmarket.campaigns.results import check_laws

        arrived, states = self.received_keys(), self.messages(run_id)
        assert max(arrived.values(), default=0) <= 1, "a receiver got a message twice"
        accepted = {key for key, state in states.items() if state == "accepted"}
        unknown = {key for key, state in states.items() if state == "unknown"}
        assert accepted <= set(arrived), "accepted, but it never arrived"
        assert set(arrived) <= accepted | unknown, "it arrived, but nobody wrote it down"
        assert set(states) == accepted | unknown, "a message is neither sent nor listed"
        check_laws(run_id)
        return {"accepted": len(accepted), "unknown": len(unknown), "arrived": len(arrived)}


@pytest.fixture
def stage(
    pg: Any,
    db: psycopg.Connection[Row],
    sandbox: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    set_clock: Callable[[str], None],
    workers: Nursery,
) -> Iterator[Stage]:
    config = write_config(tmp_path / "house", monkeypatch)
    one = [{"name": "gift", "share": 1, "template": "winback_gift"}]
    config.campaign(coupon=None, holdout_share=0, variants=one)
    with config.editing("channels.yaml") as data:
        data["global_holdout"]["share"] = 0
        data["channels"]["wechat_mass"]["rate_per_second"] = 50
        data["channels"]["wechat_service"]["timeout_seconds"] = 3
    sandbox.control("POST", "/settings", {"custom_window": False})
    green_night(db)
    connections = ExitStack()
    stage = Stage(pg, db, sandbox, config, set_clock, connections, workers)
    yield stage
    connections.close()
    for worker in stage.workers:
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
    sandbox.control("POST", "/settings", {"custom_window": True})
