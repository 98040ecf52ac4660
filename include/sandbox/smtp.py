"""A mail server that keeps what it is given: AUTH, receivers under .test only, a lost reply when asked for, and reports afterwards.

Reports (DSN, complaints) come back to the envelope sender: as mails in a Maildir, the mailbox of the bounce address.
"""

import hmac
import html
import mailbox
import re
import shutil
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from .clock import MINUTE
from .faults import Fault, take
from .reactions import links, receive
from .state import World

PLATFORM = "smtp"
HOST = "mail.nightmarket.test"
BOUNCE_ADDRESS = f"bounces+{{token}}@{HOST}"
REPORT_AFTER = 5 * MINUTE
REPORTS = {  # kind of fault -> Action, Status, what the receiving server said; the receiver follows
    "dsn_hard": ("failed", "5.1.1", "smtp; 550 5.1.1 Unknown mailbox"),
    "dsn_soft": ("failed", "4.2.2", "smtp; 452 4.2.2 Mailbox full:"),
    "dsn_delayed": ("delayed", "4.4.1", "smtp; connection timed out to the server of"),
    "dsn_policy": ("failed", "5.7.1", "smtp; 550 5.7.1 Message refused by policy, not for"),
}


class MailSink:
    """The handler of aiosmtpd."""

    def __init__(self, world: World, username: str, password: str) -> None:
        self.world, self.username, self.password = world, username, password
        self.folder = Path("var/sandbox/bounces")

    def server(self) -> SMTP:
        """One protocol object per connection."""
        return SMTP(
            self,
            hostname=HOST,
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
            kind = fault.kind if fault else self._drawn(address)
            if kind in REPORTS or kind == "arf":
                at = int(self.world.now()) + REPORT_AFTER
                self.world.later(at, partial(self._report, kind, envelope.mail_from or "", address, content, at))
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

    # ------------------------------------------------------------------------------------------------------------ reports

    def reset(self) -> None:
        """An empty mailbox."""
        shutil.rmtree(self.folder, ignore_errors=True)
        mailbox.Maildir(self.folder, create=True)

    def _drawn(self, address: str) -> str:
        """What this mailbox does with mails, unless a fault says otherwise."""
        draw, settings = self.world.chance("mailbox", address), self.world.settings
        if draw < settings.mail_dead:
            return "dsn_hard"
        return "arf" if draw < settings.mail_dead + settings.mail_complains else ""

    def _report(self, kind: str, sender: str, receiver: str, content: bytes, at: int) -> None:
        if sender:
            self.world.counters.requests[PLATFORM][kind] += 1
            report = (
                complaint(sender, content, at)
                if kind == "arf"
                else delivery_report(kind, sender, receiver, content, at)
            )
            mailbox.Maildir(self.folder, create=True).add(report)


def delivery_report(kind: str, sender: str, receiver: str, content: bytes, at: int) -> bytes:
    """A delivery status notification (RFC 3464), with the whole mail or its headers only."""
    action, status, words = REPORTS[kind]
    is_whole = kind != "dsn_soft"
    headers = content.replace(b"\r\n", b"\n").split(b"\n\n", 1)[0]
    copy = content.replace(b"\r\n", b"\n") if is_whole else headers
    fields = f"Reporting-MTA: dns; {HOST}\nArrival-Date: {formatdate(at)}\n\nFinal-Recipient: rfc822; {receiver}\nAction: {action}\nStatus: {status}\nDiagnostic-Code: {words} <{receiver}>\n"
    return _report_mail(
        sender, at, "delivery-status", f"Your mail to {receiver}: {action}.",
        ("message/delivery-status", fields.encode()),
        ("message/rfc822" if is_whole else "text/rfc822-headers", copy),
    )  # fmt: skip


def complaint(sender: str, content: bytes, at: int) -> bytes:
    """A feedback report (ARF, RFC 5965) whose receiver is left out, as big providers do."""
    fields = f"Feedback-Type: abuse\nUser-Agent: Sandbox/1.0\nVersion: 1\nOriginal-Mail-From: <{sender}>\nArrival-Date: {formatdate(at)}\n"
    return _report_mail(
        "abuse@nightmarket.test", at, "feedback-report", "A reader calls this spam.",
        ("message/feedback-report", fields.encode()), ("message/rfc822", content.replace(b"\r\n", b"\n")),
    )  # fmt: skip


def _report_mail(to: str, at: int, report_type: str, words: str, *parts: tuple[str, bytes]) -> bytes:
    border = f"=_report_{at}"
    head = (
        f"From: MAILER-DAEMON@{HOST}\nTo: <{to}>\nSubject: {report_type}\nDate: {formatdate(at)}\nMIME-Version: 1.0\n"
        f'Content-Type: multipart/report; report-type={report_type}; boundary="{border}"\n\n'
    )
    body = f"--{border}\nContent-Type: text/plain; charset=utf-8\n\n{words}\n".encode()
    for content_type, content in parts:
        body += f"\n--{border}\nContent-Type: {content_type}\n\n".encode() + content + b"\n"
    return head.encode() + body + f"\n--{border}--\n".encode()
