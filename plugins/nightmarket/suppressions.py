"""Lists of people who shall not be contacted, taken into the suppression log; and lifting a suppression again.

A list is a CSV file with a header, in UTF-8 or GB18030. Columns, in English or Chinese, in any order: one or more of
phone, email, openid; and, if wanted, channel (wechat, sms, email, push or all; empty: all), reason, date (YYYY-MM-DD).
Clear values become tokens here and are kept nowhere. A line is about the person: whatever channel it names, every address of
whoever the phone, address or openid belongs to is meant. docs/decisions/0063-suppression-log.md
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from datetime import date, datetime
from pathlib import Path

import psycopg

from nightmarket import dates
from nightmarket.privacy import MASKED, Tokenizer, normalise
from nightmarket.settings import get_settings
from nightmarket.warehouse import Row, copy_rows

CHANNELS = ("wechat", "email", "sms", "push")
COLUMNS = {  # header -> ours
    "phone": "phone", "mobile": "phone", "手机": "phone", "手机号": "phone", "电话": "phone",
    "email": "email", "e-mail": "email", "邮箱": "email", "邮件": "email",
    "openid": "openid", "微信openid": "openid",
    "channel": "channel", "渠道": "channel", "reason": "reason", "原因": "reason", "date": "date", "日期": "date",
}  # fmt: skip
CHANNEL_WORDS = {"微信": "wechat", "短信": "sms", "邮件": "email", "推送": "push", "全部": "all", "": "all"}
SHAPES = {"phone": r"1\d{10}", "email": r"[^@\s]+@[^@\s]+\.[^@\s]+", "openid": r"[A-Za-z0-9_-]{6,64}"}
IDENTITY = {"phone": "phone", "email": "email", "openid": "wechat_openid"}
MAX_REASON = 200


@dataclass(frozen=True)
class Entry:
    """One address of a list, on one channel."""

    line: int
    kind: str
    address: str  # token or openid
    channel: str
    reason: str
    since: datetime


@dataclass
class Taken:
    """What became of a list."""

    lines: int = 0
    added: int = 0
    known: int = 0  # stood already
    mistakes: list[str] = field(default_factory=list)  # one sentence each, without the value


def take_list(
    connection: psycopg.Connection[Row], path: Path, *, source_id: str, run_id: str, now: datetime | None = None
) -> Taken:
    """Put a do-not-contact list into the log, in the caller's transaction; what stands already is not written again.

    Lines that cannot be used are kept in raw.rejects with file, line and reason and without their content; taking a corrected
    file of the same name settles them. Raises ValueError when the file as a whole cannot be read.
    """
    moment = now or dates.now()
    taken = Taken()
    entries: list[Entry] = []
    tokenizer = Tokenizer.from_settings()
    for number, found in _read(path, tokenizer, moment):
        taken.lines += 1
        if isinstance(found, str):
            taken.mistakes.append(f"{path.name}:{number}: {found}")
        else:
            entries += found
    connection.execute(
        "CREATE TEMPORARY TABLE listed (line integer, kind text, address text, channel text, reason text, since timestamptz) ON COMMIT DROP"
    )
    copy_rows(connection, "listed", ("line", "kind", "address", "channel", "reason", "since"), map(astuple, entries))
    taken.added = connection.execute(
        """
        INSERT INTO core.suppression_events
            (source_id, event_id, channel, kind, address, is_person, is_suppressed, reason, origin, evidence, occurred_at)
        SELECT DISTINCT ON (l.address, l.channel, l.reason, l.since)
            %(source)s, l.address || '/' || md5(l.reason) || '/' || l.since::text, l.channel, l.kind, l.address, TRUE, TRUE, l.reason,
            'import', %(file)s || ':' || l.line, l.since
        FROM listed AS l
        WHERE NOT EXISTS (
            SELECT FROM push.suppressions AS x
            WHERE x.channel = l.channel AND x.address = l.address AND x.reason = l.reason AND x.until IS NULL
        )
        ORDER BY l.address, l.channel, l.reason, l.since, l.line
        ON CONFLICT (source_id, event_id, channel) DO NOTHING
        """,
        {"source": source_id, "file": path.name},
    ).rowcount
    connection.execute("DROP TABLE listed")
    taken.known = len(entries) - taken.added
    _keep_mistakes(connection, path, taken.mistakes, source_id, run_id, moment)
    return taken


def lift(
    connection: psycopg.Connection[Row],
    channel: str,
    address: str,
    reason: str,
    *,
    actor: str,
    why: str,
    now: datetime | None = None,
) -> int:
    """End a suppression of an address (a token or an openid) for one reason; returns how many were standing.

    Other reasons stand: each opt-out is taken back by itself. Raises ValueError for an unknown channel.
    """
    if channel not in CHANNELS:
        raise ValueError(f"unknown channel {channel!r}; known: {', '.join(CHANNELS)}")
    moment = now or dates.now()
    standing = connection.execute(
        "SELECT DISTINCT e.kind FROM core.suppression_events AS e JOIN push.suppressions AS x"
        " ON x.channel = e.channel AND x.address = e.address AND x.reason = e.reason AND (x.until IS NULL OR x.until > %s)"
        " WHERE e.channel = %s AND e.address = %s AND e.reason = %s",
        (moment, channel, address, reason),
    ).fetchall()
    for row in standing:
        connection.execute(
            "INSERT INTO core.suppression_events (source_id, event_id, channel, kind, address, is_suppressed, reason, origin, evidence, occurred_at)"
            " VALUES ('hand', %s, %s, %s, %s, FALSE, %s, 'person', %s, %s)",
            (f"lift/{address}/{reason}/{moment.isoformat()}", channel, row["kind"], address, reason, why, moment),
        )
        connection.execute(
            "INSERT INTO push.audit_log (actor, action, subject, detail) VALUES (%s, 'lift suppression', %s,"
            " jsonb_build_object('channel', %s::text, 'reason', %s::text, 'why', %s::text))",
            (actor, address, channel, reason, why),
        )
    return len(standing)


def _read(path: Path, tokenizer: Tokenizer, now: datetime) -> Iterator[tuple[int, list[Entry] | str]]:
    """(line, its entries or what is wrong with it)."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    names = {name: COLUMNS.get((name or "").strip().lower()) for name in reader.fieldnames or ()}
    if not set(IDENTITY) & set(names.values()):
        raise ValueError(f"{path.name}:1: the header names none of phone, email, openid (手机号, 邮箱, openid).")
    try:
        for row in reader:
            if row.get(None):  # type: ignore[call-overload]
                yield reader.line_num, "more fields than the header has"
                continue
            ours = {names[name]: (value or "").strip() for name, value in row.items() if names.get(name)}
            if any(ours.values()):
                yield reader.line_num, _entries(reader.line_num, ours, tokenizer, now)
    except csv.Error as error:
        raise ValueError(f"{path.name}:{reader.line_num}: not CSV: {error}.") from None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}.") from None
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path.name}: neither UTF-8 nor GB18030; save it as CSV UTF-8.")


def _entries(line: int, row: dict[str | None, str], tokenizer: Tokenizer, now: datetime) -> list[Entry] | str:
    channel = row.get("channel", "").lower()
    channel = CHANNEL_WORDS.get(channel, channel)
    if channel != "all" and channel not in CHANNELS:
        return f"channel: unknown channel; write one of {', '.join(CHANNELS)} or all"
    try:
        since = dates.day_start(date.fromisoformat(row["date"]), get_settings().zone) if row.get("date") else now
    except ValueError:
        return "date: not a date; write YYYY-MM-DD"
    if since > now:
        return "date: lies in the future"
    given = {name: row[name] for name in IDENTITY if row.get(name)}
    if not given:
        return "phone, email and openid are empty"
    reason = row.get("reason", "") or "do not contact"
    if len(reason) > MAX_REASON or tokenizer.scrub(reason) != reason:
        return f"reason: longer than {MAX_REASON} characters, or holds a number or an address"
    found = []
    for name, value in given.items():
        clean = value if name == "openid" else normalise(name, value)
        if not re.fullmatch(SHAPES[name], clean):
            return f"{name}: does not look like one" + (" (11 digits, beginning with 1)" if name == "phone" else "")
        address = value if name == "openid" else tokenizer.token(name, value)
        if address == MASKED:
            return f"{name}: is masked; only whole values can be found again"
        for wanted in CHANNELS if channel == "all" else (channel,):
            found.append(Entry(line, IDENTITY[name], address, wanted, reason, since))
    return found


def _keep_mistakes(
    connection: psycopg.Connection[Row], path: Path, mistakes: list[str], source_id: str, run_id: str, now: datetime
) -> None:
    """In quarantine until a corrected file of this name is taken: where and why, never the line itself."""
    connection.execute(
        "UPDATE raw.rejects SET resolved_at = %s WHERE source_id = %s AND stream = 'suppressions' AND resolved_at IS NULL"
        " AND starts_with(record_key, %s)",
        (now, source_id, f"{path.name}:"),
    )
    for sentence in mistakes:
        file, line, _ = sentence.split(":", 2)
        connection.execute(
            """
            INSERT INTO raw.rejects (source_id, stream, stage, record_key, reason, run_id, rejected_at)
            VALUES (%s, 'suppressions', 'landing', %s, %s, %s, %s)
            ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')))
            DO UPDATE SET resolved_at = NULL
            """,
            (source_id, f"{file}:{line}", f"suppressions: waiting for a corrected line: {sentence}", run_id, now),
        )
