"""What SMS vendors push to us: receipts and replies, in arrays, unsigned. A secret in the address stands in for a signature.

Both vendors let their customer write any address into their console, so `?secret=<push_secret>` comes back with every push. Under
that name Airflow masks it in its access log.
"""

import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import orjson

from nightmarket.dates import Window
from nightmarket.platforms.base import (
    REFUSED,
    Plan,
    Push,
    PushAnswer,
    PushRequest,
    Record,
    Slice,
    Stream,
    Transport,
    pushed,
)
from nightmarket.settings import ConfigError, Credentials, StrictModel

REPORT, REPLY = "sms.report", "sms.reply"
SUCCESS, DEAD_NUMBER = "success", "dead number"  # what became of a message; anything else is a failure


class SmsOptions(StrictModel):
    """The block `options:` of a vendor of SMS: words that no vendor publishes in full."""

    opt_out_words: tuple[str, ...] = ("R", "T", "TD", "退订")  # a reply that is one of them, in any case, is a refusal
    dead_codes: tuple[str, ...]  # receipts after which a number is never used again

    def outcome(self, is_success: bool, code: str) -> str:
        """What a receipt says of its message, in our words: the vendor's code when it failed, and whether the number is dead."""
        if is_success:
            return SUCCESS
        return f"{DEAD_NUMBER}: {code}" if code in self.dead_codes else code or "failed"

    def is_refusal(self, text: object) -> bool:
        """Whether a reply withdraws consent: the words alone, whatever spaces, stops and case."""
        bare = re.sub(r"[\s.。!！,，]", "", str(text or "")).upper()
        return bare in {word.upper() for word in self.opt_out_words}


@dataclass(frozen=True)
class Client:
    """Nothing is asked from a vendor: it pushes to us."""

    account: str
    transport: Transport


def take(credentials: Credentials, request: PushRequest, answer: bytes) -> PushAnswer:
    """Keep every object of a push whose address carries the connection's push_secret. Raises ConfigError when it has none."""
    secret = str(credentials.extra.get("push_secret") or "")
    if not secret:
        raise ConfigError(f"connection {credentials.conn_id!r}: push_secret is missing in extra.")
    given = request.query.get("secret", "").encode("utf-8", "replace")
    if request.method != "POST" or not hmac.compare_digest(given, secret.encode()):
        return REFUSED
    try:
        content = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        return PushAnswer(400, b"not JSON")
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in rows):
        return PushAnswer(400, b"not a list of objects")
    bodies = [orjson.dumps(row, option=orjson.OPT_SORT_KEYS) for row in rows]
    # the same object again is the same event; keyed, because a number could be found by trying all of them
    pushes = [Push(hmac.digest(secret.encode(), body, "sha256").hex()[:40], body) for body in bodies]
    return PushAnswer(200, answer, "application/json", pushes)


def stream(personal: Mapping[str, str], free_text: Sequence[str], read: Callable[[Record], Record]) -> Stream:
    """The stream of a vendor's pushes. `read` says what one is: its kind, and what became of the message or was said."""
    return Stream(
        name="events",
        key=("event_id",),
        occurred_at=_received_at,
        slices=partial(_slices, read),
        personal=personal,
        free_text=tuple(free_text),
        overlap=timedelta(minutes=10),
        window=timedelta(days=90),
        backfill=partial(_backfill, read),
    )


def _slices(read: Callable[[Record], Record], client: object, plan: Plan) -> Iterator[Slice]:
    for piece in pushed(plan):
        yield Slice(piece.part, piece.window, partial(_events_of, read, piece.pages), piece.cursors)


def _backfill(read: Callable[[Record], Record], client: object, plan: Plan, window: Window) -> Iterator[Slice]:
    yield Slice("pushed", window, partial(_events_of, read, partial(plan.pushes, window)))


def _events_of(read: Callable[[Record], Record], pages: Callable[[], Iterator[list[Record]]]) -> Iterator[list[Record]]:
    for page in pages():
        yield [
            {
                "event_id": push["push_key"],
                "received_at": push["received_at"],
                **read(push["body"]),
                "data": push["body"],
            }
            for push in page
        ]


def _received_at(record: Record) -> datetime:
    return datetime.fromisoformat(record["received_at"])
