"""Shopify shops (REST Admin API): our own mall.

Wire facts: docs/connections/shopify.md. Streams: orders (with their refunds inside), customers, products.

Lists are walked by the cursor that the Link header carries; rows change while they are walked, but windows end at or before
the moment of reading, so a row can only leave one. What was seen is compared with the platform's own count of the window,
and the window is walked again while rows are missing (platforms.paging).
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from nightmarket.dates import Window
from nightmarket.platforms.base import (
    Answer,
    AuthError,
    BadPayload,
    Check,
    NotFound,
    PlatformError,
    Record,
    Refused,
    Stream,
    Transport,
    backfill_by_window,
    by_window,
    parse_json,
    probe,
)
from nightmarket.platforms.paging import settled, text_at
from nightmarket.platforms.people import full_name
from nightmarket.settings import ConfigError, Credentials, StrictModel

NAME = "shopify"
API_VERSION = "2024-10"  # extra.api_version of the connection overrides it
PAGE_SIZE = 250
NEXT_LINK = re.compile(r'<([^>]+)>\s*;[^,]*\brel="?next"?')
FULL_HISTORY_SCOPE = "read_all_orders"
DAYS_WITHOUT_IT = 60
SCOPES = {"orders": "read_orders", "customers": "read_customers", "products": "read_products"}
# The bucket of calls: whatever the plan, it empties itself in 20 s (40 deep and 2 calls a second, 80 and 4, 400 and 20)
BUCKET_SECONDS = 20
BUCKET_RESERVE = (
    0.1  # of the bucket is left free for others: for the shop's other applications the bucket is their own,
)
# but several workers of ours share this one and see it only after their call


class Options(StrictModel):
    """The block `options:` of a source."""

    count: bool = True  # compare every window with the shop's own count; false: trust the cursor


# ----------------------------------------------------------------------------------------------------------- client
@dataclass
class Bucket:
    """The leaky bucket of calls as the last answer described it. Not shared between threads."""

    used: float = 0
    size: float = 40
    seen_at: float = 0.0  # machine seconds

    def saw(self, header: str, at: float) -> None:
        """Take over `32/40` from an answer."""
        used, _, size = header.partition("/")
        if used.strip().isdigit() and size.strip().isdigit() and int(size) > 0:
            self.used, self.size, self.seen_at = int(used), int(size), at

    def wait(self, now: float) -> float:
        """Seconds until the next call leaves the reserve free."""
        leak = self.size / BUCKET_SECONDS
        used = max(self.used - leak * (now - self.seen_at), 0)
        return max((used + 1 - self.size * (1 - BUCKET_RESERVE)) / leak, 0)


@dataclass(frozen=True)
class Client:
    """Authorised reading of one shop. Raises the typed errors of platforms.base."""

    base_url: str
    token: str = field(repr=False)
    api_version: str
    transport: Transport
    page_sizes: Mapping[str, int]
    options: Options
    bucket: Bucket = field(default_factory=Bucket)

    def get(
        self, path: str, query: Mapping[str, object] | None = None, *, page: int | None = None
    ) -> tuple[Any, Answer]:
        """The JSON of `path` (below the versioned API, or from the root when it begins with /admin) and its answer."""
        return self.transport.retry(lambda: self._get_once(path, query or {}, page))

    def _get_once(self, path: str, query: Mapping[str, object], page: int | None) -> tuple[Any, Answer]:
        wait = self.bucket.wait(time.monotonic())
        if wait > 0:
            self.transport.sleep(wait)
        root = path if path.startswith("/admin/") else f"/admin/api/{self.api_version}{path}"
        url = self.base_url + root + (f"?{urlencode(query)}" if query else "")
        headers = {"X-Shopify-Access-Token": self.token, "Accept": "application/json"}
        answer = self.transport.fetch_full("GET", url, method=path, headers=headers)
        self.bucket.saw(answer.headers.get("X-Shopify-Shop-Api-Call-Limit", ""), time.monotonic())
        if answer.status != 200:
            raise to_error(path, answer)
        return parse_json(NAME, path, answer.body, page), answer

    def pages(self, path: str, envelope: str, query: Mapping[str, object]) -> Iterator[list[Record]]:
        """One walk through a list. Follow-up pages carry page_info and limit only: Shopify refuses anything else there."""
        size = min(self.page_sizes.get(envelope, self.page_sizes.get("*", PAGE_SIZE)), PAGE_SIZE)
        asked: dict[str, object] = {**query, "limit": size}
        cursors: set[str] = set()
        while True:
            content, answer = self.get(path, asked, page=len(cursors) + 1)
            rows = content.get(envelope) if isinstance(content, dict) else None
            if not isinstance(rows, list):
                raise BadPayload(NAME, path, f"page {len(cursors) + 1} has no list of {envelope}")
            yield rows
            cursor = next_cursor(answer.headers.get("Link", ""))
            if cursor is None:
                return
            if cursor in cursors:
                raise BadPayload(NAME, path, f"page {len(cursors) + 1} leads back to an earlier page")
            cursors.add(cursor)
            asked = {"page_info": cursor, "limit": size}

    def count(self, path: str, query: Mapping[str, object]) -> int:
        """How many rows a list has, as the shop counts them."""
        content, _ = self.get(path, query)
        count = content.get("count") if isinstance(content, dict) else None
        if not isinstance(count, int):
            raise BadPayload(NAME, path, "the answer has no count")
        return count


def next_cursor(link: str) -> str | None:
    """The page_info of the next page in a Link header. Only the cursor is taken: where to ask stays ours to say."""
    found = NEXT_LINK.search(link)
    return dict(parse_qsl(urlsplit(found[1]).query)).get("page_info") if found else None


def to_error(method: str, answer: Answer) -> PlatformError:
    """The typed error of an HTTP status; the words of `errors` are added where they name a scope or a parameter."""
    status = answer.status
    if status == 401:
        problem = (
            "the access token is refused; install the app in the shop again and put its Admin API token into password"
        )
        return AuthError(NAME, method, f"{problem} (HTTP 401)")
    if status == 403:
        scope = re.search(r"\b(read|write)_[a-z_]+", answer.body[:2000].decode("utf-8", "replace"))
        missing = scope[0] if scope else "the scope of this list"
        return AuthError(NAME, method, f"the app lacks {missing}; grant it and install the app again (HTTP 403)")
    if status == 402:
        return AuthError(NAME, method, "the shop is frozen until its owner pays Shopify (HTTP 402)")
    if status == 423:
        return AuthError(NAME, method, "the shop is locked; its owner has to ask Shopify (HTTP 423)")
    if status == 404:
        return NotFound(NAME, method, "HTTP 404: check the shop's address (host) and api_version of the connection")
    if 300 <= status < 400:
        return Refused(
            NAME, method, f"HTTP {status}: the shop has another address; use the one ending in .myshopify.com"
        )
    return Refused(NAME, method, f"HTTP {status}: the request is refused")


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the shop. Raises ConfigError when a part of the connection is missing."""
    credentials.require(
        {
            "host": "https://<shop>.myshopify.com",
            "password": "Admin API access token",
        }
    )
    if urlsplit(credentials.host).scheme not in ("http", "https"):
        raise ConfigError(f"connection {credentials.conn_id!r}: host must begin with https://.")
    version = str(credentials.extra.get("api_version") or API_VERSION)
    if not re.fullmatch(r"\d{4}-\d{2}|unstable", version):
        raise ConfigError(
            f"connection {credentials.conn_id!r}: extra.api_version is {version!r}; it looks like 2024-10."
        )
    return Client(credentials.host.rstrip("/"), credentials.password, version, transport, page_sizes or {}, options)


# ------------------------------------------------------------------------------------------------------------ lists
def to_text(instant: datetime) -> str:
    """ISO 8601 with an offset, as the filters want it."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")


def to_time(text: object) -> datetime | None:
    """An instant from an ISO text with offset; None when it is not one."""
    try:
        instant = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return instant if instant.tzinfo else None


def _changed(client: Client, path: str, envelope: str, window: Window, **more: str) -> Iterator[list[Record]]:
    # whole seconds, both ends inclusive on the wire: ours is [start, end)
    asked = {
        "updated_at_min": to_text(window.start),
        "updated_at_max": to_text(window.end - timedelta(seconds=1)),
        **more,
    }
    return settled(
        NAME,
        f"/{path}.json",
        lambda: client.pages(f"/{path}.json", envelope, {**asked, "order": "updated_at asc"}),
        text_at("id"),
        total=lambda: client.count(f"/{path}/count.json", asked) if client.options.count else None,
    )


def order_pages(client: Client, window: Window) -> Iterator[list[Record]]:
    """Orders changed in the window, in whatever status (the default would be open ones only), refunds inside."""
    for page in _changed(client, "orders", "orders", window, status="any"):
        yield [_named(row, "shipping_address", "billing_address", "customer") for row in page]


def customer_pages(client: Client, window: Window) -> Iterator[list[Record]]:
    """Customers changed in the window."""
    for page in _changed(client, "customers", "customers", window):
        yield [_named(row, "", "default_address") for row in page]


def product_pages(client: Client, window: Window) -> Iterator[list[Record]]:
    """Products changed in the window, with their variants."""
    return _changed(client, "products", "products", window)


def _named(row: Any, *places: str) -> Record:
    """The record with `full_name`: the person's name in one piece, from the first place that has one."""
    if not isinstance(row, dict):
        return row  # rejected as it is
    for place in places:
        holder = row.get(place) if place else row
        if isinstance(holder, dict) and (name := full_name(holder.get("first_name"), holder.get("last_name"))):
            return row | {"full_name": name}
    return row | {"full_name": ""}


# ---------------------------------------------------------------------------------------------------------- streams
def _address(prefix: str) -> dict[str, str]:
    kinds = dict.fromkeys(("name", "first_name", "last_name", "company"), "name") | {"phone": "phone"}
    kinds |= dict.fromkeys(("address1", "address2", "latitude", "longitude"), "address")
    return {f"{prefix}.{name}": kind for name, kind in kinds.items()}


def _person(prefix: str) -> dict[str, str]:
    kinds = {"email": "email", "phone": "phone", "first_name": "name", "last_name": "name"}
    return {prefix + name: kind for name, kind in kinds.items()} | _address(f"{prefix}default_address")


ORDERS = Stream(
    name="orders",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("updated_at")),
    slices=by_window(order_pages),
    backfill=backfill_by_window(order_pages),
    personal={
        "full_name": "name",
        "email": "email",
        "contact_email": "email",
        "phone": "phone",
        "browser_ip": "address",
        "client_details.browser_ip": "address",
        "discount_codes[].code": "coupon",
        **_person("customer."),
        **_address("billing_address"),
        **_address("shipping_address"),
        **{f"fulfillments[].{name}": kind for name, kind in _address("destination").items()},
    },
    free_text=("note", "note_attributes[].value", "refunds[].note"),
    overlap=timedelta(hours=1),
    window=timedelta(days=30),
    priority=1,
    required=("id", "created_at", "updated_at", "financial_status", "total_price", "line_items"),
)
CUSTOMERS = Stream(
    name="customers",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("updated_at")),
    slices=by_window(customer_pages),
    backfill=backfill_by_window(customer_pages),
    personal={
        "full_name": "name",
        **_person(""),
        **{path.replace("addresses.", "addresses[]."): kind for path, kind in _address("addresses").items()},
    },
    free_text=("note",),
    overlap=timedelta(hours=1),
    window=timedelta(days=90),
    priority=2,
    required=("id", "created_at", "updated_at"),
)
PRODUCTS = Stream(
    name="products",
    key=("id",),
    occurred_at=lambda record: to_time(record.get("updated_at")),
    slices=by_window(product_pages),
    backfill=backfill_by_window(product_pages),
    personal={},
    overlap=timedelta(hours=1),
    window=timedelta(days=365),
    priority=3,
    required=("id", "title", "updated_at"),
)
STREAMS: Mapping[str, Stream] = {stream.name: stream for stream in (ORDERS, CUSTOMERS, PRODUCTS)}


def streams(options: Options) -> Mapping[str, Stream]:
    """The streams of a Shopify shop."""
    return STREAMS


def check(client: Client, names: Sequence[str]) -> Check:
    """The shop's name, which scopes the app lacks for these streams, and how the clocks agree."""
    content, _ = client.get("/shop.json")
    shop = content.get("shop") if isinstance(content, dict) else None
    title = shop.get("name") if isinstance(shop, dict) else None
    granted, _ = client.get("/admin/oauth/access_scopes.json")
    rows = granted.get("access_scopes") if isinstance(granted, dict) else None
    scopes = {row.get("handle") for row in rows if isinstance(row, dict)} if isinstance(rows, list) else set()
    problems = probe({name: lambda path=f"/{name}/count.json": client.get(path) for name in names})  # type: ignore[misc]
    for name in names:
        if name not in problems and SCOPES[name] not in scopes and SCOPES[name].replace("read", "write") not in scopes:
            problems[name] = f"the app lacks {SCOPES[name]}; grant it and install the app again"
    if "orders" in names and "orders" not in problems and FULL_HISTORY_SCOPE not in scopes:
        problems["orders"] = (
            f"only orders of the last {DAYS_WITHOUT_IT} days are shown; the app lacks {FULL_HISTORY_SCOPE}, which Shopify grants on request"
        )
    return Check(f"shop {title or '(without a name)'}", client.transport.clock_offset, problems)
