"""Weidian (微店) shops: one stream, trades.

Wire facts, and how little of them is confirmed: docs/connections/weidian.md. Weidian documents no refund, customer or coupon
API; a refund shows only as the status of its order.

A window of the order list ends now, so a row can only leave it; pages are walked from the last to the first, a walk that saw
fewer rows than the platform counted is walked again, and the next night reads the end of the window once more (overlap).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import orjson
from pydantic import Field

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
    Check,
    NotFound,
    PlatformDown,
    PlatformError,
    RateLimited,
    Record,
    Refused,
    Stream,
    Token,
    Transport,
    backfill_by_window,
    by_window,
    parse_json,
    probe,
)
from nightmarket.platforms.china import to_text, to_time
from nightmarket.platforms.paging import Page, at, text_at, walk_back, with_details
from nightmarket.settings import Credentials, StrictModel

NAME = "weidian"
LIST, DETAIL, TOKEN_CALL = "vdian.order.list.get", "vdian.order.get", "token"
LARGEST_PAGE = 50
LONGEST_WINDOW = timedelta(days=30)  # no limit is documented; the list's own default is 31 days
LIMIT_SECONDS = 5.0
# No page lists the codes, so a refusal is judged by its sentence; the options add codes your account has shown.
TOKEN_WORDS = ("token",)
LIMIT_WORDS = ("limit", "frequen", "too many", "频繁", "限流")
BUSY_WORDS = ("busy", "繁忙", "timeout", "超时")
UNKNOWN_WORDS = ("not exist", "not found", "不存在")


class Options(StrictModel):
    """`options:` of a Weidian source: what no page confirms."""

    list_version: str = "1.5"
    detail_version: str = "2.0"
    page_size: int = Field(default=30, ge=1, le=LARGEST_PAGE)  # advised; up to 50 works
    group_type: int = 1  # 1 hides group-buys that are not complete yet; they come with a later change
    token_codes: tuple[int, ...] = ()  # refuse the token, whatever the sentence says
    limit_codes: tuple[int, ...] = ()  # too many calls
    busy_codes: tuple[int, ...] = ()  # pass by themselves


# ----------------------------------------------------------------------------------------------------------- client
@dataclass(frozen=True)
class Client:
    """Calls to one shop with a token that all workers share. Raises the typed errors of platforms.base."""

    base_url: str
    app_key: str
    secret: str = field(repr=False)
    transport: Transport
    options: Options
    size: int

    def call(self, method: str, version: str, param: Mapping[str, object], page: int | None = None) -> Record:
        """The `result` of a method. A refused token is fetched anew once."""
        bad = ""
        for is_last in (False, True):
            token = self.token(bad)
            public = {"method": method, "access_token": token.value, "version": version, "format": "json"}
            form = {"public": orjson.dumps(public).decode(), "param": orjson.dumps(param).decode()}
            try:
                return self.transport.retry(partial(self._call_once, method, form, page))
            except AuthError:
                if is_last:
                    raise
                bad = token.value
        raise AssertionError("the second round returns or raises")

    def _call_once(self, method: str, form: Mapping[str, str], page: int | None) -> Record:
        status, body = self.transport.fetch("POST", f"{self.base_url}/api", method=method, data=form)
        return self._read(method, status, body, page)

    def token(self, bad: str = "") -> Token:
        """The token all workers use; a new one when that is `bad`."""
        return self.transport.tokens.get("access", self._new_token, bad=bad)

    def _new_token(self, previous: Token | None) -> Token:
        return self.transport.retry(self._fetch_token)

    def _fetch_token(self) -> Token:
        query = {"grant_type": "client_credential", "appkey": self.app_key, "secret": self.secret}
        status, body = self.transport.fetch("GET", f"{self.base_url}/token", method=TOKEN_CALL, params=query)
        asked_at = dates.now()
        result = self._read(TOKEN_CALL, status, body)
        life = str(result.get("expires_in"))
        if not result.get("access_token") or not life.isdigit():
            raise BadPayload(NAME, TOKEN_CALL, "the answer has no access_token, or no expires_in in seconds")
        return Token(str(result["access_token"]), asked_at + timedelta(seconds=int(life)))

    def _read(self, method: str, status: int, body: bytes, page: int | None = None) -> Record:
        """The `result` of an answer, or the typed error of its status."""
        if status != 200:
            raise Refused(NAME, method, f"HTTP {status}; check the address (host of the connection)")
        answer = parse_json(NAME, method, body, page)
        where = f"page {page}" if page is not None else "the answer"
        said = at(answer, "status")
        code = str(at(answer, "status", "status_code"))
        if not isinstance(said, dict) or not code.lstrip("-").isdigit():
            raise BadPayload(NAME, method, f"{where} has no status")
        if int(code) != 0:
            raise to_error(method, int(code), str(said.get("status_reason") or ""), self.options)
        result = answer.get("result")
        if not isinstance(result, dict):
            raise BadPayload(NAME, method, f"{where} has no result")
        return result


def to_error(method: str, code: int, reason: str, options: Options) -> PlatformError:
    """The typed error of a status. The reason decides and is not repeated: it may hold parts of the request."""
    said, words = f"status code {code}", reason.lower()

    def means(codes: Sequence[int], signs: Sequence[str]) -> bool:
        return code in codes or any(sign in words for sign in signs)

    if means(options.limit_codes, LIMIT_WORDS):
        return RateLimited(NAME, method, f"too many calls ({said})", code=code, retry_after=LIMIT_SECONDS)
    if means(options.busy_codes, BUSY_WORDS):
        return PlatformDown(NAME, method, f"the system is busy ({said})", code=code)
    if method == TOKEN_CALL:
        problem = f"a token is refused; check appkey (login) and secret (password) of the connection ({said})"
        return AuthError(NAME, method, problem, code=code)
    if means(options.token_codes, TOKEN_WORDS):
        problem = (
            f"the token is refused; check in the Weidian open platform that the application may read this shop ({said})"
        )
        return AuthError(NAME, method, problem, code=code)
    if method == DETAIL and means((), UNKNOWN_WORDS):
        return NotFound(NAME, method, f"it does not exist ({said})", code=code)
    return Refused(NAME, method, f"the request is refused ({said})", code=code)


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of one shop. Raises ConfigError when a part of the connection is missing."""
    credentials.require(
        {
            "host": "https://api.vdian.com",
            "login": "appkey",
            "password": "secret",
        }
    )
    sizes = page_sizes or {}
    size = min(sizes.get(LIST, sizes.get("*", options.page_size)), LARGEST_PAGE)
    return Client(credentials.host.rstrip("/"), credentials.login, credentials.password, transport, options, size)


# ----------------------------------------------------------------------------------------------------------- trades
_order_id = text_at("order_id")


def _page(client: Client, window: Window, number: int, size: int) -> Page:
    """(orders that match, the rows of this page). Raises BadPayload when the answer has no count or no list."""
    param = {
        "page_num": number,
        "page_size": size,
        "order_type": "all",
        "group_type": client.options.group_type,
        # whether the ends belong to the window is not documented: a second more, so that it does not matter
        "update_start": to_text(window.start - timedelta(seconds=1)),
        "update_end": to_text(window.end),
    }
    result = client.call(LIST, client.options.list_version, param, number)
    total, rows = str(result.get("total_num")), result.get("orders")  # order_num counts only this page
    if not total.isdigit():
        raise BadPayload(NAME, LIST, f"page {number} has no total_num")
    if not isinstance(rows, list | None):
        raise BadPayload(NAME, LIST, f"page {number}: orders is not a list")
    return int(total), rows or []


def trade_pages(client: Client, window: Window) -> Iterator[list[Record]]:
    """Orders changed in the window: {**the list's row, "detail": vdian.order.get}."""

    def complete(order_id: str, row: Record) -> Record:
        try:
            detail = client.call(DETAIL, client.options.detail_version, {"order_id": order_id})
        except NotFound:
            return row  # listed a moment ago, not served in full: the mapping says so
        return {**row, "detail": detail}

    page = partial(_page, client, window, size=client.size)
    return with_details(walk_back(NAME, LIST, page, client.size, _order_id), _order_id, complete)


_PERSONAL = {
    "buyer_info.name": "name",
    "buyer_info.phone": "phone",
    "buyer_info.address": "address",
    "buyer_info.self_address": "address",
    "buyer_info.weixin": "nick",
    "user_phone": "phone",
}
TRADES = Stream(
    name="trades",
    key=("order_id",),
    occurred_at=lambda record: to_time(record.get("update_time") or record.get("time")),
    slices=by_window(trade_pages, largest=LONGEST_WINDOW),
    personal=_PERSONAL | {f"detail.{path}": kind for path, kind in _PERSONAL.items()},
    free_text=("note", "seller_note", "detail.note", "detail.seller_note"),
    overlap=timedelta(hours=1),
    window=timedelta(days=7),
    priority=1,
    required=("status", "detail.total", "detail.items.item_id"),
    backfill=backfill_by_window(trade_pages, largest=LONGEST_WINDOW),
)
STREAMS: Mapping[str, Stream] = {TRADES.name: TRADES}


def streams(options: Options) -> Mapping[str, Stream]:
    """The streams of a Weidian shop."""
    return STREAMS


def check(client: Client, names: Sequence[str]) -> Check:
    """Whether a token is given, whether the order list may be read, and how the clocks agree."""
    client.token()
    hour = Window(dates.now() - timedelta(hours=1), dates.now())
    problems = probe({name: partial(_page, client, hour, 1, 1) for name in names if name in STREAMS})
    return Check(f"the shop of appkey {client.app_key}", client.transport.clock_offset, problems)
