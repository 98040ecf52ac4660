"""WeChat's pushes to a callback URL: signed in the query, XML in the body, plain or AES, 5 seconds to answer, three tries."""

import asyncio
import base64
import hashlib
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import urlencode

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from .archive import ACCOUNT_ID, Event
from .faults import Fault

MODES = ("plain", "compatible", "aes")
TRIES = 3
SECONDS = 5
BLOCK = 32  # of the padding


def signature(*parts: str) -> str:
    """SHA-1 of the sorted parts: token, timestamp, nonce, and in AES mode what is encrypted."""
    return hashlib.sha1("".join(sorted(parts)).encode()).hexdigest()


def encrypt(key: str, appid: str, message: str) -> str:
    """`message` as WeChat's AES mode sends it: random, length, message, appid under the EncodingAESKey."""
    secret, text = base64.b64decode(key + "="), message.encode()
    clear = secrets.token_hex(8).encode() + len(text).to_bytes(4, "big") + text + appid.encode()
    padding = BLOCK - len(clear) % BLOCK
    cipher = Cipher(algorithms.AES(secret), modes.CBC(secret[:16])).encryptor()
    return base64.b64encode(cipher.update(clear + bytes([padding]) * padding) + cipher.finalize()).decode()


class Webhook:
    def __init__(
        self,
        url: str,
        token: str,
        mode: str = "plain",
        aes_key: str = "",
        take: Callable[[], Fault | None] = lambda: None,
    ) -> None:
        self.url, self.token, self.mode, self.aes_key = url, token, mode, aes_key
        self._take = take  # the fault of the next push, if any
        self._running: set[asyncio.Task[None]] = set()
        self._order = asyncio.Lock()  # pushes arrive in the order in which things happened

    def push(self, event: Event) -> None:
        fault = self._take()
        if fault and fault.kind == "push_lost":
            return
        for _ in range(2 if fault and fault.kind == "push_twice" else 1):
            task = asyncio.get_running_loop().create_task(self._deliver(event["data"]["xml"], event["data"]["appid"]))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _deliver(self, message: str, appid: str) -> None:
        async with self._order:
            for _ in range(TRIES):
                address, body = self._request(message, appid)
                if await asyncio.to_thread(self._post, address, body):
                    return

    def _request(self, message: str, appid: str) -> tuple[str, bytes]:
        """Address and body of one try, signed now."""
        timestamp, nonce = str(int(time.time())), secrets.token_hex(5)
        query = {"signature": signature(self.token, timestamp, nonce), "timestamp": timestamp, "nonce": nonce}
        if self.mode != "plain":
            sealed = encrypt(self.aes_key, appid, message)
            query |= {"encrypt_type": "aes", "msg_signature": signature(self.token, timestamp, nonce, sealed)}
            part = f"<Encrypt><![CDATA[{sealed}]]></Encrypt></xml>"
            if self.mode == "aes":
                message = f"<xml><ToUserName><![CDATA[{ACCOUNT_ID}]]></ToUserName>{part}"
            else:
                message = message.removesuffix("</xml>") + part
        return f"{self.url}{'&' if '?' in self.url else '?'}{urlencode(query)}", message.encode()

    @staticmethod
    def _post(address: str, body: bytes) -> bool:
        request = urllib.request.Request(address, body, {"Content-Type": "text/xml"})  # noqa: S310 - the user's own URL
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
                return bool(answer.read().strip() in (b"", b"success"))
        except (urllib.error.URLError, OSError):
            return False
