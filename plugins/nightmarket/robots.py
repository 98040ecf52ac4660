"""Alerts to the team's chat: a WeCom group robot and a DingTalk robot, each used when its connection exists.

`tell` says one thing to all of them. It never raises: an alert that does not get through must not fail the work that it is about.
The same thing is not said again for a while, no robot is called more often than it allows, and what had to be held back goes out
with the next alert. What happened stands in push.audit_log: `alert` (a robot was called), `alert_held`, `alert_failed`. The address
of a robot is its secret, so no address and no driver's sentence is ever logged.
"""

import base64
import hashlib
import hmac
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import quote_plus

import psycopg
import requests
from psycopg.types.json import Jsonb

from nightmarket import dates
from nightmarket.privacy import EMAIL_IN_TEXT, PHONE_IN_TEXT
from nightmarket.settings import ConfigError, Credentials, credentials
from nightmarket.warehouse import Row, advisory_lock, connect

log = logging.getLogger(__name__)
WECOM_HOST, DINGTALK_HOST = "https://qyapi.weixin.qq.com", "https://oapi.dingtalk.com"
PER_MINUTE = 18  # both take 20, and DingTalk shuts the robot off for ten minutes after the 21st
MAX_BYTES = 4096  # of markdown, in UTF-8
MAX_LINES = 20
SECONDS = 5
QUIET = timedelta(minutes=10)
HELD_FOR = timedelta(hours=6)  # older alerts that were held back help nobody any more


@dataclass(frozen=True)
class Alert:
    """What is said: a subject and some lines, in both languages where people read it."""

    subject: str
    lines: tuple[str, ...]


class RobotFailed(Exception):
    """A robot did not take the alert: the platform's own code and words, nothing of the address."""


def tell(subject: str, lines: Sequence[str] = (), *, about: str = "", quiet: timedelta = QUIET) -> dict[str, str]:
    """Say it to every robot that is configured; returns what came of it by robot (sent, held, failed, quiet), {} without robots.

    `about` names the thing it is about (a run of a DAG, a paused account): within `quiet` of the last alert about it nothing is
    said again. Never raises, and takes at most some seconds.
    """
    alert = Alert(_plain(subject), tuple(_plain(line) for line in lines if line.strip()))
    came: dict[str, str] = {}
    try:
        for name, (conn_id, call) in ROBOTS.items():
            account = _account(conn_id)
            if account is not None:
                came[name] = _tell_one(name, account, call, alert, about or alert.subject, quiet)
    except Exception as error:  # the one thing an alert must not do
        log.warning("alert %r: %s", alert.subject, type(error).__name__)
    log.info(
        "alert %r: %s",
        alert.subject,
        ", ".join(f"{name} {what}" for name, what in came.items()) or "no robot is configured",
    )
    return came


def _account(conn_id: str) -> Credentials | None:
    try:
        account = credentials(conn_id)
    except ConfigError:
        return None
    return account if account.password else None


def _tell_one(name: str, account: Credentials, call: "Caller", alert: Alert, about: str, quiet: timedelta) -> str:
    """Take a slot, call the robot, and write down what came of it. Without the warehouse, by this process's own memory."""
    try:
        with connect(application_name="nightmarket-alert") as connection:
            decision, held = _take_slot(connection, name, alert, about, quiet)
    except (psycopg.Error, ConfigError) as error:
        log.warning("alert: the warehouse does not answer (%s)", type(error).__name__)
        decision, held = ("send" if _Memory.of(name).take(about, quiet) else "quiet"), []
    if decision != "send":
        return decision
    try:
        call(account, _together(alert, held))
    except RobotFailed as error:
        log.warning("alert: robot %s: %s", name, error)
        _write("alert_failed", about, {"robot": name, "problem": str(error), "subject": alert.subject})
        return "failed"
    return "sent"


def _take_slot(
    connection: psycopg.Connection[Row], name: str, alert: Alert, about: str, quiet: timedelta
) -> tuple[str, list[Row]]:
    """Under a lock: may this robot be called now? Writes down that it is, or that the alert is held; returns what was held before."""
    advisory_lock(connection, f"robot {name}")
    now = dates.now()
    said = connection.execute(
        "SELECT 1 FROM push.audit_log WHERE action IN ('alert', 'alert_held') AND subject = %s AND detail ->> 'robot' = %s"
        " AND occurred_at > %s AND occurred_at <= %s LIMIT 1",
        (about, name, now - quiet, now),
    ).fetchone()
    if said:
        return "quiet", []
    detail = {"robot": name, "subject": alert.subject, "lines": list(alert.lines)}
    recent = connection.execute(
        "SELECT count(*) AS n, max(audit_id) AS last_id FROM push.audit_log WHERE action = 'alert' AND detail ->> 'robot' = %s"
        " AND occurred_at > %s AND occurred_at <= %s",
        (name, now - timedelta(minutes=1), now),
    ).fetchone()
    assert recent is not None
    if recent["n"] >= PER_MINUTE:
        _insert(connection, "alert_held", about, detail)
        return "held", []
    held = connection.execute(
        """
        SELECT h.detail FROM push.audit_log AS h
        WHERE h.action = 'alert_held' AND h.detail ->> 'robot' = %(robot)s AND h.occurred_at > %(since)s
          AND NOT EXISTS (
              SELECT 1 FROM push.audit_log AS a
              WHERE a.action = 'alert' AND a.detail ->> 'robot' = %(robot)s AND a.audit_id > h.audit_id
          )
        ORDER BY h.audit_id
        """,
        {"robot": name, "since": now - HELD_FOR},
    ).fetchall()
    _insert(connection, "alert", about, {**detail, "held_before": len(held)})
    return "send", held


def _insert(connection: psycopg.Connection[Row], action: str, subject: str, detail: dict[str, Any]) -> None:
    connection.execute(
        "INSERT INTO push.audit_log (occurred_at, actor, action, subject, detail) VALUES (%s, 'robots', %s, %s, %s)",
        (dates.now(), action, subject, Jsonb(detail)),
    )


def _write(action: str, subject: str, detail: dict[str, Any]) -> None:
    try:
        with connect(application_name="nightmarket-alert") as connection:
            _insert(connection, action, subject, detail)
    except (psycopg.Error, ConfigError) as error:
        log.warning("alert: what came of it could not be written down (%s)", type(error).__name__)


class _Memory:
    """What this process said lately, for when the warehouse cannot tell: that is when alerts matter most."""

    _all: dict[str, "_Memory"] = {}  # noqa: RUF012 - by robot, for the life of the process

    def __init__(self) -> None:
        self._calls: deque[float] = deque()
        self._said: dict[str, float] = {}

    @classmethod
    def of(cls, name: str) -> "_Memory":
        return cls._all.setdefault(name, cls())

    def take(self, about: str, quiet: timedelta) -> bool:
        now = time.monotonic()
        while self._calls and now - self._calls[0] > 60:
            self._calls.popleft()
        if now - self._said.get(about, float("-inf")) < quiet.total_seconds() or len(self._calls) >= PER_MINUTE:
            return False
        self._said[about] = now
        self._calls.append(now)
        return True


# ---------------------------------------------------------------------------------------------------------------- words


def _plain(text: str) -> str:
    """One line, without mentions, tags, phone numbers and mail addresses: a chat is not a place for personal values."""
    text = " ".join(text.split()).replace("<", "‹").replace(">", "›")
    return EMAIL_IN_TEXT.sub("(e-mail)", PHONE_IN_TEXT.sub("(phone)", text))[:500]


def _together(alert: Alert, held: Sequence[Row]) -> Alert:
    """The alert, and below it what was held back, each in one line."""
    if not held:
        return alert
    more = (f"另有 {len(held)} 条未及时发送 / {len(held)} more were held back:",)
    return Alert(alert.subject, alert.lines + more + tuple(row["detail"]["subject"] for row in held))


def _markdown(alert: Alert, head: str, bullet: str, tail: str = "") -> str:
    """At most MAX_BYTES of markdown; what does not fit is counted."""
    text, room = head, MAX_BYTES - len(tail.encode()) - 40
    for number, line in enumerate(alert.lines):
        fits = len(f"{text}\n{bullet}{line}".encode()) <= room and number < MAX_LINES
        if not fits:
            return f"{text}\n{bullet}… +{len(alert.lines) - number}{tail}"
        text = f"{text}\n{bullet}{line}"
    return text + tail


# ---------------------------------------------------------------------------------------------------------------- robots


def wecom(account: Credentials, alert: Alert) -> None:
    """Raises RobotFailed."""
    content = _markdown(alert, f"**{alert.subject}**", "> ")
    host = (account.host or WECOM_HOST).rstrip("/")
    _post(
        f"{host}/cgi-bin/webhook/send",
        {"key": account.password},
        {"msgtype": "markdown", "markdown": {"content": content}},
    )


def dingtalk(account: Credentials, alert: Alert) -> None:
    """Signed when the connection has `sign_secret`; ends with the `keyword` a robot may demand. Raises RobotFailed."""
    query = {"access_token": account.password}
    secret, keyword = str(account.extra.get("sign_secret") or ""), str(account.extra.get("keyword") or "")
    if secret:
        stamp = str(int(dates.now().timestamp() * 1000))
        query |= {"timestamp": stamp, "sign": sign(stamp, secret)}
    text = _markdown(alert, f"### {alert.subject}", "- ", f"\n\n{keyword}" if keyword else "")
    host = (account.host or DINGTALK_HOST).rstrip("/")
    _post(f"{host}/robot/send", query, {"msgtype": "markdown", "markdown": {"title": alert.subject[:60], "text": text}})


def sign(timestamp: str, secret: str) -> str:
    """DingTalk's signature, before it is URL-encoded into the query."""
    return base64.b64encode(hmac.digest(secret.encode(), f"{timestamp}\n{secret}".encode(), hashlib.sha256)).decode()


def _post(address: str, query: dict[str, str], body: dict[str, Any]) -> None:
    secret = "&".join(f"{name}={quote_plus(value)}" for name, value in query.items())
    try:
        answer = requests.post(f"{address}?{secret}", json=body, timeout=SECONDS, allow_redirects=False)
        said = answer.json()
    except (requests.RequestException, ValueError) as error:  # its text names the address
        raise RobotFailed(type(error).__name__) from None
    code = said.get("errcode") if isinstance(said, dict) else None
    if answer.status_code != 200 or code != 0:
        words = str(said.get("errmsg", ""))[:100] if isinstance(said, dict) else ""
        raise RobotFailed(f"HTTP {answer.status_code}, errcode {code}: {words}")


Caller = Callable[[Credentials, Alert], None]
ROBOTS: dict[str, tuple[str, Caller]] = {"wecom": ("robot_wecom", wecom), "dingtalk": ("robot_dingtalk", dingtalk)}
