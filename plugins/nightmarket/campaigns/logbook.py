"""The log book: every call of a sender, written down a second time, beside the database and before it is made.

A database that comes back from a backup does not know what went out since: those messages stand there as queued, and what
was put into the outbox later is not there at all and would be made again under the same keys. The files in
NIGHTMARKET_VAR/calls know: one line per message and call, `number, instant, channel, message key`. The number is that of
push.attempts, which only grows, so a database whose number is lower than the book's has been put back.

Decision: docs/decisions/0081-log-book.md. All senders of one database share the folder.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import psycopg

from nightmarket import dates
from nightmarket.settings import ConfigError, get_settings
from nightmarket.warehouse import Row, connect, copy_rows, run_sql

log = logging.getLogger(__name__)
KEPT_DAYS = 40  # longer than a message may wait, and than anybody keeps a backup that is put back without thinking
TAIL_BYTES = 8192
LINE = re.compile(rb"(\d+)\t([^\t]+)\t([^\t]+)\t([^\t]+)")
NUMBER = "SELECT coalesce(pg_sequence_last_value('push.attempts_attempt_id_seq'), 0) AS number"


class DatabaseRestored(RuntimeError):
    """The database knows of fewer calls than the log book; as one sentence that says what to do."""


def number(connection: psycopg.Connection[Row]) -> int:
    """The number of the last attempt that was ever written down in this database."""
    row = connection.execute(NUMBER).fetchone()
    assert row is not None
    return int(row["number"])


def write(last: int, channel: str, keys: Sequence[str]) -> None:
    """Write down calls that are about to be made; `last` is number() as of their attempts. Raises ConfigError when it cannot."""
    now = dates.now()
    lines = "".join(f"{last}\t{now.isoformat()}\t{channel}\t{key}\n" for key in keys).encode()
    path = _folder() / f"{now:%Y-%m-%d}.tsv"
    try:
        with path.open("a+b", buffering=len(lines) + 2) as file:  # one write: workers share the file
            torn = file.seek(0, 2) > 0 and file.seek(-1, 2) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" + lines if torn else lines)  # what a full disk cut off stays alone
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); nothing is sent without it.") from error


def check(connection: psycopg.Connection[Row]) -> None:
    """Raise DatabaseRestored when calls were made that this database does not know of. Forgets days long past."""
    forgotten = f"{dates.now() - timedelta(days=KEPT_DAYS):%Y-%m-%d}"
    written = 0
    for path in _files():
        if path.stem < forgotten:
            path.unlink(missing_ok=True)
        else:
            written = max(written, _last_number(path))
    known = number(connection)
    if written > known:
        raise DatabaseRestored(
            f"{_folder()} has calls up to number {written:,}, the database up to {known:,}: it was restored from a backup that does not "
            "know them. Nothing is sent until somebody has followed docs/runbook.md#backup-and-restore and run `nightmarket restored`."
        )


def settle(by: str, reason: str) -> dict[str, int]:
    """Tell a restored database of the calls that it does not know, so that none of them is made again.

    Messages that stand there as not sent become unknown, or are called again with the identical key where the platform
    recognises it; keys that are not there yet are remembered, and become unknown when somebody makes them again.
    Returns counts: calls, unknown, repeated, remembered. Repeating it changes nothing.
    """
    from nightmarket.campaigns.audience import audit
    from nightmarket.channels.registry import CHANNELS

    repeatable = [name for name, channel in CHANNELS.items() if channel.is_repeatable and not channel.keeps_keys]

    with connect(application_name="nightmarket-outbox") as connection:
        known = number(connection)
        lines = [line for line in _lines() if line[0] > known]
        connection.execute(
            "CREATE TEMPORARY TABLE called (message_key text NOT NULL, channel text NOT NULL, called_at timestamptz NOT NULL) ON COMMIT DROP"
        )
        copy_rows(
            connection,
            "called",
            ("message_key", "channel", "called_at"),
            [(key, channel, at) for _, at, channel, key in lines],
        )
        counts = run_sql(connection, "push/restored.sql", {"now_at": dates.now(), "repeatable": repeatable})[0]
        if lines:  # numbers that were given once are not given again
            connection.execute(
                "SELECT nextval('push.attempts_attempt_id_seq') FROM generate_series(1, %s)",
                (max(line[0] for line in lines) - known,),
            )
        result = {"calls": len(lines), **counts}
        audit(connection, by, "restored", "push.messages", {"reason": reason, **result})
    return result


def _folder() -> Path:
    folder = get_settings().var / "calls"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror}); nothing is sent without it.") from error
    return folder


def _files() -> list[Path]:
    return sorted(_folder().glob("????-??-??.tsv"))


def _last_number(path: Path) -> int:
    """The highest number near the end of a file: workers that write side by side are a few lines apart at most."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    whole = lines[:-1] if size <= TAIL_BYTES else lines[1:-1]
    return max((int(found[1]) for line in whole if (found := LINE.fullmatch(line))), default=0)


def _lines() -> Iterator[tuple[int, datetime, str, str]]:
    """Every call in the book. A line that a full disk cut off is of calls that were not made."""
    for path in _files():
        for line in path.read_bytes().split(b"\n"):
            found = LINE.fullmatch(line)
            if found:
                first, at, channel, key = (part.decode() for part in found.groups())
                yield int(first), datetime.fromisoformat(at), channel, key
            elif line:
                log.warning("%s: a line that was cut off is left out", path.name)
