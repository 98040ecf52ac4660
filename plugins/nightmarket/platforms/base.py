"""What all platforms share: typed errors, requests that are bounded in time, size and number, and what a stream is.

A platform module has four things, top to bottom: constants, the client, the streams, `check()`. Its client knows the wire
and nothing of the warehouse; `nightmarket.landing` drives it and writes. What workers share (tokens, the pace of calls) comes
in through the Transport, so that a platform does not know where it is kept.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import orjson
import requests
import tenacity

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.settings import Credentials, StrictModel

CONNECT_SECONDS = 5  # to open a connection
READ_SECONDS = 20  # between two pieces of an answer
ANSWER_SECONDS = 60  # for a whole answer: a platform that dribbles must not hold a night
MAX_ANSWER_BYTES = 64 * 1024 * 1024
CLOCK_TOLERANCE_SECONDS = 2
MAX_ATTEMPTS = 5
MAX_WAIT_SECONDS = 30  # a longer ban is not waited for inside a task: the task's own retry comes later

Record = dict[str, Any]
Cursors = Mapping[str, datetime]
T = TypeVar("T")


class PlatformError(Exception):
    """Something a platform did or said. `str()` is one sentence without credentials or personal values."""

    def __init__(
        self, platform: str, method: str = "", problem: str = "", *, request_id: str = "", code: int | None = None
    ) -> None:
        super().__init__(platform, method, problem)
        self.platform = platform
        self.method = method
        self.problem = problem
        self.request_id = request_id
        self.code = code  # the platform's own

    def __str__(self) -> str:
        suffix = f" (request id {self.request_id})" if self.request_id else ""
        return f"{self.platform}, {self.method}: {self.problem}{suffix}"


class AuthError(PlatformError):
    """Credentials or authorisation do not work; a person has to act."""


class RateLimited(PlatformError):
    """Too many calls. `retry_after` says in how many seconds the platform takes the next one, as far as it says so.

    `of_account`: the limit is the account's, so that everybody who uses it waits; else it is one interface's.
    """

    retry_after: float = 0

    def __init__(self, *arguments: str, retry_after: float = 0, of_account: bool = True, **details: Any) -> None:
        super().__init__(*arguments, **details)
        self.retry_after = retry_after
        self.of_account = of_account


class NotFound(PlatformError):
    """The platform does not know the thing that was asked for."""


class BadPayload(PlatformError):
    """The answer is not what the platform's documentation promises: broken JSON, a missing envelope."""


class PlatformDown(PlatformError):
    """No usable answer: unreachable, too slow, cut, or an error that passes. Worth another try."""


class Refused(PlatformError):
    """The platform refuses the request as it is (a parameter, a missing permission): repeating it changes nothing."""


class LimitReached(PlatformError):
    """A bound of our own on one run (requests, minutes) was reached; what was read is kept, the next run goes on."""


class NoOptions(StrictModel):
    """The block `options:` of a platform that has none."""


# ------------------------------------------------------------------------------------------------- what workers share
TOKEN_AHEAD = timedelta(minutes=5)  # a token that ends sooner is renewed before it is used


@dataclass(frozen=True)
class Token:
    """An access token, until when it is good, and what its renewal needs (a refresh token). Secret, all of it."""

    value: str = field(repr=False)
    expires_at: datetime
    extra: Mapping[str, str] = field(default_factory=dict, repr=False)


class TokenStore(Protocol):
    """Where the tokens of an account are kept so that all workers use the same one."""

    def get(self, name: str, obtain: Callable[[Token | None], Token], *, bad: str = "") -> Token:
        """The token `name`; `obtain(the last one)` makes a new one when there is none, when it ends soon, or when it is `bad`."""
        ...


class OwnTokens:
    """Tokens of one process: for tests and for calls outside a run."""

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}
        self._lock = threading.Lock()

    def get(self, name: str, obtain: Callable[[Token | None], Token], *, bad: str = "") -> Token:
        with self._lock:
            token = self._tokens.get(name)
            if token is None or token.value == bad or token.expires_at <= dates.now() + TOKEN_AHEAD:
                token = self._tokens[name] = obtain(token)
            return token


class Pace(Protocol):
    """The call limit of an account, shared by all workers."""

    def wait(self, method: str) -> None:
        """Return when the next call may start. Raises RateLimited when that is not soon, or today's share is spent."""
        ...

    def pause(self, seconds: float) -> None:
        """The platform asked everybody who uses this account to wait."""
        ...


class Unpaced:
    """No limit of our own."""

    def wait(self, method: str) -> None:
        return None

    def pause(self, seconds: float) -> None:
        return None


@dataclass(frozen=True)
class Answer:
    """One answer: HTTP status, headers (their names in any case), body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """HTTP with bounds: seconds and bytes per answer, requests and seconds per run; retries of what can pass.

    One per run. `sleep` is replaced in tests.
    """

    def __init__(
        self,
        platform: str,
        *,
        max_requests: int = 20_000,
        max_seconds: float = 3600,
        sleep: Callable[[float], None] = time.sleep,
        tokens: TokenStore | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.platform = platform
        self.tokens: TokenStore = tokens or OwnTokens()
        self.pace: Pace = pace or Unpaced()
        self.lock = (
            threading.RLock()
        )  # tokens and pace belong to one thread: a platform that reads with several takes turns
        self.requests = 0
        self.clock_offset: float | None = (
            None  # seconds by which this machine is ahead of the last answer's Date header
        )
        self._least_offset: float | None = None
        self._max_requests = max_requests
        self._deadline = time.monotonic() + max_seconds
        self._max_seconds = max_seconds
        self._session = requests.Session()
        self._sleep = sleep

    def fetch(self, verb: str, url: str, *, method: str, **arguments: Any) -> tuple[int, bytes]:
        """One request; (HTTP status, body). Raises PlatformDown, RateLimited, LimitReached.

        `method` is the platform's name of the call, for error sentences; URLs stay out of them, they may hold tokens.
        """
        answer = self.fetch_full(verb, url, method=method, **arguments)
        return answer.status, answer.body

    def fetch_full(self, verb: str, url: str, *, method: str, **arguments: Any) -> Answer:
        """fetch() for platforms that say part of their answer in headers."""
        self.admit(method)
        started = time.monotonic()
        try:
            with self._session.request(
                verb, url, timeout=(CONNECT_SECONDS, READ_SECONDS), stream=True, allow_redirects=False, **arguments
            ) as answer:
                body = self._read(answer, method, started)
        except requests.Timeout:
            problem = f"no answer within {time.monotonic() - started:.0f} s"
            raise PlatformDown(self.platform, method, problem) from None
        except requests.RequestException as error:
            raise PlatformDown(self.platform, method, _in_words(error)) from None
        if answer.status_code == 429:
            wait = _seconds(answer.headers.get("Retry-After"))
            self.pause(wait)
            raise RateLimited(
                self.platform, method, f"HTTP 429, too many calls; next one in {wait:.0f} s", retry_after=wait
            )
        if answer.status_code >= 500:
            raise PlatformDown(self.platform, method, f"HTTP {answer.status_code}")
        self._look_at_clock(answer.headers.get("Date"))
        return Answer(answer.status_code, answer.headers, body)

    def admit(self, method: str) -> None:
        """Take a slot for one request, also for one that is not HTTP. Raises LimitReached, RateLimited."""
        with self.lock:
            self._count(method)
            self.pace.wait(method)

    def sleep(self, seconds: float) -> None:
        """Wait because the platform's answers say that calls come too fast."""
        self._sleep(seconds)

    def retry(self, attempt: Callable[[], T]) -> T:
        """Run `attempt` until it succeeds; PlatformDown and short RateLimited are tried again with growing, jittered pauses."""

        def telling() -> T:
            try:
                return attempt()
            except RateLimited as error:  # told with HTTP 200 or with 429: the other workers wait as well
                if error.of_account:
                    self.pause(error.retry_after)
                raise

        runner = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_can_pass),
            wait=_pause,
            stop=tenacity.stop_after_attempt(MAX_ATTEMPTS),
            sleep=self._sleep,
            reraise=True,
        )
        return runner(telling)

    def _look_at_clock(self, date: str | None) -> None:
        self.clock_offset = _clock_offset(date)
        if self.clock_offset is not None:
            known = self._least_offset
            self._least_offset = self.clock_offset if known is None else min(known, self.clock_offset)

    @property
    def ahead(self) -> timedelta:
        """By how much our clock is surely ahead of the platform's; 0 when they agree or it does not tell.

        The least of what the answers of this run said: one answer from a cache, with an old date, proves nothing.
        """
        offset = self._least_offset or 0.0
        return timedelta(seconds=offset) if offset > CLOCK_TOLERANCE_SECONDS else timedelta(0)

    def pause(self, seconds: float) -> None:
        """The platform asked to wait: so do the other workers of this account."""
        if seconds > 0:
            with self.lock:
                self.pace.pause(seconds)

    def _count(self, method: str) -> None:
        if self.requests >= self._max_requests:
            raise LimitReached(
                self.platform,
                method,
                f"stopped after {self.requests} requests (max_requests in sources.yaml); the next run goes on from here",
            )
        if time.monotonic() > self._deadline:
            raise LimitReached(
                self.platform,
                method,
                f"stopped after {self._max_seconds / 60:.0f} minutes (max_minutes in sources.yaml); the next run goes on from here",
            )
        self.requests += 1

    def _read(self, answer: requests.Response, method: str, started: float) -> bytes:
        pieces: list[bytes] = []
        size = 0
        for piece in answer.iter_content(64 * 1024):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise BadPayload(self.platform, method, f"the answer is larger than {MAX_ANSWER_BYTES >> 20} MB")
            if time.monotonic() - started > ANSWER_SECONDS:
                raise PlatformDown(self.platform, method, f"the answer was not complete within {ANSWER_SECONDS} s")
        return b"".join(pieces)


def parse_json(platform: str, method: str, body: bytes, page: object = None) -> Any:
    """The JSON of an answer. Raises BadPayload that names platform, method and page and shows nothing of the content."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        where = f"page {page} " if page is not None else "the answer "
        raise BadPayload(
            platform, method, f"{where}is not readable JSON ({len(body)} bytes, broken at character {error.pos})"
        ) from None


def _can_pass(error: BaseException) -> bool:
    if isinstance(error, RateLimited):
        return error.retry_after <= MAX_WAIT_SECONDS
    return isinstance(error, PlatformDown)


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds before the next try: what the platform asks for, else 0.5, 1, 2, 4; up to half of it more, by chance."""
    error = state.outcome.exception() if state.outcome else None
    wait = error.retry_after if isinstance(error, RateLimited) and error.retry_after else 0.25 * 2**state.attempt_number
    return wait * (1 + random.random() / 2)


def _in_words(error: requests.RequestException) -> str:
    """What went wrong with a connection, without the URL that requests puts into its messages."""
    if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError):
        return "the connection was cut in the middle of the answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "the TLS certificate cannot be verified"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached, or the connection was cut before an answer came"
    return f"the request failed ({type(error).__name__})"


def _seconds(text: str | None) -> float:
    try:
        return max(float(text or 0), 0)
    except ValueError:  # the HTTP-date form: rare, and our clock may differ, so a fixed pause
        return 5


def _clock_offset(date_header: str | None) -> float | None:
    from email.utils import parsedate_to_datetime

    try:
        return (dates.now() - parsedate_to_datetime(date_header)).total_seconds() if date_header else None
    except (ValueError, TypeError):  # TypeError: a date without a zone
        return None


def clock_words(offset: float | None) -> str:
    """How far our clock is from the platform's, in words; `offset` is in seconds, positive when ours is ahead."""
    if offset is None:
        return "the platform does not tell its time"
    if abs(offset) <= CLOCK_TOLERANCE_SECONDS:
        return "clocks agree"
    return f"clock off by {abs(offset):.0f} s ({'ahead' if offset > 0 else 'behind'})"


# ---------------------------------------------------------------------------------------------------------- streams
@dataclass(frozen=True)
class Plan:
    """What a stream needs to know to decide what to read: the state of the warehouse and the bounds of this run."""

    until: datetime  # read what happened before this instant
    cursors: Cursors  # watermarks of this stream: "" the main one, others by part
    overlap: timedelta  # how far before the watermark to read again
    window: timedelta  # longest stretch to ask for in one window
    history: timedelta  # how far back a first load goes
    reread: tuple[tuple[str, Window], ...] = ()  # (part, window) of earlier runs that held unusable records
    present: Callable[[], set[str]] = set  # keys whose current version says that the thing still exists
    pushes: Callable[[Window], Iterator[list[Record]]] = lambda _: iter(())  # what was pushed to us, by received_at
    say: Callable[[str], None] = lambda _: None  # words for the run's summary: what was left out, and why
    files: "FileLedger | None" = None  # which files this source has taken
    is_dry_run: bool = False  # nothing is written: then nothing may be moved either


@dataclass(frozen=True)
class Slice:
    """A piece of a stream that is read completely or, after a failure, again.

    `part` says which list of the platform it comes from. `cursors` are the watermarks that hold once all its rows are in
    raw (None removes one); they are written in the transaction that writes the last of them. `settles` is the stretch whose
    rejects are settled when they do not show again, where it is larger than the window.
    """

    part: str
    window: Window
    pages: Callable[[], Iterator[list[Record]]]
    cursors: Mapping[str, datetime | None] = field(default_factory=dict)
    settles: Window | None = None
    files: Callable[[], Sequence["TakenFile"]] = (
        tuple  # taken with this slice: written in the transaction of its last rows
    )


@dataclass(frozen=True)
class TakenFile:
    """What became of a file. Rows that wait for rows of another file keep it in the folder: the next run reads it again."""

    stream: str
    path: str  # below the source's folder
    content_hash: bytes
    byte_count: int
    row_count: int = 0
    rejected_count: int = 0
    waiting_count: int = 0
    taken_at: datetime | None = None  # when it was first read; None: now


class FileLedger(Protocol):
    """Which files a source has taken, by all its streams."""

    def taken(self) -> Sequence[TakenFile]: ...

    def archived(self, stream: str, content_hash: bytes) -> None:
        """The file has left the folder."""
        ...


@dataclass(frozen=True)
class Unusable:
    """Stands on a page instead of a record that the platform module could read but not use; it goes to raw.rejects.

    `record` may hold personal values: they become tokens. A later usable record of the same `key` resolves it.
    """

    reason: str
    record: Record
    key: str | None = None


class Client(Protocol):
    """A platform's client, as landing sees it."""

    transport: Transport


@dataclass(frozen=True)
class Stream:
    """One kind of record of a source.

    `key` are the fields whose values name a record; a record that lacks one of them is rejected.
    `personal` maps dotted paths to kinds of personal value (privacy.KINDS); `free_text` are paths where people write what
    they like, so that phone numbers and e-mail addresses are looked for inside.
    """

    name: str
    key: tuple[str, ...]
    occurred_at: Callable[[Record], datetime | None]
    slices: Callable[[Any, Plan], Iterator[Slice]]
    personal: Mapping[str, str]
    free_text: tuple[str, ...] = ()
    overlap: timedelta = timedelta(minutes=30)
    window: timedelta = timedelta(days=1)
    present: tuple[str, str] | None = None  # (field, text value) of a record that still exists, for snapshot streams
    priority: int = 2  # of a daily quota: 1 orders and refunds, 2 people and reviews, 3 the rest
    required: tuple[
        str, ...
    ] = ()  # fields every record has; one that vanishes from all of them stops the night by its name
    scrubbed_key: bool = False  # the key may be a phone number or an address: it is kept as its token
    unhashed: tuple[
        str, ...
    ] = ()  # fields that say where a record stood, not what it is: alone they make no new version
    backfill: Callable[[Any, Plan, Window], Iterator[Slice]] | None = None  # read a past range again; None: cannot

    def record_key(self, record: Any) -> str | None:
        """The record's name within its source and stream, or None when a part of it is missing."""
        if not isinstance(record, dict):
            return None
        parts = [record.get(name) for name in self.key]
        if any(part is None or part == "" for part in parts):
            return None
        return "/".join(str(part) for part in parts)


def by_window(
    pages: Callable[[Any, Window], Iterator[list[Record]]],
    *,
    part: str = "modified",
    largest: timedelta = timedelta(days=3650),
    lag: timedelta = timedelta(0),
    oldest: timedelta | None = None,
) -> Callable[[Any, Plan], Iterator[Slice]]:
    """The slices of the usual stream: `pages(client, window)` gives everything that changed in [start, end).

    From the watermark minus the overlap, or the whole history, in windows of at most `largest`; earlier windows that held
    unusable records first. `lag`: the platform's lists show a change only so long after it happened. `oldest`: it shows
    nothing older.
    """

    def slices(client: Any, plan: Plan) -> Iterator[Slice]:
        floor = dates.now() - oldest if oldest else None
        for earlier, window in plan.reread:
            if floor is None or window.end > floor:
                yield Slice(earlier, window, lambda w=window: pages(client, w))  # type: ignore[misc]
        until = min(plan.until, (dates.now() - lag).replace(microsecond=0))
        start = plan.cursors[""] - plan.overlap if "" in plan.cursors else plan.until - plan.history
        if floor is not None:
            start = max(start, floor)
        for window in dates.windows(start, until, min(plan.window, largest)):
            yield Slice(part, window, lambda w=window: pages(client, w), {"": window.end})  # type: ignore[misc]

    return slices


def backfill_by_window(
    pages: Callable[[Any, Window], Iterator[list[Record]]],
    *,
    part: str = "modified",
    largest: timedelta = timedelta(days=3650),
) -> Callable[[Any, Plan, Window], Iterator[Slice]]:
    """A past range once more, in windows of at most `largest`; the watermark stays."""

    def slices(client: Any, plan: Plan, window: Window) -> Iterator[Slice]:
        for piece in dates.windows(window.start, window.end, min(plan.window, largest)):
            yield Slice(part, piece, lambda w=piece: pages(client, w))  # type: ignore[misc]

    return slices


def snapshot(pages: Callable[[Any], Iterator[list[Record]]]) -> Callable[[Any, Plan], Iterator[Slice]]:
    """The slices of a stream that has no time to ask by: everything there is, in one slice, every time."""

    def slices(client: Any, plan: Plan) -> Iterator[Slice]:
        start = min(plan.cursors.get("", plan.until - plan.history), plan.until - timedelta(seconds=1))
        yield Slice("snapshot", Window(start, plan.until), lambda: pages(client), {"": plan.until})

    return slices


# ------------------------------------------------------------------------------------------------------------ check
@dataclass(frozen=True)
class Check:
    """What one cheap look at an account found: does the key work, for whom, what is missing, how the clocks agree."""

    account: str  # "shop X", "account wx1 with 120 followers"
    clock_offset: float | None = None  # seconds by which our clock is ahead
    problems: Mapping[str, str] = field(default_factory=dict)  # stream -> a sentence

    def sentence(self) -> str:
        parts = [f"works for {self.account}"]
        parts += [f"{stream}: {problem}" for stream, problem in self.problems.items()]
        return "; ".join([*parts, clock_words(self.clock_offset)])


def probe(calls: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    """One cheap call per stream; what is refused for good, by stream, in words. What may pass is raised."""
    problems = {}
    for stream, call in calls.items():
        try:
            call()
        except (AuthError, Refused) as error:
            problems[stream] = error.problem
    return problems


# ----------------------------------------------------------------------------------------------------------- pushes
@dataclass(frozen=True)
class PushRequest:
    """What a platform sent to our receiver, as it arrived; nobody has verified it yet."""

    method: str  # GET or POST
    path: str  # /webhooks/<source_id>, whatever prefix the console is mounted under
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True)
class Push:
    """One event to keep. The same event again has the same key, so that a replay is not a second event."""

    key: str  # unique within the source
    body: bytes = field(repr=False)  # a JSON object; streams read it as `body` of {"push_key", "received_at", "body"}


@dataclass(frozen=True)
class PushAnswer:
    """What the platform is told once `pushes` are stored. 403: the signature is not good, nothing is stored."""

    status: int = 200
    body: bytes = b"success"
    content_type: str = "text/plain"
    pushes: Sequence[Push] = ()


REFUSED = PushAnswer(403, b"the signature does not match")


@runtime_checkable
class Receives(Protocol):
    """A platform module that also takes pushes (console/receiver.py)."""

    def receive(self, credentials: Credentials, request: PushRequest) -> PushAnswer:
        """Verify the request with the secrets of `credentials` and say what to keep and what to answer. Makes no call."""
        ...


def pushed(plan: Plan) -> Iterator[Slice]:
    """Everything that was pushed since the watermark, less the overlap: one window of at most `plan.window` after the other."""
    for part, window in plan.reread:
        yield Slice(part, window, partial(plan.pushes, window))
    start = plan.cursors[""] - plan.overlap if "" in plan.cursors else plan.until - plan.history
    for window in dates.windows(start, plan.until, plan.window):
        yield Slice("pushed", window, partial(plan.pushes, window), {"": window.end})


class Platform(Protocol):
    """The shape of a platform module."""

    NAME: str
    Options: type[StrictModel]

    def streams(self, options: Any) -> Mapping[str, Stream]: ...

    def connect(
        self,
        credentials: Credentials,
        transport: Transport,
        *,
        options: Any,
        page_sizes: Mapping[str, int] | None = None,
    ) -> Any: ...

    def check(self, client: Any, names: Sequence[str]) -> Check: ...
