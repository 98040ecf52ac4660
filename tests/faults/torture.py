"""A thousand kills: `make torture`, or fewer with NIGHTMARKET_KILLS=100.

Workers are killed (-9) at random moments while they build, reserve, enqueue and send, one at a time or four side by side,
on every channel. After every run of messages the sandbox's counters are compared with the outbox and the laws are checked.
Not collected by itself: `pytest -s tests/faults/torture.py`. CI runs the same in small (test_kill_matrix.py).
"""

import json
import logging
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from rich.console import Console
from rich.table import Table

from campaign_world import start_run, states
from nightmarket.campaigns import logbook
from nightmarket.campaigns.results import LawBroken, check_laws
from nightmarket.channels.registry import CHANNELS
from nursery import Nursery, is_alive, kill
from sandbox_process import Sandbox, start_sandbox

KILLS = int(os.environ.get("NIGHTMARKET_KILLS", "1000"))
SEED = int(os.environ.get("NIGHTMARKET_SEED", str(random.SystemRandom().randrange(10**6))))
LEASE_SECONDS, GROUP, CONNECTIONS = 5, 5, 4
GROUP_SIZE = 20  # receivers of one call
NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class Scenario:
    """One row of the table: what is sent, by how many workers, and what else goes wrong."""

    channel: str
    workers: int
    what: str = "deliver"  # or "campaign": every step from the audience on
    messages: int = 200
    longest_life: float = 0.3  # seconds until a worker is killed, from its start or its first calls on
    is_platform_bad: bool = False

    @property
    def is_group(self) -> bool:
        return CHANNELS[self.channel].is_group

    @property
    def name(self) -> str:
        return self.channel + (", every step with coupons" if self.what == "campaign" else "") + (
            ", platform misbehaves" if self.is_platform_bad else ""
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.name}, {self.workers}".replace(", ", "-").replace(" ", "_")


SCENARIOS = [
    Scenario(channel, workers, **options)
    for channel, options in (
        ("wechat_service", {}),
        ("wechat_service", {"is_platform_bad": True}),
        ("wechat_service", {"what": "campaign", "messages": 100, "longest_life": 1.0}),
        ("wechat_mass", {"messages": 400}),
        ("email", {}),
        ("jpush", {}),
        ("sms_aliyun", {}),
        ("wecom_broadcast", {}),
    )
    for workers in (1, 4)
]


@dataclass
class Tally:
    """What was counted over all runs of one scenario."""

    kills: int = 0
    messages: int = 0
    accepted: int = 0
    duplicates: int = 0
    lost: int = 0
    unknown: int = 0
    laws_checked: int = 0
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0


TALLIES: dict[Scenario, Tally] = {}


@pytest.fixture(scope="module")
def sandbox_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A world with more followers than the tests of single faults need."""
    process, sandbox = start_sandbox(
        tmp_path_factory.mktemp("torture"), "--customers", "1000", "--seed", "7", "--anchor", "2026-03-14"
    )
    yield sandbox
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module", autouse=True)
def printed() -> Iterator[None]:
    yield
    table = Table(
        title=f"{sum(tally.kills for tally in TALLIES.values()):,} kills, seed {SEED}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    columns = (
        "scenario",
        "workers",
        "kills",
        "messages",
        "sent",
        "duplicates",
        "lost",
        "unknown",
        "laws checked",
        "broken",
        "seconds",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "scenario" else "right")
    for scenario, tally in TALLIES.items():
        numbers = (tally.kills, tally.messages, tally.accepted, tally.duplicates, tally.lost, tally.unknown, tally.laws_checked,
                   len(tally.broken))  # fmt: skip
        table.add_row(
            scenario.name, str(scenario.workers), *(f"{number:,}" for number in numbers), f"{tally.seconds:.0f}"
        )
    Console(width=150).print("\n", table)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_torture(stage: Any, workers: Nursery, scenario: Scenario) -> None:
    tally = torture(stage, workers, scenario, KILLS // len(SCENARIOS))
    assert tally.kills >= KILLS // len(SCENARIOS)


def torture(stage: Any, workers: Nursery, scenario: Scenario, kills: int) -> Tally:
    """Runs of messages, one after the other, until so many workers were killed; then nothing may have gone wrong."""
    tally = TALLIES.setdefault(scenario, Tally())
    chance = random.Random(f"{SEED} {scenario.name} {scenario.workers}")
    logging.getLogger("nightmarket").setLevel("ERROR")
    prepare(stage, scenario)
    started = time.monotonic()
    number = 0
    while tally.kills < kills:
        number += 1
        one_run(stage, workers, scenario, tally, chance, f"torture-{number}")
    tally.seconds = time.monotonic() - started
    assert (tally.duplicates, tally.lost, tally.broken) == (0, 0, []), f"seed {SEED}"
    in_hand = (GROUP + CONNECTIONS) * (GROUP_SIZE if scenario.is_group else 1)
    assert tally.unknown <= tally.kills * in_hand or scenario.is_platform_bad
    return tally


def prepare(stage: Any, scenario: Scenario) -> None:
    """Small groups, short leases, no limit of the platform in the way: what is tested is what a kill leaves behind."""
    stage.keep_commits()
    with stage.config.editing("channels.yaml") as data:
        data["frequency"]["messages"] = NO_LIMIT
        data["delivery"].update(
            lease_seconds=LEASE_SECONDS, claim_size=20, attempt_group=GROUP, breaker_failures=1000, progress_seconds=60
        )
        channel = data["channels"][scenario.channel]
        channel.update(rate_per_second=200, connections=CONNECTIONS, timeout_seconds=3)
        if scenario.is_group:
            channel.update(group_size=GROUP_SIZE)
    account = json.loads(os.environ["AIRFLOW_CONN_SMS_ALIYUN"])  # the sandbox lists a message at once
    account["extra"] = {**account["extra"], "absent_is_unsent_after_seconds": 60}
    os.environ["AIRFLOW_CONN_SMS_ALIYUN"] = json.dumps(account)
    stage.audience(scenario.channel, scenario.messages)
    stage.config.campaign(budget={"messages": NO_LIMIT, "amount": NO_LIMIT})
    if scenario.what == "campaign":
        stage.config.campaign(coupon={"stock": "winback_30", "test_stock": "test_pool"}, approval={"above": NO_LIMIT})


def one_run(stage: Any, workers: Nursery, scenario: Scenario, tally: Tally, chance: random.Random, name: str) -> None:
    clean(stage)
    run_id = name if scenario.what == "campaign" else start_run()
    if scenario.is_platform_bad:
        misbehave(stage, chance)
    alive: list[int] = []
    minutes = 0.0
    for _ in range(scenario.messages // 12):  # enough kills to be in the way everywhere, messages left to the end
        while len(alive) < scenario.workers:
            alive.append(workers.worker(scenario.what, run_id))
        if chance.random() < 0.7:  # in the middle of its calls; else wherever it is
            wait_for_calls(stage, alive)
        time.sleep(chance.uniform(0, scenario.longest_life / scenario.workers**0.5))
        alive = [pid for pid in alive if is_alive(pid)]
        if not alive:
            if is_done(stage, scenario, run_id):
                break
            continue
        victim = alive.pop(chance.randrange(len(alive)))
        tally.kills += kill(victim)
        if scenario.workers == 1 or chance.random() < 0.2:  # its lease is over; with others at work: theirs too
            minutes += LEASE_SECONDS * 1.2 / 60
            stage.later(minutes=minutes)
    for pid in alive:
        tally.kills += kill(pid)
    stage.fault()
    stage.later(minutes=minutes + 10)
    finish(stage, workers, scenario, run_id)
    count(stage, scenario, tally)


def wait_for_calls(stage: Any, alive: list[int]) -> None:
    """Until somebody has written down another call; on a busy machine that takes longer than a worker would live."""
    seen, deadline = logbook.number(stage.db), time.monotonic() + 5
    while logbook.number(stage.db) == seen and any(map(is_alive, alive)) and time.monotonic() < deadline:
        time.sleep(0.01)


def clean(stage: Any) -> None:
    """Nobody has received anything yet, on our side and on the platform's."""
    with psycopg.connect(os.environ["NIGHTMARKET_ADMIN_DSN"], autocommit=True) as admin:
        admin.execute(
            "TRUNCATE push.campaign_runs, push.audiences, push.messages, push.attempts, push.coupons, push.pace, push.platform_keys CASCADE"
        )
    stage.sandbox.control("POST", "/reset", {})
    stage.sandbox.control("POST", "/settings", {"custom_window": False, "mass_per_month": NO_LIMIT, "sms_failed": 0.0})
    stage.later()


def misbehave(stage: Any, chance: random.Random) -> None:
    """Time-outs after the message was taken, cuts, garbage, errors: each for some calls, all along."""
    kinds = ["timeout_after", "http_500_after", "cut", "garbage", "http_429", "http_500"]
    faults = [
        {"platform": "wechat_official", "method": "cgi-bin/message/custom/send", "kind": chance.choice(kinds), "times": 1,
         "after": chance.randrange(100), "seconds": 4}
        for _ in range(10)
    ]  # fmt: skip
    stage.sandbox.control("POST", "/faults", {"faults": faults})


def is_done(stage: Any, scenario: Scenario, run_id: str) -> bool:
    row = stage.db.execute(
        "SELECT state FROM push.campaign_runs WHERE %s IN (run_id, request_id)", (run_id,)
    ).fetchone()
    return row is not None and row["state"] == "sent"


def finish(stage: Any, workers: Nursery, scenario: Scenario, run_id: str) -> None:
    """The next run repairs by itself: one worker that nobody kills."""
    for _ in range(5):
        pid = workers.worker(scenario.what, run_id)
        while is_alive(pid):
            time.sleep(0.02)
        if is_done(stage, scenario, run_id):
            return ask(stage, workers, scenario, run_id)
    raise AssertionError(f"{run_id} did not come to its end by itself")


def ask(stage: Any, workers: Nursery, scenario: Scenario, run_id: str) -> None:
    """Where the platform can be asked about every message, nothing stays unknown: what never arrived goes out now.

    A broadcast whose answer was lost has no number to ask by; the others wait for an employee, who has pressed by then.
    """
    if not CHANNELS[scenario.channel].can_ask:
        return
    stage.later(minutes=60)
    for what in ("ask", "deliver"):
        pid = workers.worker(what, run_id)
        while is_alive(pid):
            time.sleep(0.02)
    open_state = "waiting_staff" if scenario.channel == "wecom_broadcast" else "unknown"
    assert open_state not in states(stage.db, run_id)


def count(stage: Any, scenario: Scenario, tally: Tally) -> None:
    (row,) = stage.db.execute("SELECT run_id FROM push.campaign_runs").fetchall()
    run_id = row["run_id"]
    arrived, states = stage.received_keys(), stage.messages(run_id)
    accepted = {key for key, state in states.items() if state == "accepted"}
    unknown = {key for key, state in states.items() if state == "unknown"}
    tally.messages += len(states)
    tally.accepted += len(accepted)
    tally.unknown += len(unknown)
    tally.duplicates += sum(times - 1 for times in arrived.values())
    tally.duplicates += sum(times - 1 for times in coupons_given(stage).values())
    tally.lost += (
        len(accepted - set(arrived)) + len(set(states) - accepted - unknown) + len(set(arrived) - accepted - unknown)
    )
    try:
        tally.laws_checked += len(check_laws(run_id))
    except LawBroken as error:
        tally.broken.append(str(error))


def coupons_given(stage: Any) -> dict[str, int]:
    return dict(stage.sandbox.control("GET", "/counters")["coupons"]["by_out_request_no"])
