"""The outbox: every message one row that goes out once. States, leases and recovery live in PostgreSQL, not in a worker.

queued -> sending -> accepted -> delivered | failed | expired | suppressed | unknown. A worker leases rows, writes down
each attempt just before its call, and records the answer only while the row is still its own.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
import psycopg

from nightmarket import dates
from nightmarket.campaigns.audience import (
    ApprovalVoid,
    RunRefused,
    audit,
    config_hash,
    current_content_hash,
    frozen_template,
    lock_run,
)
from nightmarket.campaigns.config import Channel, Frequency, SendWindow
from nightmarket.campaigns.rendering import MEMBER_FACTS
from nightmarket.campaigns.stocks import require_approved
from nightmarket.channels.base import ADDRESS_KINDS, Outcome
from nightmarket.channels.registry import CHANNELS
from nightmarket.settings import get_settings
from nightmarket.warehouse import Row, advisory_lock, connect, run_sql

log = logging.getLogger(__name__)
MAX_RETRY_SECONDS = 900.0
QUESTIONS_AT_ONCE = 500
FRESH_SECONDS = 5  # how old the answers of a claim (consent, following, caps) may become before the call
AHEAD_SECONDS = 1  # of them a claim may wait for the one before it
STEP = "send"  # the step of a campaign; journeys have several
SECOND_STEP = "send-2"  # over the next channel, when no receipt came for the first
REPEATABLE = [name for name, channel in CHANNELS.items() if channel.is_repeatable]
FAMILIES = {
    "channels": list(CHANNELS),
    "families": [channel.family for channel in CHANNELS.values()],
}  # as SQL takes them


@dataclass(frozen=True)
class Answer:
    """One message's outcome, ready to be recorded."""

    message_id: int
    attempt_number: int
    outcome: Outcome
    state: str
    not_before: datetime
    address: str
    billed_parts: int


@dataclass(frozen=True)
class Quota:
    """How many calls an account may make now; when fewer than asked for, for how long not, and why."""

    granted: int
    seconds: float
    reason: str


def enqueue(run_id: str) -> int:
    """Put one message for every targeted member into the outbox; returns how many messages the run now has.

    Only an approved run, only for the approved content and coupon, only when no coupon is in doubt. Repeating it adds nothing.
    Raises RunRefused, ApprovalVoid.
    """
    with connect(application_name="nightmarket-outbox") as connection:
        run = lock_run(connection, run_id)
        if run["state"] not in ("approved", "sending", "sent"):
            raise RunRefused(f"run {run_id} is {run['state']}, not approved; nothing is enqueued.")
        if run["approved_hash"] != current_content_hash(connection, run):
            raise ApprovalVoid(f"run {run_id}: audience or content changed after the approval; nothing is enqueued.")
        require_approved(connection, run)
        open_coupons = connection.execute(
            "SELECT count(*) AS n FROM push.coupons WHERE run_id = %s AND state IN ('reserved', 'unknown')", (run_id,)
        ).fetchone()
        if open_coupons and open_coupons["n"]:
            raise RunRefused(f"run {run_id}: {open_coupons['n']} coupons are not issued yet; issue them first.")
        if dates.now() >= run["expires_at"]:
            raise RunRefused(f"run {run_id} expired at {run['expires_at']:%Y-%m-%d %H:%M}; nothing is enqueued.")
        run_sql(connection, "push/enqueue.sql", _enqueue_parameters(run))
        if run["state"] == "approved":
            connection.execute("UPDATE push.campaign_runs SET state = 'sending' WHERE run_id = %s", (run_id,))
        counts = message_counts(connection, run_id)
        audit(connection, "outbox", "enqueue", run_id, counts)
    total = sum(counts.values())
    log.info("run %s: %s messages in the outbox", run_id, f"{total:,}")
    return total


def _enqueue_parameters(run: Row) -> dict[str, Any]:
    config, campaign = run["config"], run["config"]["campaign"]
    names = list(config["channels"])
    groups = [name for name in names if CHANNELS[name].is_group]
    window, now = SendWindow.model_validate(campaign["send_window"]), dates.now()
    is_live = run["mode"] == "live"
    return {
        "run_id": run["run_id"],
        "key_prefix": f"{run['campaign']}/{run['as_of']}" if is_live else run["run_id"],
        "step": STEP,
        "as_of": run["as_of"],
        "purpose": campaign["purpose"],
        "channels": names,
        "accounts": [config["channels"][name]["account"] for name in names],
        "variants": [variant["name"] for variant in campaign["variants"]],
        "templates": [variant["template"] for variant in campaign["variants"]],
        "wants_facts": any(
            _says_facts(config, name, variant["template"]) for name in names for variant in campaign["variants"]
        ),
        "group_channel": groups[0] if groups else "",
        "group_size": config["channels"][groups[0]]["group_size"] if groups else 1,
        "now_at": now,
        "opens": window.opens,
        "closes": window.closes,
        "house_zone": get_settings().zone.key,
        "can_fall_back": (campaign.get("fallback") or {}).get("on_refusal", False),
        "expires_at": run["expires_at"],
    }


def _says_facts(config: Mapping[str, Any], channel: str, template: str) -> bool:
    source = frozen_template(config, config["channels"][channel]["templates"], template)
    return any(source.used_variables(language) & MEMBER_FACTS for language in source.parts)


def recover(as_of_at: datetime | None = None) -> dict[str, int]:
    """Take back what dead workers held (lease over) and expire what is too late; counts by new state.

    Also ends what came back to a cancelled run: a call that was open when it was cancelled and must be tried again.
    """
    with connect(application_name="nightmarket-outbox") as connection:
        now = as_of_at or dates.now()
        counts = recover_on(connection, now)
        for row in run_sql(connection, "push/cancel.sql", {"run_id": None, "now_at": now}):
            counts[row["state"]] = counts.get(row["state"], 0) + row["message_count"]
        return counts


def recover_on(connection: psycopg.Connection[Row], now: datetime) -> dict[str, int]:
    rows = run_sql(connection, "push/recover.sql", {"now_at": now, "repeatable": REPEATABLE})
    counts = {row["state"]: row["message_count"] for row in rows}
    if counts:
        log.warning("outbox recovered: %s", ", ".join(f"{count:,} {state}" for state, count in counts.items()))
    return counts


def questions(connection: psycopg.Connection[Row], channels: Mapping[str, Channel], settled: timedelta) -> list[Row]:
    """The next open messages to ask their platforms about; calls younger than `settled` may still be answered."""
    names = [name for name in channels if CHANNELS[name].can_ask]
    now = dates.now()
    return run_sql(
        connection,
        "push/questions.sql",
        {
            "now_at": now,
            "channels": names,
            "intervals": [channels[name].ask_every_seconds for name in names],
            "settled_before": now - settled,
            "how_many": QUESTIONS_AT_ONCE,
        },
    )


def settle(connection: psycopg.Connection[Row], said: Sequence[tuple[Row, Outcome]]) -> dict[str, int]:
    """Write down what the platforms said; counts by new state. What they could not say stays as it is."""
    clear = [(row, outcome) for row, outcome in said if outcome.kind in ("accepted", "refused", "retry")]
    rows = run_sql(
        connection,
        "push/settle.sql",
        {
            "now_at": dates.now(),
            "message_ids": [row["message_id"] for row, _outcome in clear],
            "attempt_numbers": [row["attempt_number"] for row, _outcome in clear],
            "outcomes": [outcome.kind for _row, outcome in clear],
            "platform_ids": [outcome.platform_message_id for _row, outcome in clear],
            "texts": [f"{outcome.code}: {outcome.message}"[:300] for _row, outcome in clear],
        },
    )
    for row, outcome in clear:
        if outcome.suppress:
            family = CHANNELS[row["channel"]].family
            suppress(connection, family, row["address"], outcome.suppress, "delivery", outcome.suppress_days)
    return {row["state"]: row["message_count"] for row in rows}


def queue_second_messages() -> dict[str, int]:
    """Go on over the next channel where a campaign asks for it and no receipt came in time; new messages by run."""
    with connect(application_name="nightmarket-outbox") as connection:
        rows = run_sql(
            connection,
            "push/second_messages.sql",
            {
                "now_at": dates.now(),
                "reporting": [name for name, channel in CHANNELS.items() if channel.reports_delivery],
                "step": STEP,
                "second_step": SECOND_STEP,
                "house_zone": get_settings().zone.key,
            },
        )
        counts = {row["run_id"]: row["message_count"] for row in rows}
        for run_id, count in counts.items():
            audit(connection, "outbox", "second messages", run_id, {"messages": count})
    return counts


def cancel(run_id: str, by: str, reason: str) -> int:
    """Stop a run: what is still queued is never sent, reserved coupons are free again; returns the cancelled messages."""
    with connect(application_name="nightmarket-outbox") as connection:
        run = lock_run(connection, run_id)
        if run["state"] in ("rejected", "cancelled", "failed", "finished"):
            raise RunRefused(f"run {run_id} is {run['state']}; there is nothing to cancel.")
        count = cancel_on(connection, run_id)
        audit(connection, by, "cancel", run_id, {"reason": reason, "messages": count})
    return count


def cancel_on(connection: psycopg.Connection[Row], run_id: str) -> int:
    """End a locked run in this transaction, as cancel() says. Calls that are being made are answered; none is begun.

    A change that nobody has approved yet is taken back: what went out is what was approved.
    """
    now = dates.now()
    row = connection.execute(
        "UPDATE push.campaign_runs SET state = 'cancelled', paused_at = NULL, paused_by = NULL, pause_reason = NULL"
        " WHERE run_id = %s RETURNING previous_config",
        (run_id,),
    ).fetchone()
    if row and row["previous_config"]:
        connection.execute(
            "UPDATE push.campaign_runs SET config = previous_config, config_hash = %s, content_hash = approved_hash,"
            " previous_config = NULL WHERE run_id = %s",
            (config_hash(row["previous_config"]), run_id),
        )
    rows = run_sql(connection, "push/cancel.sql", {"run_id": run_id, "now_at": now})
    run_sql(connection, "push/coupons_release.sql", {"run_id": run_id, "now_at": now})
    return sum(row["message_count"] for row in rows)


def resolve(message_key: str, was_sent: bool, by: str, reason: str) -> str:
    """A person decides about an unknown message: it arrived, or it may be sent again; returns its new state.

    Past its expiry it is not sent again but failed. Raises RunRefused when the message is not unknown.
    """
    with connect(application_name="nightmarket-outbox") as connection:
        now = dates.now()
        row = connection.execute(
            """
            UPDATE push.messages AS m
            SET state = CASE WHEN %(was_sent)s THEN 'accepted' WHEN m.expires_at <= %(now)s THEN 'failed' ELSE 'queued' END,
                accepted_at = CASE WHEN %(was_sent)s THEN coalesce(
                    (SELECT max(a.started_at) FROM push.attempts AS a WHERE a.message_id = m.message_id AND a.outcome = 'unknown'),
                    m.updated_at
                ) END, lease_owner = NULL, updated_at = %(now)s,
                last_error = CASE WHEN NOT %(was_sent)s THEN 'not sent, a person says' END
            WHERE m.message_key = %(key)s AND m.state = 'unknown'
            RETURNING m.message_id, m.run_id, m.state
            """,
            {"was_sent": was_sent, "now": now, "key": message_key},
        ).fetchone()
        if row is None:
            raise RunRefused(f"message {message_key!r} is not in state unknown (or does not exist).")
        connection.execute(
            "UPDATE push.attempts SET outcome = %s, platform_message = %s WHERE message_id = %s AND outcome = 'unknown'",
            ("accepted" if was_sent else "retry", f"decided by a person: {reason}"[:300], row["message_id"]),
        )
        connection.execute("DELETE FROM push.calls_before_restore WHERE message_key = %s", (message_key,))
        if row["state"] == "queued":
            connection.execute(
                "UPDATE push.campaign_runs SET state = 'sending' WHERE run_id = %s AND state = 'sent'", (row["run_id"],)
            )
        audit(connection, by, "resolve", message_key, {"was_sent": was_sent, "reason": reason, "state": row["state"]})
    return str(row["state"])


def resume(channel: str, account: str, by: str) -> bool:
    """Lift the pause of a channel after its cause is gone; False when it was not paused."""
    with connect(application_name="nightmarket-outbox") as connection:
        lifted = connection.execute(
            "UPDATE push.pace SET paused_until = NULL, pause_reason = NULL WHERE account = %s AND paused_until IS NOT NULL",
            (pace_key(channel, account),),
        ).rowcount
        if lifted:
            audit(connection, by, "resume", pace_key(channel, account), {})
    return bool(lifted)


def message_counts(connection: psycopg.Connection[Row], run_id: str) -> dict[str, int]:
    """Messages of a run by state."""
    rows = connection.execute(
        "SELECT state, count(*) AS n FROM push.messages WHERE run_id = %s GROUP BY state ORDER BY state", (run_id,)
    )
    return {row["state"]: row["n"] for row in rows}


def pace_key(channel: str, account: str) -> str:
    return f"{channel}:{account}"


class Lane:
    """One channel of one run as one worker sees it: claiming, recording attempts and answers, pace and pauses."""

    def __init__(self, run: Row, name: str, channel: Channel, worker: str, lease: timedelta) -> None:
        self.run_id, self.name, self.channel, self.worker = run["run_id"], name, channel, worker
        self._config_hash = run["config_hash"]
        self.kind = CHANNELS[name]
        campaign = run["config"]["campaign"]
        self._campaign = campaign["campaign"]
        self._frequency = Frequency.model_validate(run["config"]["frequency"])
        self._caps = Frequency.model_validate(campaign["caps"]) if campaign.get("caps") else None
        self._window = SendWindow.model_validate(campaign["send_window"])
        self._lease = lease
        self._pace = pace_key(name, channel.account)

    def claim(self, connection: psycopg.Connection[Row], size: int) -> list[Row]:
        """Messages this worker may send now, oldest first; for a group channel all receivers of one call.

        Of single messages at most what the channel sends in a few seconds: who says no after the claim is asked no more.
        """
        if self.kind.is_group:
            return self._claim_group(connection)
        fresh = int(self.channel.rate_per_second * (FRESH_SECONDS - AHEAD_SECONDS))
        return self._claim(connection, min(size, max(1, fresh)), None, is_repeat=False)

    def _claim_group(self, connection: psycopg.Connection[Row]) -> list[Row]:
        """Whole groups only: an advisory lock keeps a second worker from taking a part of one."""
        keys = connection.execute(
            """
            SELECT m.group_key, min(m.message_id) AS first_id FROM push.messages AS m
            WHERE m.state = 'queued' AND m.channel = %s AND m.account = %s AND m.not_before <= %s AND m.run_id = %s
            GROUP BY m.group_key ORDER BY first_id LIMIT 20
            """,
            (self.name, self.channel.account, dates.now(), self.run_id),
        ).fetchall()
        for row in keys:
            key = row["group_key"]
            if not advisory_lock(connection, f"group:{key}", wait=False):
                continue
            doubt = connection.execute(
                """
                SELECT EXISTS (
                    SELECT 1 FROM push.messages AS m JOIN push.attempts AS a ON a.message_id = m.message_id
                    WHERE m.group_key = %s AND (a.outcome IS NULL OR a.outcome IN ('unknown', 'accepted'))
                ) AS is_repeat
                """,
                (key,),
            ).fetchone()
            assert doubt is not None
            claimed = self._claim(connection, self.channel.group_size or 1, key, is_repeat=doubt["is_repeat"])
            if len(claimed) == 1:
                self.fail(
                    connection,
                    {claimed[0]["message_id"]: "alone_in_group: a mass send takes two receivers"},
                    "suppressed",
                )
            elif claimed:
                return claimed
        return []

    def _claim(
        self, connection: psycopg.Connection[Row], size: int, group_key: str | None, *, is_repeat: bool
    ) -> list[Row]:
        now, zone = dates.now(), get_settings().zone
        self._take_turns(connection)
        rows = run_sql(
            connection,
            "push/claim.sql",
            {
                "run_id": self.run_id,
                "config_hash": self._config_hash,
                "channel": self.name,
                "account": self.channel.account,
                "family": self.kind.family,
                "identity_kind": ADDRESS_KINDS[self.kind.family],
                "worker": self.worker,
                "now_at": now,
                "lease_until": now + self._lease,
                "claim_size": size,
                "group_key": group_key,
                "is_repeat": is_repeat,
                "implied_consent": self.channel.consent == "following",
                "cap_messages": self._frequency.messages,
                "cap_since": now - timedelta(days=self._frequency.days),
                "campaign": self._campaign,
                "campaign_cap": self._caps.messages if self._caps else None,
                "campaign_since": now - timedelta(days=self._caps.days) if self._caps else None,
                "opens": self._window.opens,
                "closes": self._window.closes,
                "house_zone": zone.key,
                "day_limit": self.channel.rule_value("day_messages"),
                "day_start": dates.day_start(now.astimezone(zone).date(), zone),
                "month_limit": self.channel.rule_value("month_messages"),
                "month_start": dates.day_start(now.astimezone(zone).date().replace(day=1), zone),
                "window_hours": self.channel.rule_value("window_hours"),
                "window_limit": self.channel.rule_value("window_messages"),
            },
        )
        return sorted((row for row in rows if row["state"] == "sending"), key=lambda row: row["message_id"])

    def _take_turns(self, connection: psycopg.Connection[Row]) -> None:
        """Until the transaction ends, no other run claims: two that ask at once about the same person would both find the caps free.

        Workers of one run claim side by side, as each of its messages is for somebody else; so does the only run there is.
        """
        other = connection.execute(
            "SELECT FROM push.campaign_runs WHERE state = 'sending' AND run_id <> %s LIMIT 1", (self.run_id,)
        ).fetchone()
        advisory_lock(connection, "claims", shared=other is None)

    def record_attempts(
        self, connection: psycopg.Connection[Row], message_ids: Sequence[int]
    ) -> tuple[dict[int, int], int]:
        """Message id -> attempt number, for the messages that are still ours, not expired, and inside their receiver's send
        window; only these may be called. And the number that the log book writes beside them (0 when there is none)."""
        now = dates.now()
        rows = run_sql(
            connection,
            "push/attempts.sql",
            {
                "message_ids": list(message_ids),
                "worker": self.worker,
                "config_hash": self._config_hash,
                "now_at": now,
                "lease_until": now + self._lease,
                "opens": self._window.opens,
                "closes": self._window.closes,
                "house_zone": get_settings().zone.key,
            },
        )
        numbers = {row["message_id"]: row["attempt_number"] for row in rows}
        return numbers, max((row["last_number"] for row in rows), default=0)

    def answer(self, message: Row, attempt_number: int, outcome: Outcome, billed_parts: int = 1) -> Answer:
        """The state a message takes after an outcome. `billed_parts`: a long SMS costs as much as several."""
        state = _STATES[outcome.kind]
        if outcome.kind == "unknown" and self.kind.is_repeatable and not outcome.is_final:
            state = "queued"  # the platform recognises the identical call
        delay = 0.0
        if outcome.kind in ("retry", "unknown"):  # again and again until the message expires, ever more slowly
            delay = max(outcome.retry_after, min(2.0**attempt_number, MAX_RETRY_SECONDS))
        return Answer(
            message["message_id"],
            attempt_number,
            outcome,
            state,
            dates.now() + timedelta(seconds=delay),
            message["address"],
            billed_parts,
        )

    def record_answers(self, connection: psycopg.Connection[Row], answers: Sequence[Answer]) -> None:
        now = dates.now()
        run_sql(
            connection,
            "push/answers.sql",
            {
                "worker": self.worker,
                "now_at": now,
                "answers": orjson.dumps(
                    [  # arrays of every column would take four times as long to write
                        {
                            "message_id": answer.message_id,
                            "attempt_number": answer.attempt_number,
                            "outcome": _OUTCOMES[answer.outcome.kind],
                            "http_status": answer.outcome.http_status,
                            "code": answer.outcome.code,
                            "text": answer.outcome.message,
                            "platform_id": answer.outcome.platform_message_id,
                            "state": answer.state,
                            "not_before": answer.not_before,
                            "billed_parts": answer.billed_parts,
                        }
                        for answer in answers
                    ]
                ).decode(),
            },
        )
        for answer in answers:
            if answer.outcome.suppress:
                suppress(connection, self.kind.family, answer.address, answer.outcome.suppress, "delivery",
                         answer.outcome.suppress_days)  # fmt: skip

    def release(self, connection: psycopg.Connection[Row], message_ids: Sequence[int]) -> None:
        """Give back messages whose call was certainly not made."""
        now = dates.now()
        connection.execute(
            """
            UPDATE push.attempts SET finished_at = %s, outcome = 'retry', platform_message = 'no call was made'
            WHERE message_id = ANY(%s) AND worker = %s AND finished_at IS NULL
            """,
            (now, list(message_ids), self.worker),
        )
        connection.execute(
            """
            UPDATE push.messages SET state = 'queued', lease_owner = NULL, lease_until = NULL, updated_at = %s
            WHERE message_id = ANY(%s) AND lease_owner = %s AND state = 'sending'
            """,
            (now, list(message_ids), self.worker),
        )

    def fail(self, connection: psycopg.Connection[Row], reasons: dict[int, str], state: str = "failed") -> None:
        """End messages that cannot be sent at all (no address, template error), without a call."""
        connection.execute(
            """
            UPDATE push.messages AS m SET state = %s, last_error = u.reason, lease_owner = NULL, lease_until = NULL, updated_at = %s
            FROM unnest(%s::bigint[], %s::text[]) AS u (message_id, reason)
            WHERE m.message_id = u.message_id AND m.lease_owner = %s AND m.state = 'sending'
            """,
            (state, dates.now(), list(reasons), list(reasons.values()), self.worker),
        )

    def prepare_pace(self, connection: psycopg.Connection[Row]) -> None:
        """Make the account's pace row, with the configured rate."""
        connection.execute(
            """
            INSERT INTO push.pace (account, rate_per_second, next_at) VALUES (%s, %s, clock_timestamp())
            ON CONFLICT (account) DO UPDATE SET rate_per_second = excluded.rate_per_second
            WHERE push.pace.rate_per_second <> excluded.rate_per_second
            """,
            (self._pace, self.channel.rate_per_second),
        )

    def reserve_slots(self, connection: psycopg.Connection[Row], slots: int, rate: float) -> float:
        """Reserve the next `slots` calls of the account; returns the seconds until the first one."""
        row = run_sql(connection, "push/pace.sql", {"account": self._pace, "slots": slots, "rate": rate})[0]
        return float(row["starts_in"])

    @property
    def has_quota(self) -> bool:
        return self.channel.calls_per_day is not None or self.channel.calls_per_month is not None

    def take_quota(self, connection: psycopg.Connection[Row], calls: int) -> Quota:
        """Count `calls` in the account's windows, before they are made; fewer are granted when a window is almost used up.

        Counted calls that are not made after all stay counted: the platform's own count is never exceeded.
        """
        today = dates.now().astimezone(get_settings().zone).date()
        month = today.replace(day=1)
        windows = [
            ("day", today, today + timedelta(days=1), self.channel.calls_per_day),
            ("month", month, (month + timedelta(days=32)).replace(day=1), self.channel.calls_per_month),
        ]
        quota = Quota(calls, 0.0, "")
        for period, start, end, most in windows:
            if most is None:
                continue
            connection.execute(
                "INSERT INTO push.quota_counts (account, period, window_start, call_count) VALUES (%s, %s, %s, 0)"
                " ON CONFLICT (account, period, window_start) DO NOTHING",
                (self._pace, period, start),
            )
            row = connection.execute(
                "SELECT call_count FROM push.quota_counts WHERE account = %s AND period = %s AND window_start = %s FOR UPDATE",
                (self._pace, period, start),
            ).fetchone()
            assert row is not None
            if row["call_count"] + quota.granted > most:
                seconds = (dates.day_start(end, get_settings().zone) - dates.now()).total_seconds()
                reason = f"the quota of {most:,} calls a {period} is used up (calls_per_{period} in channels.yaml)"
                quota = Quota(max(0, most - row["call_count"]), seconds, reason)
        for period, start, _end, most in windows:
            if most is not None:
                connection.execute(
                    "UPDATE push.quota_counts SET call_count = call_count + %s WHERE account = %s AND period = %s AND window_start = %s",
                    (quota.granted, self._pace, period, start),
                )
        return quota

    def pause(self, connection: psycopg.Connection[Row], seconds: float, reason: str) -> None:
        """Stop this channel for all workers, for a reason a person can read."""
        now = dates.now()
        connection.execute(
            "UPDATE push.pace SET paused_until = %s, pause_reason = %s WHERE account = %s",
            (now + timedelta(seconds=seconds), reason[:300], self._pace),
        )
        audit(connection, "delivery", "pause", self._pace, {"reason": reason[:300], "seconds": round(seconds)})

    def paused(self, connection: psycopg.Connection[Row]) -> str:
        """Why the channel is paused now, or ""."""
        row = connection.execute(
            "SELECT paused_until, pause_reason FROM push.pace WHERE account = %s AND paused_until > %s",
            (self._pace, dates.now()),
        ).fetchone()
        if row is None:
            return ""
        until = row["paused_until"].astimezone(get_settings().zone)
        return f"{self.name} is paused until {until:%Y-%m-%d %H:%M}: {row['pause_reason']}"


_STATES = {
    "accepted": "accepted",
    "waiting": "waiting_staff",
    "refused": "failed",
    "retry": "queued",
    "pause": "queued",
    "unknown": "unknown",
}
_OUTCOMES = {
    "accepted": "accepted",
    "waiting": "accepted",  # the platform has it; whether an employee lets it go is another question
    "refused": "refused",
    "retry": "retry",
    "pause": "retry",
    "unknown": "unknown",
}


def suppress(
    connection: psycopg.Connection[Row], family: str, address: str, reason: str, source: str, days: int | None
) -> None:
    """Never (or for `days`) send to this address on this channel family again: an event of the suppression log."""
    now = dates.now()
    connection.execute(
        """
        INSERT INTO core.suppression_events
            (source_id, event_id, channel, kind, address, is_suppressed, reason, origin, evidence, occurred_at, until)
        VALUES (%(source)s, %(address)s || '/' || %(reason)s || '/' || %(now)s::text, %(family)s, core.address_kind(%(family)s),
                %(address)s, TRUE, %(reason)s, 'platform', 'the answer to a message', %(now)s, %(until)s)
        ON CONFLICT (source_id, event_id, channel) DO NOTHING
        """,
        {"source": source, "address": address, "reason": reason, "family": family, "now": now,
         "until": now + timedelta(days=days) if days else None},
    )  # fmt: skip


def postpone(connection: psycopg.Connection[Row], run_id: str, window: SendWindow) -> None:
    """Let every message that is due wait for the send window on its receiver's clock."""
    connection.execute(
        """
        UPDATE push.messages AS m SET not_before = o.opens_at
        FROM (
            SELECT q.message_id, push.next_opening(%(now)s, %(opens)s::time, %(closes)s::time, coalesce(q.time_zone, %(zone)s)) AS opens_at
            FROM push.messages AS q WHERE q.run_id = %(run_id)s AND q.state = 'queued' AND q.not_before <= %(now)s
        ) AS o
        WHERE m.message_id = o.message_id AND o.opens_at > %(now)s
        """,
        {"now": dates.now(), "opens": window.opens, "closes": window.closes, "zone": get_settings().zone.key,
         "run_id": run_id},
    )  # fmt: skip


def channels_due(connection: psycopg.Connection[Row], run_id: str, channels: Sequence[str]) -> list[str]:
    """Which of `channels` have a message of this run that may go out now."""
    rows = connection.execute(
        "SELECT DISTINCT m.channel FROM push.messages AS m"
        " JOIN push.campaign_runs AS r ON r.run_id = m.run_id AND r.state = 'sending' AND r.paused_at IS NULL"
        " WHERE m.run_id = %s AND m.state = 'queued' AND m.channel = ANY(%s) AND m.not_before <= %s ORDER BY m.channel",
        (run_id, list(channels), dates.now()),
    )
    return [row["channel"] for row in rows]


def runs_to_deliver(connection: psycopg.Connection[Row], run_id: str | None) -> list[Row]:
    """Runs that have something queued or in flight and are not paused; one run, or all of them, oldest first."""
    return connection.execute(
        """
        SELECT r.* FROM push.campaign_runs AS r
        WHERE r.state = 'sending' AND r.paused_at IS NULL AND (%(run_id)s::text IS NULL OR r.run_id = %(run_id)s::text)
        ORDER BY r.created_at, r.run_id
        """,
        {"run_id": run_id},
    ).fetchall()


def may_go_on(connection: psycopg.Connection[Row], run: Row) -> bool:
    """Whether the run still sends what it was read with: nobody has paused, cancelled or changed it, and its approval stands."""
    return any(now["config_hash"] == run["config_hash"] for now in runs_to_deliver(connection, run["run_id"]))


def open_runs() -> list[str]:
    """Live runs that still send, or whose effect is still being measured; oldest first."""
    with connect(application_name="nightmarket-outbox") as connection:
        rows = connection.execute(
            "SELECT run_id FROM push.campaign_runs WHERE mode = 'live' AND state IN ('sending', 'sent') ORDER BY created_at, run_id"
        ).fetchall()
    return [row["run_id"] for row in rows]


def close_run(connection: psycopg.Connection[Row], run_id: str) -> bool:
    """Call the run sent when nothing of it is queued or in flight any more."""
    return bool(
        connection.execute(
            """
            UPDATE push.campaign_runs AS r SET state = 'sent', finished_at = %s
            WHERE r.run_id = %s AND r.state = 'sending' AND NOT EXISTS (
                SELECT 1 FROM push.messages AS m WHERE m.run_id = r.run_id AND m.state IN ('queued', 'sending')
            )
            """,
            (dates.now(), run_id),
        ).rowcount
    )
