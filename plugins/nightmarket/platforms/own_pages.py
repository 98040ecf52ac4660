"""The archive of our own follow-up pages, and of the events that WeChat pushes to us.

Wire facts: docs/connections/own_pages.md. The archive is append-only and ordered by the time it received an event, so a
window that ends in the past never changes; the overlap covers an event that was being written while we read.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Literal
from urllib.parse import urlencode, urlsplit

import orjson

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms.base import (
    REFUSED,
    AuthError,
    BadPayload,
    Check,
    NotFound,
    Plan,
    Push,
    PushAnswer,
    PushRequest,
    Record,
    Refused,
    Slice,
    Stream,
    Transport,
    parse_json,
    pushed,
)
from nightmarket.settings import Credentials, StrictModel

NAME = "own_pages"
PAGE_SIZE = 500
EVENTS = "/events"
MAX_REPEATS = 3
CLOCK_SECONDS = 300  # how far the time of a pushed event's signature may be from ours


class Options(StrictModel):
    """The block `options:` of our own pages."""

    events_from: Literal["archive", "pushes"] = "archive"  # the pages' own archive, or what they pushed to our receiver


def sign(secret: str, verb: str, path: str, timestamp: str, body: bytes | None = None) -> str:
    """Hex HMAC-SHA256 over verb, path with query, and Unix seconds, one a line; of a push also the body's hex SHA-256."""
    lines = [verb, path, timestamp] + ([hashlib.sha256(body).hexdigest()] if body is not None else [])
    return hmac.new(secret.encode(), "\n".join(lines).encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Client:
    """Signed reading of the archive. Raises the typed errors of platforms.base."""

    base_url: str
    key_id: str
    secret: str = field(repr=False)
    transport: Transport
    page_size: int = PAGE_SIZE

    def events(self, since: datetime, until: datetime, page: int) -> Record:
        """One page of events received in [since, until)."""
        query = urlencode(
            {"since": since.isoformat(), "until": until.isoformat(), "page": page, "page_size": self.page_size}
        )
        return self.transport.retry(lambda: self._get_once(f"{EVENTS}?{query}", page))

    def _get_once(self, path: str, page: int) -> Record:
        url = self.base_url + path
        signed = urlsplit(url)
        timestamp = str(int(dates.now().timestamp()))
        headers = {
            "X-Pages-Key": self.key_id,
            "X-Pages-Timestamp": timestamp,
            "X-Pages-Signature": sign(self.secret, "GET", f"{signed.path}?{signed.query}", timestamp),
        }
        status, body = self.transport.fetch("GET", url, method=EVENTS, headers=headers)
        if status in (401, 403):
            raise AuthError(
                NAME,
                EVENTS,
                f"HTTP {status}: the signature is refused; check key id (login) and secret (password) of the connection, and this machine's clock",
            )
        if status == 404:
            raise NotFound(
                NAME, EVENTS, "HTTP 404: there is no archive at this address; check the host of the connection"
            )
        if status != 200:
            raise Refused(NAME, EVENTS, f"HTTP {status}: the request is refused")
        answer = parse_json(NAME, EVENTS, body, page)
        if not isinstance(answer, dict) or not isinstance(answer.get("events"), list):
            raise BadPayload(NAME, EVENTS, f"page {page} has no list of events")
        return answer


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the archive. Raises ConfigError when a part of the connection is missing."""
    credentials.require(
        {
            "host": "address of the archive",
            "login": "key id",
            "password": "secret",
        }
    )
    size = (page_sizes or {}).get("*", PAGE_SIZE)
    return Client(credentials.host.rstrip("/"), credentials.login, credentials.password, transport, size)


def event_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """Events by the time the archive received them."""

    def pages(window: Window) -> Iterator[list[Record]]:
        seen: set[str] = set()
        page = 1
        while True:
            answer = _fresh_page(client, window, page, seen)
            yield answer["events"]
            if not answer.get("has_more"):
                return
            page += 1

    for part, window in plan.reread:
        yield Slice(part, window, lambda w=window: pages(w))  # type: ignore[misc]
    start = plan.cursors[""] - plan.overlap if "" in plan.cursors else plan.until - plan.history
    for window in dates.windows(start, plan.until, plan.window):
        yield Slice("received", window, lambda w=window: pages(w), {"": window.end})  # type: ignore[misc]


def _fresh_page(client: Client, window: Window, page: int, seen: set[str]) -> Record:
    """A page with events that no earlier page brought: anything else stands in the place of another page, which would be lost."""
    problem = ""
    for _ in range(MAX_REPEATS):
        answer = client.events(window.start, window.end, page)
        names = {name for event in answer["events"] if (name := STREAM.record_key(event)) is not None}
        promised = page > 1 or bool(answer.get("has_more"))
        if names & seen:
            problem = "repeats events of an earlier page"
        elif promised and not answer["events"]:
            problem = "is empty although there are more events"
        else:
            seen |= names
            return answer
    raise BadPayload(NAME, EVENTS, f"page {page} {problem}")


def _received_at(record: Record) -> datetime | None:
    try:
        instant = datetime.fromisoformat(str(record.get("received_at")))
    except ValueError:
        return None
    return instant if instant.tzinfo else None


STREAM = Stream(
    name="events",
    key=("event_id",),
    occurred_at=_received_at,
    slices=event_slices,
    personal={"data.name": "name", "data.phone": "phone", "data.email": "email", "data.code": "coupon"},
    free_text=("data.xml", "data.fields.Content", "data.comment"),
    overlap=timedelta(minutes=10),
    window=timedelta(days=90),
)
STREAMS: Mapping[str, Stream] = {STREAM.name: STREAM}


def pushed_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """Events by the time our receiver took them; as records they are the same as the archive's."""
    for piece in pushed(plan):
        yield replace(piece, pages=partial(_events_of, piece.pages))


def _events_of(pages: Callable[[], Iterator[list[Record]]]) -> Iterator[list[Record]]:
    for page in pages():
        yield [push["body"] for push in page]


def streams(options: Options) -> Mapping[str, Stream]:
    """The one stream of the pages, from where `options` says."""
    return STREAMS if options.events_from == "archive" else {STREAM.name: replace(STREAM, slices=pushed_slices)}


def receive(credentials: Credentials, request: PushRequest) -> PushAnswer:
    """Keep events that the pages push: one as a JSON object, or several as {"events": [...]}, each with its event_id."""
    timestamp = request.headers.get("x-pages-timestamp", "")
    expected = sign(credentials.password, request.method, request.path, timestamp, request.body)
    given = request.headers.get("x-pages-signature", "").encode("utf-8", "replace")
    is_ours = request.headers.get("x-pages-key") == credentials.login and hmac.compare_digest(expected.encode(), given)
    if not credentials.password or not is_ours or not re.fullmatch(r"[0-9]{1,12}", timestamp):
        return REFUSED
    if abs(int(timestamp) - dates.now().timestamp()) > CLOCK_SECONDS:
        return REFUSED
    try:
        content = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        return PushAnswer(400, b"not JSON")
    events = content.get("events", [content]) if isinstance(content, dict) else None
    keys = [STREAM.record_key(event) for event in events] if isinstance(events, list) else [None]
    if None in keys:
        return PushAnswer(400, b"every event is an object with an event_id")
    pushes = [Push(str(key), orjson.dumps(event)) for key, event in zip(keys, events or [], strict=True)]
    return PushAnswer(pushes=pushes)


def check(client: Client, names: Sequence[str]) -> Check:
    """One cheap call: events of the last day, and how the clocks agree."""
    until = dates.now().replace(microsecond=0)
    answer = client.events(until - timedelta(days=1), until, 1)
    count = f"{len(answer['events'])}{' or more' if answer.get('has_more') else ''}"
    return Check(f"key {client.key_id}, {count} events in the last day", client.transport.clock_offset)
