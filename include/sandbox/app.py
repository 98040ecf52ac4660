"""One ASGI application for all platforms: reads the request, lets time pass, carries out faults, counts, answers."""

import asyncio
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any

import orjson

from .control import Control
from .faults import TRANSPORT, Fault, clock_of, give_back, take
from .platforms import Platform
from .state import World
from .wire import Answer, Request, json_answer


class Cut(Exception):
    """The connection ends here, after `answer` was begun; `sent` bytes of it have gone out."""

    def __init__(self, answer: Answer, sent: int) -> None:
        super().__init__()
        self.answer, self.sent = answer, sent


class App:
    def __init__(self, world: World, control: Control, platforms: Sequence[Platform]) -> None:
        self.world, self.control = world, control
        # The longest prefix first: a platform may live below another one's path.
        self.prefixes = sorted(
            ((prefix, platform) for platform in platforms for prefix in platform.prefixes),
            key=lambda entry: -len(entry[0]),
        )

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = await _read(scope, receive)
        try:
            answer = await self.answer(request)
            answer.headers.setdefault("date", _http_date(self.world.now()))  # a platform tells its own time
            await _write(send, answer)
        except Cut as cut:
            # The promised length is never reached: the server closes the connection.
            await _start(send, cut.answer, max(len(cut.answer.body), 1))
            if cut.sent:
                await send({"type": "http.response.body", "body": cut.answer.body[: cut.sent], "more_body": True})

    async def answer(self, request: Request) -> Answer:
        self.world.settle()
        if request.path.startswith("/control"):
            return self.control.answer(request)
        platform = next((known for prefix, known in self.prefixes if request.path.startswith(prefix)), None)
        if platform is None:
            return json_answer({"error": f"no platform answers at {request.path}; see include/sandbox/README.md"}, 404)
        method = platform.method(request)
        self.world.counters.requests[platform.platform][method] += 1
        fault = take(self.world.faults, platform.platform, method)
        if fault is None:
            return platform.answer(request, None)
        if fault.kind not in TRANSPORT:
            answer = platform.answer(request, fault)
            if fault.is_idle:
                give_back(fault)
            else:
                self.world.counters.faults[platform.platform][fault.kind] += 1
            answer.headers.setdefault("date", _http_date(clock_of(fault, self.world.now())))
            return answer
        self.world.counters.faults[platform.platform][fault.kind] += 1
        return await self._misbehave(platform, request, fault)

    async def _misbehave(self, platform: Platform, request: Request, fault: Fault) -> Answer:
        kind = fault.kind
        nothing_done = {
            "http_500": Answer(b'{"error":"internal"}', 500),
            "http_502": Answer(b"<html><body>502 Bad Gateway</body></html>", 502, {}, "text/html"),
            "http_503": Answer(b"Service Unavailable", 503, {}, "text/plain"),
            "http_429": Answer(
                b"Too Many Requests", 429, {"Retry-After": str(max(1, round(fault.seconds)))}, "text/plain"
            ),
        }
        if kind in nothing_done:
            return nothing_done[kind]
        if kind == "cut_before":
            raise Cut(Answer(b""), 0)
        if kind == "timeout_before":
            await asyncio.sleep(fault.seconds)
            raise Cut(Answer(b""), 0)
        answer = platform.answer(request, None)
        if kind == "timeout_after":
            await asyncio.sleep(fault.seconds)
            raise Cut(answer, 0)
        if kind == "slow":
            await asyncio.sleep(fault.seconds)
            return answer
        if kind == "cut":
            raise Cut(answer, len(answer.body) // 2)
        spoilt = {
            "http_500_after": Answer(orjson.dumps({"code": "SYSTEM_ERROR", "message": "系统错误"}), 500),
            "truncated_json": Answer(answer.body[: len(answer.body) // 2], 200, answer.headers, answer.content_type),
            "garbage": Answer(b"\x00\xff<!-- " + answer.body[:20][::-1], 200, {}, answer.content_type),
            "empty": Answer(b"", 200, {}, answer.content_type),
        }
        return spoilt[kind]


async def _read(scope: dict[str, Any], receive: Any) -> Request:
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    query_string = scope["query_string"].decode("latin-1")
    raw_path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0]
    return Request(
        method=scope["method"],
        path=scope["path"],
        raw_path=raw_path + ("?" + query_string if query_string else ""),
        query_string=query_string,
        headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
        body=b"".join(chunks),
    )


def _http_date(at: float) -> str:
    return formatdate(int(at), usegmt=True)


async def _start(send: Any, answer: Answer, length: int) -> None:
    headers = {"content-type": answer.content_type, "content-length": str(length), **answer.headers}
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded})


async def _write(send: Any, answer: Answer) -> None:
    await _start(send, answer, len(answer.body))
    await send({"type": "http.response.body", "body": answer.body})
