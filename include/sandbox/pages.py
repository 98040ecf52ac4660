"""The archive of our own follow-up pages, `GET /pages/events`: a plain signed reading API of our own design."""

import hmac
import secrets
from typing import Any

from .clock import MINUTE, ClockError, parse_iso
from .faults import Fault, clock_of, emptied, spoil_rows
from .state import LINK_HOST, World
from .wire import Answer, Request, json_answer

LARGEST_PAGE = 500
TOLERANCE = 5 * MINUTE


class PagesError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": {"code": code, "message": message}}


def signature(secret: str, method: str, path_with_query: str, timestamp: str) -> str:
    return hmac.new(secret.encode(), f"{method}\n{path_with_query}\n{timestamp}".encode(), "sha256").hexdigest()


class Pages:
    platform = "own_pages"
    prefixes = ("/pages/",)

    def __init__(self, world: World) -> None:
        self.world, self.key_id, self.secret = world, "pages-" + secrets.token_hex(4), secrets.token_hex(24)

    def access(self, base_url: str) -> dict[str, Any]:
        return {"base_url": f"{base_url}/pages", "key_id": self.key_id, "secret": self.secret, "link_host": LINK_HOST}

    def reset(self) -> None:
        """Nothing to forget: the archive belongs to the world."""

    def method(self, request: Request) -> str:
        return request.path.removeprefix("/pages/")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        try:
            self._verify(request, fault)
            if request.path != "/pages/events":
                raise PagesError(404, "not_found", f"there is nothing at {request.path}")
            return json_answer(self.events(request, fault))
        except PagesError as error:
            self.world.counters.refused[self.platform][error.body["error"]["code"]] += 1
            return json_answer(error.body, error.status)

    def _verify(self, request: Request, fault: Fault | None) -> None:
        if request.method != "GET":
            raise PagesError(405, "method_not_allowed", "only GET")
        if fault and fault.kind == "call_limit":
            raise PagesError(429, "too_many_calls", "too many calls")
        if fault and fault.kind == "platform_busy":
            raise PagesError(503, "busy", "try again later")
        if fault and fault.kind in ("expired_token", "revoked_token"):
            raise PagesError(401, "unknown_key", "this key was taken away")
        headers = request.headers
        timestamp = headers.get("x-pages-timestamp", "")
        if headers.get("x-pages-key") != self.key_id:
            raise PagesError(401, "unknown_key", "X-Pages-Key is missing or unknown")
        if not timestamp.isdigit() or abs(int(timestamp) - clock_of(fault, self.world.now())) > TOLERANCE:
            raise PagesError(401, "stale_timestamp", "X-Pages-Timestamp is missing or more than 5 minutes off")
        wanted = signature(self.secret, request.method, request.raw_path, timestamp)
        if not hmac.compare_digest(wanted.encode(), headers.get("x-pages-signature", "").encode()):
            raise PagesError(401, "bad_signature", "X-Pages-Signature does not fit this request")

    def events(self, request: Request, fault: Fault | None) -> dict[str, Any]:
        query = request.query
        try:
            since, until = (parse_iso(query.get(name, "")) for name in ("since", "until"))
        except ClockError as error:
            raise PagesError(400, "bad_parameter", f"since and until: {error}") from None
        page, size = query.get("page", "1"), query.get("page_size", str(LARGEST_PAGE))
        if not (page.isdigit() and size.isdigit() and int(page) >= 1 and 1 <= int(size) <= LARGEST_PAGE):
            raise PagesError(400, "bad_parameter", f"page from 1, page_size from 1 to {LARGEST_PAGE}")
        found = self.world.archive.between(since, until)
        start = (int(page) - 1) * int(size)
        part = found[start : start + int(size)]
        part = spoil_rows(
            fault,
            part,
            ids=("event_id",),
            nullable=("data.email", "data.language"),
            required=("event_id",),
            texts=("data.name", "data.comment"),
        )
        if start or start + int(size) < len(found):  # an empty page must be one that was promised
            part = emptied(fault, part)
        if fault and part:
            if fault.kind == "missing_id":
                part = [{name: value for name, value in part[0].items() if name != "event_id"}, *part[1:]]
            elif fault.kind == "bad_value":
                part = [part[0] | {"received_at": "not a time"}, *part[1:]]
        return {"events": part, "page": int(page), "has_more": start + int(size) < len(found)}
