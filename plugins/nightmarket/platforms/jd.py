"""A JD shop (京东 POP) through JOS, the JD Open Service gateway.

Wire facts: docs/connections/jd.md. Five streams: orders, refunds (requests to call an order off before it arrives), aftersales
(what is sent back after that), comments, items.

JD counts what a window holds, so its lists are walked from the last page to the first (platforms.paging): a row that
changes leaves the window, and the rows behind it move up.
Refunds and after-sales can only be asked for by the time they were applied for or decided: both lists are read, each far
enough back for what changes without moving in either.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal

import orjson
from pydantic import Field

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms.base import (
    TOKEN_AHEAD,
    AuthError,
    BadPayload,
    Check,
    Cursors,
    Plan,
    PlatformDown,
    PlatformError,
    RateLimited,
    Record,
    Refused,
    Slice,
    Stream,
    Token,
    Transport,
    backfill_by_window,
    parse_json,
    probe,
)
from nightmarket.platforms.china import TIME_FORMAT, ZONE, to_text
from nightmarket.platforms.paging import Key, settled, text_at, walk_back, with_details
from nightmarket.settings import ConfigError, Credentials, StrictModel

NAME = "jd"
API_VERSION = "2.0"
OAUTH_URL = "https://open-oauth.jd.com/oauth2"
NEVER = datetime(9999, 1, 1, tzinfo=UTC)  # the end of a token whose end nobody told us
REFRESH_SPAN = timedelta(hours=24)  # JD renews a token only in the last day before its end
REFRESH_AGAIN = timedelta(minutes=15)  # a renewal that failed while the old token is still good

REFRESH_CALL = "oauth2/refresh_token"
ORDERS_METHOD = "jingdong.pop.order.search"
DETAIL_METHOD = "jingdong.pop.order.get"
SHOP_METHOD = "jingdong.vender.shop.query"
REFUNDS_METHOD = "jingdong.pop.afs.soa.refundapply.queryPageList"
AFTERSALES_METHOD = "jingdong.asc.serviceAndRefund.view"
COMMENTS_METHOD = "jingdong.pop.PopCommentJsfService.getVenderCommentsForJos"
SKUS_METHOD: Final = "jingdong.sku.read.searchSkuList"
WARES_METHOD = "jingdong.ware.read.searchWare4Valid"
MAX_PAGES = {ORDERS_METHOD: 50, REFUNDS_METHOD: 100}  # JD: keep page numbers low; pageIndex <= 100. No other is known

# Orders: by creation about two years back, in windows of at most a month; by modification three months.
CREATED_DEPTH = timedelta(days=729)
CREATED_WINDOW = timedelta(days=28)  # the shortest month
MODIFIED_DEPTH = timedelta(days=88)
STALE = timedelta(days=60)  # a mark older than this starts a first load again, while there is still time
APPLIED_WINDOW = timedelta(days=6)  # after-sales: JD takes 7 days of applications and 10 of approvals
APPROVED_WINDOW = timedelta(days=9)

ORDER_STATES = (
    "WAIT_SELLER_STOCK_OUT",
    "WAIT_GOODS_RECEIVE_CONFIRM",
    "WAIT_SELLER_DELIVERY",
    "PAUSE",
    "FINISHED_L",
    "TRADE_CANCELED",
    "LOCKED",
    "POP_ORDER_PAUSE",
)
# Invoices are left out: names and tax numbers of people that nothing here needs.
ORDER_FIELDS = (
    "orderId,venderId,orderState,orderStateRemark,orderType,payType,orderTotalPrice,orderSellerPrice,orderPayment,actualPay,"
    "shouldPay,payDiscount,freightPrice,sellerDiscount,totalSellerDiscount,totalOriginalPrice,totalSellerReceivable,"
    "orderStartTime,paymentConfirmTime,outBoundDate,orderEndTime,modified,pin,open_id_buyer,xid_buyer,orderRemark,venderRemark,"
    "orderSource,returnOrder,waybill,logisticsId,consigneeInfo,itemInfoList,couponDetailList"
)
SKU_FIELDS = "skuId,wareId,skuName,wareTitle,outerId,jdPrice,status,stockNum,created,modified"
WARE_FIELDS = "wareId,title,outerId,jdPrice,wareStatus,stockNum,created,modified"

REAUTHORISE = "let the shop's owner authorise the application again and put access_token, refresh_token and expires_at into the connection"
TOKEN_CODES = {19}  # the token is not, or not any more, good
AUTH_ACTIONS = {
    11: "the request carries no signature",
    12: "the signature is refused; check the application secret (password of the connection)",
    18: f"the access token is missing; {REAUTHORISE}",
    19: f"the access token is not valid any more; {REAUTHORISE}",
    20: "the application key (login of the connection) is missing",
    21: "the application key (login of the connection) is not known to JD",
    24: "the application may not call this method; apply for its permission package in the JOS console",
}
CALL_LIMIT_SECONDS = 2.0  # JD does not say how long a call limit lasts
SAFE_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9_ .:,/()-]{0,79}")


Parameters = Mapping[str, str | int]
ItemsMethod = Literal["jingdong.sku.read.searchSkuList", "jingdong.ware.read.searchWare4Valid"]


class Options(StrictModel):
    """`options:` of a JD source. The defaults that JD's published pages do not confirm are marked in docs/connections/jd.md."""

    order_states: tuple[str, ...] = Field(default=ORDER_STATES, min_length=1)
    order_fields: str = Field(default=ORDER_FIELDS, min_length=1)
    order_detail: bool = False  # read every listed order again through pop.order.get: one call per order
    order_source: str = "JOS"  # sent as source_id; empty: not sent
    clear_consignee: bool = False  # the application gets clear names and phones; else what stands there ties nobody
    aftersale_amount_unit: Literal["yuan", "fen"] = "yuan"
    comment_scale: Literal[3, 5] = 5  # the best score of a comment
    items_method: ItemsMethod = SKUS_METHOD


# ----------------------------------------------------------------------------------------------------------- client
def sign(parameters: Mapping[str, str], secret: str) -> str:
    """JOS's signature: name+value in ASCII order of the names between two secrets, MD5, upper case."""
    joined = "".join(f"{name}{value}" for name, value in sorted(parameters.items()) if name != "sign")
    return hashlib.md5(f"{secret}{joined}{secret}".encode(), usedforsecurity=False).hexdigest().upper()


def to_time(value: object) -> datetime | None:
    """An instant from JD's China-time text, or from epoch milliseconds; None for neither and for the year 1, JD's "never"."""
    text = str(value)
    if re.fullmatch(r"\d{12,13}", text):
        return datetime.fromtimestamp(int(text) / 1000, UTC)
    try:
        instant = datetime.strptime(text[:19], TIME_FORMAT).replace(tzinfo=ZONE)
    except ValueError:
        return None
    return instant if instant.year > 1 else None


@dataclass(frozen=True)
class Client:
    """Signed calls to one shop. Raises the typed errors of platforms.base."""

    gateway_url: str
    oauth_url: str
    app_key: str
    app_secret: str = field(repr=False)
    granted: Token  # what the connection holds: the first token, renewed from then on
    transport: Transport
    options: Options
    page_sizes: Mapping[str, int]
    notes: list[str] = field(default_factory=list)  # what a person should know although the calls still work

    def call(self, method: str, parameters: Parameters, page: int | None = None) -> Record:
        """The content of `<method>_responce`, retried while that makes sense; a refused token is renewed once.

        `page` is for error sentences only: every method has its own name for it among its parameters.
        """
        token = self._token()
        for is_last in (False, True):
            try:
                return self.transport.retry(lambda t=token: self._call_once(method, parameters, page, t))  # type: ignore[misc]
            except AuthError as error:
                if is_last or error.code not in TOKEN_CODES:
                    raise
                token = self._token(bad=token)
        raise AssertionError("the second round returns or raises")

    def _call_once(self, method: str, parameters: Parameters, page: int | None, token: str) -> Record:
        business = {name: value for name, value in parameters.items() if value != ""}
        form = {
            "method": method,
            "app_key": self.app_key,
            "access_token": token,
            "timestamp": to_text(dates.now()),
            "v": API_VERSION,
            "360buy_param_json": orjson.dumps(business, option=orjson.OPT_SORT_KEYS).decode(),
        }
        form["sign"] = sign(form, self.app_secret)
        status, body = self.transport.fetch("POST", self.gateway_url, method=method, data=form)
        if status != 200:
            raise Refused(NAME, method, f"HTTP {status}; check the gateway address (host of the connection)")
        return read_answer(method, body, page)

    # -- the token
    def _token(self, bad: str = "") -> str:
        # A token that a person puts into the connection is another one than the one kept for the old connection.
        granted = hashlib.sha256(self.granted.value.encode()).hexdigest()[:16]
        return self.transport.tokens.get(f"jd/{self.app_key}/{granted}", partial(self._obtain, bad), bad=bad).value

    def _obtain(self, bad: str, last: Token | None) -> Token:
        """The connection's token, or the renewal of the last one when that ends within a day or was refused.

        A renewal that fails while the old token is still good fails no run: it is tried again later, and `check` tells.
        """
        token = last or self.granted
        now = dates.now()
        ends_at = token_end(token)
        if ends_at <= now:
            problem = f"the access token ended at {to_text(ends_at)} and JD renews no ended one; {REAUTHORISE}"
            raise AuthError(NAME, REFRESH_CALL, problem)
        if last is None and token.value != bad and token.expires_at > now + TOKEN_AHEAD:
            return token
        try:
            return self.transport.retry(lambda: self._refresh(token))
        except (PlatformDown, RateLimited, BadPayload, AuthError) as error:
            if bad:
                raise
            self.notes.append(f"the access token ends at {to_text(ends_at)} and could not be renewed: {error.problem}")
            return replace(token, expires_at=now + TOKEN_AHEAD + REFRESH_AGAIN)

    def _refresh(self, token: Token) -> Token:
        method = REFRESH_CALL
        refresh_token = token.extra.get("refresh_token")
        if not refresh_token:
            raise AuthError(
                NAME, method, f"the access token needs renewal and the connection has no refresh_token; {REAUTHORISE}"
            )
        query = {
            "app_key": self.app_key,
            "app_secret": self.app_secret,
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
        }
        now = dates.now()
        _, body = self.transport.fetch("GET", f"{self.oauth_url}/refresh_token", method=method, params=query)
        answer = parse_json(NAME, method, body)
        if not isinstance(answer, dict):
            raise BadPayload(NAME, method, "the answer is not a JSON object")
        if not answer.get("access_token"):
            said = _said(answer.get("code"), answer.get("msg"))
            raise AuthError(NAME, method, f"JD does not renew the access token ({said}); {REAUTHORISE}")
        seconds = str(answer.get("expires_in"))
        if not seconds.isdigit():
            raise BadPayload(NAME, method, "the answer has no expires_in")
        return make_token(
            str(answer["access_token"]),
            str(answer.get("refresh_token") or refresh_token),
            now + timedelta(seconds=int(seconds)),
        )

    def page_size(self, method: str, largest: int) -> int:
        """How many rows to ask for on a page: the largest the method allows, unless tests make it small."""
        return min(self.page_sizes.get(method, self.page_sizes.get("*", largest)), largest)


def make_token(value: str, refresh_token: str, ends_at: datetime) -> Token:
    """A token that is due for renewal as soon as JD renews it: a day before its end."""
    due = ends_at - REFRESH_SPAN + 2 * TOKEN_AHEAD if ends_at < NEVER else NEVER
    return Token(value, due, {"refresh_token": refresh_token, "ends_at": ends_at.isoformat()})


def token_end(token: Token) -> datetime:
    """When the token really ends."""
    return datetime.fromisoformat(token.extra["ends_at"])


def read_answer(method: str, body: bytes, page: int | None = None) -> Record:
    """What stands under the root of an answer, or the typed error of its error envelope."""
    answer = parse_json(NAME, method, body, page)
    where = f"page {page}" if page is not None else "the answer"
    if not isinstance(answer, dict):
        raise BadPayload(NAME, method, f"{where} is not a JSON object")
    if isinstance(answer.get("error_response"), dict):
        raise to_error(method, answer["error_response"])
    name = method.replace(".", "_")
    content = answer.get(f"{name}_responce", answer.get(f"{name}_response"))  # sic; JD spells it so since 2011
    if isinstance(content, dict):
        if str(content.get("code", "0")) != "0":
            raise to_error(method, content)
        return content
    if "errorMessage" in answer:  # the newer gateway in front of the old one
        raise to_error(method, answer)
    raise BadPayload(NAME, method, f"{where} has no {name}_responce")


def to_error(method: str, error: Record) -> PlatformError:
    """The typed error of JD's error envelope. Its Chinese words are left out: they may repeat parts of the request."""
    text = str(error.get("code"))
    code = int(text) if text.isdigit() else -1
    said = _said(error.get("code"), error.get("en_desc"))
    details: dict[str, Any] = {"code": code, "request_id": str(error.get("requestId") or "")}
    if code == 2:
        problem = f"call limit reached ({said}); a day's quota opens again at midnight, China time"
        return RateLimited(NAME, method, problem, retry_after=CALL_LIMIT_SECONDS, **details)
    if code in AUTH_ACTIONS:
        return AuthError(NAME, method, f"{AUTH_ACTIONS[code]} ({said})", **details)
    if code in (7, 8):
        problem = f"the timestamp is refused ({said}); this machine's clock is off by more than 6 minutes"
        return Refused(NAME, method, problem, **details)
    if 500 <= code <= 599:  # only the newer gateway has such codes
        return PlatformDown(NAME, method, f"the service is not available right now ({said})", **details)
    return Refused(NAME, method, f"the request is refused ({said})", **details)


def judge(method: str, result: Record) -> None:
    """Raise Refused when a result says that it is none; JD writes `success` as a boolean or as text."""
    success = result.get("success", True)
    if str(success).lower() not in ("true", "1"):
        code = next((result[name] for name in ("numberCode", "code", "errorCode") if result.get(name)), None)
        raise Refused(NAME, method, f"the request is refused ({_said(code, result.get('englishErrCode'))})")


def _said(code: object, words: object) -> str:
    """JD's code and its English words; words that may hold more than a fixed sentence are left out."""
    text = str(words or "")
    is_fixed = bool(SAFE_WORDS.fullmatch(text)) and not re.search(r"\d{5}", text)
    return f"JD code {code if code is not None else 'missing'}" + (f", {text}" if is_fixed else "")


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the shop that `credentials` authorise. Raises ConfigError when a part of the connection is missing."""
    extra = credentials.extra
    credentials.require(
        {
            "host": "the gateway's address",
            "login": "application key",
            "password": "application secret",
            "extra.access_token": "the shop's authorisation",
        }
    )
    return Client(
        gateway_url=credentials.host,
        oauth_url=str(extra.get("oauth_url") or OAUTH_URL).rstrip("/"),
        app_key=credentials.login,
        app_secret=credentials.password,
        granted=make_token(
            str(extra["access_token"]), str(extra.get("refresh_token") or ""), _expires_at(credentials.conn_id, extra)
        ),
        transport=transport,
        options=options,
        page_sizes=page_sizes or {},
    )


def _expires_at(conn_id: str, extra: Mapping[str, Any]) -> datetime:
    text = extra.get("expires_at")
    if not text:
        return NEVER
    try:
        instant = datetime.fromisoformat(str(text))
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise ConfigError(
            f"connection {conn_id!r}: extra.expires_at is not an instant like 2027-03-15T02:30:00+08:00 (when the token ends)."
        )
    return instant


# ------------------------------------------------------------------------------------------------------------ lists
Page = tuple[
    int | None, list[Record]
]  # (rows of the whole list, None when the answer does not count them; rows of this page)


def make_page(method: str, number: int, rows: object, total: object, *, is_counted: bool = True) -> Page:
    """A page as the wire has it: an empty list may be absent, a count is a number or digits.

    `is_counted`: JD documents a count for this list, so an answer without one is not an empty list but a changed format.
    """
    if rows is None and total is not None:
        rows = []
    if not isinstance(rows, list):
        raise BadPayload(NAME, method, f"page {number} has no list of rows")
    if total is None and not is_counted:
        return None, rows
    if not str(total).isdigit():
        raise BadPayload(NAME, method, f"page {number} does not say how many rows there are")
    return int(str(total)), rows


def rows_of(
    method: str, window: Window, read: Callable[[Window, int], Page], size: int, key: Key
) -> Iterator[list[Record]]:
    """All rows of a window; of its halves, when it holds more pages than JD lets one turn."""
    first = read(window, 1)
    total = first[0]
    if total is None:
        yield from settled(NAME, method, partial(_forward, partial(read, window), [first], size), key, shifts=True)
    elif total <= size * MAX_PAGES.get(method, total):

        def counted(number: int) -> tuple[int, list[Record]]:
            count, rows = read(window, number)
            return count or 0, rows

        yield from walk_back(NAME, method, counted, size, key, first=(total, first[1]))
    elif window.end - window.start < timedelta(seconds=4):
        raise Refused(NAME, method, f"{total} rows within seconds of {to_text(window.start)}; JD shows no more")
    else:
        middle = (window.start + (window.end - window.start) / 2).replace(microsecond=0)
        for half in (Window(window.start, middle), Window(middle, window.end)):
            yield from rows_of(method, half, read, size, key)


def _forward(read: Callable[[int], Page], known: list[Page], size: int) -> Iterator[list[Record]]:
    """The pages of a list without a count, to the first short one. `known`: page 1, when it was read just now; used once."""
    number, rows = 1, (known.pop() if known else read(1))[1]
    while True:
        yield rows
        if len(rows) < size:
            return
        number += 1
        rows = read(number)[1]


# ----------------------------------------------------------------------------------------------------------- orders
ORDER_ID = text_at("orderId")


def _orders(by: Literal["created", "modified"], client: Client, window: Window) -> Iterator[list[Record]]:
    """Orders created or changed in the window; with `order_detail` each as pop.order.get shows it."""
    options, method = client.options, ORDERS_METHOD
    size = client.page_size(method, 100)

    def read(window: Window, number: int) -> Page:
        # The ends of a window are whole seconds and inclusive on the wire. Ours is half-open: of creations the second in which
        # it ends is the next window's; of modifications it is read twice rather than not.
        end = window.end - timedelta(microseconds=1) if by == "created" else window.end
        parameters: Parameters = {
            "start_date": to_text(window.start),
            "end_date": to_text(end),
            "order_state": ",".join(options.order_states),
            "optional_fields": options.order_fields,
            "sortType": 1,  # descending
            "dateType": 1 if by == "created" else 0,
            "page": str(number),
            "page_size": str(size),
            "source_id": options.order_source,
        }
        content = client.call(method, parameters, number)
        result = _object(method, content, "searchorderinfo_result")
        judge(method, result.get("apiResult") or {})
        return make_page(method, number, result.get("orderInfoList"), result.get("orderTotal"))

    pages = rows_of(method, window, read, size, ORDER_ID)
    yield from with_details(pages, ORDER_ID, partial(_detail, client)) if options.order_detail else pages


def _detail(client: Client, order_id: str, row: Record) -> Record:
    options = client.options
    parameters = {"order_id": order_id, "optional_fields": options.order_fields, "source_id": options.order_source}
    content = client.call(DETAIL_METHOD, parameters)
    result = _object(DETAIL_METHOD, content, "orderDetailInfo")
    order = result.get("orderInfo")
    if isinstance(order, dict):
        return order
    judged = result.get("apiResult")
    code = judged.get("numberCode") if isinstance(judged, dict) else None
    return {**row, "detailCode": code}  # listed, but not shown: what the list said is all there is


def _object(method: str, content: Record, name: str) -> Record:
    found = content.get(name)
    if not isinstance(found, dict):
        raise BadPayload(NAME, method, f"the answer has no {name}")
    return found


def order_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """The first load by creation time, as far back as `plan.history` and JD allow; from then on what was modified.

    The first load keeps two marks: "created", up to which orders are in raw, so that a run that died goes on from there;
    and "since", the moment it began, from which the increments read afterwards, so that no change made meanwhile is lost.
    """
    for part, window in plan.reread:
        by: Literal["created", "modified"] = "modified" if part == "modified" else "created"
        yield Slice(part, window, partial(_orders, by, client, window))
    fresh = dates.now() - STALE
    if plan.cursors.get("", fresh) <= fresh:
        yield from _first_load(client, plan, {} if plan.cursors.get("since", fresh) <= fresh else plan.cursors)
        return
    start = max(plan.cursors[""] - plan.overlap, dates.now() - MODIFIED_DEPTH)
    for window in dates.windows(start, plan.until, min(plan.window, CREATED_WINDOW)):
        yield Slice("modified", window, partial(_orders, "modified", client, window), {"": window.end})


def _first_load(client: Client, plan: Plan, marks: Cursors) -> Iterator[Slice]:
    since = marks.get("since", plan.until)
    oldest = max(plan.until - plan.history, (dates.now() - CREATED_DEPTH).replace(microsecond=0))
    for window in dates.windows(marks.get("created", oldest), plan.until, CREATED_WINDOW):
        is_last = window.end == plan.until
        cursors = {"": since, "created": None, "since": None} if is_last else {"created": window.end, "since": since}
        yield Slice("created", window, partial(_orders, "created", client, window), cursors)


# ---------------------------------------------------------------------------------------------- refunds, after-sales
Pages = Callable[[str, Client, Window], Iterator[list[Record]]]


def decided_slices(
    pages: Pages, second: str, largest: Mapping[str, timedelta]
) -> Callable[[Client, Plan], Iterator[Slice]]:
    """Slices of requests that can be asked for by the time of application ("applied") and by that of a decision (`second`)."""

    def slices(client: Client, plan: Plan) -> Iterator[Slice]:
        for part, window in plan.reread:
            yield Slice(part, window, partial(pages, part, client, window))
        # A first load needs only the applications: they come with what was decided since.
        decided = plan.cursors.get(second, plan.until) - plan.overlap
        for window in dates.windows(decided, plan.until, min(plan.window, largest[second])):
            yield Slice(second, window, partial(pages, second, client, window), {second: window.end})
        start = plan.cursors[""] - plan.overlap if "" in plan.cursors else plan.until - plan.history
        for window in dates.windows(start, plan.until, min(plan.window, largest["applied"])):
            yield Slice("applied", window, partial(pages, "applied", client, window), {"": window.end})

    return slices


def _refunds(part: str, client: Client, window: Window) -> Iterator[list[Record]]:
    """Requests to call an order, or a part of it, off before it arrives; by the time of application or of the check."""
    method, prefix = REFUNDS_METHOD, "checkTime" if part == "checked" else "applyTime"
    size = client.page_size(method, 50)

    def read(window: Window, number: int) -> Page:
        times = {f"{prefix}Start": to_text(window.start), f"{prefix}End": to_text(window.end)}
        content = client.call(method, {"pageIndex": number, "pageSize": size, "showSku": True, **times}, number)
        result = _object(method, content, "queryResult")
        judge(method, result)
        return make_page(method, number, result.get("result"), result.get("totalCount"))

    return rows_of(method, window, read, size, REFUNDS.record_key)


def _aftersales(part: str, client: Client, window: Window) -> Iterator[list[Record]]:
    """After-sale services with their refunds, by the time of application or of approval.

    The record is the row, with the number of its service bill lifted to the top (it names the record) and the unit its
    amount is in, which JD's page does not say (option aftersale_amount_unit).
    """
    method, prefix = AFTERSALES_METHOD, "approveTime" if part == "approved" else "applyTime"
    size = client.page_size(method, 50)

    def read(window: Window, number: int) -> Page:
        times = {f"{prefix}Begin": to_text(window.start), f"{prefix}End": to_text(window.end)}
        content = client.call(method, {"pageNumber": number, "pageSize": size, **times}, number)
        result = _object(method, content, "pageResult")
        judge(method, result)
        total, rows = make_page(method, number, result.get("data"), result.get("totalCount"))
        return total, [_named(row, client.options) for row in rows]

    return rows_of(method, window, read, size, AFTERSALES.record_key)


def _named(row: Any, options: Options) -> Record:
    bill = row.get("sameOrderServiceBill") if isinstance(row, dict) else None
    if not isinstance(bill, dict):
        return row  # type: ignore[no-any-return]  # rejected with what it has
    return {**row, "serviceId": bill.get("serviceId"), "amountUnit": options.aftersale_amount_unit}


# --------------------------------------------------------------------------------------------------- comments, items
def _comments(client: Client, window: Window) -> Iterator[list[Record]]:
    """Comments by creation. The record is the row and the scale its score is on, which JD's page does not say."""
    method = COMMENTS_METHOD
    size = client.page_size(method, 50)

    def read(window: Window, number: int) -> Page:
        times = {"beginTime": to_text(window.start), "endTime": to_text(window.end)}
        parameters: Parameters = {**times, "score": 0, "page": number, "pageSize": size}  # 0: all of them
        content = client.call(method, parameters, number)
        rows, total = content.get("comments"), content.get("totalItem")
        if rows is None and total is None and content.get("resultCode"):  # refused; no page says which code is success
            raise Refused(NAME, method, f"the request is refused ({_said(content['resultCode'], None)})")
        total, rows = make_page(method, number, rows, total, is_counted=False)
        scale = client.options.comment_scale
        return total, [{**row, "scoreScale": scale} if isinstance(row, dict) else row for row in rows]

    return rows_of(method, window, read, size, COMMENTS.record_key)


def comment_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """Comments by creation time. A reply of ours does not change that time, so the overlap is long."""
    for part, window in plan.reread:
        yield Slice(part, window, partial(_comments, client, window))
    start = plan.cursors[""] - plan.overlap if "" in plan.cursors else plan.until - plan.history
    for window in dates.windows(start, plan.until, plan.window):
        yield Slice("created", window, partial(_comments, client, window), {"": window.end})


def _items(part: str, client: Client, window: Window) -> Iterator[list[Record]]:
    """What the shop sells: all of it, or what was changed in the window."""
    method = client.options.items_method
    size = client.page_size(method, 50)
    is_skus = method == SKUS_METHOD

    def read(window: Window, number: int) -> Page:
        parameters: dict[str, str | int] = {"pageNo": number, "page_size" if is_skus else "pageSize": size}
        parameters["field"] = SKU_FIELDS if is_skus else WARE_FIELDS
        if is_skus:
            parameters["skuStatuValue"] = "1,2,4"  # sold, not sold any more, deleted
        if part == "modified":
            parameters |= {"startModifiedTime": to_text(window.start), "endModifiedTime": to_text(window.end)}
        page = _object(method, client.call(method, parameters, number), "page")
        return make_page(method, number, page.get("data"), page.get("totalItem"))

    return rows_of(method, window, read, size, items_stream(client.options).record_key)


def item_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """Everything once, whatever its age; from then on what was modified."""
    for part, window in plan.reread:
        yield Slice(part, window, partial(_items, part, client, window))
    if "" not in plan.cursors:
        whole = Window(plan.until - plan.history, plan.until)
        yield Slice("all", whole, partial(_items, "all", client, whole), {"": plan.until})
        return
    for window in dates.windows(plan.cursors[""] - plan.overlap, plan.until, plan.window):
        yield Slice("modified", window, partial(_items, "modified", client, window), {"": window.end})


# ---------------------------------------------------------------------------------------------------------- streams
def orders_stream(options: Options) -> Stream:
    """Orders. Consignees are masked or encrypted for most applications: then nothing of them is a name or a phone."""
    name, phone, address = ("name", "phone", "address") if options.clear_consignee else ("nick", "nick", "nick")
    return Stream(
        name="orders",
        key=("orderId",),
        occurred_at=lambda record: to_time(record.get("modified")),
        slices=order_slices,
        personal={
            "pin": "nick",
            "consigneeInfo.fullname": name,
            "consigneeInfo.mobile": phone,
            "consigneeInfo.telephone": phone,
            "consigneeInfo.fullAddress": address,
        },
        free_text=("orderRemark", "venderRemark", "orderStateRemark"),
        overlap=timedelta(hours=6),  # `actualPay` comes late
        window=timedelta(days=1),
        priority=1,
        required=("orderId", "orderState", "orderStartTime", "modified", "paymentConfirmTime", "itemInfoList"),
        backfill=backfill_by_window(partial(_orders, "created"), part="created", largest=CREATED_WINDOW),
    )


REFUNDS = Stream(
    name="refunds",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("modified") or record.get("checkTime") or record.get("applyTime")),
    slices=decided_slices(_refunds, "checked", {"applied": timedelta(days=28), "checked": timedelta(days=28)}),
    personal={"buyerId": "nick", "buyerName": "nick", "checkUserName": "nick"},
    free_text=("reason", "checkRemark"),
    overlap=timedelta(days=15),  # a status moves on after the check without moving in either list
    window=timedelta(days=28),
    priority=1,
    required=("id", "orderId", "status", "applyRefundSum"),
    backfill=backfill_by_window(partial(_refunds, "applied"), part="applied", largest=timedelta(days=28)),
)
AFTERSALES = Stream(
    name="aftersales",
    key=("serviceId",),
    occurred_at=lambda record: to_time(
        record.get("completeTime") or record["sameOrderServiceBill"].get("afsApplyTime")
    ),
    slices=decided_slices(_aftersales, "approved", {"applied": APPLIED_WINDOW, "approved": APPROVED_WINDOW}),
    personal={
        "sameOrderServiceBill.customerPin": "nick",
        "sameOrderServiceBill.customerName": "nick",
        "sameOrderServiceBill.customerTel": "nick",
        "sameOrderServiceBill.approveName": "nick",
        "sameOrderServiceBill.pickwareAddress": "nick",
    },
    free_text=(
        "sameOrderServiceBill.questionDesc",
        "sameOrderServiceBill.applyReason",
        "sameOrderServiceBill.approveNotes",
    ),
    overlap=timedelta(days=30),  # the money moves days after the approval, and that moves the row in neither list
    window=APPROVED_WINDOW,
    priority=1,
    required=("sameOrderServiceBill.serviceId", "sameOrderServiceBill.orderId"),
    backfill=backfill_by_window(partial(_aftersales, "applied"), part="applied", largest=APPLIED_WINDOW),
)
COMMENTS = Stream(
    name="comments",
    key=("commentId",),
    occurred_at=lambda record: to_time(record.get("creationTime")),
    slices=comment_slices,
    personal={
        "pin": "nick",
        "nickName": "nick",
        "replies[].nickName": "nick",
        "replies[].parentReply.nickName": "nick",
    },
    free_text=("content", "replies[].content", "replies[].parentReply.content"),
    overlap=timedelta(days=15),
    window=timedelta(days=28),
    priority=2,
    required=("commentId", "score", "creationTime"),
    backfill=backfill_by_window(_comments, part="created"),
)


def items_stream(options: Options) -> Stream:
    """Items: SKUs, as orders and comments name them; or wares, when the application may only read those."""
    return Stream(
        name="items",
        key=("skuId",) if options.items_method == SKUS_METHOD else ("wareId",),
        occurred_at=lambda record: to_time(record.get("modified")),
        slices=item_slices,
        personal={},
        overlap=timedelta(hours=1),
        window=timedelta(days=28),
        priority=3,
        backfill=backfill_by_window(partial(_items, "modified")),
    )


def streams(options: Options) -> Mapping[str, Stream]:
    found = (orders_stream(options), REFUNDS, AFTERSALES, COMMENTS, items_stream(options))
    return {stream.name: stream for stream in found}


def check(client: Client, names: Sequence[str]) -> Check:
    """Which shop the token opens, and one small call per stream."""
    shop = client.call(SHOP_METHOD, {}).get("shop_jos_result")
    name = shop.get("shop_name") if isinstance(shop, dict) else None
    offset = client.transport.clock_offset
    now = dates.now().replace(microsecond=0)
    window = Window(now - timedelta(minutes=1), now)
    calls: dict[str, Callable[[], object]] = {
        "orders": lambda: next(_orders("modified", client, window), None),
        "refunds": lambda: next(_refunds("applied", client, window), None),
        "aftersales": lambda: next(_aftersales("applied", client, window), None),
        "comments": lambda: next(_comments(client, window), None),
        "items": lambda: next(_items("modified", client, window), None),
    }
    problems = probe({stream: call for stream, call in calls.items() if stream in names})
    if client.notes:
        problems["token"] = client.notes[-1]
    return Check(account=f"shop {name or '(without a name)'}", clock_offset=offset, problems=problems)
