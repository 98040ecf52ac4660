"""E-mail over SMTP: one message per receiver, one-click unsubscribe (RFC 8058), a Message-ID made from the message key.

SMTP has no idempotency: when the connection is lost between DATA and its answer, nobody knows, and the message stays
unknown. A DKIM signature must cover both List-Unsubscribe headers; signing is the mail server's task. Reports about mails come back to
the envelope sender (email_reports.py).
"""

import asyncio
import ipaddress
import re
import ssl
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from types import TracebackType
from typing import ClassVar

import aiosmtplib
from aiosmtplib import (
    SMTP,
    SMTPConnectError,
    SMTPException,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)

from nightmarket import dates
from nightmarket.channels.base import Call, Channel, Family, Outcome
from nightmarket.channels.email_reports import Envelope, message_hash, without_addresses
from nightmarket.settings import ConfigError, Credentials

MESSAGES_PER_CONNECTION = 100  # servers close a connection after some; a fresh one costs less than a lost answer
MAX_CONNECTIONS = 16
ONE_ADDRESS = re.compile(r"[^@\s,;:<>\"()\[\]\\]+@[^@\s,;:<>\"()\[\]\\]+")


class Email(Channel):
    """Sends through the connection's server. Port 465 is TLS from the start; elsewhere STARTTLS when it is offered."""

    name: ClassVar[str] = "email"
    family: ClassVar[Family] = "email"

    def __init__(self, credentials: Credentials, *, connections: int, timeout_seconds: float) -> None:
        super().__init__(credentials, connections=min(connections, MAX_CONNECTIONS), timeout_seconds=timeout_seconds)
        self.sender = str(credentials.extra.get("from_address") or "")
        if "@" not in self.sender:
            raise ConfigError("connection 'email': extra.from_address is missing; give the address messages come from.")
        self._envelope = Envelope(credentials)
        self._idle: asyncio.Queue[tuple[SMTP, int]] = asyncio.Queue()
        self._slots = asyncio.Semaphore(self.connections)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._idle.empty():
            client, _used = self._idle.get_nowait()
            try:
                await client.quit(timeout=2)
            except (SMTPException, OSError):
                client.close()

    async def send(self, call: Call) -> Outcome:
        if not ONE_ADDRESS.fullmatch(call.addresses[0]):
            return Outcome("refused", code="address", message="not one mail address", suppress="invalid address")
        async with self._slots:
            client: SMTP | None = None
            used = 0
            try:
                client, used = await self._client()
            except (SMTPException, OSError) as error:
                return _not_connected(error)
            except ConfigError as error:
                return Outcome("pause", code="tls", message=str(error), retry_after=3600)
            outcome = await self._transmit(client, call)
            if client.is_connected and used + 1 < MESSAGES_PER_CONNECTION:
                self._idle.put_nowait((client, used + 1))
            else:
                client.close()
            return outcome

    async def _client(self) -> tuple[SMTP, int]:
        """An open connection that still answers: the server may have closed an idle one."""
        while not self._idle.empty():
            client, used = self._idle.get_nowait()
            try:
                await client.rset(timeout=self.timeout_seconds)
                return client, used
            except (SMTPException, OSError):
                client.close()
        return await self._connect(), 0

    async def _connect(self) -> SMTP:
        account = self.credentials
        client = SMTP(
            hostname=account.host, port=account.port or 587, timeout=self.timeout_seconds,
            use_tls=account.port == 465, start_tls=None if account.port != 465 else False,
        )  # fmt: skip
        await client.connect()
        if account.login:
            transport = client.get_transport_info("ssl_object")
            if transport is None and not _is_loopback(account.host):
                client.close()
                raise ConfigError("the mail server offers no TLS; the password is not sent in clear over a network.")
            await client.login(account.login, account.password)
        return client

    async def _transmit(self, client: SMTP, call: Call) -> Outcome:
        try:
            message = self.build(call)
            payload = message.as_bytes()
        except (ValueError, UnicodeError) as error:  # a receiver or subject that no mail header can hold
            return Outcome("refused", code="message", message=f"not a valid mail: {type(error).__name__}")
        try:
            await client.mail(self._envelope.sender(call.key, self.sender))
            await client.rcpt(call.addresses[0])
        except SMTPResponseException as error:
            return _refusal(error.code, error.message, at_receiver=True)
        except (SMTPException, OSError) as error:  # before DATA nothing was handed over
            return Outcome("retry", code="smtp", message=type(error).__name__, retry_after=5)
        try:
            answer = await client.data(payload)
        except SMTPResponseException as error:
            return _refusal(error.code, error.message, at_receiver=False)
        except (SMTPServerDisconnected, SMTPTimeoutError, SMTPException, OSError) as error:
            client.close()
            return Outcome("unknown", code="smtp", message=f"no answer after DATA ({type(error).__name__})")
        return Outcome("accepted", str(message["Message-ID"]), answer.code, str(answer.code))

    def build(self, call: Call) -> EmailMessage:
        """The message as it goes out: text first, HTML beside it, sender, Message-ID and unsubscribe headers."""
        message = EmailMessage(policy=SMTP_POLICY)
        name, domain = self.sender.rsplit("@", 1)
        display = str(self.credentials.extra.get("from_name") or "")
        message["From"] = Address(display, name, domain)
        message["To"] = call.addresses[0]
        message["Subject"] = call.content.subject
        message["Date"] = format_datetime(dates.now())
        message["Message-ID"] = message_id(call.key, domain)
        if call.unsubscribe_link:
            message["List-Unsubscribe"] = f"<{call.unsubscribe_link}>"
            message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
            message["Precedence"] = "bulk"
        message.set_content(call.content.text)
        if call.content.html:
            message.add_alternative(call.content.html, subtype="html")
        return message


def message_id(key: str, domain: str) -> str:
    """The same key gives the same Message-ID, so that a repeat can be recognised by whoever receives it."""
    return f"<{message_hash(key)}@{domain}>"


async def check(credentials: Credentials) -> str:
    """Sign in to the mail server and say so in one sentence. Raises ConfigError."""
    channel = Email(credentials, connections=1, timeout_seconds=10)
    try:
        client = await channel._connect()
        await client.quit()
    except (SMTPException, OSError) as error:
        raise ConfigError(
            f"mail server {credentials.host}:{credentials.port}: {_not_connected(error).message}"
        ) from None
    return f"e-mail: {credentials.host}:{credentials.port} lets {credentials.login or 'us'} send as {channel.sender}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _not_connected(error: Exception) -> Outcome:
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        return Outcome(
            "pause", code=str(error.code), message="the mail server refused the password", retry_after=6 * 3600
        )
    if isinstance(error, ssl.SSLError):
        return Outcome("pause", code="tls", message="the mail server's certificate is not accepted", retry_after=3600)
    if isinstance(error, SMTPResponseException):
        return Outcome("retry", code=str(error.code), message=without_addresses(error.message), retry_after=60)
    text = "cannot reach the mail server" if isinstance(error, (SMTPConnectError, OSError)) else type(error).__name__
    return Outcome("retry", code="connect", message=text, retry_after=10)


def _refusal(code: int, text: str, *, at_receiver: bool) -> Outcome:
    """4xx: later. 5.7.x: our policy problem, so stop. 5xx at the receiver: the address is dead, never again."""
    text = without_addresses(text)
    if 400 <= code < 500:
        return Outcome("retry", http_status=code, code=str(code), message=text, retry_after=300 if code != 421 else 60)
    if re.match(r"5\.7\.\d", text):
        return Outcome(
            "pause", http_status=code, code=str(code), message=f"policy refusal: {text}", retry_after=6 * 3600
        )
    dead = at_receiver and code in (550, 551, 553)
    return Outcome("refused", http_status=code, code=str(code), message=text, suppress="hard bounce" if dead else "")
