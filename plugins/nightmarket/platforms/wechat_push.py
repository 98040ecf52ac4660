"""What WeChat pushes to us: signed in the query, XML or JSON in the body, in plain form or encrypted (AES mode).

Wire facts: docs/connections/wechat_official.md. In plain mode the signature covers token, timestamp and nonce, not the body;
with a key for AES in the connection only encrypted pushes are taken, so that nobody can fall back to the plain form.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import orjson

from nightmarket.platforms.base import REFUSED, Push, PushAnswer, PushRequest
from nightmarket.settings import ConfigError, Credentials

BLOCK = 32  # of the PKCS#7 padding: twice what AES itself needs
RANDOM_BYTES = 16
DECLARATION = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)  # WeChat never declares anything; attacks on parsers do
# where a person is, every few seconds: nothing of ours needs it, so there is no basis to keep it
NOT_KEPT = ("LOCATION",)


def receive(credentials: Credentials, request: PushRequest) -> PushAnswer:
    """Answer WeChat's check of the address (GET), or verify a push and keep it (POST).

    Needs `push_token` in the connection's extra, and `encoding_aes_secret` for AES mode. What is kept is a JSON object:
    `appid`, the message's `xml` (or `json`) as sent, and its `fields`. Raises ConfigError when the connection has no token
    or a key that is none.
    """
    token = str(credentials.extra.get("push_token") or "")
    if not token:
        raise ConfigError(f"connection {credentials.conn_id!r}: push_token is missing in extra.")
    query = request.query
    signed = (token, query.get("timestamp", ""), query.get("nonce", ""))
    if request.method == "GET":
        if not matches(query.get("signature", ""), *signed):
            return REFUSED
        return PushAnswer(body=query.get("echostr", "").encode())
    key = str(credentials.extra.get("encoding_aes_secret") or "")
    text = request.body.decode("utf-8", "replace").replace("\x00", "")
    if key:
        sealed = str(to_fields(text).get("Encrypt") or "")
        if not sealed or not matches(query.get("msg_signature", ""), *signed, sealed):
            return REFUSED
        try:
            text = decrypt(aes_key(credentials.conn_id, key), credentials.login, sealed)
        except ValueError:
            return REFUSED
    elif not matches(query.get("signature", ""), *signed):
        return REFUSED
    fields = to_fields(text)
    if fields.get("Event") in NOT_KEPT:
        return PushAnswer()
    form = "json" if text.lstrip().startswith("{") else "xml"
    body = orjson.dumps({"appid": credentials.login, form: text, "fields": fields})
    return PushAnswer(pushes=(Push(push_key(fields, text), body),))


def matches(signature: str, *parts: str) -> bool:
    """Whether `signature` is the SHA-1 of the sorted parts, compared in constant time."""
    expected = hashlib.sha1("".join(sorted(parts)).encode()).hexdigest()  # noqa: S324 - WeChat's own rule
    return hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))


def push_key(fields: Mapping[str, Any], text: str) -> str:
    """The name of an event: WeChat repeats a push until it is answered. Messages have an id, events a person and a second."""
    person, created = fields.get("FromUserName"), fields.get("CreateTime")
    number = fields.get("MsgId") or fields.get("MsgID")
    what = fields.get("Event")
    if not person or not created or not (number or what):
        return "text/" + hashlib.sha256(text.encode()).hexdigest()
    parts = [person, created, what, fields.get("EventKey"), number]
    if str(what).startswith("subscribe_msg_"):  # several templates in one second: what they are about stands inside
        parts.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return "/".join(str(part) for part in parts if part)


def to_fields(text: str) -> dict[str, Any]:
    """The elements of a push by name, as texts; nested ones as objects, repeated ones as lists. Empty when nobody can read it."""
    if text.lstrip().startswith("{"):
        try:
            content = orjson.loads(text)
        except orjson.JSONDecodeError:
            return {}
        if not isinstance(content, dict):
            return {}
        return {name: value if isinstance(value, dict | list) else str(value) for name, value in content.items()}
    if DECLARATION.search(text):
        return {}
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - no declarations, size bound by the receiver
    except ElementTree.ParseError:
        return {}
    found = _value(root)
    return found if isinstance(found, dict) else {}


def _value(element: ElementTree.Element) -> Any:
    if not len(element):
        return element.text or ""
    found: dict[str, Any] = {}
    for child in element:
        value = _value(child)
        if child.tag not in found:
            found[child.tag] = value
        elif isinstance(found[child.tag], list):
            found[child.tag].append(value)
        else:
            found[child.tag] = [found[child.tag], value]
    return found


# --------------------------------------------------------------------------------------------------------- AES mode
def aes_key(conn_id: str, text: str) -> bytes:
    """The 32 bytes of an EncodingAESKey (43 characters). Raises ConfigError."""
    try:
        key = base64.b64decode(text + "=")
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(
            f"connection {conn_id!r}: encoding_aes_secret in extra is not the 43 characters that WeChat shows."
        )
    return key


def decrypt(key: bytes, appid: str, sealed: str) -> str:
    """The message inside `Encrypt`. Raises ValueError when it is not for this appid or was altered."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # every DAG file imports this module

    cipher = Cipher(algorithms.AES(key), modes.CBC(key[:16])).decryptor()
    clear = cipher.update(base64.b64decode(sealed, validate=True)) + cipher.finalize()
    padding = clear[-1] if clear else 0
    if not 1 <= padding <= BLOCK or clear[-padding:] != bytes([padding]) * padding:
        raise ValueError("the padding is wrong")
    content = clear[RANDOM_BYTES:-padding]
    length = int.from_bytes(content[:4], "big")
    message, receiver = content[4 : 4 + length], content[4 + length :]
    if len(message) != length or receiver.decode("utf-8", "replace") != appid:
        raise ValueError("it is for another account")
    return message.decode("utf-8", "replace").replace("\x00", "")
