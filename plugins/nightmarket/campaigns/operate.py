"""Operating a run: pause, resume, cancel, extend, run again. What each does in which state stands in docs/runbook.md#operate_run.

Every action locks the run, writes who did it and why into push.audit_log, and can be tried first: with `dry_run` the same
work is done and rolled back, so that what is said is what would happen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

import psycopg
from psycopg.types.json import Jsonb

from nightmarket import dates
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import (
    Plan,
    RunRefused,
    audience_checksum,
    audit,
    config_hash,
    content_hash,
    lock_run,
)
from nightmarket.campaigns.config import ApprovalRule, SendWindow, load_channels
from nightmarket.campaigns.policy import window_findings
from nightmarket.settings import get_settings
from nightmarket.warehouse import Row, connect, run_sql

Action = Literal["pause", "resume", "cancel", "extend", "rerun"]
ACTIONS: tuple[Action, ...] = get_args(Action)
ALLOWED: dict[Action, tuple[str, ...]] = {
    "pause": ("approved", "sending"),
    "resume": ("approved", "sending"),
    "cancel": ("building", "awaiting_approval", "approved", "sending", "sent"),
    "extend": ("awaiting_approval", "approved", "sending"),
    "rerun": ("rejected", "cancelled", "failed"),
}
MAX_EXPIRY_HOURS = 24 * 30  # as expires_after_hours of a campaign file


@dataclass(frozen=True)
class Done:
    """What an action did (or, tried, would do), in words; `content_hash` when a decision is asked for again."""

    zh: str
    en: str
    content_hash: str = ""
    needs_approval: bool = False  # a person has to decide, not the policy
    answer_within_hours: float = 0.0  # and how long that person may think
    start: dict[str, Any] | None = None  # rerun: what to start push_campaign with

    def __str__(self) -> str:
        return f"{self.en}\n{self.zh}"


def operate(
    run_id: str,
    action: str,
    by: str,
    reason: str,
    *,
    dry_run: bool,
    hours: int | None = None,
    window: SendWindow | None = None,
) -> Done:
    """Do one of ACTIONS to a run. `hours` and `window` belong to extend: the new expires_after_hours, the new send window.

    Raises RunRefused in one sentence when the run's state, or a rule, does not allow it; then nothing was changed.
    """
    if action not in ACTIONS:
        raise RunRefused(f"there is no action {action!r}; there are {', '.join(ACTIONS)}.")
    if not reason.strip():
        raise RunRefused("say why (reason): the audit log keeps it.")
    if (hours is not None or window is not None) != (action == "extend"):
        raise RunRefused("hours and a send window belong to extend, and extend needs one of them.")
    with _run(run_id, action, dry_run) as (connection, run):
        match action:
            case "pause":
                return _pause(connection, run, by, reason)
            case "resume":
                return _resume(connection, run, by, reason)
            case "cancel":
                return _cancel(connection, run, by, reason)
            case "extend":
                return _extend(connection, run, by, reason, hours, window)
            case _:
                return _rerun(connection, run, by, reason)


def show(run_id: str) -> tuple[Row, list[Row]]:
    """(progress, audit log) of a run, as include/sql/console/run_progress.sql and run_audit.sql give them."""
    with connect(application_name="nightmarket-operate") as connection:
        rows = run_sql(connection, "console/run_progress.sql", {"run_id": run_id, "now_at": dates.now()})
        if not rows:
            raise RunRefused(f"there is no run {run_id!r}.")
        return rows[0], run_sql(connection, "console/run_audit.sql", {"run_id": run_id})


@contextmanager
def _run(run_id: str, action: Any, dry_run: bool) -> Iterator[tuple[psycopg.Connection[Row], Row]]:
    """The locked run in a state that allows the action; rolled back at the end when it is only tried."""
    with (
        connect(autocommit=True, application_name="nightmarket-operate") as connection,
        connection.transaction(force_rollback=dry_run),
    ):
        run = lock_run(connection, run_id)
        if run["state"] not in ALLOWED[action]:
            raise RunRefused(
                f"run {run_id} is {run['state']}; {action} is for runs that are {' or '.join(ALLOWED[action])}."
            )
        yield connection, run


def _remaining(connection: psycopg.Connection[Row], run_id: str) -> int:
    counts = outbox.message_counts(connection, run_id)
    return counts.get("queued", 0) + counts.get("sending", 0)


def _pause(connection: psycopg.Connection[Row], run: Row, by: str, reason: str) -> Done:
    run_id = run["run_id"]
    if run["paused_at"]:
        raise RunRefused(f"run {run_id} is paused already, by {run['paused_by']}: {run['pause_reason']}")
    connection.execute(
        "UPDATE push.campaign_runs SET paused_at = %s, paused_by = %s, pause_reason = %s WHERE run_id = %s",
        (dates.now(), by, reason[:300], run_id),
    )
    count = _remaining(connection, run_id)
    audit(connection, by, "pause", run_id, {"reason": reason, "messages": count})
    until = f"{run['expires_at'].astimezone(get_settings().zone):%Y-%m-%d %H:%M}"
    return Done(
        f"{run_id} 已暂停：{count:,} 条消息留在队列里，正在进行的调用会完成；{until} 仍会过期。",
        f"{run_id} is paused: {count:,} messages stay queued, calls in flight are finished; it still expires at {until}.",
    )


def _resume(connection: psycopg.Connection[Row], run: Row, by: str, reason: str) -> Done:
    run_id = run["run_id"]
    if not run["paused_at"]:
        raise RunRefused(f"run {run_id} is not paused.")
    if dates.now() >= run["expires_at"]:
        raise RunRefused(f"run {run_id} expired while it was paused; cancel it, or start the campaign for a later day.")
    connection.execute(
        "UPDATE push.campaign_runs SET paused_at = NULL, paused_by = NULL, pause_reason = NULL WHERE run_id = %s",
        (run_id,),
    )
    count = _remaining(connection, run_id)
    audit(connection, by, "resume", run_id, {"reason": reason, "messages": count})
    return Done(
        f"{run_id} 已恢复：剩余 {count:,} 条消息由 deliver_outbox 在十分钟内继续发送。",
        f"{run_id} goes on: deliver_outbox takes up its {count:,} remaining messages within ten minutes.",
    )


def _cancel(connection: psycopg.Connection[Row], run: Row, by: str, reason: str) -> Done:
    run_id = run["run_id"]
    count = outbox.cancel_on(connection, run_id)
    audit(connection, by, "cancel", run_id, {"reason": reason, "messages": count})
    counts = outbox.message_counts(connection, run_id)
    sent = counts.get("accepted", 0) + counts.get("delivered", 0)
    return Done(
        f"{run_id} 已取消：{count:,} 条消息不再发送，{sent:,} 条已经发出，预留的优惠券已释放。",
        f"{run_id} is cancelled: {count:,} messages are never sent, {sent:,} had gone out, its reserved coupons are free again.",
    )


def _rerun(connection: psycopg.Connection[Row], run: Row, by: str, reason: str) -> Done:
    """Nothing but the check and its record: push_campaign starts the run, with its report and its approval."""
    run_id, campaign, as_of = run["run_id"], run["campaign"], run["as_of"]
    if run["mode"] != "live" or "journey" in run["config"]["campaign"]:
        raise RunRefused(f"run {run_id} is no live run of a campaign; there is nothing to run again.")
    if dates.now() >= run["expires_at"]:
        raise RunRefused(f"run {run_id} is for {as_of} and expired; start {campaign} for a later day instead.")
    live = connection.execute(
        "SELECT run_id, state FROM push.campaign_runs WHERE campaign = %s AND as_of = %s AND mode = 'live'"
        " AND state NOT IN ('rejected', 'cancelled', 'failed')",
        (campaign, as_of),
    ).fetchone()
    if live:
        raise RunRefused(f"{campaign} is already live for {as_of}: run {live['run_id']} is {live['state']}.")
    row = connection.execute(
        "SELECT count(DISTINCT m.member_id) AS n FROM push.messages AS m JOIN push.campaign_runs AS r ON r.run_id = m.run_id"
        " WHERE r.campaign = %s AND r.as_of = %s AND r.mode = 'live' AND m.state <> 'cancelled'",
        (campaign, as_of),
    ).fetchone()
    assert row is not None
    audit(connection, by, "rerun", run_id, {"reason": reason, "reached": row["n"]})
    return Done(
        f"{campaign} 可以为 {as_of} 再次运行：{row['n']:,} 人已经触达，不会再次收到；其余的人会有新的报告和审批。",
        f"{campaign} can run again for {as_of}: the {row['n']:,} members it reached get nothing more; for the others there is a new"
        " report and a new approval.",
        start={"campaign": campaign, "as_of": str(as_of), "dry_run": False, "size_limit": run["size_limit"]},
    )


def _extend(
    connection: psycopg.Connection[Row], run: Row, by: str, reason: str, hours: int | None, window: SendWindow | None
) -> Done:
    run_id, campaign = run["run_id"], run["config"]["campaign"]
    if window is not None and run["state"] != "sending":
        raise RunRefused(
            f"run {run_id} is {run['state']}; before it sends, reject it and start it with the window you want."
        )
    before = SendWindow.model_validate(campaign["send_window"])
    plan = Plan.of(run["as_of"], before, campaign["expires_after_hours"])
    expires_at = plan.planned_at + timedelta(hours=hours) if hours is not None else run["expires_at"]
    _check_expiry(connection, run, hours, expires_at)
    changed = {**run["config"], "campaign": {**campaign, "send_window": (window or before).model_dump(mode="json")}}
    is_new = window is not None and window != before
    for finding in (
        window_findings(list(changed["channels"]), campaign["purpose"], window, load_channels()) if window else ()
    ):
        raise RunRefused(f"run {run_id}: {finding}")
    connection.execute("UPDATE push.campaign_runs SET expires_at = %s WHERE run_id = %s", (expires_at, run_id))
    moved = connection.execute(
        "UPDATE push.messages SET expires_at = %s, updated_at = %s WHERE run_id = %s AND state IN ('queued', 'sending', 'waiting_staff')",
        (expires_at, dates.now(), run_id),
    ).rowcount
    hashed = ""
    if is_new:
        hashed = _ask_again(connection, run, changed)
        assert window is not None
        connection.execute(
            """
            UPDATE push.messages SET not_before = push.next_opening(%(now)s, %(opens)s::time, %(closes)s::time, coalesce(time_zone, %(zone)s))
            WHERE run_id = %(run_id)s AND state = 'queued' AND attempt_count = 0
            """,
            {"now": dates.now(), "opens": window.opens, "closes": window.closes, "zone": get_settings().zone.key, "run_id": run_id},
        )  # fmt: skip
    detail = {
        "reason": reason,
        "messages": moved,
        "expires_at": [run["expires_at"].isoformat(), expires_at.isoformat()],
        "send_window": [campaign["send_window"], changed["campaign"]["send_window"]],
    }
    audit(connection, by, "extend", run_id, detail)
    until = f"{expires_at.astimezone(get_settings().zone):%Y-%m-%d %H:%M}"
    again_zh = "内容已改变，需要重新审批后才继续发送。" if hashed else ""
    again_en = " Its content changed: nothing goes out until it is approved again." if hashed else ""
    return Done(
        f"{run_id} 延长到 {until}，{moved:,} 条消息随之改变。{again_zh}",
        f"{run_id} may send until {until}; {moved:,} messages move with it.{again_en}",
        content_hash=hashed,
        needs_approval=bool(hashed) and run["needs_approval"],
        answer_within_hours=float(ApprovalRule.model_validate(campaign["approval"]).answer_within_hours),
    )


def _check_expiry(connection: psycopg.Connection[Row], run: Row, hours: int | None, expires_at: datetime) -> None:
    run_id = run["run_id"]
    if dates.now() >= run["expires_at"]:
        raise RunRefused(
            f"run {run_id} has expired; what is expired is never sent. Start the campaign for a later day."
        )
    if hours is None:
        return
    if hours > MAX_EXPIRY_HOURS:
        raise RunRefused(f"run {run_id}: {hours} hours are more than the {MAX_EXPIRY_HOURS} a campaign may have.")
    if expires_at <= run["expires_at"]:
        raise RunRefused(
            f"run {run_id}: {hours} hours after its beginning is not later than it expires now; extend only lengthens."
        )
    stock = connection.execute(
        "SELECT s.stock_id, coalesce(c.valid_to, s.valid_to) AS valid_to FROM push.coupons AS c"
        " JOIN push.coupon_stocks AS s ON s.stock_id = c.stock_id"
        " WHERE c.run_id = %s AND c.state <> 'released' AND coalesce(c.valid_to, s.valid_to) <= %s ORDER BY 2 LIMIT 1",
        (run_id, expires_at),
    ).fetchone()
    if stock:
        raise RunRefused(
            f"run {run_id}: its coupons ({stock['stock_id']}) are valid until {stock['valid_to']:%Y-%m-%d %H:%M}, messages would still go"
            " out after that."
        )


def _ask_again(connection: psycopg.Connection[Row], run: Row, changed: dict[str, Any]) -> str:
    """Freeze the changed configuration; the run waits for a decision about it. What was approved is kept for a no."""
    run_id = run["run_id"]
    new_hash = config_hash(changed)
    hashed = content_hash(audience_checksum(connection, run_id), new_hash)
    connection.execute(
        """
        UPDATE push.campaign_runs
        SET config = %s, config_hash = %s, content_hash = %s, state = 'awaiting_approval', previous_config = %s
        WHERE run_id = %s
        """,
        (
            Jsonb(changed),
            new_hash,
            hashed,
            Jsonb(run["config"]),
            run_id,
        ),
    )
    return hashed
