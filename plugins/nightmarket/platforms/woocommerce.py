"""WooCommerce shops (REST API v3 of WordPress): our own mall.

Wire facts: docs/connections/woocommerce.md. Streams: orders (with their refunds), customers, reviews, products, coupons.

Lists are cut by page number and count themselves only in the header X-WP-Total. Windows end at or before the moment of
reading, so a row can only leave a window; pages are walked from the last to the first, and again while fewer rows were
seen than the shop counts (platforms.paging).
"""

import base64
import hmac
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms.base import (
    Answer,
    AuthError,
    BadPayload,
    Check,
    NotFound,
    Plan,
    PlatformError,
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
from nightmarket.platforms.paging import text_at, walk_back
from nightmarket.platforms.people import full_name
from nightmarket.settings import ConfigError, Credentials, StrictModel

NAME = "woocommerce"
API = "/wp-json/wc/v3"
INDEX = "/wp-json/"  # of WordPress: the shop's name, and which interfaces there are
PAGE_SIZE = 100
AUTH_MODES = ("auto", "basic", "query", "oauth1")
SIGNATURE_METHODS = {"HMAC-SHA256": "sha256", "HMAC-SHA1": "sha1"}
TRASH = "trash"  # `any` leaves it out, and an order that lands there would keep its old state for ever
REVIEW_MARGIN = timedelta(
    days=1
)  # whether after/before of reviews are shop time or GMT is not documented: ask for both


class Options(StrictModel):
    """The block `options:` of a source: what differs between shops of different age."""

    modified_filter: bool = (
        True  # false: the shop does not know modified_after; orders and products are read whole every time
    )
    trash: bool = True  # also ask for orders in the trash, in a list of their own


# ----------------------------------------------------------------------------------------------------------- client
def oauth_signature(
    verb: str, url: str, parameters: Mapping[str, str], secret: str, token_secret: str = "", method: str = "HMAC-SHA256"
) -> str:
    """The oauth_signature of RFC 5849 over verb, address without query and all parameters but itself."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}[parts.scheme]
    host = (parts.hostname or "") + (f":{parts.port}" if parts.port and parts.port != default else "")
    pairs = sorted((_escape(name), _escape(value)) for name, value in parameters.items() if name != "oauth_signature")
    joined = "&".join(f"{name}={value}" for name, value in pairs)
    text = "&".join(_escape(part) for part in (verb.upper(), f"{parts.scheme}://{host}{parts.path}", joined))
    key = f"{_escape(secret)}&{_escape(token_secret)}"
    return base64.b64encode(hmac.new(key.encode(), text.encode(), SIGNATURE_METHODS[method]).digest()).decode()


def _escape(text: str) -> str:
    return quote(text, safe="~")


@dataclass(frozen=True)
class Client:
    """Authorised reading of one shop. Raises the typed errors of platforms.base."""

    base_url: str
    key: str
    secret: str = field(repr=False)
    auth: str  # basic, query or oauth1
    transport: Transport
    page_sizes: Mapping[str, int]
    signature_method: str
    options: Options

    def get(self, path: str, **query: object) -> tuple[Any, Answer]:
        """The JSON of `path` and the answer it came in, retried while that makes sense."""
        return self.transport.retry(lambda: self._get_once(path, {name: str(value) for name, value in query.items()}))

    def _get_once(self, path: str, query: dict[str, str]) -> tuple[Any, Answer]:
        url = self.base_url + path
        headers = {}
        if self.auth == "basic":
            pair = base64.b64encode(f"{self.key}:{self.secret}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        elif self.auth == "query":
            query = query | {"consumer_key": self.key, "consumer_secret": self.secret}
        else:
            query = self._signed(url, query)
        text = "&".join(f"{_escape(name)}={_escape(value)}" for name, value in query.items())
        method = path.removeprefix(API)
        answer = self.transport.fetch_full("GET", f"{url}?{text}" if text else url, method=method, headers=headers)
        if answer.status != 200:
            raise to_error(method, answer)
        return parse_json(NAME, method, answer.body, query.get("page")), answer

    def _signed(self, url: str, query: dict[str, str]) -> dict[str, str]:
        signed = query | {
            "oauth_consumer_key": self.key,
            "oauth_nonce": secrets.token_hex(16),
            "oauth_signature_method": self.signature_method,
            "oauth_timestamp": str(int(dates.now().timestamp())),
        }
        signature = oauth_signature("GET", url, signed, self.secret, method=self.signature_method)
        return signed | {"oauth_signature": signature}

    def page(self, path: str, number: int, size: int, **query: object) -> tuple[int, list[Record]]:
        """How many rows the list has (the shop says so in a header only), and those of page `number`."""
        rows, answer = self.get(API + path, page=number, per_page=size, **query)
        if not isinstance(rows, list):
            raise BadPayload(NAME, path, f"page {number} is not a list")
        total = answer.headers.get("X-WP-Total", "")
        if not total.isdigit():
            raise BadPayload(
                NAME, path, f"page {number} came without the header X-WP-Total; does a proxy take headers away?"
            )
        return int(total), rows

    def rows(self, path: str, name: str, **query: object) -> Iterator[list[Record]]:
        """All rows of one list, as often as it takes until none can be missing."""
        size = min(self.page_sizes.get(name, self.page_sizes.get("*", PAGE_SIZE)), PAGE_SIZE)
        return walk_back(NAME, path, lambda number: self.page(path, number, size, **query), size, text_at("id"))


def to_error(method: str, answer: Answer) -> PlatformError:
    """The typed error of an HTTP status and WordPress's error object."""
    status = answer.status
    try:
        error = parse_json(NAME, method, answer.body)
    except BadPayload:
        error = {}  # a page of the web server, not of WordPress
    code = str(error.get("code") or "") if isinstance(error, dict) else ""
    said = f"HTTP {status}" + (f", {code}" if code else "")
    if status == 401:
        problem = (
            "the consumer key or its signature is refused; check key (login) and secret (password), that plain http is"
            " used only where the shop has no https, and this machine's clock"
        )
        return AuthError(NAME, method, f"{problem} ({said})")
    if status == 403:
        return AuthError(
            NAME, method, f"the key may not read this; give it the permission Read, of a shop manager ({said})"
        )
    if status == 404:
        return NotFound(NAME, method, f"it does not exist, or this shop has no {API}: is WooCommerce active? ({said})")
    if 300 <= status < 400:
        return Refused(
            NAME, method, f"the shop answers from another address; put that into host of the connection ({said})"
        )
    wrong = sorted(error["data"]["params"]) if _has_params(error) else []
    return Refused(NAME, method, "the request is refused" + (f": {', '.join(wrong)}" if wrong else "") + f" ({said})")


def _has_params(error: object) -> bool:
    return (
        isinstance(error, dict)
        and isinstance(error.get("data"), dict)
        and isinstance(error["data"].get("params"), dict)
    )


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the shop. Raises ConfigError when a part of the connection is missing or does not fit."""
    credentials.require(
        {
            "host": "the shop's address, https://...",
            "login": "consumer key",
            "password": "consumer secret",
        }
    )
    scheme = urlsplit(credentials.host).scheme
    if scheme not in ("http", "https"):
        raise ConfigError(f"connection {credentials.conn_id!r}: host must begin with https:// (or http://).")
    auth = str(credentials.extra.get("auth") or "auto")
    if auth not in AUTH_MODES:
        raise ConfigError(
            f"connection {credentials.conn_id!r}: extra.auth is {auth!r}; known: {', '.join(AUTH_MODES)}."
        )
    if auth == "auto":
        auth = "basic" if scheme == "https" else "oauth1"
    if auth != "oauth1" and scheme == "http":
        raise ConfigError(
            f"connection {credentials.conn_id!r}: extra.auth {auth!r} would send the secret in clear text over http; use https or oauth1."
        )
    method = str(credentials.extra.get("signature_method") or "HMAC-SHA256")
    if method not in SIGNATURE_METHODS:
        raise ConfigError(
            f"connection {credentials.conn_id!r}: extra.signature_method is {method!r}; known: {', '.join(SIGNATURE_METHODS)}."
        )
    return Client(
        credentials.host.rstrip("/"),
        credentials.login,
        credentials.password,
        auth,
        transport,
        page_sizes or {},
        method,
        options,
    )


# ------------------------------------------------------------------------------------------------------------ lists
def to_text(instant: datetime) -> str:
    """GMT without an offset, as `dates_are_gmt` wants it."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def to_time(text: object) -> datetime | None:
    """An instant from a *_gmt field; None when it is not one."""
    try:
        return datetime.fromisoformat(str(text)).replace(tzinfo=UTC)
    except ValueError:
        return None


def _changed(client: Client, path: str, name: str, window: Window | None, **query: str) -> Iterator[list[Record]]:
    """Rows changed in the window, oldest change first; the whole list without a window. Raises Refused when a shop does not filter."""
    if window is None:
        yield from client.rows(path, name, orderby="id", order="asc", **query)
        return
    # both ends are exclusive on the wire and whole seconds: ours is [start, end)
    query |= {
        "modified_after": to_text(window.start - timedelta(seconds=1)),
        "modified_before": to_text(window.end),
        "dates_are_gmt": "true",
        "orderby": "modified",
        "order": "asc",
    }
    for page in client.rows(path, name, **query):
        found = [to_time(row.get("date_modified_gmt")) for row in page if isinstance(row, dict)]
        if any(at is not None and at < window.start - timedelta(days=1) for at in found):
            problem = (
                "the shop does not look at modified_after (is it older than 2022?); set options.modified_filter: false"
            )
            raise Refused(NAME, path, problem)
        yield page


def order_pages(client: Client, window: Window | None) -> Iterator[list[Record]]:
    """Orders changed in the window, those in the trash too, each with `refund_details`: what /orders/{id}/refunds says."""
    for status in ("any", TRASH) if client.options.trash else ("any",):
        for page in _changed(client, "/orders", "orders", window, status=status):
            yield [_complete(client, row) for row in page]


def _complete(client: Client, order: Any) -> Record:
    """The order with its buyer's name in one piece, and its refunds in full where it has some."""
    if not isinstance(order, dict):
        return order  # rejected as it is
    record = order | {"full_name": _name(order.get("billing"))}
    name = text_at("id")(order)
    if not order.get("refunds") or name is None:
        return record
    details: dict[str, Record] = {}
    try:
        for page in client.rows(f"/orders/{quote(name, safe='')}/refunds", "refunds"):
            details |= {str(row.get("id")): row for row in page}
    except NotFound:
        return record  # deleted for good a moment ago
    return record | {"refund_details": list(details.values())}


def _name(address: Any) -> str:
    return full_name(address.get("first_name"), address.get("last_name")) if isinstance(address, dict) else ""


def product_pages(client: Client, window: Window | None) -> Iterator[list[Record]]:
    """Products changed in the window."""
    return _changed(client, "/products", "products", window, status="any")


def review_pages(client: Client, window: Window) -> Iterator[list[Record]]:
    """Reviews written in the window, and a day more on both sides (REVIEW_MARGIN). A change of a review is not listed."""
    return client.rows(
        "/products/reviews",
        "reviews",
        status="approved",
        after=to_text(window.start - REVIEW_MARGIN),
        before=to_text(window.end + REVIEW_MARGIN),
        orderby="date_gmt",
        order="asc",
    )


def _whole(pages: Callable[[Client], Iterator[list[Record]]]) -> Callable[[Client, Plan], Iterator[Slice]]:
    """Slices of a list without a filter by time: everything, every time."""

    def slices(client: Client, plan: Plan) -> Iterator[Slice]:
        start = plan.cursors.get("", plan.until - plan.history)
        window = Window(min(start, plan.until - timedelta(seconds=1)), plan.until)
        yield Slice("snapshot", window, lambda: pages(client), {"": plan.until})

    return slices


def _by_change(
    pages: Callable[[Client, Window | None], Iterator[list[Record]]],
) -> Callable[[Client, Plan], Iterator[Slice]]:
    """Slices by time of change, or everything where the shop has no filter by it."""
    windows, whole = by_window(pages), _whole(lambda client: pages(client, None))
    return lambda client, plan: (windows if client.options.modified_filter else whole)(client, plan)


def customer_pages(client: Client) -> Iterator[list[Record]]:
    """All accounts."""
    for page in client.rows("/customers", "customers", role="all", orderby="id", order="asc"):
        yield [row | {"full_name": _customer_name(row)} if isinstance(row, dict) else row for row in page]


def coupon_pages(client: Client) -> Iterator[list[Record]]:
    """All coupons."""
    return client.rows("/coupons", "coupons", orderby="id", order="asc")


def _customer_name(row: Record) -> str:
    return full_name(row.get("first_name"), row.get("last_name")) or _name(row.get("billing"))


# ---------------------------------------------------------------------------------------------------------- streams
def _address(prefix: str) -> dict[str, str]:
    kinds = {"first_name": "name", "last_name": "name", "email": "email", "phone": "phone"}
    kinds |= {"company": "name", "address_1": "address", "address_2": "address"}
    return {f"{prefix}.{name}": kind for name, kind in kinds.items()}


ORDERS = Stream(
    name="orders",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("date_modified_gmt")),
    slices=_by_change(order_pages),
    backfill=backfill_by_window(order_pages),
    personal={
        **_address("billing"),
        **_address("shipping"),
        "full_name": "name",
        "customer_ip_address": "address",
        "coupon_lines[].code": "coupon",
    },
    free_text=("customer_note", "refund_details[].reason", "refunds[].reason"),
    overlap=timedelta(hours=1),
    window=timedelta(days=30),
    priority=1,
    required=("id", "status", "total", "date_created_gmt", "date_modified_gmt", "line_items"),
)
CUSTOMERS = Stream(
    name="customers",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("date_modified_gmt") or record.get("date_created_gmt")),
    slices=_whole(customer_pages),
    personal={
        **_address("billing"),
        **_address("shipping"),
        "full_name": "name",
        "first_name": "name",
        "last_name": "name",
        "email": "email",
        "username": "nick",
        "avatar_url": "portrait",
    },
    priority=2,
    required=("id", "date_created_gmt"),
)
REVIEWS = Stream(
    name="reviews",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("date_created_gmt")),
    slices=by_window(review_pages, part="created"),
    backfill=backfill_by_window(review_pages, part="created"),
    personal={
        "reviewer": "name",
        "reviewer_email": "email",
        "reviewer_avatar_urls.24": "portrait",
        "reviewer_avatar_urls.48": "portrait",
        "reviewer_avatar_urls.96": "portrait",
    },
    free_text=("review",),
    overlap=timedelta(days=15),  # a review that was held back for approval shows up with its old date
    window=timedelta(days=90),
    priority=2,
    required=("id", "product_id", "rating", "date_created_gmt"),
)
PRODUCTS = Stream(
    name="products",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("date_modified_gmt")),
    slices=_by_change(product_pages),
    backfill=backfill_by_window(product_pages),
    personal={},
    window=timedelta(days=365),
    priority=3,
    required=("id", "name", "date_modified_gmt"),
)
COUPONS = Stream(
    name="coupons",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("date_modified_gmt")),
    slices=_whole(coupon_pages),
    personal={"email_restrictions[]": "email"},
    priority=3,
    required=("id", "code"),
)
STREAMS: Mapping[str, Stream] = {stream.name: stream for stream in (ORDERS, CUSTOMERS, REVIEWS, PRODUCTS, COUPONS)}
PATHS = {
    "orders": "/orders",
    "customers": "/customers",
    "reviews": "/products/reviews",
    "products": "/products",
    "coupons": "/coupons",
}


def streams(options: Options) -> Mapping[str, Stream]:
    """The streams of a WooCommerce shop."""
    return STREAMS


def check(client: Client, names: Sequence[str]) -> Check:
    """The shop's name, whether the key may read each stream, and how the clocks agree."""
    index, _ = client.get(INDEX)
    title = index.get("name") if isinstance(index, dict) else None
    problems = probe({name: lambda path=PATHS[name]: client.page(path, 1, 1) for name in names})  # type: ignore[misc]
    return Check(f"shop {title or '(without a name)'}", client.transport.clock_offset, problems)
