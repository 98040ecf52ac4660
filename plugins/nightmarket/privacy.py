"""People: tokens, the vault, masking, erasure (design: personal data never rests in clear text outside the vault).

A personal value becomes `kind:TOKEN`, where TOKEN is a keyed hash of its normalised form, so that equal people give
equal tokens and joins work without the value. The clear value goes to vault.secrets, encrypted.
"""

import base64
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import psycopg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg.rows import scalar_row

from nightmarket.settings import ConfigError, get_settings
from nightmarket.warehouse import Row, copy_bytea, copy_lines, copy_text

KINDS = (
    "phone",
    "email",
    "name",
    "address",
    "nick",
    "portrait",
    "coupon",
)  # a coupon code is money: guarded like a person
MASKED = "masked"  # what a value becomes that the platform has already masked: equal masks are not equal people
TOKEN_BYTES = 15  # 120 bits, 20 characters of URL-safe base64
HASH_BYTES = 16
# Personal values inside text that people write freely: mobile numbers and e-mail addresses. The neighbours are checked by
# hand because Chinese characters count as letters for \b.
PHONE_IN_TEXT = re.compile(r"(?<![0-9A-Za-z_-])(?:\+?86[ -]?)?1\d{2}[ -]?\d{4}[ -]?\d{4}(?![0-9A-Za-z_-])")
EMAIL_IN_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")


def normalise(kind: str, value: str) -> str:
    """The form of a personal value that two spellings of the same person share."""
    text = unicodedata.normalize("NFKC", value).strip()
    if kind == "phone":
        digits = text if text.isdigit() else "".join(character for character in text if character.isdigit())
        return digits[2:] if digits.startswith("86") and len(digits) == 13 else digits
    if kind == "email":
        return text.lower()
    if kind == "coupon":  # typed with or without its hyphens, in any case
        return re.sub(r"[\s-]", "", text).upper()
    return text


class Mac:
    """HMAC-SHA256 (RFC 2104) with the key's two blocks digested once: half the cost of hmac.new() for short values."""

    def __init__(self, key: bytes) -> None:
        block = hashlib.sha256(key).digest() if len(key) > 64 else key
        block = block.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def digest(self, message: bytes, label: bytes = b"") -> bytes:
        """The MAC of label + message."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(label)
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


class Tokenizer:
    """Makes tokens, and remembers the clear values of the new ones until they are in the vault."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ConfigError(
                "NIGHTMARKET_TOKEN_KEY is shorter than 32 characters; make one with `openssl rand -base64 48`."
            )
        self._mac = Mac(key)
        self.secrets: dict[str, str] = {}

    @classmethod
    def from_settings(cls) -> "Tokenizer":
        key = get_settings().token_key
        if key is None:
            raise ConfigError("NIGHTMARKET_TOKEN_KEY is not set: without it personal values cannot be tokenised.")
        return cls(key.get_secret_value().encode())

    def token(self, kind: str, value: str) -> str:
        """`kind:TOKEN`, or MASKED when the platform masked the value, or "" when nothing is left of it."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind of personal value {kind!r}; known: {', '.join(KINDS)}")
        if "*" in value:
            return MASKED
        clean = normalise(kind, value)
        if not clean:
            return ""
        digest = self._mac.digest(f"{kind}:{clean}".encode())
        token = f"{kind}:{base64.urlsafe_b64encode(digest[:TOKEN_BYTES]).decode()}"
        self.secrets.setdefault(token, value)
        return token

    def scrub(self, text: str) -> str:
        """Free text with every mobile number and e-mail address in it replaced by its token."""
        text = EMAIL_IN_TEXT.sub(lambda found: self.token("email", found[0]), text)
        return PHONE_IN_TEXT.sub(lambda found: self.token("phone", found[0]), text)

    def tokenise(
        self, record: dict[str, Any], paths: Mapping[str, str], free_text: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Replace in place every value found at `paths` (dotted, `[]` walks a list) by its token; return the record.

        `free_text` are paths of texts that people wrote: there only what looks like a number or an address is replaced.
        """
        for path, kind in paths.items():
            if path in record:  # a field of the top level, as most are
                value = record[path]
                if value is not None and value != "":
                    record[path] = self.token(kind, str(value))
                continue
            _apply(record, path.split("."), lambda value, kind=kind: self.token(kind, str(value)))  # type: ignore[misc]
        for path in free_text:
            _apply(record, path.split("."), lambda value: self.scrub(str(value)))
        return record

    def content_hash(self, content: bytes) -> bytes:
        """A keyed hash of a record as received: tells whether it changed, and nothing about what is in it."""
        return self._mac.digest(content, b"content:")[:HASH_BYTES]


def _apply(node: Any, parts: list[str], change: Callable[[Any], str]) -> None:
    name, rest = parts[0], parts[1:]
    if name == "*" and isinstance(node, dict):  # every text in here, whatever its name
        for key, value in node.items():
            if isinstance(value, str) and value:
                node[key] = change(value)
        return
    walk_list = name.endswith("[]")
    name = name.removesuffix("[]")
    if not isinstance(node, dict) or node.get(name) in (None, ""):
        return
    if walk_list:
        items = node[name]
        for index, item in enumerate(items if isinstance(items, list) else []):
            if rest:
                _apply(item, rest, change)
            elif item not in (None, ""):
                items[index] = change(item)
    elif rest:
        _apply(node[name], rest, change)
    else:
        node[name] = change(node[name])


@dataclass(frozen=True)
class Keyring:
    """The vault's AES-256-GCM keys. The first one encrypts; all of them decrypt, so keys can be rotated."""

    keys: Mapping[str, bytes] = field(repr=False)

    @cached_property
    def _ciphers(self) -> dict[str, AESGCM]:
        return {key_id: AESGCM(key) for key_id, key in self.keys.items()}

    @classmethod
    def from_settings(cls) -> "Keyring":
        text = get_settings().vault_keys
        if text is None:
            raise ConfigError("NIGHTMARKET_VAULT_KEYS is not set: the vault can be neither filled nor read.")
        keys: dict[str, bytes] = {}
        for part in text.get_secret_value().split(","):
            key_id, _, encoded = part.strip().partition(":")
            try:
                key = base64.b64decode(encoded, validate=True)
            except ValueError:
                key = b""
            if not key_id or len(key) != 32:
                raise ConfigError("NIGHTMARKET_VAULT_KEYS: every entry is `id:base64 of 32 bytes`, comma separated.")
            keys[key_id] = key
        return cls(keys)

    def encrypt(self, token: str, value: str) -> tuple[str, bytes]:
        """(key id, nonce + ciphertext); the token is authenticated with it, so a row cannot be swapped for another."""
        key_id, cipher = next(iter(self._ciphers.items()))
        nonce = os.urandom(12)
        return key_id, nonce + cipher.encrypt(nonce, value.encode(), token.encode())

    def decrypt(self, token: str, key_id: str, blob: bytes) -> str:
        """The clear value. Raises ConfigError when the key is gone or the row was altered."""
        if key_id not in self._ciphers:
            raise ConfigError(f"vault key {key_id!r} is not in NIGHTMARKET_VAULT_KEYS; add it back to read older rows.")
        try:
            return self._ciphers[key_id].decrypt(blob[:12], blob[12:], token.encode()).decode()
        except InvalidTag:
            raise ConfigError(
                f"vault row of {token!r} cannot be decrypted with key {key_id!r}: wrong key or altered row."
            ) from None

    def seal(self, name: str, value: str) -> bytes:
        """`value` as one column can hold it: key id, colon, nonce + ciphertext. `name` says whose it is, as in encrypt()."""
        key_id, blob = self.encrypt(name, value)
        return key_id.encode() + b":" + blob

    def open(self, name: str, sealed: bytes) -> str:
        """The clear value of seal(). Raises ConfigError like decrypt()."""
        key_id, _, blob = sealed.partition(b":")
        return self.decrypt(name, key_id.decode("utf-8", "replace"), blob)


def store_secrets(connection: psycopg.Connection[Row], secrets: Mapping[str, str], keyring: Keyring) -> int:
    """Put the values that the vault does not hold yet into it, in the caller's transaction; returns how many were new."""
    if not secrets:
        return 0
    with connection.cursor(row_factory=scalar_row) as cursor:
        known = set(cursor.execute("SELECT token FROM vault.secrets WHERE token = ANY(%s)", (list(secrets),)))
    fresh = [(token, *keyring.encrypt(token, value)) for token, value in secrets.items() if token not in known]
    if fresh:
        with connection.transaction():  # the temporary table lives as long
            connection.execute(
                "CREATE TEMPORARY TABLE IF NOT EXISTS vault_fresh (token text, key_id text, ciphertext bytea) ON COMMIT DELETE ROWS"
            )
            lines = [
                b"\t".join((copy_text(token), copy_text(key_id), copy_bytea(blob))) for token, key_id, blob in fresh
            ]
            copy_lines(connection, "vault_fresh", ("token", "key_id", "ciphertext"), lines)
            connection.execute(
                "INSERT INTO vault.secrets (token, key_id, ciphertext) SELECT token, key_id, ciphertext FROM vault_fresh"
                " ORDER BY token ON CONFLICT (token) DO NOTHING"  # in one order: two loads of the same people never deadlock
            )
            connection.execute("TRUNCATE vault_fresh")
    return len(fresh)


def open_secrets(connection: psycopg.Connection[Row], tokens: Iterable[str], keyring: Keyring) -> dict[str, str]:
    """Clear values of tokens, through a connection that may read the vault; erased or unknown tokens are absent."""
    rows = connection.execute(
        "SELECT token, key_id, ciphertext FROM vault.secrets WHERE token = ANY(%s)", (sorted(set(tokens)),)
    )
    return {row["token"]: keyring.decrypt(row["token"], row["key_id"], bytes(row["ciphertext"])) for row in rows}


def is_token(value: str) -> bool:
    """Does `value` stand for a clear value in the vault?"""
    return value.partition(":")[0] in KINDS


def mask(kind: str, value: str) -> str:
    """A clear value as it may be shown to a person in a preview: enough to recognise a shape, not a human being."""
    if kind == "email":
        name, _, domain = value.partition("@")
        shown = f"{name[:1]}***@{domain}"
    elif kind == "phone":
        shown = f"{value[:3]}****{value[-2:]}" if len(value) > 6 else "****"
    elif kind == "coupon":
        shown = f"****{value[-4:]}" if len(value) > 8 else "****"
    else:
        shown = value[:1] + "*" * max(len(value) - 1, 1) if value else ""
    return shown if shown != value else "*" * len(value)  # who is called 王* would be shown whole


@dataclass(frozen=True)
class Erased:
    """What an erasure deleted: vault rows, stored pushes that named the person; and such pushes that no night has read yet."""

    secrets: int
    pushes: int
    unread: int


def erase(connection: psycopg.Connection[Row], tokens: Iterable[str], *, actor: str, reason: str) -> Erased:
    """Delete vault rows and stored pushes for good and write the audit log. Everything else is then anonymous.

    Needs a connection of the delivery role, and the keys of tokens and vault. Tokens that the vault does not hold are
    counted as 0, not as an error. A push that no night has read is kept, because it may withdraw a consent: whoever sees
    `unread` erases again after the next night.
    """
    wanted = sorted(set(tokens))
    deleted = connection.execute("DELETE FROM vault.secrets WHERE token = ANY(%s)", (wanted,)).rowcount
    read, unread = _pushes_about(connection, set(wanted))
    connection.execute("DELETE FROM raw.pushes WHERE push_id = ANY(%s)", (read,))
    erased = Erased(deleted, len(read), len(unread))
    connection.execute(
        """
        INSERT INTO push.audit_log (actor, action, subject, detail) VALUES (%s, 'erase', %s, jsonb_build_object(
            'reason', %s::text, 'deleted', %s::int, 'pushes', %s::int, 'unread_pushes', %s::int))
        """,
        (actor, ", ".join(wanted), reason, erased.secrets, erased.pushes, erased.unread),
    )
    return erased


def _pushes_about(connection: psycopg.Connection[Row], wanted: set[str]) -> tuple[list[int], list[int]]:
    """(read, not yet read by the stream `events` of their source): pushes in which one of the tokens' values stands."""
    maker, keyring = Tokenizer.from_settings(), Keyring.from_settings()
    kinds = {token.partition(":")[0] for token in wanted} & set(KINDS)
    read: list[int] = []
    unread: list[int] = []
    after = 0
    while rows := connection.execute(
        """
        SELECT p.push_id, p.source_id || '/' || p.push_key AS name, p.body, coalesce(p.received_at < (
            SELECT coalesce(min(c.watermark) FILTER (WHERE c.stream = 'events'), min(c.watermark))
            FROM raw.cursors AS c WHERE c.source_id = p.source_id
        ), FALSE) AS is_read
        FROM raw.pushes AS p WHERE p.push_id > %s ORDER BY p.push_id LIMIT 1000
        """,
        (after,),
    ).fetchall():
        after = rows[-1]["push_id"]
        for row in rows:
            maker.secrets.clear()
            for value in _texts(json.loads(keyring.open(row["name"], bytes(row["body"])))):
                maker.scrub(value)
                for kind in kinds:
                    maker.token(kind, value)
            if not wanted.isdisjoint(maker.secrets):
                (read if row["is_read"] else unread).append(row["push_id"])
    return read, unread


def _texts(node: Any) -> Iterator[str]:
    """Every value of a JSON document as text."""
    if isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _texts(item)
    else:
        yield str(node)
