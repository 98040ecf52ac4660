"""The webhook archive: what platforms push to us is verified, stored encrypted, and only then answered.

Mounted in the console's app as /webhooks/{source_id}. Nobody signs in there: the platform's own signature is the key, and
what is not signed well is refused before anything is stored. The nightly streams read from raw.pushes (Plan.pushes).
A database that does not answer in time is HTTP 503: the platform sends the push again, and a push that was stored
after all is the same row (source_id, push_key).
"""

import hashlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
import psycopg
from fastapi import APIRouter, Request, Response

from nightmarket import dates
from nightmarket.platforms.base import REFUSED, Push, PushAnswer, PushRequest, Receives
from nightmarket.privacy import Keyring
from nightmarket.settings import ConfigError, Credentials, credentials, get_settings
from nightmarket.sources import UnknownSource, source

BODY_BYTES = 512 * 1024  # the largest push of any platform we know is a trade of some ten KB
ANSWER_SECONDS = 4.0  # WeChat waits five
CONNECT_SECONDS = 2
STATEMENT_MILLISECONDS = 3_000
CONNECTIONS = 8  # and threads; one push takes one of them for some milliseconds
CREDENTIAL_SECONDS = 30.0  # how long a connection's secrets are remembered
FRESH_SECONDS = 2.0  # a signature that does not match may mean a new secret: look once, unless just looked
COUNT_SECONDS = (
    60.0  # refusals are written down as one row a minute and source, so that nobody can fill a table with them
)
KEY_CHARACTERS = 300
Connection = psycopg.Connection[tuple[object, ...]]
T = TypeVar("T")
log = logging.getLogger(__name__)


class Unknown(Exception):
    """No source of that name takes pushes."""


class Receiver:
    """Verifies and stores pushes. Shared by the threads of one process."""

    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()  # by source, since the process started
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue()
        self._secrets: dict[str, tuple[float, Credentials]] = {}
        self._written: dict[str, tuple[float, int]] = {}  # by source: when refusals were written down, how many
        self._lock = threading.Lock()

    def take(self, source_id: str, request: PushRequest) -> PushAnswer:
        """Verify, store, and give the answer. Raises Unknown, ConfigError, psycopg.Error: then nothing was answered yet."""
        try:
            config = source(source_id)
        except UnknownSource:
            raise Unknown from None
        if not isinstance(config.module, Receives):
            raise Unknown
        answer = self._ask(config.module.receive, config.conn_id, request)
        if answer.status == REFUSED.status:
            self._count_refusal(source_id)
        elif answer.pushes:
            self.run(lambda connection: self.store(connection, source_id, answer.pushes))
        return answer

    def _ask(
        self, receive: Callable[[Credentials, PushRequest], PushAnswer], conn_id: str, request: PushRequest
    ) -> PushAnswer:
        asked_at, secrets = self._secrets.get(conn_id, (float("-inf"), None))
        age = time.monotonic() - asked_at
        if secrets is not None and age < CREDENTIAL_SECONDS:
            answer = receive(secrets, request)
            if answer.status != REFUSED.status or age < FRESH_SECONDS:
                return answer
        secrets = credentials(conn_id)
        self._secrets[conn_id] = time.monotonic(), secrets
        return receive(secrets, request)

    def store(self, connection: Connection, source_id: str, pushes: Sequence[Push]) -> int:
        """Keep pushes, sealed, in the caller's transaction; how many of them are new."""
        keyring, now = Keyring.from_settings(), dates.now()
        rows: list[tuple[object, ...]] = []
        for push in pushes:
            key = push.key if len(push.key) <= KEY_CHARACTERS else hashlib.sha256(push.key.encode()).hexdigest()
            rows.append((source_id, key, keyring.seal(f"{source_id}/{key}", push.body.decode()), now))
        # no conflict target: naming one would need the right to read the table
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO raw.pushes (source_id, push_key, body, received_at) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                rows,
            )
            return cursor.rowcount

    def _count_refusal(self, source_id: str) -> None:
        """One more; the first, and then the sum once a minute, goes to raw.push_refusals and the log."""
        with self._lock:
            self.refusals[source_id] += 1
            written_at, written = self._written.get(source_id, (float("-inf"), 0))
            fresh = self.refusals[source_id] - written
            if time.monotonic() - written_at < COUNT_SECONDS:
                return
            self._written[source_id] = time.monotonic(), self.refusals[source_id]
        log.warning("%s: %d pushes refused, their signature does not match", source_id, fresh)
        statement = "INSERT INTO raw.push_refusals (source_id, refused_count, counted_at) VALUES (%s, %s, %s)"
        try:
            self.run(lambda connection: connection.execute(statement, (source_id, fresh, dates.now())))
        except psycopg.Error as error:  # the refusal stands whether it can be written down or not
            log.error("%s: refusals could not be written down: %s", source_id, type(error).__name__)

    # -- the database
    def run(self, work: Callable[[Connection], T]) -> T:
        """`work` in one transaction; once more over a new connection when an idle one turns out to be dead."""
        for is_last in (False, True):
            with self._connection() as (connection, is_new):
                try:
                    with connection.transaction():
                        return work(connection)
                except psycopg.OperationalError:
                    if is_new or is_last:
                        raise
        raise AssertionError("unreachable")

    @contextmanager
    def _connection(self) -> Iterator[tuple[Connection, bool]]:
        try:
            connection, is_new = self._idle.get_nowait(), False
        except queue.Empty:
            connection, is_new = self._connect(), True
        try:
            yield connection, is_new
        finally:
            if connection.closed or connection.broken:
                connection.close()
            else:
                self._idle.put(connection)

    @staticmethod
    def _connect() -> Connection:
        settings = get_settings()
        dsn = settings.receiver_dsn or settings.warehouse_dsn
        return psycopg.connect(
            dsn.get_secret_value(),
            autocommit=True,
            application_name="nightmarket-receiver",
            connect_timeout=CONNECT_SECONDS,
            options=f"-c statement_timeout={STATEMENT_MILLISECONDS}",
        )

    def close(self) -> None:
        """Close the idle connections."""
        while not self._idle.empty():
            self._idle.get_nowait().close()


class Threads:
    """Work on the database away from the event loop, so many at a time, and answered in time."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None  # made inside the event loop that uses it

    async def __call__(self, work: Callable[[], T]) -> T:
        """What `work` returns. Raises TimeoutError when it is not done in time; it may be done all the same."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(CONNECTIONS)
        with anyio.fail_after(ANSWER_SECONDS):
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)


def create_router(archive: Receiver) -> APIRouter:
    """The route of the archive. Statuses: 200 as the platform wants it, 403, 404, 413, 503 (send it again)."""
    router = APIRouter()
    threads = Threads()

    @router.api_route("/webhooks/{source_id}", methods=["GET", "POST"])
    async def take(source_id: str, request: Request) -> Response:
        try:
            with anyio.fail_after(ANSWER_SECONDS):
                body = await read_body(request, BODY_BYTES)
                if body is None:
                    return _answer(PushAnswer(413, b"too large"))
                pushed = PushRequest(
                    request.method,
                    f"/webhooks/{source_id}",
                    dict(request.query_params),
                    {name.lower(): value for name, value in request.headers.items()},
                    body,
                )
                answer = await threads(partial(archive.take, source_id, pushed))
        except Unknown:
            answer = PushAnswer(404, b"no such source")
        except TimeoutError:
            log.error("%s: a push was not stored within %.0f s", source_id, ANSWER_SECONDS)
            answer = PushAnswer(503, b"try again")
        except (ConfigError, psycopg.Error) as error:
            # an error of the database may name hosts and values; ours is a sentence
            log.error("%s: a push was not stored: %s", source_id, error if isinstance(error, ConfigError) else type(error).__name__)  # fmt: skip
            answer = PushAnswer(503, b"try again")
        return _answer(answer)

    return router


async def read_body(request: Request, limit: int) -> bytes | None:
    """The body, or None when it has more than `limit` bytes; then the rest is not read."""
    said = request.headers.get("content-length", "0")
    if said.isdigit() and int(said) > limit:
        return None
    pieces = bytearray()
    async for piece in request.stream():
        pieces += piece
        if len(pieces) > limit:
            return None
    return bytes(pieces)


def _answer(answer: PushAnswer) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(answer.body, answer.status, headers, answer.content_type)
