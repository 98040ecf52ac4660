"""WeChat's pushes to a callback URL: signed in the query, XML in the body, 5 seconds to answer, three tries."""

import asyncio
import hashlib
import secrets
import time
import urllib.error
import urllib.request
from urllib.parse import urlencode

from .archive import Event

TRIES = 3
SECONDS = 5


def signature(token: str, timestamp: str, nonce: str) -> str:
    return hashlib.sha1("".join(sorted((token, timestamp, nonce))).encode()).hexdigest()


class Webhook:
    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token
        self._running: set[asyncio.Task[None]] = set()
        self._order = asyncio.Lock()  # pushes arrive in the order in which things happened

    def push(self, event: Event) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(event["data"]["xml"].encode()))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _deliver(self, body: bytes) -> None:
        async with self._order:
            for _ in range(TRIES):
                timestamp, nonce = str(int(time.time())), secrets.token_hex(5)
                query = urlencode(
                    {"signature": signature(self.token, timestamp, nonce), "timestamp": timestamp, "nonce": nonce}
                )
                address = f"{self.url}{'&' if '?' in self.url else '?'}{query}"
                if await asyncio.to_thread(self._post, address, body):
                    return

    @staticmethod
    def _post(address: str, body: bytes) -> bool:
        request = urllib.request.Request(address, body, {"Content-Type": "text/xml"})  # noqa: S310 - the user's own URL
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
                return bool(answer.read().strip() in (b"", b"success"))
        except (urllib.error.URLError, OSError):
            return False
