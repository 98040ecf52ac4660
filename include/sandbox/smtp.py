"""A mail server that keeps what it is given: AUTH, receivers under .test only, and a lost reply when asked for."""

import hmac
import html
import re
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from .faults import Fault, take
from .reactions import links, receive
from .state import World

PLATFORM = "smtp"


class MailSink:
    """The handler of aiosmtpd."""

    def __init__(self, world: World, username: str, password: str) -> None:
        self.world, self.username, self.password = world, username, password

    def server(self) -> SMTP:
        """One protocol object per connection."""
        return SMTP(
            self,
            hostname="mail.nightmarket.test",
            ident="sandbox",
            auth_required=True,
            auth_require_tls=False,
            authenticator=self.authenticate,
            enable_SMTPUTF8=True,
        )

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, auth_data: Any
    ) -> AuthResult:
        good = (
            isinstance(auth_data, LoginPassword)
            and hmac.compare_digest(auth_data.login, self.username.encode())
            and hmac.compare_digest(auth_data.password, self.password.encode())
        )
        self.world.counters.requests[PLATFORM]["AUTH"] += 1
        if not good:
            self.world.counters.refused[PLATFORM]["535"] += 1
        return AuthResult(success=good, handled=False)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        self.world.counters.requests[PLATFORM]["RCPT"] += 1
        if not re.fullmatch(r"[^@\s]+@[^@\s]+\.test", address):
            self.world.counters.refused[PLATFORM]["550"] += 1
            return "550 5.1.1 No such recipient here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.world.settle()
        self.world.counters.requests[PLATFORM]["DATA"] += 1
        fault = take(self.world.faults, PLATFORM, "DATA")
        if fault:
            self.world.counters.faults[PLATFORM][fault.kind] += 1
            refusal = self._refusal(fault)
            if refusal:
                self.world.counters.refused[PLATFORM][refusal[:3]] += 1
                return refusal
            if fault.kind == "drop_before_data":
                return self._drop(server)
        content = envelope.content
        assert isinstance(content, bytes)
        for address in envelope.rcpt_tos:
            self._accept(address, content)
        if fault and fault.kind == "drop_after_data":
            return self._drop(server)
        return "250 2.0.0 Accepted"

    @staticmethod
    def _refusal(fault: Fault) -> str | None:
        return {
            "smtp_451": "451 4.3.0 Try again later",
            "smtp_550": "550 5.7.1 Message refused by policy",
        }.get(fault.kind)

    @staticmethod
    def _drop(server: SMTP) -> str:
        """End the connection without the reply the client waits for."""
        if server.transport is not None:
            server.transport.close()
        return "451 4.3.0 gone"  # nobody reads it

    def _accept(self, address: str, content: bytes) -> None:
        world, now = self.world, self.world.now()
        message = message_from_bytes(content, policy=default)
        assert isinstance(message, EmailMessage)
        parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
        text = "\n".join(str(part.get_content()) for part in parts)
        message_id = str(message["Message-ID"]).strip() if message["Message-ID"] else None
        unsubscribe = str(message["List-Unsubscribe"] or "")
        read_key, leave_key = links(html.unescape(text))
        leave_key = leave_key or links(unsubscribe)[1]
        world.counters.accept(
            "email",
            address,
            message_id,
            text,
            now,
            subject=str(message["Subject"] or ""),
            from_address=str(message["From"] or ""),
            message_id=message_id,
            list_unsubscribe=unsubscribe,
            list_unsubscribe_post=str(message["List-Unsubscribe-Post"] or ""),
            link_key=read_key,
            unsubscribe_key=leave_key,
        )
        world.counters.mail_ids[message_id or "(none)"] += 1
        world.counters.mail_receivers[address] += 1
        person = world.by_email.get(address.lower())
        if person:
            receive(world, person, "email", address, text + "\n" + unsubscribe, now)
