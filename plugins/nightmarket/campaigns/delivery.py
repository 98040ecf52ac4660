"""Working off the outbox: claim, open the vault, render, write down the attempt, call, record the answer.

Any number of workers may run at once; they share the queue (SKIP LOCKED), the pace (push.pace) and the pauses. What a
worker is killed with in its hands is decided by outbox.recover: never twice, and never lost without being listed.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

import orjson
import psycopg
import uvloop
from psycopg.types.json import set_json_loads

from nightmarket import dates, robots
from nightmarket.campaigns import logbook, outbox
from nightmarket.campaigns.audience import frozen_template
from nightmarket.campaigns.config import Channel, DeliveryOptions, SendWindow, load_channels
from nightmarket.campaigns.rendering import CompiledTemplate, RenderError, clean, member_values, signed_link
from nightmarket.campaigns.sms_length import SmsFrame, segments
from nightmarket.channels.base import Call, Outcome, Question
from nightmarket.channels.base import Channel as Sender
from nightmarket.channels.registry import CHANNELS
from nightmarket.privacy import Keyring, is_token, open_secrets
from nightmarket.settings import ConfigError, credentials, get_settings
from nightmarket.warehouse import Row, connect_vault

log = logging.getLogger(__name__)
T = TypeVar("T")
DATABASE_TRIES = 6
RECORD_EVERY_SECONDS = 0.05
PACE_PIECE_SECONDS = 0.02  # slots are reserved for so much sending at a time
LATE_SECONDS = 0.01  # a slot missed by more is given up: the limit is never exceeded to catch up
QUESTIONS_IN_FLIGHT = 8
SOON_SECONDS = 30.0  # messages that are due again within this are waited for


class ChannelPaused(RuntimeError):
    """A channel is paused and messages wait for it; says which one, until when and why. `result` is what was done before."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(
            f"{'; '.join(result['paused'])}. {result['queued']:,} messages wait; nothing of them was sent."
        )
        self.result = result


@dataclass
class Unit:
    """One call to be made: the messages it is for, and what to send."""

    messages: list[Row]
    call: Call
    billed_parts: int = 1
    attempt_numbers: dict[int, int] = field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        return [message["message_id"] for message in self.messages]


class _Claimed(NamedTuple):
    """The messages of one call that this worker holds, and the clear values of their batch."""

    messages: list[Row]
    clear: dict[str, str]


def deliver(run_id: str | None, worker: str, max_seconds: float) -> dict[str, Any]:
    """Send what is due of one run, or of all runs, for at most `max_seconds`.

    Returns the messages of these runs by state, plus `waiting_until` (ISO instant at which the send window opens, or
    None), `seconds` and `calls` of this worker. Raises ChannelPaused when messages wait for a channel that cannot work,
    ConfigError when the vault or an account is not configured, DatabaseRestored when the database is older than what was
    sent, psycopg.OperationalError when it stays away; all of them leave the outbox recoverable.
    """
    result = uvloop.run(_Delivery(run_id, f"{worker}/{uuid.uuid4().hex[:8]}", max_seconds).run())
    if result["paused"] and result.get("queued"):
        raise ChannelPaused(result)
    return result


def ask(worker: str, max_seconds: float) -> dict[str, int]:
    """Ask the platforms what became of messages in doubt, and of those that wait for an employee; counts by what was learnt.

    A platform's "it never arrived" lets a message go out once more; everything it cannot tell stays as it is, listed.
    Raises ConfigError when the vault or an account is not configured.
    """
    return asyncio.run(_ask(worker, time.monotonic() + max_seconds))


async def _ask(worker: str, deadline: float) -> dict[str, int]:
    channels, db, counts = load_channels(), _Database(), Counter[str]()
    settled = timedelta(seconds=channels.delivery.lease_seconds)
    try:
        while time.monotonic() < deadline:
            rows = await db(partial(outbox.questions, channels=channels.channels, settled=settled))
            if not rows:
                break
            for name in sorted({row["channel"] for row in rows}):
                said = await _ask_channel(db, name, channels.channels[name], [r for r in rows if r["channel"] == name])
                counts["asked"] += len(said)
                counts.update(await db(partial(outbox.settle, said=said)))
    finally:
        db.close()
    log.info("%s: %s", worker, ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "nothing to ask")
    return dict(counts)


async def _ask_channel(db: "_Database", name: str, channel: Channel, rows: list[Row]) -> list[tuple[Row, Outcome]]:
    keyring = Keyring.from_settings()
    tokens = {row["address"] for row in rows if is_token(row["address"])}
    clear = await db(lambda connection: open_secrets(connection, tokens, keyring)) if tokens else {}
    limit = asyncio.Semaphore(QUESTIONS_IN_FLIGHT)
    sender = CHANNELS[name](
        credentials(channel.account), connections=QUESTIONS_IN_FLIGHT, timeout_seconds=channel.timeout_seconds
    )

    async def one(row: Row) -> tuple[Row, Outcome]:
        address = clear.get(row["address"], "") if is_token(row["address"]) else row["address"]
        if not address:
            return row, Outcome("unknown", code="erased", message="the address was erased")
        question = Question(row["message_key"], address, row["platform_message_id"] or "", row["started_at"])
        async with limit:
            try:
                return row, await sender.ask(question)
            except Exception as error:
                log.exception("%s: the channel failed", name)
                return row, Outcome("unknown", code="channel", message=type(error).__name__)

    async with sender:
        return list(await asyncio.gather(*(one(row) for row in rows)))


class _Database:
    """One connection in one thread, so that a query never stops the event loop. Reconnects; every piece of work is safe to repeat.

    Raises DatabaseRestored when the database that answers does not know of calls that were made.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._stack = ExitStack()
        self._connection: psycopg.Connection[Row] | None = None

    async def __call__(self, work: Callable[[psycopg.Connection[Row]], T]) -> T:
        """Do `work` in a transaction."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work, True)

    async def alone(self, work: Callable[[psycopg.Connection[Row]], T]) -> T:
        """Do `work` that is one statement, which needs no BEGIN and no COMMIT around it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work, False)

    def _run(self, work: Callable[[psycopg.Connection[Row]], T], in_transaction: bool) -> T:
        for attempt in range(DATABASE_TRIES):
            try:
                if self._connection is None:
                    connection = self._stack.enter_context(connect_vault(autocommit=True))
                    set_json_loads(orjson.loads, connection)
                    # of an outbox filled a minute ago the statistics know nothing, and everything here is found by its key
                    connection.execute("SET enable_seqscan = off")
                    logbook.check(connection)  # what was away and is back may be older than what was sent
                    self._connection = connection
                with self._connection.transaction() if in_transaction else contextlib.nullcontext():
                    return work(self._connection)
            except psycopg.OperationalError as error:
                self._drop()
                if attempt == DATABASE_TRIES - 1:
                    raise
                log.warning("database connection lost (%s), connecting again", type(error).__name__)
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def _drop(self) -> None:
        self._connection = None
        with contextlib.suppress(psycopg.Error):
            self._stack.close()

    def close(self) -> None:
        self._thread.submit(self._drop).result()
        self._thread.shutdown()


class _Lines(NamedTuple):
    """A worker's connections: what the next call waits for, claims, and the rest. None of the three waits for another."""

    front: _Database
    claims: _Database
    rest: _Database


class _Delivery:
    def __init__(self, run_id: str | None, worker: str, max_seconds: float) -> None:
        self.run_id, self.worker = run_id, worker
        self.started = time.monotonic()
        self.deadline = self.started + max_seconds
        self.options: DeliveryOptions = load_channels().delivery
        self.keyring = Keyring.from_settings()
        self.calls = 0
        self.paused: list[str] = []
        self.waiting_until: datetime | None = None

    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline

    async def run(self) -> dict[str, Any]:
        lines = _Lines(_Database(), _Database(), _Database())
        try:
            with self._stopping_gently():
                return await self._run(lines)
        finally:
            for line in lines:
                line.close()

    @contextlib.contextmanager
    def _stopping_gently(self) -> Iterator[None]:
        """On SIGTERM (a task is cleared, a worker shuts down) finish the open calls, record them, and then end.

        Aborted calls would be in doubt for ever. Whoever asked gets the signal again afterwards.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, received = signal.getsignal(signal.SIGTERM), []

        def stop() -> None:
            log.warning("%s: asked to stop, finishing the open calls", self.worker)
            received.append(True)
            self.deadline = 0.0

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)
            if received:
                os.kill(os.getpid(), signal.SIGTERM)

    async def _run(self, lines: _Lines) -> dict[str, Any]:
        db = lines.rest
        recovered = await db(lambda connection: outbox.recover_on(connection, dates.now()))
        runs = await db(lambda connection: outbox.runs_to_deliver(connection, self.run_id))
        counts: dict[str, int] = {}
        for run in runs:
            await self._deliver_run(lines, run)
            for state, count in (await db(partial(outbox.message_counts, run_id=run["run_id"]))).items():
                counts[state] = counts.get(state, 0) + count
        seconds = time.monotonic() - self.started
        log.info("%s: %s calls in %.1f s; messages now: %s", self.worker, f"{self.calls:,}", seconds,
                 ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "none")  # fmt: skip
        return {
            **counts,
            "runs": [run["run_id"] for run in runs],
            "recovered": recovered,
            "calls": self.calls,
            "seconds": round(seconds, 2),
            "paused": self.paused,
            "waiting_until": self.waiting_until.isoformat() if self.waiting_until else None,
        }

    async def _deliver_run(self, lines: _Lines, run: Row) -> None:
        """All channels of one run side by side, until nothing is due or the time is over."""
        db = lines.rest
        names = list(run["config"]["channels"])
        while names:
            lanes = [
                _LaneWorker(self, lines, run, name, Channel.model_validate(run["config"]["channels"][name]))
                for name in names
            ]
            try:
                async with asyncio.TaskGroup() as group:
                    for lane in lanes:
                        group.create_task(lane.work())
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None  # the first one says why; the others stopped because of it
            if self.is_over():
                break
            # What a channel refused has gone on over another one, which may have been done before.
            able = [lane.name for lane in lanes if not lane.stopped]
            names = await db(partial(outbox.channels_due, run_id=run["run_id"], channels=able))
        if await db(lambda connection: outbox.close_run(connection, run["run_id"])):
            log.info("run %s: everything is sent", run["run_id"])


class _LaneWorker:
    """One channel of one run in one worker.

    Three things happen side by side: the next messages are claimed, the attempts of the next few calls are written down,
    and `connections` callers make the calls that were written down, each in its own time slot.
    """

    def __init__(self, delivery: _Delivery, lines: _Lines, run: Row, name: str, channel: Channel) -> None:
        self.delivery, self.run, self.name, self.channel = delivery, run, name, channel
        self.front, self.claims, self.db = lines
        config = run["config"]
        options = delivery.options
        self.lane = outbox.Lane(run, name, channel, delivery.worker, timedelta(seconds=options.lease_seconds))
        self.window = SendWindow.model_validate(config["campaign"]["send_window"])
        self.rate = float(channel.rate_per_second) * options.pace_share
        self.most_written = max(1, min(options.attempt_group, int(self.rate)))
        self.group = max(1, self.most_written // 2)  # room for so many: the next are written while these are called
        self.low = min(options.claim_size // 2, int(self.rate * outbox.AHEAD_SECONDS))  # so few left: claim the next
        self.written = 0  # written down and not begun: never more than most_written
        self.most_open = self.most_written + channel.connections  # what a crash may leave in doubt
        self.open = 0  # written down, and what came of it is not: never more than most_open
        self.room = asyncio.Event()  # set when there is room to write down a group
        self.answered = asyncio.Event()  # set when answers enough for a group wait to be recorded
        self.ready: asyncio.Queue[Unit] = asyncio.Queue()  # written down, to be called
        self.unanswered = 0  # written down and not answered yet
        self.given_up: list[Unit] = []  # written down and certainly not called
        self.turn = asyncio.Lock()  # callers wait for their slots in one row
        self.slots, self.next_slot = 0, 0.0  # reserved and not used yet
        self.results: list[tuple[Unit, Outcome]] = []
        self.recording = asyncio.Lock()
        self.stopped = ""  # why this channel stops, once it does
        self.failure: ConfigError | None = None  # why nothing can be sent at all
        self.failures_in_a_row = 0
        self.sent = 0
        self._templates: dict[str, CompiledTemplate] = {}

    async def work(self) -> None:
        """Claim and send until nothing is due, the window closes, the channel is paused or the time is over."""
        if not await self.db(self._has_work):
            return
        await self.db(self.lane.prepare_pace)
        sender = self.lane.kind(
            credentials(self.channel.account),
            connections=self.channel.connections,
            timeout_seconds=self.channel.timeout_seconds,
        )
        async with (
            sender,
            self._background(self._record_loop()),
            self._background(self._progress_loop()),
            self._callers(sender),
        ):
            await self._work_through()
        if self.failure:
            raise self.failure
        if self.stopped:
            self.delivery.paused.append(await self.db(self.lane.paused) or f"{self.name} was paused: {self.stopped}")

    def _is_done(self) -> bool:
        return bool(self.stopped or self.failure) or self.delivery.is_over()

    async def _work_through(self) -> None:
        ahead: asyncio.Task[deque[_Claimed] | None] | None = None
        while not self._is_done():
            claimed = await (ahead or self._claim())
            ahead = None
            if claimed is None:
                break
            if claimed:
                ahead = await self._send_all(claimed)
            elif not await self._wait_for_more():
                break
        await self._drain()
        if ahead:
            await self._release(await ahead or ())

    async def _claim(self) -> deque[_Claimed] | None:
        """The next messages that may be sent, by call; empty when none is due, None when none may go out any more."""
        if not await self._is_open():
            return None
        return await self.claims(self._claim_on)

    def _claim_on(self, connection: psycopg.Connection[Row]) -> deque[_Claimed]:
        rows = self.lane.claim(connection, self.delivery.options.claim_size)
        tokens = {row["address"] for row in rows if is_token(row["address"])} | {
            name for row in rows if (name := (row["variables"].get("member") or {}).get("name"))
        }
        tokens |= {code for row in rows if (code := (row["variables"].get("coupon") or {}).get("code"))}
        clear = open_secrets(connection, tokens, self.delivery.keyring) if tokens else {}
        if not rows:
            return deque()
        calls = [rows] if self.lane.kind.is_group else [[row] for row in rows]
        return deque(_Claimed(messages, clear) for messages in calls)

    async def _is_open(self) -> bool:
        """Neither the run nor the channel is paused; what is due outside its receiver's send window is moved to its opening."""
        if not await self.db(lambda connection: outbox.may_go_on(connection, self.run)):
            log.info(
                "run %s was paused, cancelled or changed; this worker sends nothing more of it", self.run["run_id"]
            )
            return False
        now = dates.now()
        if dates.send_window(now, self.window.opens, self.window.closes, get_settings().zone) > now:
            await self.db(lambda connection: outbox.postpone(connection, self.run["run_id"], self.window))
        paused = await self.db(self.lane.paused)
        if paused:
            self.stopped = paused
        return not paused

    def _wait_until(self, instant: datetime) -> None:
        waiting = self.delivery.waiting_until
        self.delivery.waiting_until = min(waiting, instant) if waiting else instant

    def _has_work(self, connection: psycopg.Connection[Row]) -> bool:
        return self._remaining(connection) > 0

    def _remaining(self, connection: psycopg.Connection[Row]) -> int:
        row = connection.execute(
            "SELECT count(*) AS n FROM push.messages WHERE run_id = %s AND channel = %s AND state IN ('queued', 'sending')",
            (self.run["run_id"], self.name),
        ).fetchone()
        return int(row["n"]) if row else 0

    async def _wait_for_more(self) -> bool:
        """Nothing was claimable: wait for open calls, for what is due soon, for leases of dead workers. False = done."""
        if self.unanswered or self.results:
            await self._drain()
            return True
        row = await self.db(
            lambda connection: connection.execute(
                """
                SELECT min(not_before) FILTER (WHERE state = 'queued') AS due_at, bool_or(state = 'sending') AS is_leased
                FROM push.messages WHERE run_id = %s AND channel = %s AND state IN ('queued', 'sending')
                """,
                (self.run["run_id"], self.name),
            ).fetchone()
        )
        due_at, is_leased = (row["due_at"], bool(row["is_leased"])) if row else (None, False)
        due_in = (due_at - dates.now()).total_seconds() if due_at else None
        if not is_leased and (due_in is None or due_in > SOON_SECONDS):
            if due_at:
                self._wait_until(due_at)
            return False
        await asyncio.sleep(min(max(due_in, 0.05), 1.0) if due_in is not None else 0.5)
        await self.db(lambda connection: outbox.recover_on(connection, dates.now()))
        return True

    async def _send_all(self, claimed: deque[_Claimed]) -> asyncio.Task[deque[_Claimed] | None] | None:
        """Write a claimed batch down, group by group, whenever the callers have room; returns the next claim when it is on its way."""
        ahead = None
        while claimed:
            while not self._has_room():
                self.room.clear()
                await self.room.wait()
            if self._is_done():
                await self._release(claimed)
                break
            if ahead is None and len(claimed) <= self.low:
                ahead = asyncio.create_task(self._claim())
            room = min(self.most_written - self.written, self.most_open - self.open, len(claimed))
            await self._write_down([claimed.popleft() for _ in range(room)])
        return ahead

    async def _write_down(self, group: Sequence[_Claimed]) -> None:
        """Render a group, record its attempts, write it into the log book, and hand it to the callers."""
        units = await self._rendered(group)
        quota = outbox.Quota(len(units), 0.0, "")
        if self.lane.has_quota and units:
            quota = await self.db(partial(self.lane.take_quota, calls=len(units)))
            await self._release(units[quota.granted :])
            units = units[: quota.granted]
        if units:
            self.written += len(units)
            self.open += len(units)
            ids = [i for unit in units for i in unit.ids]
            numbers, last = await self.front.alone(partial(self.lane.record_attempts, message_ids=ids))
            ready: list[Unit] = []
            lost: list[Unit] = []
            for unit in units:
                unit.attempt_numbers = {i: numbers[i] for i in unit.ids if i in numbers}
                (ready if len(unit.attempt_numbers) == len(unit.ids) else lost).append(unit)
            try:
                logbook.write(last, self.name, [row["message_key"] for unit in ready for row in unit.messages])
            except ConfigError as error:
                self.failure, lost, ready = error, units, []
            self.unanswered += len(ready)
            for unit in ready:
                self.ready.put_nowait(unit)
            await self._release(lost)  # lease over, expired, window closed: the next claim decides about it
            self._settled(len(lost))
            self._begun(len(lost))
        if quota.reason:
            await self.ready.join()  # what was granted is used
            await self._stop(quota.reason, quota.seconds)

    def _has_room(self) -> bool:
        return self.written <= self.most_written - self.group and self.open <= self.most_open - self.group

    def _begun(self, count: int = 1) -> None:
        self.written -= count
        if self._has_room():
            self.room.set()

    def _settled(self, count: int) -> None:
        self.open -= count
        if self._has_room():
            self.room.set()

    @contextlib.asynccontextmanager
    async def _callers(self, sender: Sender) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(self.channel.connections):
                await stack.enter_async_context(self._background(self._caller(sender)))
            yield

    async def _caller(self, sender: Sender) -> None:
        """One connection: one call after the other."""
        while True:
            unit = await self.ready.get()
            may_call = await self._slot()
            self._begun()
            if may_call:
                await self._call(sender, unit)
            else:
                self.given_up.append(unit)
            self.unanswered -= 1
            self.ready.task_done()

    async def _slot(self) -> bool:
        """Wait for the account's next time slot; False when no call may be begun any more."""
        async with self.turn:
            while not self._is_done():
                if not self.slots:
                    self.slots = min(max(1, int(self.rate * PACE_PIECE_SECONDS)), self.written)
                    reserve = partial(self.lane.reserve_slots, slots=self.slots, rate=self.rate)
                    self.next_slot = max(await self.front.alone(reserve), 0.0) + time.monotonic()
                wait = self.next_slot - time.monotonic()
                if wait < -LATE_SECONDS:
                    self.slots = 0  # too late for this slot and those after it: take new ones
                    continue
                self.slots -= 1
                self.next_slot += 1 / self.rate
                if wait > 0:
                    await asyncio.sleep(wait)
                return not self._is_done()
        return False

    async def _call(self, sender: Sender, unit: Unit) -> None:
        try:
            outcome = await sender.send(unit.call)
        except Exception as error:
            log.exception("%s: the channel failed", self.name)
            outcome = Outcome("unknown", code="channel", message=type(error).__name__)
        self.results.append((unit, outcome))
        if len(self.results) >= self.group:
            self.answered.set()
        self.delivery.calls += 1
        await self._watch(outcome)

    async def _watch(self, outcome: Outcome) -> None:
        """The circuit breaker: a channel that cannot work is paused for all workers, with a reason."""
        self.failures_in_a_row = 0 if outcome.kind in ("accepted", "waiting", "refused") else self.failures_in_a_row + 1
        if self.stopped:
            return
        reason, seconds = "", 0.0
        if outcome.kind == "pause":
            reason, seconds = f"{outcome.message} ({outcome.code})", outcome.retry_after
        elif self.failures_in_a_row >= self.delivery.options.breaker_failures:
            reason = (
                f"{self.failures_in_a_row} calls in a row failed, the last one with {outcome.code}: {outcome.message}"
            )
            seconds = self.delivery.options.breaker_pause_seconds
        if reason:
            await self._stop(reason, seconds)

    async def _stop(self, reason: str, seconds: float) -> None:
        """Pause the channel for all workers; what is in flight is waited for."""
        self.stopped = reason
        log.error("%s is paused for %.0f s: %s", self.name, seconds, reason)
        await self.db(lambda connection: self.lane.pause(connection, seconds, reason))
        await asyncio.to_thread(
            robots.tell,
            f"渠道已暂停 / channel paused: {self.name}",
            [reason, f"暂停 / for {seconds / 60:,.0f} min", f"活动 / run: {self.run['run_id']}"],
            about=f"paused {outbox.pace_key(self.name, self.channel.account)}",
        )

    async def _release(self, units: Iterable[Unit | _Claimed]) -> None:
        ids = [message["message_id"] for unit in units for message in unit.messages]
        if ids:
            await self.db(lambda connection: self.lane.release(connection, ids))

    async def _drain(self) -> None:
        """Until every call that was written down is made and answered, or given up, and that is recorded."""
        await self.ready.join()
        await self._record()
        given_up, self.given_up = self.given_up, []
        await self._release(given_up)
        self._settled(len(given_up))

    async def _record_loop(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.answered.wait(), RECORD_EVERY_SECONDS)
            self.answered.clear()
            await self._record()

    async def _record(self) -> None:
        async with self.recording:  # whoever waits here knows that earlier answers are in the database
            await self._record_now()

    async def _record_now(self) -> None:
        results, self.results = self.results, []
        answers = [
            self.lane.answer(message, unit.attempt_numbers[message["message_id"]], outcome, unit.billed_parts)
            for unit, outcome in results
            for message in unit.messages
        ]
        if answers:
            await self.db(lambda connection: self.lane.record_answers(connection, answers))
            self.sent += sum(answer.state == "accepted" for answer in answers)
            self._settled(len(results))

    async def _progress_loop(self) -> None:
        begun = time.monotonic()
        while True:
            await asyncio.sleep(self.delivery.options.progress_seconds)
            remaining = await self.db(self._remaining)
            speed = self.sent / (time.monotonic() - begun)
            eta = f"{remaining / speed:,.0f} s left" if speed else "no message accepted yet"
            log.info("%s %s: %s accepted by this worker, %.0f/s, %s remaining, %s",
                     self.run["run_id"], self.name, f"{self.sent:,}", speed, f"{remaining:,}", eta)  # fmt: skip

    @contextlib.asynccontextmanager
    async def _background(self, work: Any) -> Any:
        """Run a loop beside the block. When the loop fails the block is cancelled: nothing is sent that cannot be recorded."""
        owner = asyncio.current_task()
        task = asyncio.create_task(work)
        task.add_done_callback(
            lambda done: owner.cancel() if owner and not done.cancelled() and done.exception() else None
        )
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _rendered(self, group: Sequence[_Claimed]) -> list[Unit]:
        """The calls of a group; what cannot be rendered fails here, alone."""
        units, failures = [], {}
        for claimed in group:
            try:
                units.append(self._unit(claimed.messages, claimed.clear))
            except RenderError as error:
                failures.update({message["message_id"]: str(error) for message in claimed.messages})
        if failures:
            log.warning("%s %s: %s messages cannot be rendered", self.run["run_id"], self.name, f"{len(failures):,}")
            await self.db(partial(self.lane.fail, reasons=failures))
        return units

    def _unit(self, messages: list[Row], clear: dict[str, str]) -> Unit:
        first = messages[0]
        key = first["group_key"] or first["message_key"]
        addresses = tuple(
            clear.get(row["address"], "") if is_token(row["address"]) else row["address"] for row in messages
        )
        if not all(addresses):
            raise RenderError("the address was erased")
        config, language = self.run["config"], first["language"]
        member = first["variables"].get("member")
        link = signed_link(config["link_base_url"], "r", key)
        unsubscribe = signed_link(config["link_base_url"], "u", key)
        order, coupon = first["variables"].get("order"), first["variables"].get("coupon")
        if coupon and coupon.get("code") and coupon["code"] not in clear:
            raise RenderError("the coupon's code is not in the vault any more")
        variables = {
            **first["variables"],
            "member": member_values(member, clear.get((member or {}).get("name") or "")),
            "coupon": coupon and {**coupon, "code": clean(clear.get(coupon.get("code") or ""))},
            "order": order and {name: clean(value) for name, value in order.items()},
            "shop": {"name": config["brand"]["name"][language], "contact": config["brand"]["contact"][language]},
            "link": link,
            "unsubscribe_link": unsubscribe,
        }
        content = self._template(first["template"]).render(language, variables)
        parts = segments(content.text) if self.lane.kind.family == "sms" else 1
        return Unit(messages, Call(key, addresses, content, link, unsubscribe), parts)

    def _template(self, name: str) -> CompiledTemplate:
        if name not in self._templates:
            source = frozen_template(self.run["config"], self.channel.templates, name)
            self._templates[name] = CompiledTemplate(source, SmsFrame.of(self.name, self.channel))
        return self._templates[name]
