"""Taobao and Tmall shops through TOP, the Taobao Open Platform.

Wire facts: docs/connections/taobao.md. Five streams: trades (orders with their lines), refunds, rates (reviews), members
(customers) and items (products).

Lists here are not snapshots: a trade that changes while a list is paged moves to another place in it. What keeps every
row: windows end at or before the moment of reading, so a row can only *leave* a window, never enter it; pages are walked from
the last to the first, so that what moves up is read twice and not skipped; a walk that saw fewer different rows than the
platform counted is walked again; a window of more pages than `max_pages` is cut, so that one walk stays short; and the next run
reads the end of the window once more (overlap).
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from pydantic import Field

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
    Check,
    Cursors,
    NotFound,
    Plan,
    PlatformDown,
    PlatformError,
    RateLimited,
    Record,
    Refused,
    Slice,
    Stream,
    Transport,
    backfill_by_window,
    by_window,
    parse_json,
    probe,
)
from nightmarket.platforms.china import ZONE, to_text, to_time
from nightmarket.settings import ConfigError, Credentials, StrictModel

NAME = "taobao"
API_VERSION = "2.0"
SIGN_METHODS = ("md5", "hmac", "hmac-sha256")
MAX_WALKS = 4  # how often one window is walked until the rows agree with the platform's own count

# trades.sold.get serves the last "three months" by creation, trades.sold.history.get what is older. Three months are 89 to 92
# days: around the border both are asked, so that no day falls between them.
SOLD_DAYS = 95
HISTORY_DAYS = 85
STALE_DAYS = 60  # increments show trades of the last three months: a mark older than this starts a first load again
HISTORY_WINDOW = timedelta(days=30)
SOLD_WINDOW = timedelta(days=15)
RATE_DAYS = 180  # traderates.get knows nothing older
RATE_WINDOW = timedelta(days=15)
RATE_WINDOW_ROWS = 1500  # a window that counts as many is cut short by the platform: split it
MEMBER_PAGES = 1000  # crm.members.search shows no page beyond this one
MEMBER_SEARCH, MEMBER_INCREMENT = "taobao.crm.members.search", "taobao.crm.members.increment.get"
UNTRADED: Mapping[str, Record] = {"untraded": {"relation_source": 2}, "added": {"relation_source": 3}}
ITEM_DEPTH = 20_000  # page x page size that items.onsale.get serves; its page says 100,000 in another place
TAOBAO_BEGAN = datetime(2003, 5, 10, tzinfo=ZONE)  # nothing is older
SHORTEST = timedelta(seconds=4)  # a window that is not cut any further

TRADE_FIELDS = (
    "tid,status,type,created,modified,pay_time,consign_time,end_time,payment,total_fee,post_fee,discount_fee,adjust_fee,"
    "received_payment,num,seller_nick,buyer_nick,buyer_open_uid,buyer_message,buyer_rate,receiver_name,receiver_mobile,"
    "receiver_phone,receiver_address,receiver_state,receiver_city,receiver_district,receiver_zip,trade_from,"
    "step_trade_status,logistics_company,invoice_no,orders"
)
REFUND_FIELDS = (
    "refund_id,tid,oid,status,order_status,good_status,has_good_return,refund_fee,payment,total_fee,reason,desc,created,"
    "modified,end_time,refund_phase,dispute_type,refund_version,num,sku,title,outer_id,buyer_nick,buyer_open_uid"
)
RATE_FIELDS = (
    "tid,oid,num_iid,role,nick,rated_nick,result,created,item_title,item_price,content,reply,valid_score,"
    "logistics_service_score"
)
# Applications of the CRM type get the "simple" order methods: no receiver, but the buyer's id in this shop.
SIMPLE_TRADE_FIELDS = ",".join(
    [name for name in TRADE_FIELDS.split(",") if not name.startswith("receiver_") or name == "receiver_city"] + ["ouid"]
)
ITEM_FIELDS = "num_iid,title,outer_id,price,num,approve_status,list_time,delist_time,modified,cid,type,sold_quantity"
# without this, kinds beside the default ones are silently absent from every list
TRADE_TYPES = "guarantee_trade,auto_delivery,ec,cod,step,eticket,tmall_i18n"

CALL_LIMIT_CODES = {4, 5, 6, 7, 8}
REAUTHORISE = "let the shop's owner authorise the application again and put the new session into the connection"
AUTH_ACTIONS = {
    11: "the application lacks the permission package of this method; apply for it in the TOP console",
    12: "the authorising account may not do this; authorise with the shop's main account",
    13: "the partner lacks this permission; apply for it in the TOP console",
    24: "the request carries no signature",
    25: "the signature is refused; check the application secret (password of the connection) and sign_method",
    26: f"the session is missing; {REAUTHORISE}",
    27: f"the session is not valid any more; {REAUTHORISE}",
    28: "the application key (login of the connection) is missing",
    29: "the application key (login of the connection) is not known to TOP",
    53: f"the authorisation level has lapsed; {REAUTHORISE}",
}
BAN_SECONDS = re.compile(r"will last for (\d+) more second")
DEFAULT_BAN_SECONDS = 1.0


class TradeMethods(StrictModel):
    """Names of the order methods; applications that lack the order package have others (`taobao.trades.simple...`)."""

    sold: str = "taobao.trades.sold.get"
    history: str | None = "taobao.trades.sold.history.get"  # None: the first load reaches back three months only
    increment: str = "taobao.trades.sold.increment.get"
    detail: str | None = "taobao.trade.fullinfo.get"  # None: a row of the list is all there is


class Options(StrictModel):
    """`options:` of a Taobao source."""

    simplify: bool = False  # ask for TOP's compact JSON
    max_pages: int = Field(default=100, ge=1, le=1000)  # of one window; a fuller one is cut in halves
    trade_methods: TradeMethods = Field(default_factory=TradeMethods)


# ----------------------------------------------------------------------------------------------------------- client
def sign(parameters: Mapping[str, str], secret: str, method: str) -> str:
    """TOP's signature: name+value in ASCII order of the names, empty ones left out, digested as `method` says."""
    joined = "".join(
        f"{name}{value}" for name, value in sorted(parameters.items()) if name and value and name != "sign"
    ).encode()
    key = secret.encode()
    if method == "md5":
        return hashlib.md5(key + joined + key, usedforsecurity=False).hexdigest().upper()
    if method == "hmac":
        return hmac.new(key, joined, "md5").hexdigest().upper()
    if method == "hmac-sha256":
        return hmac.new(key, joined, "sha256").hexdigest().upper()
    raise ValueError(f"unknown sign_method {method!r}; TOP knows {', '.join(SIGN_METHODS)}")


@dataclass(frozen=True)
class Client:
    """Signed calls to one shop. Raises the typed errors of platforms.base."""

    gateway_url: str
    app_key: str
    app_secret: str
    session: str
    sign_method: str
    transport: Transport
    page_sizes: Mapping[str, int]
    options: Options

    def call(self, method: str, page: int | None = None, **parameters: str | int | bool) -> Record:
        """The content of `<method>_response`, retried while that makes sense."""
        return self.transport.retry(lambda: self._call_once(method, page, parameters))

    def call_once(self, method: str, **parameters: str | int | bool) -> Record:
        """As call(), for callers that decide themselves whether to ask again."""
        return self._call_once(method, None, parameters)

    def _call_once(self, method: str, page: int | None, parameters: Mapping[str, str | int | bool]) -> Record:
        form = {
            "method": method,
            "app_key": self.app_key,
            "session": self.session,
            "timestamp": to_text(dates.now()),
            "format": "json",
            "v": API_VERSION,
            "sign_method": self.sign_method,
        }
        form |= {
            name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in parameters.items()
        }
        if page is not None:
            form["current_page" if method.startswith("taobao.crm.") else "page_no"] = str(page)
        if self.options.simplify:
            form["simplify"] = "true"
        form = {name: value for name, value in form.items() if value}
        form["sign"] = sign(form, self.app_secret, self.sign_method)
        status, body = self.transport.fetch("POST", self.gateway_url, method=method, data=form)
        if status != 200:
            raise Refused(NAME, method, f"HTTP {status}; check the gateway address (host of the connection)")
        answer = parse_json(NAME, method, body, page)
        if isinstance(answer, dict) and isinstance(answer.get("error_response"), dict):
            raise to_error(method, answer["error_response"])
        envelope = method.removeprefix("taobao.").replace(".", "_") + "_response"
        if self.options.simplify and isinstance(answer, dict) and "request_id" in answer:
            return answer  # the compact form has no envelope
        if not isinstance(answer, dict) or not isinstance(answer.get(envelope), dict):
            where = f"page {page}" if page is not None else "the answer"
            raise BadPayload(NAME, method, f"{where} has no {envelope}")
        content: Record = answer[envelope]
        return content

    def page_size(self, method: str, largest: int) -> int:
        """How many rows to ask for on a page: the largest the method allows, unless tests make it small."""
        return min(self.page_sizes.get(method, self.page_sizes.get("*", largest)), largest)


def to_error(method: str, error: Record) -> PlatformError:
    """The typed error of TOP's error envelope."""
    code, sub_code = _code(error.get("code")), str(error.get("sub_code") or "")
    sub_message = str(error.get("sub_msg") or error.get("msg") or "")
    request_id = str(error.get("request_id") or "")
    said = f"TOP code {code}" + (f", {sub_code}" if sub_code else "")
    if code in CALL_LIMIT_CODES:
        ban = BAN_SECONDS.search(sub_message)
        wait = float(ban.group(1)) if ban else DEFAULT_BAN_SECONDS
        problem = f"call limit reached ({said}); the next call is allowed in {wait:.0f} s"
        return RateLimited(NAME, method, problem, request_id=request_id, code=code, retry_after=wait)
    if code in AUTH_ACTIONS:
        return AuthError(NAME, method, f"{AUTH_ACTIONS[code]} ({said})", request_id=request_id, code=code)
    if code == 10 or sub_code.startswith("isp."):
        return PlatformDown(
            NAME, method, f"the service is not available right now ({said})", request_id=request_id, code=code
        )
    if code in (30, 31):
        problem = f"the timestamp is refused ({said}); this machine's clock is off by more than 10 minutes"
        return Refused(NAME, method, problem, request_id=request_id, code=code)
    if sub_code.endswith(("not-exist", "not-found")):
        return NotFound(NAME, method, f"it does not exist ({said})", request_id=request_id, code=code)
    return Refused(NAME, method, f"the request is refused ({said})", request_id=request_id, code=code)


def _code(value: object) -> int:
    text = str(value)
    return int(text) if text.isdigit() else -1


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the shop that `credentials` authorise. Raises ConfigError when a part of the connection is missing."""
    extra = credentials.extra
    method = str(extra.get("sign_method") or "hmac-sha256")
    credentials.require(
        {
            "host": "the gateway's address",
            "login": "application key",
            "password": "application secret",
            "extra.session_token": "the shop's session",
        }
    )
    if method not in SIGN_METHODS:
        raise ConfigError(
            f"connection {credentials.conn_id!r}: extra.sign_method is {method!r}; known: {', '.join(SIGN_METHODS)}."
        )
    return Client(
        credentials.host,
        credentials.login,
        credentials.password,
        str(extra["session_token"]),
        method,
        transport,
        page_sizes or {},
        options,
    )


# ------------------------------------------------------------------------------------------------------------ lists
def rows_of(content: Record, plural: str, *singular: str) -> list[Record]:
    """The rows of `{"trades": {"trade": [...]}}`; an absent list is an empty one."""
    node = content.get(plural) or {}
    if isinstance(node, list):  # the form of simplify=true
        return node
    return next((node[name] for name in singular if isinstance(node.get(name), list)), [])


def walk(
    client: Client,
    method: str,
    largest_page: int,
    rows: Callable[[Record], list[Record]],
    name: Callable[[Record], str | None],
    start: Record | None = None,
    **parameters: str | int | bool,
) -> Iterator[list[Record]]:
    """All rows of one list, last page first, until as many different rows were seen as the platform counts at the end.

    Rows without a name count as seen, so that a broken record is reported once and does not hold up the others. `start`: page
    1 as it was answered a moment ago. Raises PlatformDown when the list does not hold still over MAX_WALKS walks.
    """
    size = client.page_size(method, largest_page)
    seen: set[str] = set()
    total = 0
    for _ in range(MAX_WALKS):
        first = start or client.call(method, 1, page_size=size, **_counted(method, True), **parameters)
        start = None
        total, nameless = _total(method, first), 0
        for page in range(-(-total // size), 0, -1):
            content = first
            if total > size:  # page 1 comes last and is counted again: did anything move in between?
                content = client.call(method, page, page_size=size, **_counted(method, page == 1), **parameters)
            found = rows(content)
            names = [name(row) for row in found]
            nameless += names.count(None)
            seen.update(n for n in names if n is not None)
            yield found
            if page == 1:
                total = _total(method, content)
        if len(seen) + nameless >= total:
            return
    raise PlatformDown(
        NAME, method, f"the list kept changing: {len(seen)} rows after {MAX_WALKS} walks, the platform counts {total}"
    )


def _counted(method: str, wanted: bool) -> dict[str, bool]:
    """Whether the answer shall count all rows; the member methods always do and do not know the parameter."""
    return {} if method.startswith("taobao.crm.") else {"use_has_next": not wanted}


def _total(method: str, content: Record) -> int:
    name = "total_result" if method.startswith("taobao.crm.") else "total_results"
    total = content.get(name)
    if isinstance(total, str) and total.isdecimal():
        total = int(total)
    if not isinstance(total, int):
        raise BadPayload(NAME, method, f"page 1 has no {name}")
    return total


def fitting(
    client: Client, method: str, largest_page: int, window: Window, ask: Callable[[Window], Record], most_pages: int
) -> Iterator[tuple[Window, Record]]:
    """The window, or pieces of it, each of at most `most_pages` pages, with its first page; `ask` has the rest of the request."""
    size = client.page_size(method, largest_page)
    first = client.call(method, 1, page_size=size, **_counted(method, True), **ask(window))
    if _total(method, first) <= most_pages * size or window.end - window.start < SHORTEST:
        yield window, first
        return
    middle = (window.start + (window.end - window.start) / 2).replace(microsecond=0)
    for half in (Window(window.start, middle), Window(middle, window.end)):
        yield from fitting(client, method, largest_page, half, ask, most_pages)


def _trade_rows(content: Record) -> list[Record]:
    return rows_of(content, "trades", "trade")


def _trade_request(method: str | None) -> Record:
    return {"fields": SIMPLE_TRADE_FIELDS if method and ".simple." in method else TRADE_FIELDS, "type": TRADE_TYPES}


def _created(client: Client, method: str, largest: int, window: Window) -> Iterator[list[Record]]:
    # the ends of a window are whole seconds and inclusive on the wire: ours is half-open, so the last second is left out
    return walk(
        client,
        method,
        largest,
        _trade_rows,
        TRADES.record_key,
        start_created=to_text(window.start),
        end_created=to_text(window.end - timedelta(seconds=1)),
        **_trade_request(method),
    )


def _modified_request(client: Client, window: Window) -> Record:
    return {
        "start_modified": to_text(window.start),
        "end_modified": to_text(window.end),
        **_trade_request(client.options.trade_methods.increment),
    }


def _modified(client: Client, window: Window, first: Record | None = None) -> Iterator[list[Record]]:
    """Trades changed in the window, each read in full: the list names them, trade.fullinfo.get is the record."""
    done: set[str] = set()
    method = client.options.trade_methods.increment
    for page in walk(client, method, 100, _trade_rows, TRADES.record_key, first, **_modified_request(client, window)):
        full: list[Record] = []
        for row in page:
            tid = TRADES.record_key(row)
            if tid is None:
                full.append(row)  # nothing to ask for; it is rejected with what it has
            elif tid not in done:
                done.add(tid)
                full.append(_full(client, tid, row))
        yield full


def _full(client: Client, tid: str, row: Record) -> Record:
    method = client.options.trade_methods.detail
    if method is None:
        return row
    try:
        content = client.call(method, fields=_trade_request(method)["fields"], tid=tid)
    except NotFound:
        return row  # listed a moment ago, not served in full: what the list said is all there is
    trade = content.get("trade")
    if not isinstance(trade, dict):
        raise BadPayload(NAME, method, f"the answer for trade {tid} has no trade")
    return trade


# ---------------------------------------------------------------------------------------------------------- streams
def trade_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """The first load by creation time, as far back as `plan.history`; from then on what was modified.

    The first load keeps two marks: "created", up to which orders are in raw, so that a run that died goes on from there;
    and "since", the moment it began, from which the increments read afterwards, so that no change made meanwhile is lost.
    """
    for part, window in plan.reread:
        yield Slice(part, window, lambda p=part, w=window: _reread(client, p, w))  # type: ignore[misc]
    fresh = dates.now() - timedelta(days=STALE_DAYS)
    if plan.cursors.get("", fresh) <= fresh:
        yield from _first_load(client, plan, {} if plan.cursors.get("since", fresh) <= fresh else plan.cursors)
        return
    start = plan.cursors[""] - plan.overlap
    method, most = client.options.trade_methods.increment, client.options.max_pages
    for window in dates.windows(start, plan.until, min(plan.window, timedelta(days=1))):
        for piece, first in fitting(client, method, 100, window, partial(_modified_request, client), most):
            yield Slice("modified", piece, partial(_modified, client, piece, first), {"": piece.end})


def _first_load(client: Client, plan: Plan, marks: Cursors) -> Iterator[Slice]:
    since = marks.get("since", plan.until)
    start = marks.get("created", plan.until - plan.history)
    now = dates.now().replace(microsecond=0)
    old = min(plan.until, now - timedelta(days=HISTORY_DAYS))
    methods = client.options.trade_methods
    if history := methods.history:
        for window in dates.windows(start, old, HISTORY_WINDOW):
            read = partial(_created, client, history, 50, window)
            yield Slice("history", window, read, {"created": window.end, "since": since})
    begun = marks.get("created", old) > old  # the second list goes on where it stopped, or begins before the border
    first = start if begun else max(plan.until - plan.history, now - timedelta(days=SOLD_DAYS))
    for window in dates.windows(first, plan.until, SOLD_WINDOW):
        done = {"": since, "created": None, "since": None}
        yield Slice(
            "created",
            window,
            partial(_created, client, methods.sold, 100, window),
            done if window.end == plan.until else {"created": max(window.end, old), "since": since},
        )


def _reread(client: Client, part: str, window: Window) -> Iterator[list[Record]]:
    """A window that held unusable records, once more, through every list that may still serve it."""
    if part == "modified":
        yield from _modified(client, window)
        return
    now, methods = dates.now(), client.options.trade_methods
    if methods.history and window.start < now - timedelta(days=HISTORY_DAYS):
        yield from _created(client, methods.history, 50, window)
    if window.end > now - timedelta(days=SOLD_DAYS):
        yield from _created(client, methods.sold, 100, window)


def trade_backfill(client: Client, plan: Plan, window: Window) -> Iterator[Slice]:
    """A past stretch again: what was created in it, and, as far back as TOP tells, what was changed in it."""
    for piece in dates.windows(window.start, window.end, SOLD_WINDOW):
        yield Slice("created", piece, lambda w=piece: _reread(client, "created", w))  # type: ignore[misc]
    start = max(window.start, dates.now() - timedelta(days=HISTORY_DAYS))
    for piece in dates.windows(start, window.end, min(plan.window, timedelta(days=1))):
        yield Slice("modified", piece, lambda w=piece: _modified(client, w))  # type: ignore[misc]


def _refund_pages(client: Client, window: Window) -> Iterator[list[Record]]:
    return walk(
        client,
        "taobao.refunds.receive.get",
        100,
        lambda content: rows_of(content, "refunds", "refund"),
        REFUNDS.record_key,
        fields=REFUND_FIELDS,
        type=TRADE_TYPES,
        start_modified=to_text(window.start),
        end_modified=to_text(window.end),
    )


def rate_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """Reviews that buyers gave, by creation time. A reply of ours does not change that time, so the overlap is long."""
    oldest = dates.now() - timedelta(days=RATE_DAYS) + timedelta(minutes=10)
    for part, window in plan.reread:
        if window.end > oldest:
            yield from _rates(client, Window(max(window.start, oldest), window.end), part, {}, settles=window)
    start = plan.cursors[""] - plan.overlap if "" in plan.cursors else plan.until - plan.history
    for window in dates.windows(max(start, oldest), plan.until, plan.window):
        yield from _rates(client, window, "created", {"": window.end})


def rate_backfill(client: Client, plan: Plan, window: Window) -> Iterator[Slice]:
    """Reviews given in a past stretch, as far back as TOP tells."""
    oldest = dates.now() - timedelta(days=RATE_DAYS) + timedelta(minutes=10)
    for piece in dates.windows(max(window.start, oldest), window.end, plan.window):
        yield from _rates(client, piece, "created", {})


def _rates(
    client: Client, window: Window, part: str, cursors: Mapping[str, datetime | None], settles: Window | None = None
) -> Iterator[Slice]:
    """The window, or its halves when it holds more reviews than the platform shows."""
    method = "taobao.traderates.get"
    arguments: Record = {
        "fields": RATE_FIELDS,
        "rate_type": "get",
        "role": "buyer",
        "start_date": to_text(window.start),
        "end_date": to_text(window.end - timedelta(seconds=1)),
    }
    size = client.page_size(method, 150)
    first = client.call(method, 1, page_size=size, use_has_next=False, **arguments)
    if int(first.get("total_results") or 0) >= RATE_WINDOW_ROWS:
        if window.end - window.start < timedelta(seconds=4):
            raise Refused(
                NAME,
                method,
                f"{RATE_WINDOW_ROWS} reviews or more within seconds of {to_text(window.start)}; TOP shows no more",
            )
        middle = (window.start + (window.end - window.start) / 2).replace(microsecond=0)
        yield from _rates(client, Window(window.start, middle), part, dict.fromkeys(cursors, middle))
        yield from _rates(client, Window(middle, window.end), part, cursors)
        return
    yield Slice(
        part,
        window,
        lambda: walk(
            client,
            method,
            150,
            lambda content: rows_of(content, "trade_rates", "trade_rate", "taobao_traderates_get_results"),
            RATES.record_key,
            **arguments,
        ),
        cursors,
        settles,
    )


def member_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """The first load by time of the last trade, then who never traded; from then on whose numbers changed.

    As with trades, "traded" is how far the first load has come and "since" the moment it began.
    """
    for part, window in plan.reread:
        if part == "modified":
            yield Slice(part, window, partial(_members, client, MEMBER_INCREMENT, _member_changes(window)))
        else:
            ask = _traded(window) if part == "traded" else UNTRADED[part]
            yield Slice(part, window, partial(_members, client, MEMBER_SEARCH, ask))
    if "" not in plan.cursors:
        yield from _first_members(client, plan)
        return
    start = plan.cursors[""] - plan.overlap
    for window in dates.windows(start, plan.until, plan.window):
        for piece, first in _member_windows(client, MEMBER_INCREMENT, window, _member_changes):
            read = partial(_members, client, MEMBER_INCREMENT, _member_changes(piece), first)
            yield Slice("modified", piece, read, {"": piece.end})


def _first_members(client: Client, plan: Plan) -> Iterator[Slice]:
    since = plan.cursors.get("since", plan.until)
    begin = plan.cursors.get("traded", TAOBAO_BEGAN)
    if begin < plan.until:
        for piece, first in _member_windows(client, MEMBER_SEARCH, Window(begin, plan.until), _traded):
            read = partial(_members, client, MEMBER_SEARCH, _traded(piece), first)
            yield Slice("traded", piece, read, {"traded": piece.end, "since": since})
    whole, done = Window(TAOBAO_BEGAN, plan.until), {"": since, "traded": None, "since": None}
    for part, ask in UNTRADED.items():
        read = partial(_members, client, MEMBER_SEARCH, ask)
        yield Slice(part, whole, read, done if part == list(UNTRADED)[-1] else {})


def member_backfill(client: Client, plan: Plan, window: Window) -> Iterator[Slice]:
    """The members whose last trade lies in a past stretch."""
    for piece, first in _member_windows(client, MEMBER_SEARCH, window, _traded):
        yield Slice("traded", piece, partial(_members, client, MEMBER_SEARCH, _traded(piece), first))


def _traded(window: Window) -> Record:
    """Half-open like every window of ours; TOP's ends are inclusive."""
    last = to_text(window.end - timedelta(seconds=1))
    return {"relation_source": 1, "min_last_trade_time": to_text(window.start), "max_last_trade_time": last}


def _member_changes(window: Window) -> Record:
    return {"start_modify": to_text(window.start), "end_modify": to_text(window.end)}


def _member_windows(
    client: Client, method: str, window: Window, ask: Callable[[Window], Record]
) -> Iterator[tuple[Window, Record]]:
    return fitting(client, method, 100, window, ask, min(client.options.max_pages, MEMBER_PAGES))


def _members(client: Client, method: str, ask: Record, first: Record | None = None) -> Iterator[list[Record]]:
    size = client.page_size(method, 100)
    first = first or client.call(method, 1, page_size=size, **ask)
    if _total(method, first) > MEMBER_PAGES * size:
        problem = (
            f"more than {MEMBER_PAGES * size} members whom no time of a trade tells apart; TOP shows no more of them"
        )
        raise Refused(NAME, method, problem)

    def found(content: Record) -> list[Record]:
        return rows_of(content, "members", "crm_member", "basic_member")

    return walk(client, method, 100, found, MEMBERS.record_key, first, **ask)


def item_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """Items on sale by modification time, the first time all of them; one that is taken off the shelf just stops to change."""
    for part, window in plan.reread:
        yield from _item_pieces(client, window, part, moves=False)
    start = plan.cursors[""] - plan.overlap if "" in plan.cursors else TAOBAO_BEGAN
    yield from _item_pieces(client, Window(start, plan.until), "modified", moves=True)


def item_backfill(client: Client, plan: Plan, window: Window) -> Iterator[Slice]:
    """Items on sale whose last change lies in a past stretch."""
    yield from _item_pieces(client, window, "modified", moves=False)


def _item_pieces(client: Client, window: Window, part: str, *, moves: bool) -> Iterator[Slice]:
    method = "taobao.items.onsale.get"
    most = max(min(client.options.max_pages, ITEM_DEPTH // client.page_size(method, 200)), 1)

    def ask(piece: Window) -> Record:
        last = to_text(piece.end - timedelta(seconds=1))
        return {"fields": ITEM_FIELDS, "start_modified": to_text(piece.start), "end_modified": last}

    def pages(piece: Window, first: Record) -> Iterator[list[Record]]:
        return walk(
            client,
            method,
            200,
            lambda content: rows_of(content, "items", "item"),
            ITEMS.record_key,
            first,
            **ask(piece),
        )

    for piece, first in fitting(client, method, 200, window, ask, most):
        yield Slice(part, piece, partial(pages, piece, first), {"": piece.end} if moves else {})


TRADES = Stream(
    name="trades",
    key=("tid",),
    occurred_at=lambda record: to_time(record.get("modified")),
    slices=trade_slices,
    backfill=trade_backfill,
    priority=1,
    required=("status", "created", "modified", "payment", "orders"),
    personal={
        "receiver_name": "name",
        "receiver_mobile": "phone",
        "receiver_phone": "phone",
        "receiver_address": "address",
        "buyer_nick": "nick",
    },
    free_text=("buyer_message", "seller_memo"),
    overlap=timedelta(hours=1),
    window=timedelta(days=1),
)
REFUNDS = Stream(
    name="refunds",
    key=("refund_id",),
    occurred_at=lambda record: to_time(record.get("modified")),
    slices=by_window(_refund_pages),  # TOP documents no limit of window or history for them
    backfill=backfill_by_window(_refund_pages),
    priority=1,
    required=("tid", "status", "refund_fee", "created", "modified"),
    personal={"buyer_nick": "nick"},
    free_text=("desc",),
    overlap=timedelta(hours=1),
    window=timedelta(days=30),
)
RATES = Stream(
    name="rates",
    key=("oid", "role", "created"),
    occurred_at=lambda record: to_time(record.get("created")),
    slices=rate_slices,
    backfill=rate_backfill,
    required=("tid", "result", "created"),
    personal={"nick": "nick"},
    free_text=("content", "reply"),
    overlap=timedelta(days=15),
    window=RATE_WINDOW,
)
MEMBERS = Stream(
    name="members",
    key=("ouid",),
    occurred_at=lambda record: to_time(record.get("last_trade_time")),
    slices=member_slices,
    personal={"buyer_nick": "nick"},
    overlap=timedelta(hours=1),
    window=timedelta(days=30),
    required=("ouid", "grade"),
    backfill=member_backfill,
)
ITEMS = Stream(
    name="items",
    key=("num_iid",),
    occurred_at=lambda record: to_time(record.get("modified")),
    slices=item_slices,
    personal={},
    overlap=timedelta(hours=1),
    window=timedelta(days=3650),
    priority=3,
    required=("num_iid", "title", "modified"),
    backfill=item_backfill,
)
STREAMS: Mapping[str, Stream] = {stream.name: stream for stream in (TRADES, REFUNDS, RATES, MEMBERS, ITEMS)}


def streams(options: Options) -> Mapping[str, Stream]:
    """The streams of a Taobao or Tmall shop."""
    return STREAMS


def check(client: Client, names: Sequence[str]) -> Check:
    """Which shop the session opens, whether each stream's list may be read, and how the clocks agree."""
    user = client.call("taobao.user.seller.get", fields="nick").get("user")
    nick = user.get("nick") if isinstance(user, dict) else None
    server = to_time(client.call("taobao.time.get").get("time"))
    offset = (dates.now() - server).total_seconds() if server else None
    day = {"start": to_text(dates.now() - timedelta(hours=1)), "end": to_text(dates.now())}
    cheap: dict[str, Callable[[], object]] = {
        "trades": lambda: client.call(
            client.options.trade_methods.increment,
            1,
            page_size=1,
            use_has_next=True,
            fields="tid",
            start_modified=day["start"],
            end_modified=day["end"],
        ),
        "refunds": lambda: client.call(
            "taobao.refunds.receive.get", 1, page_size=1, use_has_next=True, fields="refund_id"
        ),
        "rates": lambda: client.call(
            "taobao.traderates.get", 1, page_size=1, use_has_next=True, fields="tid", rate_type="get", role="buyer"
        ),
        "members": lambda: client.call(MEMBER_SEARCH, 1, page_size=1),
        "items": lambda: client.call("taobao.items.onsale.get", 1, page_size=1, use_has_next=True, fields="num_iid"),
    }
    problems = probe({name: cheap[name] for name in names if name in cheap})
    return Check(f"shop {nick or '(without a name)'}", offset, problems)
