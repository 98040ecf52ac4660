"""What every channel has in common: what it is asked to send, what can come of it, and when a call is in doubt.

A channel never raises because of the platform: it says what happened. The one question that matters is whether the
message can have gone out; where nobody can know, the answer is `unknown` and the outbox decides.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import aiohttp
import orjson

from nightmarket.settings import Credentials

Family = Literal["wechat", "email", "sms", "push", "wecom"]
OutcomeKind = Literal["accepted", "waiting", "refused", "retry", "pause", "unknown"]
# Which kind of identity (core.identities) a family writes to, as core.address_kind says.
ADDRESS_KINDS: dict[Family, str] = {
    "wechat": "wechat_openid",
    "email": "email",
    "sms": "phone",
    "push": "mall_id",
    "wecom": "wecom_external_id",
}
KEEPALIVE_SECONDS = 3.0  # below every server's own: a connection the server is closing would leave a POST in doubt


@dataclass(frozen=True)
class Content:
    """A rendered message. `fields` belong to template messages, `subject` and `html` to e-mail, `sign` to SMS.

    `text` of an SMS is what the phone will show; the vendor makes it from its template, `fields` and `sign`.
    """

    text: str = ""
    html: str = ""
    subject: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    template_id: str = ""
    sign: str = ""  # SMS: the registered signature, without brackets


@dataclass(frozen=True)
class Call:
    """One call of a channel: one message, or one group of receivers of the same content."""

    key: str  # message key or group key: the idempotency key
    addresses: tuple[str, ...]  # openids, aliases, or a phone number or mail address in clear; never logged
    content: Content
    link: str = ""
    unsubscribe_link: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    accepted: the platform has it. waiting: the platform has made it a task of an employee, who must confirm it.
    refused: it never will, do not repeat. retry: certainly not sent, try again later. pause: certainly not sent, and the
    next call would fare no better, so stop the channel. unknown: may have been sent.
    """

    kind: OutcomeKind
    platform_message_id: str = ""
    http_status: int | None = None
    code: str = ""
    message: str = ""
    retry_after: float = 0.0  # seconds
    suppress: str = ""  # why this address must not be used again; "" = it may be
    suppress_days: int | None = None  # for so long; None = for good
    is_final: bool = False  # unknown, and repeating the call would not help any more, also where calls are repeatable

    def __post_init__(self) -> None:
        """A platform may say anything; PostgreSQL's text holds all of it but NUL and halves of surrogate pairs."""
        for name in ("platform_message_id", "code", "message"):
            text = getattr(self, name)
            if "\0" in text or not text.isascii():
                object.__setattr__(self, name, text.replace("\0", "").encode("utf-8", "replace").decode())


@dataclass(frozen=True)
class Question:
    """What is asked about a message that is in doubt, or that waits for an employee."""

    key: str  # message key: the platform knows it as its out-id
    address: str  # in clear; never logged
    platform_message_id: str  # "" when the call was never answered
    asked_at: datetime  # when the call in doubt was begun


class Channel(ABC):
    """One sending account of one channel, opened for one stretch of sending."""

    name: ClassVar[str]
    family: ClassVar[Family]  # whose consent and suppressions count
    is_group: ClassVar[bool] = False  # one call, many receivers, same content
    is_repeatable: ClassVar[bool] = False  # the platform recognises a repeated call by its key
    keeps_keys: ClassVar[bool] = (
        False  # those keys are the platform's and stand in our database: a restored one has lost them
    )
    is_personal: ClassVar[bool] = True  # content may differ per receiver
    can_ask: ClassVar[bool] = False  # the platform can be asked what became of one message
    reports_delivery: ClassVar[bool] = False  # a receipt says per message whether it arrived

    def __init__(self, credentials: Credentials, *, connections: int, timeout_seconds: float) -> None:
        self.credentials = credentials
        self.connections = connections
        self.timeout_seconds = timeout_seconds

    @abstractmethod
    async def send(self, call: Call) -> Outcome:
        """Make the call once. Never raises because of the platform."""

    async def ask(self, question: Question) -> Outcome:
        """What became of a message: accepted (it went out), refused (it did not, and never will), retry (it certainly did
        not: it may be sent again), waiting (an employee has not confirmed yet), unknown (the platform does not say).

        Only channels with `can_ask` are asked. Never raises because of the platform.
        """
        raise NotImplementedError(f"{self.name} cannot be asked")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class HttpChannel(Channel):
    """A channel whose calls go over HTTP: one session for as long as it is open."""

    _session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = http_session(self.connections, self.timeout_seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: its status, its JSON object, the bytes as received, and its headers."""

    status: int
    data: dict[str, Any]
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def http_session(connections: int, timeout_seconds: float) -> aiohttp.ClientSession:
    """A session whose connections are never reused after the server may have closed them."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEPALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "nightmarket/0.1"},
    )


async def post(session: aiohttp.ClientSession, url: str, body: bytes, headers: Mapping[str, str]) -> Answer | Outcome:
    """POST; an Answer when the platform spoke, an Outcome when the network did.

    Not reaching the server, and 429, leave nothing behind: retry. Everything that breaks after the request may have
    left (time-out, reset, 5xx, an answer that is not JSON) is unknown.
    """
    try:
        async with session.post(url, data=aiohttp.BytesPayload(body), headers=headers) as response:
            raw = await response.read()
            return _read(response.status, raw, response.headers)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        return Outcome("retry", code="connect", message=type(error).__name__, retry_after=5)
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        return Outcome("unknown", code="network", message=type(error).__name__)


def _read(status: int, raw: bytes, headers: Mapping[str, str]) -> Answer | Outcome:
    if status == 429:
        return Outcome(
            "retry", http_status=status, code="429", retry_after=retry_after(headers), message="rate limited"
        )
    if status >= 500:
        return Outcome("unknown", http_status=status, code=str(status), message="server error")
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        return Outcome("unknown", http_status=status, code="bad_payload", message="the answer is not a JSON object")
    return Answer(status, data, raw, headers)


def retry_after(headers: Mapping[str, str], default: float = 5.0) -> float:
    """Seconds of a Retry-After header, or of JPush's own; `default` when it is missing or a date."""
    try:
        return max(0.0, float(headers.get("Retry-After") or headers.get("X-Rate-Limit-Reset") or default))
    except ValueError:
        return default
