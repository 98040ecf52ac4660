"""Data in: windows -> pages -> raw.records and cursor, in one transaction; the order of the mapping SQL that follows.

`land` reads one stream of one source and writes what is new or different. Every batch is one transaction: records, heads,
rejects, the vault, and with the last batch of a window the cursor. A run that dies anywhere leaves whole batches, and the
next one reads the unfinished window again; records that are in raw already are recognised by a keyed hash and dropped
before they are written.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson
import psycopg
from pydantic import Field, ValidationInfo, field_validator

from nightmarket import dates, warehouse
from nightmarket.dates import Window
from nightmarket.platforms import own_pages, taobao, wechat_official
from nightmarket.platforms.base import LimitReached, Plan, Platform, PlatformError, Record, Slice, Stream, Transport
from nightmarket.privacy import Keyring, Tokenizer, store_secrets
from nightmarket.settings import ConfigError, Credentials, StrictModel, credentials, get_settings, load_yaml, where
from nightmarket.warehouse import Row, connect, copy_rows

PLATFORMS: Mapping[str, Platform] = {module.NAME: module for module in (taobao, wechat_official, own_pages)}
BATCH_BYTES = 8 * 1024 * 1024  # of JSON in one transaction: 20-50 pages; a larger batch is not faster, only bigger
BATCH_RECORDS = 5_000
ANALYZE_FROM = 5_000  # new versions in one run
KNOWN_TOKENS = 200_000  # tokens this process knows to be in the vault
REREAD_DAYS = 14  # windows with records without an id are read again for as long
LOCK_SECONDS = 30
SOURCE_ID = re.compile(r"[a-z][a-z0-9_]{1,49}")
CRON = re.compile(r"[\d*/,\-]+( [\d*/,\-A-Za-z]+){4}")


class LandingError(Exception):
    """A run of landing that cannot go on, as one sentence."""


# ----------------------------------------------------------------------------------------------------------- config
class StreamConfig(StrictModel):
    """What a person may change about a stream; unset keys take the platform module's own values."""

    overlap_minutes: int | None = Field(default=None, ge=0, le=60 * 24 * 60)
    window_minutes: int | None = Field(default=None, ge=1, le=60 * 24 * 365)


class SourceBlock(StrictModel):
    """One block of sources.yaml."""

    platform: str
    kind: Literal["shop", "social", "pages"]
    name: str = Field(min_length=1)
    conn_id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    schedule: str | None = None  # cron; None = only by hand
    currency_code: str = Field(default="CNY", pattern=r"^[A-Z]{3}$")
    time_zone: str = "Asia/Shanghai"
    account: str | None = None  # pages only: the source whose pushes (follow, leave, delivered) this archive keeps
    history_days: int = Field(default=730, ge=1, le=3650)
    max_requests: int = Field(default=20_000, ge=1)
    max_minutes: int = Field(default=60, ge=1)
    streams: dict[str, StreamConfig] = Field(min_length=1)

    @field_validator("platform")
    @classmethod
    def _platform_exists(cls, value: str) -> str:
        if value not in PLATFORMS:
            raise ValueError(f"unknown platform {value!r}; known: {', '.join(sorted(PLATFORMS))}")
        return value

    @field_validator("schedule")
    @classmethod
    def _schedule_is_cron(cls, value: str | None) -> str | None:
        if value is not None and not CRON.fullmatch(value):
            raise ValueError(f'{value!r} is not a cron expression of five fields, e.g. "30 1 * * *"')
        return value

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"unknown time zone {value!r}; use a name like Asia/Shanghai") from error
        return value

    @field_validator("streams")
    @classmethod
    def _streams_exist(cls, value: dict[str, StreamConfig], info: ValidationInfo) -> dict[str, StreamConfig]:
        platform = PLATFORMS.get(info.data.get("platform", ""))
        for name in value:
            if platform and name not in platform.STREAMS:
                raise ValueError(
                    f"{platform.NAME} has no stream {name!r}; known: {', '.join(sorted(platform.STREAMS))}"
                )
        return value


class SourceConfig(SourceBlock):
    """A source: its block and its id."""

    source_id: str


class SourcesFile(StrictModel):
    """include/config/sources.yaml."""

    sources: dict[str, SourceBlock] = Field(min_length=1)


def load_sources(path: Path | None = None) -> dict[str, SourceConfig]:
    """All sources by id. Raises ConfigError that names file, line and field."""
    path = path or get_settings().config_dir / "sources.yaml"
    return _load_sources(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _load_sources(path: Path, _changed: int) -> dict[str, SourceConfig]:
    blocks = load_yaml(path, SourcesFile).sources
    for name, block in blocks.items():
        if not SOURCE_ID.fullmatch(name):
            raise ConfigError(
                f"{where(path, 'sources', name)}: a source id is made of lower-case letters, digits and _, and starts with a letter."
            )
        if block.account is not None and block.account not in blocks:
            raise ConfigError(
                f"{where(path, 'sources', name, 'account')}: there is no source {block.account!r}; known: {', '.join(sorted(blocks))}."
            )
    return {name: SourceConfig(source_id=name, **block.model_dump()) for name, block in blocks.items()}


def source(source_id: str) -> SourceConfig:
    """One source. Raises LandingError when sources.yaml has no such block."""
    sources = load_sources()
    if source_id not in sources:
        raise LandingError(f"sources.yaml has no source {source_id!r}; known: {', '.join(sorted(sources))}.")
    return sources[source_id]


# ---------------------------------------------------------------------------------------------------------- landing
@dataclass
class LandingSummary:
    """What one run of one stream did. Small and JSON-able: it travels through XCom. Instants are ISO texts."""

    source_id: str
    stream: str
    seen: int = 0  # records the platform gave us, repetitions included
    changed: int = 0  # versions written: new or different
    rejected: int = 0  # records that could not be stored because they have no id
    requests: int = 0
    windows: int = 0  # read completely
    first_window: str | None = None
    last_window: str | None = None
    watermark: str | None = None
    is_dry_run: bool = False
    is_limited: bool = False  # stopped by `limit`, the rest is left for the next run

    def sentence(self) -> str:
        """The run in words."""
        verb = "would write" if self.is_dry_run else "wrote"
        parts = [
            f"{self.source_id} {self.stream}: {self.seen:,} records seen in {self.windows} windows and "
            f"{self.requests:,} requests, {verb} {self.changed:,} new or changed versions"
        ]
        if self.rejected:
            parts.append(f"{self.rejected:,} rejected because they have no id (raw.rejects)")
        if self.is_limited:
            parts.append("stopped at the limit, the rest is left for the next run")
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
    rejects: list[tuple[str, bytes]] = field(default_factory=list)  # reason, payload
    secrets: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    seen: int = 0

    def is_full(self) -> bool:
        return self.bytes >= BATCH_BYTES or len(self.rows) >= BATCH_RECORDS


class _Limit(Exception):
    """`limit` records were seen."""


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
) -> LandingSummary:
    """Read one stream of one source up to `until` (never beyond now) into raw, from where the last run stopped.

    `limit` stops after about as many records (whole pages) and leaves the cursor of the unfinished window where it was;
    `dry_run` reads and compares but writes nothing. Raises PlatformError, ConfigError, LandingError; what was committed
    before stays, and the next run goes on from there.
    """
    config = source(source_id)
    platform = PLATFORMS[config.platform]
    if stream not in config.streams:
        raise LandingError(
            f"source {source_id!r} has no stream {stream!r}; known: {', '.join(sorted(config.streams))}."
        )
    transport = Transport(config.platform, max_requests=config.max_requests, max_seconds=config.max_minutes * 60)
    client = platform.connect(credentials or _credentials(config), transport, page_sizes)
    with (
        connect(autocommit=True, application_name="nightmarket-landing") as connection,
        _only_one(connection, config, stream),
    ):
        loader = Loader(connection, config, platform.STREAMS[stream], run_id, dry_run)
        plan = loader.plan(until, config.streams[stream])
        try:
            for piece in loader.stream.slices(client, plan):
                loader.read(piece, limit)
        except _Limit:
            loader.summary.is_limited = True
        except LimitReached as error:
            raise LandingError(f"{source_id} {stream}: {error.problem}.") from error
        finally:
            loader.summary.requests = transport.requests
        loader.refresh_statistics()
        loader.summary.watermark = loader.watermark()
        return loader.summary


def check_source(source_id: str, credentials: Credentials | None = None) -> str:
    """One cheap call to the source: "works for shop X; clocks agree". Raises PlatformError or ConfigError with a sentence."""
    config = source(source_id)
    platform = PLATFORMS[config.platform]
    transport = Transport(config.platform, max_requests=20, max_seconds=60)
    client = platform.connect(credentials or _credentials(config), transport)
    return f"{source_id}: {platform.check(client)}"


def _credentials(config: SourceConfig) -> Credentials:
    return credentials(config.conn_id)


@contextmanager
def _only_one(connection: psycopg.Connection[Row], config: SourceConfig, stream: str) -> Iterator[None]:
    """One run at a time per stream: hold a session lock; wait a little for a run that is just ending."""
    name = f"landing/{config.source_id}/{stream}"
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    try:
        connection.execute("SELECT pg_advisory_lock(%s)", (key,))
    except psycopg.errors.LockNotAvailable:
        raise LandingError(
            f"{config.source_id} {stream}: another run is reading this stream; wait for it to end, or stop it."
        ) from None
    try:
        connection.execute("SET lock_timeout = 0")
        yield
    finally:
        if not connection.closed and not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(%s)", (key,))


class Loader:
    """Writes one stream of one source."""

    def __init__(
        self, connection: psycopg.Connection[Row], config: SourceConfig, stream: Stream, run_id: str, dry_run: bool
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
        self._names = (config.source_id, stream.name)

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
        first_batch: int | None = None
        batch = Batch()
        for page in piece.pages():
            self._add(page, batch)
            self.summary.seen += len(page)
            limited = limit is not None and self.summary.seen >= limit
            if batch.is_full() or limited:
                written = self._write(piece, batch)  # every full batch, not only the first one
                first_batch = first_batch or written
                batch = Batch()
            if limited:
                raise _Limit
        self._write(piece, batch, first_batch=first_batch, is_last=True)
        zone = get_settings().zone
        words = f"{piece.window.start.astimezone(zone).isoformat()}/{piece.window.end.astimezone(zone).isoformat()}"
        self.summary.windows += 1
        self.summary.first_window = self.summary.first_window or words
        self.summary.last_window = words

    def _add(self, page: list[Record], batch: Batch) -> None:
        """Put what is new or different on a page into the batch, personal values replaced by tokens."""
        batch.seen += len(page)
        keyed: list[tuple[str, Record, bytes]] = []
        for record in page:
            key = self.stream.record_key(record)
            if key is None:
                self._reject(record, batch)
            else:
                received = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
                keyed.append((key, record, self._tokenizer.content_hash(received)))
        known = self._heads([key for key, _, _ in keyed])
        for key, record, digest in keyed:
            waiting = batch.rows.get(key)
            if digest == (waiting[1] if waiting else known.get(key)):
                continue
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

    def _reject(self, record: Any, batch: Batch) -> None:
        if isinstance(record, dict):
            missing = [name for name in self.stream.key if record.get(name) in (None, "")]
            reason = f"the record has no {' and no '.join(missing)}"
            payload = self._tokenise(record, batch)
        else:
            reason = f"the record is {type(record).__name__}, not an object"
            payload = b"null"  # it may be anything, also somebody's name
        batch.rejects.append((reason, payload))
        batch.bytes += len(payload)

    def _heads(self, keys: list[str]) -> dict[str, bytes]:
        rows = self.connection.execute(
            """
            SELECT record_key, content_hash FROM raw.heads
            WHERE source_id = %s AND stream = %s AND record_key = ANY(%s::text[])
            """,
            (*self._names, keys),
        )
        return {row["record_key"]: bytes(row["content_hash"]) for row in rows}

    # -- writing
    def _write(self, piece: Slice, batch: Batch, *, first_batch: int | None = None, is_last: bool = False) -> int:
        """One transaction: batch, records, heads, rejects, vault; with `is_last` the cursors too. Returns the batch id."""
        self.summary.changed += len(batch.rows)
        self.summary.rejected += len(batch.rejects)
        if self.dry_run:
            return 0
        now = dates.now()
        fresh = {token: value for token, value in batch.secrets.items() if token not in self._known_tokens}
        with self.connection.transaction():
            batch_id = self._insert_batch(piece, batch, now)
            if batch.rows:
                store_secrets(self.connection, fresh, self._keyring)
                self._insert_records(batch, batch_id, now)
            elif batch.rejects:
                store_secrets(self.connection, fresh, self._keyring)
            self._insert_rejects(batch, batch_id, now)
            if is_last:
                self._resolve_rejects(piece, first_batch or batch_id, now)
                self._move_cursors(piece, now)
        if len(self._known_tokens) > KNOWN_TOKENS:
            self._known_tokens.clear()
        self._known_tokens.update(fresh)
        return batch_id

    def _insert_batch(self, piece: Slice, batch: Batch, now: datetime) -> int:
        row = self.connection.execute(
            """
            INSERT INTO raw.batches (source_id, stream, part, run_id, window_start, window_end, seen_count,
                                     changed_count, rejected_count, loaded_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING batch_id
            """,
            (
                *self._names,
                piece.part,
                self.run_id,
                piece.window.start,
                piece.window.end,
                batch.seen,
                len(batch.rows),
                len(batch.rejects),
                now,
            ),
        ).fetchone()
        assert row is not None
        return int(row["batch_id"])

    def _insert_records(self, batch: Batch, batch_id: int, now: datetime) -> None:
        columns = (
            "batch_id",
            "source_id",
            "stream",
            "record_key",
            "payload",
            "content_hash",
            "occurred_at",
            "observed_at",
            "run_id",
        )
        observed = now.isoformat()
        copy_rows(
            self.connection,
            "raw.records",
            columns,
            (
                (batch_id, *self._names, key, payload.decode(), digest, occurred, observed, self.run_id)
                for key, (payload, digest, occurred) in batch.rows.items()
            ),
        )
        self.connection.execute(
            """
            INSERT INTO raw.heads (source_id, stream, record_key, content_hash, batch_id)
            SELECT %s, %s, k.record_key, k.content_hash, %s
            FROM unnest(%s::text[], %s::bytea[]) AS k (record_key, content_hash)
            ON CONFLICT (source_id, stream, record_key)
            DO UPDATE SET content_hash = excluded.content_hash, batch_id = excluded.batch_id
            """,
            (*self._names, batch_id, list(batch.rows), [digest for _, digest, _ in batch.rows.values()]),
        )

    def _insert_rejects(self, batch: Batch, batch_id: int, now: datetime) -> None:
        """The same broken record again is the same reject: it only learns where it was seen last."""
        for reason, payload in batch.rejects:
            self.connection.execute(
                """
                INSERT INTO raw.rejects (source_id, stream, stage, reason, payload, batch_id, run_id, rejected_at)
                VALUES (%s, %s, 'landing', %s, %s, %s, %s, %s)
                ON CONFLICT (source_id, stream, stage, coalesce(record_key, ''), md5(reason), md5(coalesce(payload::text, '')))
                DO UPDATE SET batch_id = excluded.batch_id, resolved_at = NULL
                """,
                (*self._names, reason, payload.decode(), batch_id, self.run_id, now),
            )

    def _resolve_rejects(self, piece: Slice, first_batch: int, now: datetime) -> None:
        """Rejects of this stretch that a complete reading did not show any more have come in with their id."""
        settled = piece.settles or piece.window
        self.connection.execute(
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
                self.connection.execute(
                    "DELETE FROM raw.cursors WHERE source_id = %s AND stream = %s", (self.config.source_id, name)
                )
                continue
            self.connection.execute(
                """
                INSERT INTO raw.cursors (source_id, stream, watermark, run_id, updated_at) VALUES (%s, %s, %s, %s, %s)
                ON CONFLICT (source_id, stream)
                DO UPDATE SET watermark = excluded.watermark, run_id = excluded.run_id, updated_at = excluded.updated_at
                """,
                (self.config.source_id, name, watermark, self.run_id, now),
            )


# ---------------------------------------------------------------------------------------------------------- mapping
@dataclass(frozen=True)
class MappingFile:
    """One SQL file that maps raw records into core tables; `path` is relative to include/sql."""

    path: str
    reads: tuple[str, ...]  # streams of the source
    writes: tuple[str, ...]  # tables


MAPPINGS: Mapping[str, tuple[MappingFile, ...]] = {
    "taobao": (
        MappingFile("core/taobao/identities.sql", ("trades", "refunds"), ("core.identities", "core.identity_links", "core.profiles")),
        MappingFile("core/taobao/orders.sql", ("trades",), ("core.orders",)),
        MappingFile("core/taobao/order_lines.sql", ("trades",), ("core.order_lines",)),
        MappingFile("core/taobao/products.sql", ("trades",), ("core.products",)),
        MappingFile("core/taobao/shipments.sql", ("trades",), ("core.shipments",)),
        MappingFile("core/taobao/refunds.sql", ("refunds",), ("core.refunds",)),
        MappingFile("core/taobao/reviews.sql", ("rates",), ("core.reviews",)),
    ),
    "wechat_official": (
        MappingFile("core/wechat_official/identities.sql", ("followers",), ("core.identities", "core.identity_links", "core.profiles")),
        MappingFile("core/wechat_official/followers.sql", ("followers",), ("core.followers",)),
        MappingFile("core/wechat_official/consents.sql", ("followers",), ("core.consents",)),
    ),
    "own_pages": (
        MappingFile("core/own_pages/identities.sql", ("events",), ("core.identities", "core.identity_links", "core.profiles")),
        MappingFile("core/own_pages/follow_events.sql", ("events",), ("core.follow_events",)),
        MappingFile("core/own_pages/message_events.sql", ("events",), ("core.message_events",)),
        MappingFile("core/own_pages/interactions.sql", ("events",), ("core.interactions",)),
        MappingFile("core/own_pages/consents.sql", ("events",), ("core.consents",)),
    ),
}  # fmt: skip
MEMBER_FILES = (
    MappingFile("core/members/members.sql", (), ("core.members", "core.member_identities", "core.member_merges")),
)


def mapping_files(platform: str) -> list[MappingFile]:
    """The mapping SQL of a platform, in the order in which it runs."""
    return list(MAPPINGS[platform])


def mapping_parameters(config: SourceConfig, run_id: str, as_of_at: Any) -> dict[str, Any]:
    """Bound parameters of every mapping file. `as_of_at` stamps what the mapping itself decides, never business facts."""
    account = config.account or config.source_id
    return {"source_id": config.source_id, "account_source_id": account, "run_id": run_id, "as_of_at": as_of_at}


def map_source(source_id: str, *, run_id: str, as_of_at: datetime | None = None) -> None:
    """Run all mapping files of a source, each in its own transaction, as the extract DAG does task by task."""
    config = source(source_id)
    parameters = mapping_parameters(config, run_id, as_of_at or dates.now())
    for file in mapping_files(config.platform):
        with connect(application_name="nightmarket-mapping") as connection:
            warehouse.run_sql(connection, file.path, parameters)


def resolve_members(*, run_id: str, as_of_at: datetime | None = None) -> None:
    """Tie identities to members, after the mappings of all sources."""
    for file in MEMBER_FILES:
        with connect(application_name="nightmarket-mapping") as connection:
            warehouse.run_sql(connection, file.path, {"run_id": run_id, "as_of_at": as_of_at or dates.now()})


def reset_mappings(connection: psycopg.Connection[Row], source_id: str) -> int:
    """Forget how far a source was mapped: the next mapping maps all of raw again, to the same rows. Returns how many marks."""
    return connection.execute("DELETE FROM raw.mappings WHERE source_id = %s", (source_id,)).rowcount


__all__ = ["LandingError", "LandingSummary", "PlatformError", "check_source", "land", "load_sources", "map_source"]
