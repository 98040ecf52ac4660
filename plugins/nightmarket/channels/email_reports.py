"""What mail servers send back about our mails: delivery reports (DSN, RFC 3464) and complaints (ARF, RFC 5965), and whose they are.

The envelope sender names the message (VERP): `bounces+<token>@...`, where the token is the local part of its Message-ID and a short
signature, so that nobody can make up a report about a message he has not seen. Without such an address the report's copy of the
original is believed, which carries the Message-ID.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email import message_from_bytes, message_from_string
from email.message import EmailMessage, Message
from email.policy import default
from typing import Any, Literal

from nightmarket.settings import ConfigError, Credentials, get_settings

Kind = Literal["hard", "soft", "policy", "complained", "nothing"]
HASH_CHARACTERS, MAC_CHARACTERS = 40, 10
MAX_LOCAL_PART = 64  # RFC 5321
STATUS = re.compile(r"\b([245])\.(\d{1,3})\.(\d{1,3})\b")
MESSAGE_ID = re.compile(rf"<([0-9a-f]{{{HASH_CHARACTERS}}})@([^\s<>]+)>")
NO_COMPLAINT = {"not-spam"}  # somebody took one of our mails out of the spam folder


@dataclass(frozen=True)
class Report:
    """One report. `hashes` are the messages it may be about, the surest first; nothing: it says nothing that is final."""

    kind: Kind
    hashes: tuple[str, ...]
    status: str = ""  # of a DSN, e.g. 5.1.1
    words: str = ""  # the server's own, without addresses


def message_hash(key: str) -> str:
    """The local part of the Message-ID of a message: the same for ever."""
    return hashlib.sha256(key.encode()).hexdigest()[:HASH_CHARACTERS]


def without_addresses(text: str) -> str:
    """Servers like to repeat the receiver; what is kept in the database must not name a person."""
    return re.sub(r"[^\s<>;,]+@[^\s<>;,]+", "(address)", " ".join(text.split()))[:200]


class Envelope:
    """The envelope senders of an account, from `bounce_address` of its connection. Raises ConfigError when that is unusable."""

    def __init__(self, account: Credentials) -> None:
        self.pattern = str(account.extra.get("bounce_address") or "")
        if not self.pattern:
            return
        local, at, domain = self.pattern.partition("@")
        length = len(local) - len("{token}") + HASH_CHARACTERS + 1 + MAC_CHARACTERS
        if local.count("{token}") != 1 or not at or not domain or length > MAX_LOCAL_PART:
            raise ConfigError(
                f"connection {account.conn_id!r}: extra.bounce_address must look like bounces+{{token}}@example.com,"
                f" with at most {MAX_LOCAL_PART - HASH_CHARACTERS - 1 - MAC_CHARACTERS} characters beside the token before the @."
            )
        before, after = (re.escape(part) for part in self.pattern.split("{token}"))
        token = rf"([0-9a-f]{{{HASH_CHARACTERS}}})-([0-9a-f]{{{MAC_CHARACTERS}}})"
        self._reading = re.compile(f"{before}{token}{after}", re.IGNORECASE)
        key = get_settings().token_key
        if key is None:
            raise ConfigError("NIGHTMARKET_TOKEN_KEY is not set: without it bounce addresses cannot be signed.")
        self._key = hmac.digest(key.get_secret_value().encode(), b"nightmarket bounces v1", hashlib.sha256)

    def sender(self, message_key: str, otherwise: str) -> str:
        """The envelope sender of a message."""
        if not self.pattern:
            return otherwise
        name = message_hash(message_key)
        return self.pattern.replace("{token}", f"{name}-{self._mac(name)}")

    def hash_in(self, text: str) -> str | None:
        """The message that an address of ours names, when the signature is ours."""
        for name, mac in self._reading.findall(text) if self.pattern else ():
            if hmac.compare_digest(self._mac(name.lower()), mac.lower()):
                return str(name.lower())
        return None

    def _mac(self, name: str) -> str:
        return hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()[:MAC_CHARACTERS]


def read_report(raw: bytes, envelope: Envelope) -> Report | None:
    """What a mail in the bounce mailbox says; None when it is no report, or nobody can say about which message."""
    mail = message_from_bytes(raw, policy=default)
    if mail.get_content_type() != "multipart/report":
        return None
    parts = list(mail.walk())
    complaint = next((part for part in parts if part.get_content_type() == "message/feedback-report"), None)
    status = next((part for part in parts if part.get_content_type() == "message/delivery-status"), None)
    kind, code, words = _complaint(complaint) if complaint is not None else _delivery(status)
    hashes = tuple(dict.fromkeys(_hashes(mail, parts, envelope)))
    if kind is None or (not hashes and kind != "nothing"):
        return None
    return Report(kind, hashes, code, words)


def _complaint(part: Message) -> tuple[Kind | None, str, str]:
    fields = _blocks(part)
    said = str(fields[0].get("Feedback-Type", "")).strip().lower() if fields else ""
    if not said:
        return None, "", ""
    return ("nothing" if said in NO_COMPLAINT else "complained"), "", said[:40]


def _delivery(part: Message | None) -> tuple[Kind | None, str, str]:
    """By the first receiver that failed: 5.7.x is about us, other 5.x.x about the mailbox, 4.x.x may be well again."""
    receivers = (
        [block for block in _blocks(part) if block.get("Action") or block.get("Final-Recipient")] if part else []
    )
    if not receivers:
        return None, "", ""
    for block in receivers:
        if str(block.get("Action", "")).strip().lower() != "failed":
            continue
        words = str(block.get("Diagnostic-Code", ""))
        found = STATUS.search(str(block.get("Status", ""))) or STATUS.search(words)
        if found is None:
            return None, "", ""
        kind: Kind = "policy" if found[1] == "5" and found[2] == "7" else "hard" if found[1] == "5" else "soft"
        return kind, found[0], without_addresses(words)
    return "nothing", "", ""


def _blocks(part: Message) -> list[Message]:
    """The groups of fields inside a report part."""
    payload: Any = part.get_payload()
    return [block for block in payload if isinstance(block, Message)] if isinstance(payload, list) else []


def _hashes(mail: EmailMessage | Message, parts: Sequence[Message], envelope: Envelope) -> Iterator[str]:
    """Messages named by the address the report came to, by the copy's envelope sender, or (without VERP) by its Message-ID."""
    texts = [str(mail.get(name, "")) for name in ("Delivered-To", "X-Original-To", "To")]
    for part in parts:
        if part.get_content_type() == "message/feedback-report":
            texts += [str(block.get("Original-Mail-From", "")) for block in _blocks(part)]
    originals = list(_originals(parts))
    texts += [str(original.get("Return-Path", "")) for original in originals]
    for text in texts:
        found = envelope.hash_in(text)
        if found:
            yield found
    if not envelope.pattern:
        for original in originals:
            match = MESSAGE_ID.search(str(original.get("Message-ID", "")))
            if match:
                yield match[1]


def _originals(parts: Sequence[Message]) -> Iterator[Message]:
    """The returned copy of our mail: whole, or its headers only."""
    for part in parts:
        if part.get_content_type() == "message/rfc822":
            yield from _blocks(part)
        elif part.get_content_type() == "text/rfc822-headers":
            text = part.get_payload(decode=True)
            if isinstance(text, bytes):
                yield message_from_string(text.decode("utf-8", "replace"), policy=default)
