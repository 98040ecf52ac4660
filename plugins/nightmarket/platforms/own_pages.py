"""The archive of our own follow-up pages, and of the events that WeChat pushes to us.

Wire facts: docs/connections/own_pages.md. The archive is append-only and ordered by the time it received an event, so a
window that ends in the past never changes; the overlap covers an event that was being written while we read.
"""

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlencode, urlsplit

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
    NotFound,
    Plan,
    Record,
    Refused,
    Slice,
    Stream,
    Transport,
    clock_words,
    parse_json,
)
from nightmarket.settings import ConfigError, Credentials

NAME = "own_pages"
PAGE_SIZE = 500
EVENTS = "/events"
MAX_REPEATS = 3


def sign(secret: str, verb: str, path: str, timestamp: str) -> str:
    """Hex HMAC-SHA256 over verb, path with query, and Unix seconds, one a line."""
    return hmac.new(secret.encode(), f"{verb}\n{path}\n{timestamp}".encode(), hashlib.sha256).hexdigest()


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


def connect(credentials: Credentials, transport: Transport, page_sizes: Mapping[str, int] | None = None) -> Client:
    """A client of the archive. Raises ConfigError when a part of the connection is missing."""
    for name, value in {
        "host (address of the archive)": credentials.host,
        "login (key id)": credentials.login,
        "password (secret)": credentials.password,
    }.items():
        if not value:
            raise ConfigError(f"connection {credentials.conn_id!r}: {name} is missing.")
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
    """A page that brings nothing an earlier page brought: one that does stands in the place of another, which would be lost."""
    for _ in range(MAX_REPEATS):
        answer = client.events(window.start, window.end, page)
        names = {name for event in answer["events"] if (name := STREAM.record_key(event)) is not None}
        if not names & seen:
            seen |= names
            return answer
    raise BadPayload(NAME, EVENTS, f"page {page} repeats events of an earlier page")


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
    personal={"data.name": "name", "data.phone": "phone", "data.email": "email"},
    free_text=("data.xml", "data.fields.Content", "data.comment"),
    overlap=timedelta(minutes=10),
    window=timedelta(days=90),
)
STREAMS: Mapping[str, Stream] = {STREAM.name: STREAM}


def check(client: Client) -> str:
    """One cheap call: events of the last day, and how the clocks agree."""
    until = dates.now().replace(microsecond=0)
    answer = client.events(until - timedelta(days=1), until, 1)
    count = f"{len(answer['events'])}{' or more' if answer.get('has_more') else ''}"
    return (
        f"works for key {client.key_id}, {count} events in the last day; {clock_words(client.transport.clock_offset)}"
    )
