"""Data in: windows -> pages -> raw.records and cursor, in one transaction.

`land` reads one stream of one source and writes what is new or different. Every batch is one transaction: records, heads,
rejects, the vault, and with the last batch of a window the cursor. A run that dies anywhere leaves whole batches, and the
next one reads the unfinished window again; records that are in raw already are recognised by a keyed hash and dropped
before they are written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
import psycopg
from psycopg.rows import tuple_row

from nightmarket import dates
from nightmarket.accounts import Account
from nightmarket.dates import Window
from nightmarket.drift import FieldSeen, FieldWatch, mark_required, write_fields
from nightmarket.platforms.base import LimitReached, Plan, Record, Slice, Stream, TakenFile, Transport, Unusable
from nightmarket.privacy import Keyring, Tokenizer, store_secrets
from nightmarket.settings import Credentials, credentials, get_settings
from nightmarket.sources import SourceConfig, StreamConfig, source
from nightmarket.warehouse import (
    COPY_NULL,
    Row,
    connect,
    copy_bytea,
    copy_lines,
    copy_text,
    run_sql,
    session_lock,
)

BATCH_BYTES = 3 * 1024 * 1024  # of JSON in one transaction; a larger batch is not faster, only bigger
BATCH_RECORDS = 2_000
BATCH_SEEN = 50_000  # unchanged ones included
LOOKED_UP_AT_ONCE = 500  # records whose current versions are asked for in one query
RECORD_COLUMNS = (
    "batch_id", "source_id", "stream", "record_key", "payload", "content_hash", "occurred_at", "observed_at", "run_id",
)  # fmt: skip
ANALYZE_FROM = 5_000  # new versions in one run
KNOWN_TOKENS = 100_000  # tokens this process knows to be in the vault
REREAD_DAYS = 14  # windows with records without an id are read again for as long
LOCK_SECONDS = 30
BACKFILL_LOCK_SECONDS = 3600  # pieces of a backfill wait for each other: one at a time reads a stream
PUSH_PAGE = 500
NEW_FIELDS_SHOWN = 30  # of a summary, which travels through XCom


class LandingError(Exception):
    """A run of landing that cannot go on, as one sentence."""


@dataclass
class LandingSummary:
    """What one run of one stream did. Small and JSON-able: it travels through XCom. Instants are ISO texts."""

    source_id: str
    stream: str
    seen: int = 0  # records the platform gave us, repetitions included
    changed: int = 0  # versions written: new or different
    rejected: int = 0  # records that could not be stored: they have no id, or are unusable
    unusable: int = 0  # of these, rows that the platform module could read but not use
    requests: int = 0
    windows: int = 0  # read completely
    first_window: str | None = None
    last_window: str | None = None
    watermark: str | None = None
    is_dry_run: bool = False
    is_limited: bool = False  # stopped by `limit`, the rest is left for the next run
    note: str | None = None  # what else there is to say
    new_fields: list[str] = field(default_factory=list)  # that no record of this stream had before

    def sentence(self) -> str:
        """The run in words."""
        verb = "would write" if self.is_dry_run else "wrote"
        parts = [
            f"{self.source_id} {self.stream}: {self.seen:,} records seen in {self.windows} windows and "
            f"{self.requests:,} requests, {verb} {self.changed:,} new or changed versions"
        ]
        if self.rejected > self.unusable:
            parts.append(f"{self.rejected - self.unusable:,} rejected because they have no id (raw.rejects)")
        if self.unusable:
            parts.append(f"{self.unusable:,} unusable rows in quarantine (raw.rejects says file, line and reason)")
        if self.is_limited:
            parts.append("stopped at the limit, the rest is left for the next run")
        if self.note:
            parts.append(self.note)
        if self.new_fields:
            parts.append(f"new fields: {', '.join(self.new_fields)}")
        if self.watermark:
            parts.append(f"everything before {self.watermark} is in raw")
        return "; ".join(parts) + "."

    def as_dict(self) -> dict[str, Any]:
        """For XCom and JSON."""
        return asdict(self) | {"sentence": self.sentence()}


@dataclass
class Batch:
    """Records that wait for their transaction."""

    rows: dict[str, tuple[bytes, bytes, str | None]] = field(default_factory=dict)  # key -> payload, hash, occurred at
    rejects: list[tuple[str, bytes, str | None]] = field(default_factory=list)  # reason, payload, key or None
    good_keys: list[str] = field(default_factory=list)  # of usable records, unchanged ones included
    secrets: dict[str, str] = field(default_factory=dict)
    fields: list[FieldSeen] = field(default_factory=list)  # not noted in this run yet
    bytes: int = 0
    seen: int = 0

    def is_full(self) -> bool:
        return self.bytes >= BATCH_BYTES or len(self.rows) >= BATCH_RECORDS or self.seen >= BATCH_SEEN


class _Limit(Exception):
    """`limit` records were seen."""


class Behind:
    """Writes the batches of one slice, in order and one at a time, while the loader reads on.

    A small slice has one batch, and no thread and no second connection. What `begin` could not write is raised by the next call.
    """

    def __init__(self, loader: "Loader", piece: Slice) -> None:
        self._loader, self._piece = loader, piece
        self._first_batch: int | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future[int] | None = None
        self._open = ExitStack()

    def begin(self, batch: Batch) -> None:
        """Hand a full batch over; waits for the one before."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "nightmarket-landing")
            self._loader._out = self._open.enter_context(
                connect(autocommit=True, application_name="nightmarket-landing")
            )
        self._wait()
        self._loader._under_way = batch
        self._pending = self._worker.submit(self._loader._write, self._piece, batch)

    def finish(self, batch: Batch) -> None:
        """Write the last batch of the slice, and its cursors with it."""
        self._wait()
        self._loader._write(self._piece, batch, first_batch=self._first_batch, is_last=True)

    def close(self) -> None:
        """Let what was handed over be committed, also when reading failed: the next run need not read it again."""
        try:
            self._wait()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
            self._loader._out, self._loader._under_way = self._loader.connection, Batch()
            self._open.close()

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            written = pending.result()
            self._first_batch = self._first_batch or written


def land(
    source_id: str,
    stream: str,
    *,
    run_id: str,
    until: datetime,
    limit: int | None = None,
    dry_run: bool = False,
    credentials: Credentials | None = None,
    page_sizes: Mapping[str, int] | None = None,
    window: Window | None = None,
    committed: Callable[[int], None] = lambda changed: None,
) -> LandingSummary:
    """Read one stream of one source up to `until` (never beyond now) into raw, from where the last run stopped.

    With `window` that past stretch is read again instead, and the cursors stay where they are (a backfill).

    `limit` stops after about as many records (whole pages) and leaves the cursor of the unfinished window where it was;
    `dry_run` reads and compares but writes nothing. Raises PlatformError, ConfigError, UnknownSource, LandingError; what was committed
    before stays, and the next run goes on from there.
    """
    config = source(source_id)
    definition = config.stream(stream)
    keys = credentials or _credentials(config)
    with (
        connect(autocommit=True, application_name="nightmarket-landing") as connection,
        _only_one(connection, config, stream, BACKFILL_LOCK_SECONDS if window else LOCK_SECONDS),
        _account(config, keys, definition.priority) as account,
    ):
        transport = Transport(
            config.platform,
            max_requests=config.max_requests,
            max_seconds=config.max_minutes * 60,
            tokens=account,
            pace=account,
        )
        client = config.module.connect(keys, transport, options=config.settings, page_sizes=page_sizes)
        loader = Loader(connection, config, definition, run_id, dry_run, lambda: transport.ahead, committed)
        plan = loader.plan(until, config.streams[stream])
        if window is None:
            pieces = definition.slices(client, plan)
        elif definition.backfill is not None:
            pieces = definition.backfill(client, plan, _past(window, plan.until))
        else:
            loader.summary.note = "the platform has no past of it to read again"
            return loader.summary
        try:
            for piece in pieces:
                loader.read(piece, limit)
        except _Limit:
            loader.summary.is_limited = True
        except LimitReached as error:
            raise LandingError(f"{source_id} {stream}: {error.problem}.") from error
        finally:
            loader.summary.requests = transport.requests
        if transport.ahead:
            loader.say(
                f"our clock is {transport.ahead.total_seconds():.0f} s ahead of the platform's; read up to its time"
            )
        loader.summary.new_fields = loader.news()
        loader.refresh_statistics()
        loader.summary.watermark = loader.watermark()
        return loader.summary


def _past(window: Window, now: datetime) -> Window:
    """The part of a backfill's window that has happened. Raises LandingError when none has."""
    if window.start >= now:
        raise LandingError(f"there is nothing to read again from {window.start.isoformat()} on: that is not past yet.")
    return Window(window.start, min(window.end, now))


@dataclass(frozen=True)
class Gap:
    """A stretch of a stream that no complete window covers: nobody has ever read it to its end."""

    source_id: str
    stream: str
    window: Window

    def sentence(self) -> str:
        zone = get_settings().zone
        start, end = (
            instant.astimezone(zone).isoformat(" ", "minutes") for instant in (self.window.start, self.window.end)
        )
        return f"{self.source_id} {self.stream}: {start} to {end} was never read."


def gaps(source_id: str | None = None) -> list[Gap]:
    """What was never read, between the beginning of each stream's history and its watermark. Raises UnknownSource."""
    if source_id is not None:
        source(source_id)
    with connect(application_name="nightmarket-gaps") as connection:
        rows = run_sql(connection, "console/gaps.sql", {"source_id": source_id or ""})
    return [Gap(row["source_id"], row["stream"], Window(row["starts_at"], row["ends_at"])) for row in rows]


def check_source(source_id: str, credentials: Credentials | None = None) -> str:
    """One cheap call to the source: "works for shop X; clocks agree". Raises PlatformError or ConfigError with a sentence."""
    config = source(source_id)
    keys = credentials or _credentials(config)
    with _account(config, keys, priority=1) as account:
        transport = Transport(config.platform, max_requests=20, max_seconds=60, tokens=account, pace=account)
        client = config.module.connect(keys, transport, options=config.settings)
        return f"{source_id}: {config.module.check(client, list(config.streams)).sentence()}"


def _credentials(config: SourceConfig) -> Credentials:
    return credentials(config.conn_id)


def _account(config: SourceConfig, keys: Credentials, priority: int) -> Account:
    """What this run shares with the other workers that use the same keys."""
    return Account(
        config.platform,
        keys,
        calls_per_second=config.calls_per_second,
        calls_per_day=config.calls_per_day,
        priority=priority,
    )


@contextmanager
def _only_one(
    connection: psycopg.Connection[Row], config: SourceConfig, stream: str, lock_seconds: int
) -> Iterator[None]:
    """One run at a time per stream: wait a little for a run that is just ending."""
    try:
        with session_lock(connection, f"landing/{config.source_id}/{stream}", lock_seconds):
            yield
    except psycopg.errors.LockNotAvailable:
        raise LandingError(
            f"{config.source_id} {stream}: another run is reading this stream; wait for it to end, or stop it."
        ) from None


class Loader:
    """Writes one stream of one source."""

    def __init__(
        self,
        connection: psycopg.Connection[Row],
        config: SourceConfig,
        stream: Stream,
        run_id: str,
        dry_run: bool,
        ahead: Callable[[], timedelta] = timedelta,
        committed: Callable[[int], None] = lambda changed: None,
    ) -> None:
        self.connection = connection
        self.config = config
        self.stream = stream
        self.run_id = run_id
        self.dry_run = dry_run
        self.summary = LandingSummary(config.source_id, stream.name, is_dry_run=dry_run)
        self._tokenizer = Tokenizer.from_settings()
        self._keyring = Keyring.from_settings()
        self._known_tokens: set[str] = set()
        self._has_keyed_rejects: bool | None = None  # None: not looked yet
        self._names = (config.source_id, stream.name)
        self._started = dates.now()
        self._out = connection  # the connection that writes: one write at a time, see Behind
        self._under_way = Batch()  # being written: its rows are not in raw.heads yet
        self._committed = committed  # told after every batch how many versions it brought (mapping.Alongside)
        self._ahead = ahead  # by how much our clock is ahead of the platform's, as far as its answers have told
        self._fields = FieldWatch.open(connection, *self._names, stream.required)

    # -- what to read
    def plan(self, until: datetime, options: StreamConfig) -> Plan:
        stream = self.stream
        return Plan(
            until=min(until, dates.now()).replace(microsecond=0),
            cursors=self._cursors(),
            overlap=stream.overlap if options.overlap_minutes is None else timedelta(minutes=options.overlap_minutes),
            window=stream.window if options.window_minutes is None else timedelta(minutes=options.window_minutes),
            history=timedelta(days=self.config.history_days),
            reread=self._windows_to_reread(),
            present=self._present,
            pushes=self._pushes,
            say=self.say,
            files=self,
            is_dry_run=self.dry_run,
        )

    def _cursors(self) -> dict[str, datetime]:
        """Watermarks of this stream: the main one under "", the others (`trades:created`) under their own name."""
        rows = self.connection.execute(
            "SELECT stream, watermark FROM raw.cursors WHERE source_id = %s AND (stream = %s OR stream LIKE %s)",
            (*self._names, self.stream.name + ":%"),
        ).fetchall()
        return {row["stream"].partition(":")[2]: row["watermark"] for row in rows}

    def _windows_to_reread(self) -> tuple[tuple[str, Window], ...]:
        rows = self.connection.execute(
            """
            SELECT DISTINCT b.part, b.window_start, b.window_end
            FROM raw.rejects AS j JOIN raw.batches AS b USING (batch_id)
            WHERE j.source_id = %s AND j.stream = %s AND j.resolved_at IS NULL AND j.rejected_at > %s
              AND j.reason NOT LIKE '%%: waiting for %%' AND b.part <> 'snapshot'
            ORDER BY b.window_start, b.part
            """,
            (*self._names, dates.now() - timedelta(days=REREAD_DAYS)),
        ).fetchall()
        return tuple((row["part"], Window(row["window_start"], row["window_end"])) for row in rows)

    def _present(self) -> set[str]:
        if self.stream.present is None:
            return set()
        rows = self.connection.execute(
            """
            SELECT h.record_key
            FROM raw.heads AS h
            CROSS JOIN LATERAL (   -- the current version is the newest one
                SELECT r.payload FROM raw.records AS r
                WHERE r.source_id = h.source_id AND r.stream = h.stream AND r.record_key = h.record_key
                ORDER BY r.record_id DESC LIMIT 1
            ) AS r
            WHERE h.source_id = %s AND h.stream = %s AND r.payload ->> %s = %s
            """,
            (*self._names, *self.stream.present),
        )
        return {row["record_key"] for row in rows}

    def say(self, words: str) -> None:
        """Add to the summary's note."""
        self.summary.note = "; ".join(filter(None, (self.summary.note, words)))

    def _pushes(self, window: Window) -> Iterator[list[Record]]:
        """What platforms pushed to this source in a window, decrypted, in pages: {"push_key", "received_at", "body"}."""
        after: tuple[datetime, int] = (window.start, 0)
        while True:
            rows = self.connection.execute(
                """
                SELECT push_id, push_key, body, received_at FROM raw.pushes
                WHERE source_id = %s AND received_at < %s AND (received_at, push_id) > (%s, %s)
                ORDER BY received_at, push_id LIMIT %s
                """,
                (self.config.source_id, window.end, *after, PUSH_PAGE),
            ).fetchall()
            yield [self._opened(row) for row in rows]
            if len(rows) < PUSH_PAGE:
                return
            after = rows[-1]["received_at"], rows[-1]["push_id"]

    def _opened(self, row: Row) -> Record:
        text = self._keyring.open(f"{self.config.source_id}/{row['push_key']}", bytes(row["body"]))
        return {
            "push_key": row["push_key"],
            "received_at": row["received_at"].astimezone(get_settings().zone).isoformat(),
            "body": orjson.loads(text),
        }

    def news(self) -> list[str]:
        """Fields that this run brought and no record of the stream had before."""
        return self._fields.news()[:NEW_FIELDS_SHOWN]

    def refresh_statistics(self) -> None:
        """After a large load, tell the planner at once: the mapping that follows would plan for empty tables."""
        if self.summary.changed >= ANALYZE_FROM and not self.dry_run:
            self.connection.execute("ANALYZE raw.batches, raw.records, raw.heads")

    def watermark(self) -> str | None:
        instant = self._cursors().get("")
        return instant.astimezone(get_settings().zone).isoformat() if instant else None

    # -- reading
    def read(self, piece: Slice, limit: int | None) -> None:
        """All pages of a slice. Its cursors move with its last batch, so an unfinished slice is read again."""
        with self._behind(piece) as writing:
            batch = Batch()
            together: list[Record | Unusable] = []  # pages whose keys are looked up in one query
            for page in piece.pages():
                together += page
                self.summary.seen += len(page)
                limited = limit is not None and self.summary.seen >= limit
                if len(together) >= LOOKED_UP_AT_ONCE or limited:
                    self._add(together, batch)
                    together = []
                if batch.is_full() or limited:
                    writing.begin(self._close(batch))
                    batch = Batch()
                if limited:
                    raise _Limit
            self._add(together, batch)
            writing.finish(self._close(batch))
        zone = get_settings().zone
        words = f"{piece.window.start.astimezone(zone).isoformat()}/{piece.window.end.astimezone(zone).isoformat()}"
        self.summary.windows += 1
        self.summary.first_window = self.summary.first_window or words
        self.summary.last_window = words

    def _close(self, batch: Batch) -> Batch:
        """The batch is complete: count it, and note what its records have shown."""
        self.summary.changed += len(batch.rows)
        self.summary.rejected += len(batch.rejects)
        batch.fields = [] if self.dry_run else self._fields.take()
        return batch

    def _add(self, page: Sequence[Record | Unusable], batch: Batch) -> None:
        """Put what is new or different on a page into the batch, personal values replaced by tokens."""
        batch.seen += len(page)
        keyed: list[tuple[str, Record, bytes]] = []
        for record in page:
            if isinstance(record, Unusable):
                self._quarantine(record, batch)
                continue
            key = self._kept_key(self.stream.record_key(record))
            if key is None:
                self._reject(record, batch)
            else:
                received = orjson.dumps(self._hashed(record), option=orjson.OPT_SORT_KEYS)
                keyed.append((key, record, self._tokenizer.content_hash(received)))
        known = self._heads([key for key, _, _ in keyed])
        batch.good_keys += known
        under_way = self._under_way.rows
        for key, record, digest in keyed:
            waiting = batch.rows.get(key) or under_way.get(key)
            if digest == (waiting[1] if waiting else known.get(key)):
                continue
            self._fields.see(record)
            occurred = self.stream.occurred_at(record)
            payload = self._tokenise(record, batch)
            batch.rows[key] = (
                payload,
                digest,
                occurred.isoformat() if occurred else None,
            )  # one version a batch: the last
            batch.bytes += len(payload)

    def _tokenise(self, record: Record, batch: Batch) -> bytes:
        self._tokenizer.tokenise(record, self.stream.personal, self.stream.free_text)
        batch.secrets |= self._tokenizer.secrets
        self._tokenizer.secrets.clear()
        # PostgreSQL's jsonb cannot hold the character NUL; nobody means it, so it is left out
        return orjson.dumps(record).replace(b"\\u0000", b"")

    def _kept_key(self, key: str | None) -> str | None:
        return self._tokenizer.scrub(key) if key is not None and self.stream.scrubbed_key else key

    def _hashed(self, record: Record) -> Record:
        """What of a record makes it a new version when it changes."""
        if not self.stream.unhashed:
            return record
        return {name: value for name, value in record.items() if name not in self.stream.unhashed}

    def _quarantine(self, row: Unusable, batch: Batch) -> None:
        payload = self._tokenise(row.record, batch)
        batch.rejects.append((row.reason, payload, self._kept_key(row.key)))
        batch.bytes += len(payload)
        self.summary.unusable += 1

    def _reject(self, record: Any, batch: Batch) -> None:
        if isinstance(record, dict):
            missing = [name for name in self.stream.key if record.get(name) in (None, "")]
            reason = f"the record has no {' and no '.join(missing)}"
            payload = self._tokenise(record, batch)
        else:
            reason = f"the record is {type(record).__name__}, not an object"
            payload = b"null"  # it may be anything, also somebody's name
        batch.rejects.append((reason, payload, None))
        batch.bytes += len(payload)

    def _heads(self, keys: list[str]) -> dict[str, bytes]:
        if not keys:
            return {}
        with self.connection.cursor(row_factory=tuple_row, binary=True) as cursor:
            rows = cursor.execute(
                """
                SELECT record_key, content_hash FROM raw.heads
                WHERE source_id = %s AND stream = %s AND record_key = ANY(%s::text[])
                """,
                (*self._names, keys),
            ).fetchall()
        return dict(rows)

    # -- writing
    @contextmanager
    def _behind(self, piece: Slice) -> Iterator["Behind"]:
        """Full batches are written by a second thread on a second connection while the next pages are read."""
        behind = Behind(self, piece)
        try:
            yield behind
        finally:
            behind.close()

    def _write(self, piece: Slice, batch: Batch, *, first_batch: int | None = None, is_last: bool = False) -> int:
        """One transaction: batch, records, heads, rejects, vault; with `is_last` the cursors too. Returns the batch id."""
        if self.dry_run:
            return 0
        now = dates.now()
        fresh = {token: value for token, value in batch.secrets.items() if token not in self._known_tokens}
        with self._out.transaction():
            batch_id = self._insert_batch(piece, batch, is_last, now)
            if batch.rows:
                store_secrets(self._out, fresh, self._keyring)
                self._insert_records(batch, batch_id, now)
            elif batch.rejects:
                store_secrets(self._out, fresh, self._keyring)
            self._insert_rejects(batch, batch_id, now)
            self._resolve_keyed_rejects(batch, batch_id, now)
            write_fields(self._out, *self._names, batch.fields, self._started)
            if is_last:
                mark_required(self._out, *self._names, self.stream.required)
                self._resolve_rejects(piece, first_batch or batch_id, now)
                self._move_cursors(piece, now)
                for file in piece.files():
                    self._insert_file(file, now)
        if len(self._known_tokens) > KNOWN_TOKENS:
            self._known_tokens.clear()
        self._known_tokens.update(fresh)
        self._committed(len(batch.rows))
        return batch_id

    def _insert_batch(self, piece: Slice, batch: Batch, is_last: bool, now: datetime) -> int:
        row = self._out.execute(
            """
            INSERT INTO raw.batches (source_id, stream, part, run_id, window_start, window_end, seen_count,
                                     changed_count, rejected_count, is_complete, loaded_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING batch_id
            """,
            (
                *self._names,
                piece.part,
                self.run_id,
                piece.window.start,
                max(piece.window.start, self._happened(piece.window.end)),
                batch.seen,
                len(batch.rows),
                len(batch.rejects),
                is_last,
                now,
            ),
        ).fetchone()
        assert row is not None
        return int(row["batch_id"])

    def _insert_records(self, batch: Batch, batch_id: int, now: datetime) -> None:
        """COPY straight into raw.records: the payload is the heaviest thing there is and is written once."""
        before = b"\t".join((b"%d" % batch_id, *map(copy_text, self._names)))
        after = b"\t".join(map(copy_text, (now.isoformat(), self.run_id)))
        copy_lines(
            self._out,
            "raw.records",
            RECORD_COLUMNS,
            [
                b"\t".join(
                    (before, copy_text(key), copy_text(payload), copy_bytea(digest),
                     occurred.encode() if occurred else COPY_NULL, after)
                )
                for key, (payload, digest, occurred) in batch.rows.items()
            ],
        )  # fmt: skip
        self._out.execute(
            """
            INSERT INTO raw.heads (source_id, stream, record_key, content_hash, batch_id)
            SELECT r.source_id, r.stream, r.record_key, r.content_hash, r.batch_id FROM raw.records AS r WHERE r.batch_id = %s
            ON CONFLICT (source_id, stream, record_key)
            DO UPDATE SET content_hash = excluded.content_hash, batch_id = excluded.batch_id
            """,
            (batch_id,),
        )

    def _insert_rejects(self, batch: Batch, batch_id: int, now: datetime) -> None:
        """The same broken record again is the same reject: it only learns where it was seen last."""
        for reason, payload, key in batch.rejects:
            if key is not None:
                self._has_keyed_rejects = True
            self._out.execute(
                """
                INSERT INTO raw.rejects (source_id, stream, stage, record_key, reason, payload, batch_id, run_id, rejected_at)
                VALUES (%s, %s, 'landing', %s, %s, %s, %s, %s, %s)
                ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')))
                DO UPDATE SET batch_id = excluded.batch_id, resolved_at = NULL
                """,
                (*self._names, key, reason, payload.decode(), batch_id, self.run_id, now),
            )

    def _resolve_keyed_rejects(self, batch: Batch, batch_id: int, now: datetime) -> None:
        """Rows that were unusable in an earlier file, and whose record has come in usable since."""
        if self._has_keyed_rejects is None:
            row = self._out.execute(
                "SELECT EXISTS (SELECT FROM raw.rejects WHERE source_id = %s AND stream = %s AND stage = 'landing'"
                " AND record_key IS NOT NULL AND resolved_at IS NULL) AS found",
                self._names,
            ).fetchone()
            self._has_keyed_rejects = bool(row and row["found"])
        if self._has_keyed_rejects:
            self._out.execute(
                """
                UPDATE raw.rejects SET resolved_at = %s
                WHERE source_id = %s AND stream = %s AND stage = 'landing' AND resolved_at IS NULL AND batch_id < %s
                  AND record_key = ANY(%s::text[])
                """,
                (now, *self._names, batch_id, [*batch.good_keys, *batch.rows]),
            )

    # -- files
    def taken(self) -> list[TakenFile]:
        """Files that this source has taken, whichever stream they were for (platforms.base.FileLedger)."""
        rows = self._out.execute(
            "SELECT stream, path, content_hash, byte_count, row_count, rejected_count, waiting_count, taken_at"
            " FROM raw.files WHERE source_id = %s",
            (self.config.source_id,),
        )
        return [TakenFile(**(row | {"content_hash": bytes(row["content_hash"])})) for row in rows]

    def archived(self, stream: str, content_hash: bytes) -> None:
        """A file has left the folder."""
        self._out.execute(
            "UPDATE raw.files SET archived_at = %s WHERE source_id = %s AND stream = %s AND content_hash = %s",
            (dates.now(), self.config.source_id, stream, content_hash),
        )

    def _insert_file(self, file: TakenFile, now: datetime) -> None:
        self._out.execute(
            """
            INSERT INTO raw.files (source_id, stream, content_hash, path, byte_count, row_count, rejected_count, waiting_count,
                                   taken_at, run_id)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (source_id, stream, content_hash)
            DO UPDATE SET row_count = excluded.row_count, rejected_count = excluded.rejected_count,
                          waiting_count = excluded.waiting_count, run_id = excluded.run_id
            """,
            (
                self.config.source_id,
                file.stream,
                file.content_hash,
                file.path,
                file.byte_count,
                file.row_count,
                file.rejected_count,
                file.waiting_count,
                file.taken_at or now,
                self.run_id,
            ),
        )

    def _resolve_rejects(self, piece: Slice, first_batch: int, now: datetime) -> None:
        """Rejects of this stretch that a complete reading did not show any more have come in with their id."""
        settled = piece.settles or piece.window
        self._out.execute(
            """
            UPDATE raw.rejects AS j SET resolved_at = %s
            FROM raw.batches AS b
            WHERE j.source_id = %s AND j.stream = %s AND j.stage = 'landing' AND j.resolved_at IS NULL
              AND j.batch_id = b.batch_id AND j.batch_id < %s AND b.part = %s
              AND (b.part = 'snapshot' OR (b.window_start >= %s AND b.window_end <= %s))
            """,
            (now, *self._names, first_batch, piece.part, settled.start, settled.end),
        )

    def _move_cursors(self, piece: Slice, now: datetime) -> None:
        for part, watermark in piece.cursors.items():
            name = f"{self.stream.name}:{part}" if part else self.stream.name
            if watermark is None:
                self._out.execute(
                    "DELETE FROM raw.cursors WHERE source_id = %s AND stream = %s", (self.config.source_id, name)
                )
                continue
            self._out.execute(
                """
                INSERT INTO raw.cursors (source_id, stream, watermark, run_id, updated_at) VALUES (%s, %s, %s, %s, %s)
                ON CONFLICT (source_id, stream)
                DO UPDATE SET watermark = excluded.watermark, run_id = excluded.run_id, updated_at = excluded.updated_at
                """,
                (self.config.source_id, name, self._happened(watermark), self.run_id, now),
            )

    def _happened(self, instant: datetime) -> datetime:
        """The instant, or the platform's own present when that is earlier: what it has yet to stamp cannot have been read.

        A window that ends at our now would claim the next five minutes of a platform whose clock is five minutes behind.
        """
        ahead = self._ahead()
        return min(instant, self._started - ahead) if ahead else instant
