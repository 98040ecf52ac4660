"""Youzan (有赞) shops through the Youzan Cloud gateway.

Wire facts, and which of them nobody has confirmed: docs/connections/youzan.md. Streams: trades, refunds, customers, coupons;
reviews only when the options switch them on.

What keeps every row of a list that moves while it is paged: windows of trades end a minute ago, because the list shows a
change up to 30 seconds late, and windows of refunds end now; so a row can only *leave* a window (a later change takes it
out), never enter it. Pages are walked from the last to the first: what leaves moves others towards page 1, which is still to
come. A walk that saw fewer rows than the platform counted is walked again, and the next night reads the end of the window once
more (overlap). A window with more rows than the platform shows is halved.
"""

import hashlib
import hmac
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

import orjson
from pydantic import Field

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms.base import (
    REFUSED,
    AuthError,
    BadPayload,
    Check,
    NotFound,
    Plan,
    PlatformDown,
    PlatformError,
    Push,
    PushAnswer,
    PushRequest,
    RateLimited,
    Record,
    Refused,
    Slice,
    Stream,
    Token,
    Transport,
    backfill_by_window,
    by_window,
    parse_json,
    probe,
)
from nightmarket.platforms.china import ZONE, to_text, to_time
from nightmarket.platforms.paging import Key, Page, at, text_at, walk_back, with_details
from nightmarket.settings import Credentials, StrictModel

NAME = "youzan"
REFUNDS_API, REFUND_API = "youzan.trade.refund.search/3.0.1", "youzan.trade.refund.get/3.0.1"
CUSTOMERS_API = "youzan.scrm.customer.list/1.0.0"
PAGE_SIZE = 100  # trades, refunds
DEEPEST_PAGE = 100
REFUND_DEPTH = 3000  # page_no x page_size of the refund list
CUSTOMER_PAGE_SIZE = 50
CUSTOMER_DEPTH = 10_000
COUPON_PAGE_SIZE = 50
INDEX_LAG = timedelta(seconds=60)  # the list shows a change after 30 seconds
LONGEST_WINDOW = timedelta(days=85)  # of the trade list; three months are 89 to 92 days
FOUNDED = datetime(2012, 11, 27, tzinfo=ZONE)  # no shop's customer is older than Youzan
BACK_OFF_SECONDS = (3, 6, 12, 24, 48)  # the platform's own advice; then give up

PUSH_HEADER = "Event-Sign"
PUSH_ANSWER = b'{"code":0,"msg":"success"}'

TOKEN_CODES = {4201, 4202, 4203}  # lapsed, expired, unknown: a new token, once
TOO_MANY_CODES = {4101, 500100004, 123000042, 141500203}
TOO_DEEP = 142710032
TOKEN_CALL = "auth/token"  # noqa: S105 - the name of a call
REAUTHORISE = "authorise the application for this shop again in the Youzan Cloud console"
AUTH_ACTIONS = {
    4007: "the gateway refuses this machine: add its address to the application's IP allow-list in the Youzan Cloud console",
    4201: f"the shop's authorisation has lapsed; {REAUTHORISE}",
    4202: "the access token has expired and a new one was refused too",
    4203: "the access token is not known and a new one was refused too",
    4204: "the application has no capability package for this API, or this month's calls are used up; order one in the Youzan Cloud console",
}
GATEWAY_WORDS = {
    4001: "the path is wrong: an API is written name/version",
    4004: "the request's body is not JSON",
    4005: "the gateway does not know this API or version; check the options of the source",
    5002: "the shop's system refuses the request",
}


class Options(StrictModel):
    """`options:` of a Youzan source: what no page confirms, and what costs calls."""

    trades_api: str = Field(default="youzan.trades.sold.get/4.0.4", pattern=r"^[a-z.]+/\d+\.\d+\.\d+$")
    trade_api: str = Field(default="youzan.trade.get/4.0.2", pattern=r"^[a-z.]+/\d+\.\d+\.\d+$")
    trade_detail: bool = (
        True  # one call per trade; without it the paid amount is the list's, which is not what was paid
    )
    customer_time_unit: Literal["s", "ms"] = "s"  # of the customer list's filter; sources disagree
    customers_every_days: int = Field(default=1, ge=0)  # how often all customers are read; new ones are read every time
    coupons_api: str = Field(default="youzan.ump.voucheractivity.query/3.0.1", pattern=r"^[a-z.]+/\d+\.\d+\.\d+$")
    reviews: bool = False  # the method is from an old SDK: switch it on only when your application may call it
    reviews_api: str = Field(default="youzan.item.reviews.query/3.0.0", pattern=r"^[a-z.]+/\d+\.\d+\.\d+$")


# ----------------------------------------------------------------------------------------------------------- client
def from_epoch(value: object) -> datetime | None:
    """An instant from Unix seconds (10 digits) or milliseconds (13); None when it is neither."""
    text = str(value)
    if not text.isdigit() or len(text) not in (10, 13):
        return None
    return datetime.fromtimestamp(int(text) / (1000 if len(text) == 13 else 1), UTC)


@dataclass(frozen=True)
class Client:
    """Calls to one shop with a token that all workers share. Raises the typed errors of platforms.base."""

    base_url: str
    client_id: str
    client_secret: str = field(repr=False)
    grant_id: str
    transport: Transport
    options: Options
    page_sizes: Mapping[str, int]

    def call(self, api: str, body: Mapping[str, object], page: int | None = None) -> Record:
        """What the API's envelope holds, an object. A refused token is fetched anew once; waits as long as the platform advises."""
        return self._with_token(
            lambda token: self.transport.retry(partial(self._call_once, api, token, body, page, iter(BACK_OFF_SECONDS)))
        )

    def call_once(self, api: str, body: Mapping[str, object]) -> Record:
        """As call(), for what must not happen twice: only a refused token, which the gateway sees before anything is done, is
        tried again."""
        return self._with_token(lambda token: self._call_once(api, token, body, None, iter(BACK_OFF_SECONDS)))

    def _with_token(self, attempt: Callable[[str], Record]) -> Record:
        bad = ""
        for is_last in (False, True):
            token = self.token(bad)
            try:
                return attempt(token.value)
            except AuthError as error:
                if is_last or error.code not in TOKEN_CODES:
                    raise
                bad = token.value
        raise AssertionError("the second round returns or raises")

    def _call_once(
        self, api: str, token: str, body: Mapping[str, object], page: int | None, waits: Iterator[int]
    ) -> Record:
        url = f"{self.base_url}/api/{api}"
        status, answer = self.transport.fetch("POST", url, method=api, params={"access_token": token}, json=body)
        try:
            return read_answer(api, status, answer, page)
        except RateLimited as error:
            error.retry_after = next(waits, BACK_OFF_SECONDS[-1])
            raise

    def token(self, bad: str = "") -> Token:
        """The token all workers use; a new one when that is `bad`."""
        return self.transport.tokens.get("access", self._new_token, bad=bad)

    def _new_token(self, previous: Token | None) -> Token:
        """A silent grant: the application and the shop's number are all it takes, so nothing has to be renewed."""
        return self.transport.retry(self._fetch_token)

    def _fetch_token(self) -> Token:
        body = {
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "authorize_type": "silent",
            "grant_id": self.grant_id,
            "refresh": False,
        }
        status, answer = self.transport.fetch("POST", f"{self.base_url}/auth/token", method=TOKEN_CALL, json=body)
        if status != 200:
            raise Refused(NAME, TOKEN_CALL, f"HTTP {status}; check the address (host of the connection, https)")
        content = parse_json(NAME, TOKEN_CALL, answer)
        if not isinstance(content, dict):
            raise BadPayload(NAME, TOKEN_CALL, "the answer is not a JSON object")
        if not is_true(content.get("success")):
            code = _code(content.get("code"))
            problem = (
                "a token is refused; check client id (login), client secret (password) and the shop's number "
                f"(extra.grant_id) of the connection, and that the shop has authorised the application (code {code})"
            )
            raise AuthError(NAME, TOKEN_CALL, problem, code=code)
        data = content.get("data")
        expires_at = from_epoch(data.get("expires")) if isinstance(data, dict) else None
        if not isinstance(data, dict) or not data.get("access_token") or expires_at is None:
            raise BadPayload(NAME, TOKEN_CALL, "the answer has no access_token, or no expires in milliseconds")
        return Token(str(data["access_token"]), expires_at)

    def page_size(self, api: str, largest: int) -> int:
        """How many rows to ask for on a page: the largest the API allows, unless tests make it small."""
        return min(self.page_sizes.get(api.partition("/")[0], self.page_sizes.get("*", largest)), largest)


def read_answer(api: str, status: int, body: bytes, page: int | None = None) -> Record:
    """The object inside any of the three envelopes, or the typed error of what it refuses."""
    if status != 200:
        raise Refused(NAME, api, f"HTTP {status}; check the address (host of the connection, https)")
    answer = parse_json(NAME, api, body, page)
    where = f"page {page}" if page is not None else "the answer"
    if not isinstance(answer, dict):
        raise BadPayload(NAME, api, f"{where} is not a JSON object")
    if isinstance(said := answer.get("gw_err_resp"), dict):
        raise gateway_error(api, _code(said.get("err_code")), str(said.get("trace_id") or ""))
    if isinstance(said := answer.get("error_response"), dict):  # the envelope of 3.0.0
        raise business_error(api, _code(said.get("code")))
    if "response" in answer:
        data = answer["response"]
    elif "success" in answer or "code" in answer:  # success and code may be text, and either may be missing
        code = _code(answer.get("code", 200))
        if not is_true(answer.get("success", True)) or code != 200:
            raise business_error(api, code, str(answer.get("trace_id") or ""))
        data = answer.get("data")
    else:
        raise BadPayload(NAME, api, f"{where} has none of the known envelopes")
    if not isinstance(data, dict):
        raise BadPayload(NAME, api, f"{where} has no data")
    if not is_true(data.get("is_success", True)):
        raise Refused(NAME, api, "the shop's system says is_success false")
    return data


def gateway_error(api: str, code: int, trace_id: str) -> PlatformError:
    """The typed error of a gateway code. Its err_msg is left out: it may repeat parts of the request."""
    said = f"gateway code {code}"
    if code in AUTH_ACTIONS:
        return AuthError(NAME, api, f"{AUTH_ACTIONS[code]} ({said})", request_id=trace_id, code=code)
    if code in TOO_MANY_CODES:
        return RateLimited(NAME, api, f"too many calls ({said})", request_id=trace_id, code=code)
    if code == 5001:
        problem = f"system error, or a parameter of a wrong type ({said})"
        return PlatformDown(NAME, api, problem, request_id=trace_id, code=code)
    if code == 4009:
        return NotFound(NAME, api, f"the shop does not know this person ({said})", request_id=trace_id, code=code)
    return Refused(
        NAME, api, f"{GATEWAY_WORDS.get(code, 'the gateway refuses')} ({said})", request_id=trace_id, code=code
    )


def business_error(api: str, code: int, trace_id: str = "") -> PlatformError:
    """The typed error of a code of the shop's system."""
    if code in TOO_MANY_CODES:
        return RateLimited(NAME, api, f"too many calls (code {code})", request_id=trace_id, code=code)
    if code == TOO_DEEP:
        problem = f"more rows than the list shows (code {code})"
        return Refused(NAME, api, problem, request_id=trace_id, code=code)
    return Refused(NAME, api, f"the shop's system refuses the request (code {code})", request_id=trace_id, code=code)


def is_true(value: object) -> bool:
    """Yes, however an API of theirs writes it."""
    return str(value).lower() in ("true", "1")


def _code(value: object) -> int:
    text = str(value)
    return int(text) if text.lstrip("-").isdigit() else -1


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of one shop. Raises ConfigError when a part of the connection is missing."""
    grant_id = str(credentials.extra.get("grant_id") or "")
    credentials.require(
        {
            "host": "https://open.youzanyun.com",
            "login": "client id",
            "password": "client secret",
            "extra.grant_id": "the shop's number, kdt_id",
        }
    )
    return Client(
        credentials.host.rstrip("/"),
        credentials.login,
        credentials.password,
        grant_id,
        transport,
        options,
        page_sizes or {},
    )


# ------------------------------------------------------------------------------------------------------------ lists
@dataclass(frozen=True)
class Listing:
    """How one list is called and read."""

    api: str
    largest_page: int
    rows: str  # where the rows stand in the answer
    total: str  # and how many match
    key: Key
    depth: float = math.inf  # rows of one window that the platform shows, whatever the page size
    deepest_page: int = DEEPEST_PAGE
    page_name: str = "page_no"

    def size(self, client: Client) -> int:
        return client.page_size(self.api, self.largest_page)

    def shown(self, client: Client) -> float:
        """How many rows of one window can be read at this page size."""
        return min(self.depth, self.deepest_page * self.size(client))

    def page(self, client: Client, number: int, filters: Mapping[str, object]) -> Page:
        """(rows that match, the rows of this page). Raises BadPayload when the answer has no count or no list."""
        body = {self.page_name: number, "page_size": self.size(client), **filters}
        data = client.call(self.api, body, number)
        total, rows = _code(data.get(self.total)), data.get(self.rows)
        if total < 0:
            raise BadPayload(NAME, self.api, f"page {number} has no {self.total}")
        if not isinstance(rows, list | None):
            raise BadPayload(NAME, self.api, f"page {number}: {self.rows} is not a list")
        return total, rows or []  # a list without rows may be absent


def walk(
    client: Client, listing: Listing, filters: Mapping[str, object], first: Page | None = None
) -> Iterator[list[Record]]:
    """All rows of one list."""
    page = partial(listing.page, client, filters=filters)
    return walk_back(NAME, listing.api, page, listing.size(client), listing.key, first=first)


def halves(listing: Listing, window: Window, total: int, shown: float) -> tuple[Window, ...]:
    """The window, or its two halves when it holds more rows than the platform shows. Raises Refused when it cannot be halved."""
    if total < shown:  # a count that stands at the limit may have been cut there
        return (window,)
    if window.end - window.start < timedelta(seconds=4):
        problem = f"{total} rows within seconds of {to_text(window.start)}; the platform shows {shown:.0f}"
        raise Refused(NAME, listing.api, problem)
    middle = (window.start + (window.end - window.start) / 2).replace(microsecond=0)
    return Window(window.start, middle), Window(middle, window.end)


def in_window(
    client: Client, listing: Listing, window: Window, filters: Callable[[Window], Record]
) -> Iterator[list[Record]]:
    """All rows of a window, in as many parts as it takes."""
    first = listing.page(client, 1, filters(window))
    parts = halves(listing, window, first[0], listing.shown(client))
    if len(parts) == 1:
        yield from walk(client, listing, filters(window), first)
    else:
        for part in parts:
            yield from in_window(client, listing, part, filters)


def _seconds(instant: datetime) -> int:
    return int(instant.timestamp())


_tid = text_at("full_order_info", "order_info", "tid")
_refund_id = text_at("refund_id")


# ----------------------------------------------------------------------------------------------------------- trades
def _trade_listing(client: Client) -> Listing:
    return Listing(client.options.trades_api, PAGE_SIZE, "full_order_info_list", "total_results", _tid)


def _updated(window: Window) -> Record:
    # whether the ends belong to the window is not documented: a second more, so that it does not matter
    return {"start_update": to_text(window.start - timedelta(seconds=1)), "end_update": to_text(window.end)}


def trade_pages(client: Client, window: Window) -> Iterator[list[Record]]:
    """Trades changed in the window: {"tid", **the list's row, "detail": youzan.trade.get}."""

    def complete(tid: str, row: Record) -> Record:
        record = {"tid": tid, **row}
        return (
            record | {"detail": client.call(client.options.trade_api, {"tid": tid})}
            if client.options.trade_detail
            else record
        )

    return with_details(in_window(client, _trade_listing(client), window, _updated), _tid, complete)


# ---------------------------------------------------------------------------------------------------------- refunds
REFUND_LISTING = Listing(REFUNDS_API, PAGE_SIZE, "refunds", "total", _refund_id, depth=REFUND_DEPTH)


def _refunds_updated(window: Window) -> Record:
    return {"update_time_start": _seconds(window.start) - 1, "update_time_end": _seconds(window.end)}


def refund_pages(client: Client, window: Window) -> Iterator[list[Record]]:
    """Refunds changed in the window: {**the list's row, "detail": youzan.trade.refund.get}; the list knows only what was asked for."""

    def complete(refund_id: str, row: Record) -> Record:
        return {**row, "detail": client.call(REFUND_API, {"refund_id": refund_id})}

    return with_details(in_window(client, REFUND_LISTING, window, _refunds_updated), _refund_id, complete)


# -------------------------------------------------------------------------------------------------------- customers
CUSTOMER_LISTING = Listing(
    CUSTOMERS_API,
    CUSTOMER_PAGE_SIZE,
    "record_list",
    "total",
    text_at("yz_open_id"),
    depth=CUSTOMER_DEPTH,
    deepest_page=500,
)


def _joined(client: Client) -> Callable[[Window], Record]:
    unit = 1000 if client.options.customer_time_unit == "ms" else 1

    def filters(window: Window) -> Record:
        return {
            "created_at_start": (_seconds(window.start) - 1) * unit,
            "created_at_end": _seconds(window.end) * unit,
        }

    return filters


def customer_pages(client: Client, window: Window) -> Iterator[list[Record]]:
    """Customers who were created in the window."""
    return in_window(client, CUSTOMER_LISTING, window, _joined(client))


def customer_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """New customers every time; all of them, from the first to the last, every `customers_every_days`.

    The list has no "changed since": points and counts of older customers are as old as the last full reading. That one
    keeps the mark "walked", the creation time up to which it has come, so that a run that ends early is continued, and
    the mark "full", when it was complete.
    """
    for part, window in plan.reread:
        yield Slice(part, window, partial(customer_pages, client, window))
    every = timedelta(days=client.options.customers_every_days)
    full = plan.cursors.get("full")
    # a night may begin some minutes earlier than the one before
    if full is None or "walked" in plan.cursors or plan.until - full >= every - min(every, timedelta(hours=6)):
        start = plan.cursors.get("walked", FOUNDED)
        marks: Mapping[str, datetime | None] = {"": plan.until, "full": plan.until, "walked": None}
        yield from _customer_slices(client, start, plan.until, "walked", marks)
    else:
        yield from _customer_slices(client, plan.cursors[""] - plan.overlap, plan.until, "", {"": plan.until})


def _customer_slices(
    client: Client, start: datetime, end: datetime, mark: str, marks: Mapping[str, datetime | None]
) -> Iterator[Slice]:
    """Slices that the platform can show; each moves `mark` to its end, the last one all `marks`."""
    if start >= end:
        return
    window = Window(start, end)
    total, _ = CUSTOMER_LISTING.page(client, 1, _joined(client)(window))
    parts = halves(CUSTOMER_LISTING, window, total, CUSTOMER_LISTING.shown(client))
    if len(parts) == 1:
        yield Slice("created", parts[0], partial(customer_pages, client, parts[0]), marks)
        return
    first, second = parts
    yield from _customer_slices(client, first.start, first.end, mark, {mark: first.end})
    yield from _customer_slices(client, second.start, second.end, mark, marks)


# -------------------------------------------------------------------------------------------------- coupons, reviews
def snapshot(listing: Callable[[Options], Listing]) -> Callable[[Client, Plan], Iterator[Slice]]:
    """Everything a list has, every time."""

    def slices(client: Client, plan: Plan) -> Iterator[Slice]:
        start = min(plan.cursors.get("", plan.until - plan.history), plan.until - timedelta(seconds=1))
        pages = partial(walk, client, listing(client.options), {})
        yield Slice("snapshot", Window(start, plan.until), pages, {"": plan.until})

    return slices


def coupon_listing(options: Options) -> Listing:
    """The shop's voucher activities; no page confirms the method or its answer."""
    return Listing(options.coupons_api, COUPON_PAGE_SIZE, "list", "total", text_at("activity_id"))


def review_listing(options: Options) -> Listing:
    """Reviews, all of them each time; the method is from an old SDK, its answer is not confirmed."""
    return Listing(options.reviews_api, PAGE_SIZE, "reviews", "total_results", text_at("id"), page_name="page")


# ---------------------------------------------------------------------------------------------------------- streams
_PERSONAL_OF_ORDER = {
    "buyer_info.buyer_phone": "phone",
    "buyer_info.fans_nickname": "nick",
    "address_info.receiver_name": "name",
    # usually a cipher text: as a phone it would be a wrong one, as a part of the address it ties nobody to anybody
    "address_info.receiver_tel": "address",
    "address_info.delivery_address": "address",
    "address_info.self_fetch_info": "address",
}
_TEXT_OF_ORDER = ("remark_info.buyer_message", "remark_info.trade_memo")
_ORDERS = ("full_order_info", "detail.full_order_info")

TRADES = Stream(
    name="trades",
    key=("tid",),
    occurred_at=lambda record: to_time(at(record, "full_order_info", "order_info", "update_time")),
    slices=by_window(trade_pages, largest=LONGEST_WINDOW, lag=INDEX_LAG),
    personal={f"{order}.{path}": kind for order in _ORDERS for path, kind in _PERSONAL_OF_ORDER.items()},
    free_text=tuple(f"{order}.{path}" for order in _ORDERS for path in _TEXT_OF_ORDER),
    overlap=timedelta(hours=1),
    window=timedelta(days=7),
    priority=1,
    required=(
        "full_order_info.order_info.status",
        "full_order_info.order_info.update_time",
        "full_order_info.pay_info.payment",
        "full_order_info.orders.item_id",
    ),
    backfill=backfill_by_window(trade_pages, largest=LONGEST_WINDOW),
)
REFUNDS = Stream(
    name="refunds",
    key=("refund_id",),
    occurred_at=lambda record: from_epoch(record.get("modified")) or to_time(record.get("modified")),
    slices=by_window(refund_pages),
    personal={},
    free_text=("reason", "detail.reason", "detail.desc"),
    overlap=timedelta(hours=1),
    window=timedelta(days=7),
    priority=1,
    required=("tid", "status", "refund_fee", "modified"),
    backfill=backfill_by_window(refund_pages),
)
CUSTOMERS = Stream(
    name="customers",
    key=("yz_open_id",),
    occurred_at=lambda record: from_epoch(record.get("created_at")),
    slices=customer_slices,
    personal={"mobile": "phone", "show_name": "name", "name": "name", "avatar": "portrait"},
    overlap=timedelta(hours=1),
    priority=2,
    required=("is_member", "created_at"),
    backfill=backfill_by_window(customer_pages, part="created"),
)
COUPONS = Stream(
    name="coupons",
    key=("activity_id",),
    occurred_at=lambda record: to_time(record.get("updated_at")),
    slices=snapshot(coupon_listing),
    personal={},
    priority=3,
)
REVIEWS = Stream(
    name="reviews",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("created")),
    slices=snapshot(review_listing),
    personal={"buyer_nick": "nick"},
    free_text=("content", "reply"),
    priority=2,
)


def streams(options: Options) -> Mapping[str, Stream]:
    """The streams of a Youzan shop; reviews only when the options switch the unconfirmed method on."""
    chosen = (TRADES, REFUNDS, CUSTOMERS, COUPONS, *((REVIEWS,) if options.reviews else ()))
    return {stream.name: stream for stream in chosen}


def check(client: Client, names: Sequence[str]) -> Check:
    """Whether a token is given, whether each stream's list may be read, and how the clocks agree."""
    client.token()
    hour = Window(dates.now() - timedelta(hours=1), dates.now())
    lists: dict[str, tuple[Listing, Record]] = {
        "trades": (_trade_listing(client), _updated(hour)),
        "refunds": (REFUND_LISTING, _refunds_updated(hour)),
        "customers": (CUSTOMER_LISTING, _joined(client)(hour)),
        "coupons": (coupon_listing(client.options), {}),
        "reviews": (review_listing(client.options), {}),
    }
    problems = probe({name: partial(lists[name][0].page, client, 1, lists[name][1]) for name in names if name in lists})
    return Check(f"shop {client.grant_id}", client.transport.clock_offset, problems)


# ----------------------------------------------------------------------------------------------------------- pushes
def receive(credentials: Credentials, request: PushRequest) -> PushAnswer:
    """A push of the message service: kept when its header is md5(client id + body + client secret), else refused.

    The header's name is from one client's code and can be changed: extra.push_header of the connection.
    """
    name = str(credentials.extra.get("push_header") or PUSH_HEADER).lower()
    expected = hashlib.md5(
        credentials.login.encode() + request.body + credentials.password.encode(), usedforsecurity=False
    ).hexdigest()
    given = request.headers.get(name, "").lower().encode()
    if request.method != "POST" or not credentials.password or not hmac.compare_digest(given, expected.encode()):
        return REFUSED
    try:
        content = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        return PushAnswer(400, b"not a JSON object")
    # a push that is sent again says so (sendCount), so its text differs: the message's own number names it
    key = str(content.get("msg_id") or "") or hashlib.sha256(request.body).hexdigest()
    return PushAnswer(200, PUSH_ANSWER, "application/json", (Push(key, request.body),))
