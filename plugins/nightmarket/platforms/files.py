"""CSV and Excel files from a folder or an SFTP server, declared in YAML: tills, group buying, shops without an API, history.

docs/connections/files.md explains every key. A table is fed by *sets* of files: a set is the files whose names agree in
their placeholders (orders_{date}.csv with lines_{date}.csv of the same date). A file is taken when it is complete, read
once, and moved to the archive after its rows are committed. Rows that cannot be used become Unusable, with file, line and
reason. An order whose lines or payments have not come yet waits: its files stay in the folder and are read again with the
next ones, for `wait_days`.

Memory stays flat: CSV and Excel are read row by row, and what is joined is joined in a temporary SQLite file.
"""

import re
import sqlite3
import tempfile
import time as clock
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms import declared
from nightmarket.platforms.base import (
    BadPayload,
    Check,
    NotFound,
    Plan,
    PlatformError,
    Record,
    Slice,
    Stream,
    TakenFile,
    Transport,
    Unusable,
)
from nightmarket.platforms.declared import Converted, missing_lines
from nightmarket.platforms.folders import Folder, Found, digest, open_folder
from nightmarket.platforms.tabular import Feed, FileError, Name, Options, Role, Row, feeds, rows_of
from nightmarket.settings import Credentials

NAME = "files"
PAGE = 1_000  # records that are given to landing at once
CHUNK = 500  # orders that are joined at once
ARCHIVE = "archive"
DONE = ".done"
IGNORED = re.compile(r"^(\.|~\$)|\.(part|tmp|filepart|crdownload|writing)$", re.IGNORECASE)  # still being written
CLOCK_DOUBT = 3600  # a server's clock may be wrong by so much: only older files are stable without a second look
CHECK_ROWS = 20_000  # of each file, when a person asks what would be rejected
ALWAYS = Window(datetime(1990, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))


# ----------------------------------------------------------------------------------------------------------- client
@dataclass
class Client:
    """A folder and what is declared about it."""

    conn_id: str
    folder: Folder
    options: Options
    feeds: Mapping[str, Feed]
    transport: Transport

    def inbox(self) -> tuple[list[Found], list[Found]]:
        """(complete files, files that are still being written) of all declared folders."""
        first = self.look()
        names = {found.path for found in first}
        files = [found for found in first if not found.path.endswith(DONE)]
        if self.options.complete == "done":
            ready = [found for found in files if found.path + DONE in names]
        else:
            ready = self._stable(files)
        taken = {found.path for found in ready}
        return ready, [found for found in files if found.path not in taken]

    def _stable(self, files: list[Found]) -> list[Found]:
        """Files whose size and time do not change over `stable_seconds`; one wait for all of them."""
        seconds = self.options.stable_seconds
        doubt = 0 if self.folder.is_local else CLOCK_DOUBT
        now = clock.time()
        old = [found for found in files if now - found.modified > seconds + doubt]
        fresh = [found for found in files if now - found.modified <= seconds + doubt]
        if fresh:
            self.transport.sleep(seconds)
            again = set(self.look())
            fresh = [found for found in fresh if found in again]
        return sorted([*old, *fresh], key=lambda found: found.path)

    def look(self) -> list[Found]:
        """What stands in the declared folders now, files that are still being written included."""
        subfolders = {pattern.subfolder for feed in self.feeds.values() for pattern in feed.patterns.values()}
        found = [entry for subfolder in sorted(subfolders) for entry in self.folder.list(subfolder)]
        return [entry for entry in found if not IGNORED.search(PurePosixPath(entry.path).name)]

    def archived(self, feed: Feed) -> list[Found]:
        """Files of the archive that belong to a stream, under the paths they had; the newest of each name."""
        newest: dict[str, Found] = {}
        for subfolder in sorted({pattern.subfolder for pattern in feed.patterns.values()}):
            for entry in self.folder.list(str(PurePosixPath(ARCHIVE) / subfolder)):
                path = original_path(entry.path)
                if feed.classify(path) and (path not in newest or newest[path].modified < entry.modified):
                    newest[path] = entry
        return [newest[path] for path in sorted(newest)]

    def close(self) -> None:
        self.folder.close()


def archive_path(path: str, content_hash: bytes) -> str:
    """Where a file goes: under its name with a piece of its hash, so that a corrected file does not replace the first."""
    place = PurePosixPath(path)
    return str(PurePosixPath(ARCHIVE) / place.parent / f"{place.stem}~{content_hash.hex()[:8]}{place.suffix}")


def original_path(path: str) -> str:
    """The path that a file of the archive had."""
    place = PurePosixPath(path).relative_to(ARCHIVE)
    return str(place.parent / (re.sub(r"~[0-9a-f]{8}$", "", place.stem) + place.suffix)).removeprefix("./")


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the folder; nothing is opened yet. Raises ConfigError when a part of the connection is missing."""
    return Client(credentials.conn_id, open_folder(credentials, transport), options, feeds(options), transport)


# ------------------------------------------------------------------------------------------------------------- sets
@dataclass
class Taken:
    """A file of a set, while it is read."""

    found: Found
    path: str  # as it stood in the folder, also when it is in the archive now
    name: Name
    pattern: str
    content_hash: bytes
    first_seen: datetime
    is_archived: bool = False
    rows: int = 0
    rejected: int = 0
    waiting: int = 0

    def as_ledger(self, stream: str) -> TakenFile:
        return TakenFile(
            stream,
            self.path,
            self.content_hash,
            self.found.size,
            self.rows,
            self.rejected,
            self.waiting,
            self.first_seen,
        )


@dataclass
class FileSet:
    """The files that belong together."""

    tag: tuple[str, ...]
    files: list[Taken]

    def order(self) -> tuple[date, float, tuple[str, ...]]:
        """Older ones first: by the date in the names, then by the files' own times."""
        return self.day() or date.min, min(taken.found.modified for taken in self.files), self.tag

    def day(self) -> date | None:
        return next((taken.name.day for taken in self.files if taken.name.day), None)


def _slices(client: Client, plan: Plan, feed: Feed) -> Iterator[Slice]:
    """One slice per set that is new or waits, then one that says: the folder was looked through up to `plan.until`."""
    ledger = {(entry.stream, entry.content_hash): entry for entry in (plan.files.taken() if plan.files else ())}
    with closing(client), tempfile.TemporaryDirectory(prefix="nightmarket-files-") as spool:
        ready, unfinished = client.inbox()
        sets, known = _open_sets(client, feed, ready, ledger)
        with closing(Reading(client, feed, Path(spool) / "join.sqlite", plan)) as reading:
            for file_set in sets:
                yield reading.slice_of(file_set)
            gap, complete_until = _first_gap(client, feed, plan, ledger, ready, unfinished)
            taken = [file for file_set in sets for file in file_set.files if not file.is_archived]
            here = {file.content_hash for file in taken}
            gone = [  # waited, and was replaced or taken away by a person: nothing waits for it any more
                replace(entry, waiting_count=0)
                for entry in ledger.values()
                if entry.stream == feed.name and entry.waiting_count and entry.content_hash not in here
            ]
            begins = plan.cursors.get("", plan.until - plan.history)  # the first look sees whatever history there is
            yield Slice(
                "folder",
                Window(min(begins, complete_until - timedelta(seconds=1)), complete_until),
                lambda: reading.give_up(),
                {"": complete_until} if complete_until > plan.cursors.get("", ALWAYS.start) else {},
                files=lambda: [*(file.as_ledger(feed.name) for file in taken), *gone],
            )
            if not plan.is_dry_run:
                _archive(client, plan, feed, [*taken, *known], ledger)
            problems = [*reading.failures, *([gap] if gap else [])]
    if unfinished:
        plan.say(f"{len(unfinished)} files are still being written")
    waiting = sum(file.waiting for file in taken)
    if waiting:
        plan.say(f"{waiting:,} rows wait for rows of other files")
    if problems:
        raise BadPayload(client.conn_id, feed.name, "; ".join(problems))


def _open_sets(
    client: Client, feed: Feed, ready: Iterable[Found], ledger: Mapping[tuple[str, bytes], TakenFile]
) -> tuple[list[FileSet], list[Taken]]:
    """(sets with a file that is new, that waits or that had rejects, oldest first; files that are done already)."""
    sets: dict[tuple[str, ...], FileSet] = {}
    known = []
    for found in ready:
        taken = _taken(client, feed, found, found.path, ledger)
        if taken is None:
            continue
        entry = ledger.get((feed.name, taken.content_hash))
        if entry is not None and not entry.waiting_count and not entry.rejected_count:
            known.append(taken)
            continue
        tag = feed.tag(taken.path, taken.name)
        sets.setdefault(tag, FileSet(tag, [])).files.append(taken)
    if len(feed.patterns) > 1 and sets:
        _add_siblings(client, feed, sets, known, ledger)
    for file_set in sets.values():
        file_set.files.sort(key=lambda taken: (taken.found.modified, taken.path))
    return sorted(sets.values(), key=FileSet.order), known


def _add_siblings(
    client: Client,
    feed: Feed,
    sets: dict[tuple[str, ...], FileSet],
    known: Sequence[Taken],
    ledger: Mapping[tuple[str, bytes], TakenFile],
) -> None:
    """A corrected lines file comes alone: the orders it belongs to are in the archive, or done and not yet moved."""
    for found in client.archived(feed):
        path = original_path(found.path)
        name = feed.classify(path)
        assert name is not None
        file_set = sets.get(feed.tag(path, name[1]))
        if file_set is not None and path not in {taken.path for taken in file_set.files}:
            taken = _taken(client, feed, found, path, ledger)
            if taken is not None:
                taken.is_archived = True
                file_set.files.append(taken)
    for taken in known:
        file_set = sets.get(feed.tag(taken.path, taken.name))
        if file_set is not None and taken.path not in {other.path for other in file_set.files}:
            file_set.files.append(replace(taken, is_archived=True))


def _taken(
    client: Client, feed: Feed, found: Found, path: str, ledger: Mapping[tuple[str, bytes], TakenFile]
) -> Taken | None:
    """The file with what its name and content say, or None when it is not one of this stream."""
    named = feed.classify(path)
    if named is None:
        return None
    try:
        with client.folder.fetched(found.path) as local:
            content_hash = digest(local)
    except NotFound:
        return None  # another stream has archived it meanwhile
    entry = ledger.get((feed.name, content_hash))
    first_seen = entry.taken_at if entry and entry.taken_at else dates.now()
    return Taken(found, path, named[1], named[0], content_hash, first_seen)


def _first_gap(
    client: Client,
    feed: Feed,
    plan: Plan,
    ledger: Mapping[tuple[str, bytes], TakenFile],
    ready: Sequence[Found],
    unfinished: Sequence[Found],
) -> tuple[str | None, datetime]:
    """(a sentence about the first day without its file, up to when the stream is complete)."""
    if client.options.expect != "daily":
        return None, plan.until
    paths = [*(found.path for found in ready), *(entry.path for entry in ledger.values() if entry.stream == feed.name)]
    gaps = _gaps(client, feed, plan, paths)
    if gaps:  # quiet days have equal files, and the ledger knows one name per content: the archive knows them all
        gaps = _gaps(client, feed, plan, [*paths, *(original_path(found.path) for found in client.archived(feed))])
    if not gaps:
        return None, plan.until
    day = min(day for day, _ in gaps)
    parts = " and ".join(f"no {part} file" for first, part in gaps if first == day)
    coming = [found.path for found in unfinished if (what := feed.classify(found.path)) and what[1].day == day]
    if coming:
        return f"{coming[0]} is not complete yet; wait for it, or for its mark", dates.day_start(day, feed.zone)
    words = f"{parts} for {day}; ask for it, or list the day under `closed` if there was no business"
    return words, dates.day_start(day, feed.zone)


def _gaps(client: Client, feed: Feed, plan: Plan, paths: Sequence[str]) -> list[tuple[date, str]]:
    """The first day without a file, for every kind of file that comes daily and lacks one."""
    last = plan.until.astimezone(feed.zone).date() - timedelta(days=1)
    gaps: list[tuple[date, str]] = []
    for role in feed.roles:
        if "date" not in role.pattern.names:
            continue
        named = (feed.classify(path) for path in paths)
        days = {found[1].day for found in named if found and found[0] == role.pattern.text and found[1].day}
        start = plan.cursors[""].astimezone(feed.zone).date() if "" in plan.cursors else min([*days, last])
        wanted = (start + timedelta(days=count) for count in range((last - start).days + 1))
        gaps += [(day, role.part) for day in wanted if day not in days and day not in client.options.closed][:1]
    return gaps


def _archive(
    client: Client,
    plan: Plan,
    feed: Feed,
    files: Sequence[Taken],
    ledger: Mapping[tuple[str, bytes], TakenFile],
) -> None:
    """Move what is done; a file that other streams read too stays until they have."""
    here = {found.path: found for found in client.look()} if files else {}
    for taken in files:
        if taken.is_archived or taken.waiting or here.get(taken.path) != taken.found:
            continue  # what was delivered since then under the same name is another file
        others = [name for name, other in client.feeds.items() if name != feed.name and other.classify(taken.path)]
        entries = [ledger.get((name, taken.content_hash)) for name in others]
        if all(entry is not None and not entry.waiting_count for entry in entries):
            client.folder.move(taken.found.path, archive_path(taken.path, taken.content_hash))
            client.folder.move(taken.found.path + DONE, archive_path(taken.path, taken.content_hash) + DONE)
            if plan.files:
                for name in (feed.name, *others):
                    plan.files.archived(name, taken.content_hash)


# ------------------------------------------------------------------------------------------------------------- join
def _whole_line(order: Record, payments: Sequence[Record] = ()) -> Record:
    """What an order of an export without lines is made of: one line of an article that nobody knows."""
    amount = order.get("goods_amount") or order.get("paid_amount")
    if amount is None and payments:
        amount = declared.to_decimal_text(sum((Decimal(payment["amount"]) for payment in payments), Decimal(0)))
    return {"product_id": "unknown", "title": "unknown", "quantity": "1", "line_amount": amount}


class Reading:
    """Reads sets of one stream, one after the other. What waits for another file stays in the spool until the end."""

    def __init__(self, client: Client, feed: Feed, spool: Path, plan: Plan) -> None:
        self.client = client
        self._say = plan.say
        self.feed = feed
        self.until = plan.until
        self.files: list[Taken] = []  # by the number the spool knows them by
        self._told: set[str] = set()  # files whose unnamed columns were told
        self.failures: list[str] = []  # sentences about whole files
        self._failed: set[int] = set()  # numbers of such files
        self._db = sqlite3.connect(spool, isolation_level=None)
        self._db.executescript(
            """
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;
            CREATE TABLE heads (key TEXT PRIMARY KEY, file INTEGER, line INTEGER, body BLOB, problem TEXT, of TEXT);
            CREATE TABLE parts (kind TEXT, key TEXT, file INTEGER, line INTEGER, body BLOB, problem TEXT);
            CREATE INDEX parts_by_key ON parts (key);
            """
        )

    def close(self) -> None:
        self._db.close()

    def slice_of(self, file_set: FileSet) -> Slice:
        day = file_set.day()
        if day is not None:
            window = Window(dates.day_start(day, self.feed.zone), dates.day_end(day, self.feed.zone))
        else:
            window = Window(self.until - timedelta(days=1), self.until)
        pages = partial(self._joined if self.feed.is_joined else self._plain, file_set)
        words = " ".join(file_set.tag) or "all files"
        return Slice(
            words if len(self.feed.patterns) == 1 else f"set {words}",
            window,
            partial(self._pages, pages),
            settles=ALWAYS,
        )

    def _pages(self, rows: Callable[[], Iterator[Any]]) -> Iterator[list[Any]]:
        page = []
        for row in rows():
            page.append(row)
            if len(page) >= PAGE:
                yield page
                page = []
        if page:
            yield page

    # -- tables without parts
    def _plain(self, file_set: FileSet) -> Iterator[Record | Unusable]:
        role = self.feed.roles[0]
        for taken in file_set.files:
            of = self._file_of(taken)
            for row in self._raw_rows(taken, role, -1):
                taken.rows += 1
                converted = self._convert(role, row)
                record = converted.record | {"at": self._place(taken, row.line, of)}
                problems = list(converted.problems)
                if not problems and self.feed.name == "orders":
                    problems = declared.complete_order(record, [_whole_line(record)])
                if problems:
                    taken.rejected += 1
                    yield self._unusable(taken, row.line, "; ".join(problems), record)
                else:
                    yield record

    # -- orders with lines and payments
    def _joined(self, file_set: FileSet) -> Iterator[Record | Unusable]:
        first = len(self.files)
        for taken in file_set.files:
            self.files.append(taken)
            yield from self._spool(taken, len(self.files) - 1)
        if self._failed and any(number >= first for number in self._failed):
            return  # a file of this set could not be read at all: its orders wait for the corrected one
        yield from self._emit(first)

    def _spool(self, taken: Taken, number: int) -> Iterator[Unusable]:
        """Put the rows of a file into the spool; rows without an order id are unusable at once."""
        of = self._file_of(taken)
        roles = [role for role in self.feed.roles if role.pattern.text == taken.pattern]
        for role in roles:
            if any(role.is_same_rows(other) for other in roles[: roles.index(role)]):
                continue  # its rows are read with the first role that stands in them
            together = [other for other in roles if other.is_same_rows(role)]
            self._db.execute("BEGIN")
            try:
                for row in self._raw_rows(taken, role, number):
                    taken.rows += 1
                    yield from self._spool_row(taken, number, row, together, of)
            finally:
                self._db.execute("COMMIT")

    def _spool_row(self, taken: Taken, number: int, row: Row, together: Sequence[Role], of: str) -> Iterator[Unusable]:
        converted = [(role, self._convert(role, row)) for role in together]
        key = next((found.record["order_id"] for _, found in converted if found.record.get("order_id")), None)
        if key is None:
            taken.rejected += 1
            reasons = [problem for _, found in converted for problem in found.problems] or ["order_id is empty"]
            record: Record = {}
            for role, found in converted:
                record |= self._as_order(role.part, found.record)
            yield self._unusable(taken, row.line, "; ".join(dict.fromkeys(reasons)), record)
            return
        for role, found in converted:
            body, problem = orjson.dumps(found.record), "; ".join(found.problems) or None
            if role.part == self.feed.name:
                self._db.execute(
                    "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?, ?)",
                    (key, number, row.line, body, problem, of),
                )
            else:
                self._db.execute(
                    "INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?)", (role.part, key, number, row.line, body, problem)
                )

    def _emit(self, first: int) -> Iterator[Record | Unusable]:
        """Orders that are complete now: those of the files from number `first` on, and those these brought parts of."""
        keys = self._db.execute(
            "SELECT key FROM heads WHERE file >= ? UNION SELECT h.key FROM parts AS p JOIN heads AS h USING (key) WHERE p.file >= ?"
            " ORDER BY 1",
            (first, first),
        )
        pending = True
        collected: list[str] = [key for (key,) in keys.fetchmany(CHUNK)]
        while pending and collected:
            done, results = self._complete(collected)
            yield from results
            following = keys.fetchmany(CHUNK)
            pending = bool(following)
            marks = ",".join("?" * len(done))
            self._db.execute(f"DELETE FROM heads WHERE key IN ({marks})", done)
            self._db.execute(f"DELETE FROM parts WHERE key IN ({marks})", done)
            collected = [key for (key,) in following]

    def _complete(self, keys: Sequence[str]) -> tuple[list[str], list[Record | Unusable]]:
        """(keys that need not wait, what became of them)."""
        marks = ",".join("?" * len(keys))
        parts: dict[str, dict[str, list[tuple[int, int, Record, str | None]]]] = {key: {} for key in keys}
        for kind, key, file, line, body, problem in self._db.execute(
            f"SELECT kind, key, file, line, body, problem FROM parts WHERE key IN ({marks}) ORDER BY rowid", keys
        ):
            parts[key].setdefault(kind, []).append((file, line, orjson.loads(body), problem))
        done: list[str] = []
        results: list[Record | Unusable] = []
        for key, file, line, body, problem, of in self._db.execute(
            f"SELECT key, file, line, body, problem, of FROM heads WHERE key IN ({marks}) ORDER BY key", keys
        ).fetchall():
            order = orjson.loads(body)
            if self._waits_for(order, parts[key], problem):
                continue
            done.append(key)
            results.append(self._order(order, file, line, of, parts[key], problem))
        return done, results

    def _order(
        self,
        order: Record,
        file: int,
        line: int,
        of: str,
        parts: Mapping[str, Sequence[tuple[int, int, Record, str | None]]],
        problem: str | None,
    ) -> Record | Unusable:
        taken = self.files[file]
        order["at"] = self._place(taken, line, of)
        problems = [problem] if problem else []
        bad = [(number, at, words) for rows in parts.values() for number, at, _, words in rows if words]
        for number, at, words in bad:
            self.files[number].rejected += 1
            problems.append(f"{self.files[number].path}:{at}: {words}")
        if not problems:
            lines = self._latest(parts.get("lines", ()), "line_id")
            payments = self._latest(parts.get("payments", ()), "payment_id")
            if not self.feed.has_lines:
                lines = [_whole_line(order, payments)]
            problems = declared.complete_order(order, lines, payments)
        if not problems:
            return order
        if not bad:
            taken.rejected += 1
        return self._unusable(taken, line, "; ".join(problems), order)

    def _as_order(self, kind: str, record: Record) -> Record:
        """A row in the shape of an order: what is personal in it is looked for there."""
        if kind == self.feed.name:
            return record
        key = record.pop("order_id", None)
        return {kind: [record]} | ({"order_id": key} if key else {})

    def _latest(self, rows: Sequence[tuple[int, int, Record, str | None]], name: str) -> list[Record]:
        """Parts as they stand inside their order. One that a later file brings again, by its id, replaces the first."""
        found: list[tuple[int, Record]] = []
        for number, _, record, _ in rows:
            record.pop("order_id", None)
            identity = record.get(name)
            found = [(n, r) for n, r in found if n == number or identity is None or r.get(name) != identity]
            found.append((number, record))
        return [record for _, record in found]

    def _waits_for(
        self, order: Record, parts: Mapping[str, Sequence[tuple[int, int, Record, str | None]]], problem: str | None
    ) -> str | None:
        """What the order waits for, in words; an unusable one waits for nothing."""
        if problem or any(words for rows in parts.values() for _, _, _, words in rows):
            return None
        if self.feed.has_lines:
            waits = missing_lines(order, [record for _, _, record, _ in parts.get("lines", ())])
            if waits:
                return waits
        pays = any(role.part == "payments" for role in self.feed.roles)
        if pays and not parts.get("payments") and order.get("status") not in declared.NEVER_PAID:
            return "its payments"
        return None

    def give_up(self) -> Iterator[list[Any]]:
        """Count what still waits, by file; what waited for `wait_days` is unusable now."""
        patience = timedelta(days=self.client.options.wait_days)
        now = dates.now()

        def overdue(number: int) -> bool:
            return now - self.files[number].first_seen >= patience

        def results() -> Iterator[Unusable]:
            heads = self._db.execute("SELECT key, file, line, body, problem FROM heads ORDER BY file, line")
            for key, file, line, body, problem in heads:
                taken, order = self.files[file], orjson.loads(body)
                if taken.is_archived:
                    continue  # it was settled when its file was taken
                parts = self._parts_of(key)
                words = self._waits_for(order, parts, problem) or "a file that can be read"
                if overdue(file) and file not in self._failed:
                    taken.rejected += 1
                    days = self.client.options.wait_days
                    reason = (
                        f"{words} did not come within {days} days; deliver orders, lines and payments again together"
                    )
                    yield self._unusable(taken, line, reason, order)
                else:
                    taken.waiting += 1
                    for number in {number for rows in parts.values() for number, _, _, _ in rows}:
                        self.files[number].waiting += 1
            orphans = self._db.execute(
                "SELECT p.kind, p.key, p.file, p.line, p.body FROM parts AS p LEFT JOIN heads AS h USING (key)"
                " WHERE h.key IS NULL ORDER BY p.file, p.line"
            )
            for kind, _, file, line, body in orphans:
                taken = self.files[file]
                if taken.is_archived:
                    continue  # it belongs to an order that was taken with it
                if overdue(file):
                    taken.rejected += 1
                    reason = (
                        f"no orders file had the order of this row of {kind}, for {self.client.options.wait_days} days"
                    )
                    yield self._unusable(taken, line, reason, self._as_order(kind, orjson.loads(body)))
                else:
                    taken.waiting += 1

        yield from self._pages(results)

    def _parts_of(self, key: str) -> dict[str, list[tuple[int, int, Record, str | None]]]:
        found: dict[str, list[tuple[int, int, Record, str | None]]] = {}
        rows = self._db.execute("SELECT kind, file, line, body, problem FROM parts WHERE key = ?", (key,))
        for kind, file, line, body, problem in rows:
            found.setdefault(kind, []).append((file, line, orjson.loads(body), problem))
        return found

    # -- rows
    def _raw_rows(self, taken: Taken, role: Role, number: int) -> Iterator[Row]:
        """The rows of a file; a file that cannot be read as a whole is a failure of the run, and stays in the folder."""
        try:
            with self.client.folder.fetched(taken.found.path) as local:
                before = local.stat()
                same = digest(local) == taken.content_hash
                if same:
                    for row in rows_of(local, taken.path, role):
                        self._tell_unnamed(taken, row)
                        yield row
                after = local.stat()
                if not same or (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
                    raise FileError("it was changed while it was read; the next run reads it again")
        except FileError as error:
            self._fail(taken, number, str(error))
        except NotFound:
            self._fail(taken, number, "it is gone from the folder")

    def _tell_unnamed(self, taken: Taken, row: Row) -> None:
        if taken.path not in self._told:
            self._told.add(taken.path)
            unnamed = self.feed.unnamed(taken.pattern, row.cells)
            if unnamed:
                self._say(f"{taken.path}: not stored, because nobody named them: {', '.join(unnamed)}")

    def _fail(self, taken: Taken, number: int, words: str) -> None:
        taken.waiting += 1  # it stays where it is
        self._failed.add(number)
        self.failures.append(f"{taken.path}: {words}")

    def _convert(self, role: Role, row: Row) -> Converted:
        if row.problem:
            return Converted({}, (f"the line {row.problem}",))
        return role.reader.convert(row.cells.get, row.cells)

    def _place(self, taken: Taken, line: int, of: str) -> Record:
        return {"file": taken.path, "line": line, "file_of": of}

    def _file_of(self, taken: Taken) -> str:
        """The time for which a file speaks, where its rows do not say when they changed: the end of its date, or its own."""
        if taken.name.day is not None:
            return dates.day_end(taken.name.day, self.feed.zone).isoformat()
        return datetime.fromtimestamp(int(taken.found.modified), UTC).isoformat()

    def _unusable(self, taken: Taken, line: int, reason: str, record: Record) -> Unusable:
        key = record.get(declared.ENTITIES[self.feed.name].key)
        return Unusable(
            f"{taken.path}:{line}: {reason}",
            record | {"at": {"file": taken.path, "line": line}},
            str(key) if key else None,
        )


# ---------------------------------------------------------------------------------------------------------- streams
def streams(options: Options) -> Mapping[str, Stream]:
    """One stream per declared table."""
    return {name: _stream(feed) for name, feed in feeds(options).items()}


def _stream(feed: Feed) -> Stream:
    entity = declared.ENTITIES[feed.name]
    personal: dict[str, str] = {}
    free_text: list[str] = []
    for role in feed.roles:
        prefix = "" if role is feed.roles[0] else f"{role.part}[]."
        personal |= role.reader.personal(prefix)
        free_text += role.reader.free_text(prefix=prefix)
    return Stream(
        name=feed.name,
        key=(entity.key,),
        occurred_at=declared.occurred_at,
        slices=lambda client, plan: _slices(client, plan, feed),
        personal=personal,
        free_text=tuple(free_text),
        overlap=timedelta(0),
        priority=1 if feed.name in ("orders", "refunds") else 2,
        unhashed=("at",),
        scrubbed_key=feed.name == "customers",
        backfill=lambda client, plan, window: _backfill(client, plan, window, feed),
    )


def _backfill(client: Client, plan: Plan, window: Window, feed: Feed) -> Iterator[Slice]:
    """Sets of the archive whose date lies in the window, once more; nothing is moved."""
    sets: dict[tuple[str, ...], FileSet] = {}
    for found in client.archived(feed):
        path = original_path(found.path)
        taken = _taken(client, feed, found, path, {})
        if taken is None or taken.name.day is None:
            continue
        if window.start <= dates.day_start(taken.name.day, feed.zone) < window.end:
            taken.is_archived = True
            tag = feed.tag(path, taken.name)
            sets.setdefault(tag, FileSet(tag, [])).files.append(taken)
    with tempfile.TemporaryDirectory(prefix="nightmarket-files-") as spool:
        reading = Reading(client, feed, Path(spool) / "join.sqlite", plan)
        for tag in sorted(sets):
            yield reading.slice_of(sets[tag])
        reading.close()
    client.close()
    if reading.failures:
        raise BadPayload(client.conn_id, feed.name, "; ".join(reading.failures))


# ------------------------------------------------------------------------------------------------------------ check
def check(client: Client, names: Sequence[str]) -> Check:
    """What is in the folder, which files belong to which table, and what of them would be rejected. Nothing is moved."""
    ready, unfinished = client.inbox()
    counts: Counter[str] = Counter()
    problems: dict[str, str] = {}
    unnamed: list[str] = []
    nobodys = [found.path for found in ready if not any(feed.classify(found.path) for feed in client.feeds.values())]
    for name in names:
        feed = client.feeds[name]
        mine = [found for found in ready if feed.classify(found.path)]
        counts[name] = len(mine)
        sentence = _would_be_rejected(client, feed, mine, unnamed)
        if sentence:
            problems[name] = sentence
    client.close()
    parts = [f"{count} for {name}" for name, count in counts.items()]
    account = f"{client.folder.words()} with {len(ready)} files ({', '.join(parts)}"
    if nobodys:
        account += f", {len(nobodys)} that no pattern matches, the first is {nobodys[0]}"
    if unfinished:
        account += f", {len(unfinished)} still being written"
    if unnamed:
        account += f", columns that nobody named and nobody stores: {', '.join(dict.fromkeys(unnamed))}"
    return Check(account + ")", None, problems)


def _would_be_rejected(client: Client, feed: Feed, files: Sequence[Found], unnamed: list[str]) -> str | None:
    """The first mistake of the first rows of each file, and how many there are; adds to `unnamed`."""
    total = bad = 0
    first = ""
    for found in files:
        named = feed.classify(found.path)
        assert named is not None
        for role in feed.roles:
            if role.pattern.text != named[0]:
                continue
            try:
                with client.folder.fetched(found.path) as local:
                    for count, row in enumerate(rows_of(local, found.path, role)):
                        if count >= CHECK_ROWS:
                            break
                        total += 1
                        if not count:
                            unnamed += feed.unnamed(role.pattern.text, row.cells)
                        words = row.problem and f"the line {row.problem}"
                        words = words or "; ".join(role.reader.convert(row.cells.get, row.cells).problems)
                        if words:
                            bad += 1
                            first = first or f"{found.path}:{row.line}: {words}"
            except FileError as error:
                return f"{found.path}: {error}"
            except PlatformError as error:
                return f"{found.path}: {error.problem}"
    return f"{bad:,} of {total:,} rows would be rejected; the first is {first}" if bad else None
