"""Bounces and complaints about our mails, read from the mailbox that they come back to (a Maildir), once each.

hard (5.x.x): the address is dead, and the message gets `bounced`. soft (4.x.x, given up): the message failed; several in some days
and the address rests. policy (5.7.x): it is about us, so the channel is paused and no address suffers. A complaint: never again.
push/receipts.sql draws the conclusions for messages and addresses. What nobody can read goes to the mailbox's folder `unread`.
"""

import hashlib
import logging
import mailbox
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg

from nightmarket import dates, robots
from nightmarket.campaigns.audience import audit
from nightmarket.campaigns.config import BounceOptions, load_channels
from nightmarket.campaigns.outbox import pace_key, suppress
from nightmarket.channels.email import Email
from nightmarket.channels.email_reports import Envelope, Report, message_hash, read_report
from nightmarket.settings import ConfigError, Credentials, credentials
from nightmarket.warehouse import Row, connect

log = logging.getLogger(__name__)
AT_ONCE = 500  # mails in one transaction
MAX_BYTES = 1_000_000  # a report with a copy of one of our mails is some ten KB
UNREAD = "unread"
EVENTS = {"hard": "bounced", "soft": "failed", "policy": "failed", "complained": "complained"}
WORDS = {"hard": "hard bounce", "soft": "soft bounce", "policy": "policy", "complained": "complaint"}


@dataclass(frozen=True)
class Found:
    """One report and the message it is about."""

    report: Report
    event_id: str
    message_key: str
    address: str  # a token


def collect() -> dict[str, int]:
    """Read the bounce mailbox of the e-mail account; counts by kind, with `strange` for mails that are no report about a message
    of ours. {} when the connection names no `bounce_folder`. Safe to repeat: a mail is deleted after its facts are committed.

    Raises ConfigError when the folder is no Maildir.
    """
    channels = load_channels()
    channel = channels.channels.get(Email.name)
    if channel is None:
        return {}
    try:
        account = credentials(channel.account)
    except ConfigError:
        return {}  # nothing was sent over an account that does not exist
    folder = str(account.extra.get("bounce_folder") or "")
    if not folder:
        return {}
    counts: Counter[str] = Counter()
    box, envelope = _open(folder, account.conn_id), Envelope(account)
    keys = sorted(box.keys())
    for start in range(0, len(keys), AT_ONCE):
        counts += _take(box, keys[start : start + AT_ONCE], account, envelope, channels.bounces)
    if counts:
        log.info("bounces: %s", ", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
    return dict(counts)


def _open(folder: str, conn_id: str) -> mailbox.Maildir:
    if not all((Path(folder) / name).is_dir() for name in ("new", "cur", "tmp")):
        raise ConfigError(
            f"connection {conn_id!r}: extra.bounce_folder is no Maildir (it has no folders new, cur and tmp)."
        )
    return mailbox.Maildir(folder, factory=None, create=False)


def _take(
    box: mailbox.Maildir, keys: list[str], account: Credentials, envelope: Envelope, options: BounceOptions
) -> Counter[str]:
    reports: dict[str, tuple[Report, str]] = {}
    strange: list[str] = []
    for key in keys:
        try:
            raw = box.get_bytes(key)
        except (KeyError, OSError):  # somebody else has read it
            continue
        report = read_report(raw, envelope) if len(raw) <= MAX_BYTES else None
        if report is None:
            strange.append(key)
        else:
            reports[key] = report, f"report/{hashlib.sha256(raw).hexdigest()[:40]}"
    counts: Counter[str] = Counter()
    with connect(application_name="nightmarket-bounces") as connection:
        known = _messages(connection, [name for report, _ in reports.values() for name in report.hashes], account)
        found: list[Found] = []
        for key, (report, event_id) in reports.items():
            message = next((known[name] for name in report.hashes if name in known), None)
            if report.kind == "nothing":
                counts["nothing"] += 1
            elif message is None:
                strange.append(key)
            else:
                found.append(Found(report, event_id, message["message_key"], message["address"]))
        fresh = _write(connection, found, account.conn_id)
        counts.update(one.report.kind for one in fresh)
        _rest(connection, {one.address for one in fresh if one.report.kind == "soft"}, options)
        paused = any(one.report.kind == "policy" for one in fresh) and _pause(connection, account, options)
    if paused:
        robots.tell(
            "邮件渠道已暂停 / e-mail is paused", [paused], about=f"paused {pace_key(Email.name, account.conn_id)}"
        )
    _put_away(box, strange)
    for key in keys:
        if key not in strange:
            box.discard(key)
    counts["strange"] += len(strange)
    return +counts


def _messages(connection: psycopg.Connection[Row], names: list[str], account: Credentials) -> dict[str, Row]:
    """The messages of these hashes: accepted ones by their Message-ID, and those whose answer was lost, which have none yet."""
    domain = str(account.extra.get("from_address") or "").rpartition("@")[2]
    ids = {f"<{name}@{domain}>": name for name in names}
    rows = connection.execute(
        "SELECT message_key, address, platform_message_id FROM push.messages WHERE channel = %s AND platform_message_id = ANY(%s)",
        (Email.name, list(ids)),
    ).fetchall()
    known = {ids[row["platform_message_id"]]: row for row in rows}
    if len(known) < len(set(names)):
        in_doubt = connection.execute(
            "SELECT message_key, address FROM push.messages WHERE channel = %s AND state = 'unknown'", (Email.name,)
        )
        known |= {
            message_hash(row["message_key"]): row for row in in_doubt if message_hash(row["message_key"]) in names
        }
    return known


def _write(connection: psycopg.Connection[Row], found: list[Found], account: str) -> list[Found]:
    """Each report as an event of its message; returns those that were not known yet."""
    rows = connection.execute(
        """
        INSERT INTO core.message_events (source_id, event_id, message_key, kind, detail, occurred_at)
        SELECT DISTINCT ON (u.event_id) %s, u.event_id, u.message_key, u.kind, u.detail, %s
        FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS u (event_id, message_key, kind, detail)
        ORDER BY u.event_id
        ON CONFLICT (source_id, event_id) DO NOTHING
        RETURNING event_id
        """,
        (
            account,
            dates.now(),
            [one.event_id for one in found],
            [one.message_key for one in found],
            [EVENTS[one.report.kind] for one in found],
            [" ".join((WORDS[one.report.kind], one.report.status, one.report.words)).strip() for one in found],
        ),
    ).fetchall()
    fresh = {row["event_id"] for row in rows}
    return [one for one in {one.event_id: one for one in found}.values() if one.event_id in fresh]


def _rest(connection: psycopg.Connection[Row], addresses: set[str], options: BounceOptions) -> None:
    """Addresses whose mailbox failed softly too often lately are left alone for a while."""
    rows = connection.execute(
        """
        SELECT m.address
        FROM push.messages AS m
        JOIN core.message_events AS e ON e.message_key = m.message_key AND e.kind = 'failed' AND starts_with(e.detail, 'soft bounce')
        WHERE m.address = ANY(%s) AND m.channel = %s AND e.occurred_at > %s
        GROUP BY m.address
        HAVING count(DISTINCT m.message_key) >= %s
        """,
        (list(addresses), Email.name, dates.now() - timedelta(days=options.soft_days), options.soft_count),
    ).fetchall()
    for row in rows:
        suppress(connection, "email", row["address"], "soft bounces", "bounces", options.soft_rest_days)


def _pause(connection: psycopg.Connection[Row], account: Credentials, options: BounceOptions) -> str:
    """Pause the channel when enough servers refused us since the last pause, or since a person lifted it; the reason, or ""."""
    now, key = dates.now(), pace_key(Email.name, account.conn_id)
    row = connection.execute(
        """
        SELECT count(*) AS n, max(e.detail) AS said
        FROM core.message_events AS e
        WHERE e.source_id = %(account)s AND e.kind = 'failed' AND starts_with(e.detail, 'policy') AND e.occurred_at > %(since)s
          AND e.occurred_at > coalesce((
              SELECT max(a.occurred_at) FROM push.audit_log AS a WHERE a.subject = %(key)s AND a.action IN ('pause', 'resume')
          ), '-infinity')
        """,
        {"account": account.conn_id, "key": key, "since": now - timedelta(hours=options.policy_hours)},
    ).fetchone()
    if row is None or row["n"] < options.policy_count:
        return ""
    reason = f"{row['n']} receiving servers refused us, not the receiver: {row['said']}"[:300]
    connection.execute(
        """
        INSERT INTO push.pace (account, rate_per_second, next_at, paused_until, pause_reason) VALUES (%s, 1, %s, %s, %s)
        ON CONFLICT (account) DO UPDATE SET paused_until = excluded.paused_until, pause_reason = excluded.pause_reason
        """,
        (key, now, now + timedelta(hours=options.pause_hours), reason),
    )
    audit(connection, "bounces", "pause", key, {"reason": reason, "seconds": options.pause_hours * 3600})
    return reason


def _put_away(box: mailbox.Maildir, keys: list[str]) -> None:
    """Mails that are no report about a message of ours are kept for a person."""
    if not keys:
        return
    aside = box.add_folder(UNREAD)
    for key in keys:
        aside.add(box.get_bytes(key))
        box.discard(key)
