"""A WeChat store (微信小店, channels-ec): orders, after-sale orders, products, members, coupons.

Wire facts: docs/connections/wechat_store.md. Lists give ids only; each thing is then read in full by a call of its own, several
at a time. Lists of orders and after-sale orders are cut by a `next_key`, say no total, and do not stand still: what changes
leaves the window and may pull another row over a page border. So every list of more than one page is walked again until a
walk brings nothing new, and the next run reads the end of the window once more (overlap).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil

from pydantic import Field

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms import wechat_api
from nightmarket.platforms.base import (
    BadPayload,
    Check,
    NotFound,
    Plan,
    Record,
    Refused,
    Slice,
    Stream,
    Transport,
    backfill_by_window,
    by_window,
    probe,
    snapshot,
)
from nightmarket.platforms.paging import Counted, settled
from nightmarket.settings import Credentials, StrictModel

NAME = "wechat_store"
ROOT = "/channels/ec/"
SHOP = ROOT + "basics/info/get"
ORDERS, ORDER = ROOT + "order/list/get", ROOT + "order/get"
AFTERSALES, AFTERSALE = ROOT + "aftersale/getaftersalelist", ROOT + "aftersale/getaftersaleorder"
PRODUCTS, MEMBERS, COUPONS = ROOT + "product/list/get", ROOT + "vip/user/list/get", ROOT + "coupon/get_list"

ORDER_WINDOW, AFTERSALE_SPAN = timedelta(days=7), timedelta(hours=24)  # the platform's longest
ORDER_PAGE, PRODUCT_PAGE, COUPON_PAGE = 100, 30, 200
COUPON_STATUSES = (1, 2, 3, 4)  # editing, live, expired, void; a list holds one status only
WORDS = {"modified": "update", "created": "create"}  # part of a stream -> the platform's word in its parameters
TOO_MANY = 31042  # more orders than one window may hold
SMALLEST_WINDOW = timedelta(seconds=2)
MAX_PAGES = 10_000  # a next_key that goes round in a circle must end


class Options(StrictModel):
    """How fast details are read, and what no page confirms about products, members and coupons."""

    detail_workers: int = Field(default=4, ge=1, le=16)  # calls at a time; all of them within the account's rate limit
    product_path: str = ROOT + "product/get"
    coupon_path: str = ROOT + "coupon/get"
    member_list: str = "list"  # the field of the answer that holds the members
    member_page_size: int = Field(default=50, ge=1)
    member_first_page: int = Field(default=1, ge=0, le=1)
    member_phones: bool = True  # need_phone_number


@dataclass(frozen=True)
class Client:
    """Calls to one store. Raises the typed errors of platforms.base."""

    api: wechat_api.Client
    transport: Transport
    options: Options
    page_sizes: Mapping[str, int]

    def call(self, path: str, body: Record, page: object = None) -> Record:
        """The answer of a POST interface."""
        return self.api.call("POST", path, body=body, page=page)

    def page_size(self, path: str, largest: int) -> int:
        """How many rows to ask for on a page: the largest the interface allows, unless tests make it small."""
        return min(self.page_sizes.get(path, self.page_sizes.get("*", largest)), largest)

    def one(self, path: str, field: str, key: str, value: str) -> Record:
        """One thing in full: the object `field` of the answer. Raises Refused when the platform does not show it."""
        content = self.call(path, {key: value}).get(field)
        if not isinstance(content, dict):
            raise BadPayload(NAME, path, f"the answer for {key} {value} has no {field}")
        return content

    def details(self, ids: Sequence[str], fetch: Callable[[str], Record], key: str) -> list[Record]:
        """Every id in full, in the given order, a few calls at a time.

        One that the platform refuses to show becomes {key: id, "errcode": code}: it ends in the rejects with its id and does not
        hold up the others. When all of several are refused, it is the request that is wrong: the first refusal is raised.
        """
        with ThreadPoolExecutor(min(self.options.detail_workers, len(ids) or 1)) as pool:
            futures = [pool.submit(_or_refusal, fetch, one) for one in ids]
            try:
                found = [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
        refusals = [answer for answer in found if isinstance(answer, Refused | NotFound)]
        if refusals and len(refusals) == len(ids):
            raise refusals[0]
        return [
            {key: one, "errcode": answer.code} if isinstance(answer, Refused | NotFound) else answer
            for one, answer in zip(ids, found, strict=True)
        ]


def _or_refusal(fetch: Callable[[str], Record], value: str) -> Record | Refused | NotFound:
    try:
        return fetch(value)
    except (Refused, NotFound) as refusal:
        return refusal


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the store. Raises ConfigError when a part of the connection is missing."""
    return Client(wechat_api.account(NAME, credentials, transport), transport, options, page_sizes or {})


# ------------------------------------------------------------------------------------------------------------ lists
def _ids(answer: Record, path: str, field: str, page: int) -> list[object]:
    found = answer.get(field)
    if found is None:  # an empty list may be missing
        return []
    if not isinstance(found, list):
        raise BadPayload(NAME, path, f"page {page}: {field} is not a list")
    return found


def _by_next_key(
    client: Client, path: str, field: str, key: str, body: Record, total: list[int] | None = None
) -> Iterator[list[Record]]:
    """The pages of one walk, as {key: id}. The other parameters stay the same: a next_key belongs to them (606006).

    With `total` the list says how many things it has instead of whether there is more, and the number is put there.
    """
    following, used = "", {""}
    for page in range(1, MAX_PAGES + 1):
        answer = client.call(path, body | ({"next_key": following} if following else {}), page)
        found = _ids(answer, path, field, page)
        if total is not None:
            total[:] = [_total(answer, path)]
        yield [{key: one} for one in found]
        following = str(answer.get("next_key") or "")
        if not (answer.get("has_more") if total is None else found and following):
            return
        if following in used:
            raise BadPayload(NAME, path, f"page {page} promises more, but its next_key leads nowhere")
        used.add(following)
    raise Refused(NAME, path, f"the list has more than {MAX_PAGES} pages")


def _in_full(
    client: Client, pages: Iterator[list[Record]], key: str, fetch: Callable[[str], Record]
) -> Iterator[list[Record]]:
    """The listed things in full, each once; what has no id is handed on as it is, to be rejected."""
    done: set[str] = set()
    for rows in pages:
        names = [_text(row.get(key)) for row in rows]
        fresh = [name for name in dict.fromkeys(names) if name is not None and name not in done]
        done.update(fresh)
        yield client.details(fresh, fetch, key) + [row for row, name in zip(rows, names, strict=True) if name is None]


def _text(value: object) -> str | None:
    """An id as text, whether it came as text or as a number."""
    return str(value) if value not in (None, "") else None


def _at(record: Record, field: str) -> datetime | None:
    value = record.get(field)
    digits = str(value) if isinstance(value, int | str) else ""
    return datetime.fromtimestamp(int(digits), UTC) if digits.isdecimal() and len(digits) <= 10 else None


def _seconds(window: Window, longest: timedelta) -> tuple[int, int]:
    """Start and end in whole seconds, never further apart than `longest`.

    Nobody says whether the platform counts the ends in, so neighbouring windows share a second.
    """
    start = int(window.start.timestamp())
    return start, min(ceil(window.end.timestamp()), start + int(longest.total_seconds()))


# ---------------------------------------------------------------------------------------------------------- streams
def orders(client: Client, window: Window, part: str = "modified") -> Iterator[list[Record]]:
    """Orders modified or created in the window (at most 7 days), each in full; halved when the platform says it holds too many."""
    start, end = _seconds(window, ORDER_WINDOW)
    body = {
        f"{WORDS[part]}_time_range": {"start_time": start, "end_time": end},
        "page_size": client.page_size(ORDERS, ORDER_PAGE),
    }
    pages = settled(
        NAME,
        ORDERS,
        lambda: _by_next_key(client, ORDERS, "order_id_list", "order_id", body),
        lambda row: _text(row["order_id"]),
        shifts=True,
    )
    try:
        yield from _in_full(client, pages, "order_id", lambda one: client.one(ORDER, "order", "order_id", one))
    except Refused as error:
        if error.code != TOO_MANY or window.end - window.start < SMALLEST_WINDOW:
            raise
        for half in window.split():
            yield from orders(client, half, part)


def aftersales(client: Client, window: Window, part: str = "modified") -> Iterator[list[Record]]:
    """After-sale orders modified or created in the window, each in full, in pieces of the 24 hours that the platform allows."""
    for piece in dates.windows(window.start, window.end, AFTERSALE_SPAN):
        yield from _aftersales_of_a_day(client, piece, part)


def _aftersales_of_a_day(client: Client, window: Window, part: str) -> Iterator[list[Record]]:
    start, end = _seconds(window, AFTERSALE_SPAN)
    key = "after_sale_order_id"
    body = {f"begin_{WORDS[part]}_time": start, f"end_{WORDS[part]}_time": end}
    pages = settled(
        NAME,
        AFTERSALES,
        lambda: _by_next_key(client, AFTERSALES, key + "_list", key, body),
        lambda row: _text(row[key]),
        shifts=True,
    )
    return _in_full(client, pages, key, lambda one: client.one(AFTERSALE, "after_sale_order", key, one))


def products(client: Client) -> Iterator[list[Record]]:
    """Every product of the store in full; the list has no has_more, but it says how many there are."""
    body, total = {"page_size": client.page_size(PRODUCTS, PRODUCT_PAGE)}, [0]
    pages = settled(
        NAME,
        PRODUCTS,
        lambda: _by_next_key(client, PRODUCTS, "product_ids", "product_id", body, total),
        lambda row: _text(row["product_id"]),
        total=lambda: total[0],
    )
    path = client.options.product_path
    return _in_full(client, pages, "product_id", lambda one: client.one(path, "product", "product_id", one))


def members(client: Client) -> Iterator[list[Record]]:
    """Every member of the store, page by page from the last one, until as many were seen as the platform counts."""
    options = client.options
    size = min(client.page_size(MEMBERS, options.member_page_size), options.member_page_size)

    def page(number: int) -> tuple[int, list[Record]]:
        body = {
            "page_num": number - 1 + options.member_first_page,
            "page_size": size,
            "need_phone_number": options.member_phones,
        }
        answer = client.call(MEMBERS, body, number)
        rows = answer.get(options.member_list, [])
        if not isinstance(rows, list):
            raise BadPayload(
                NAME,
                MEMBERS,
                f"page {number}: {options.member_list} is not a list (options.member_list in sources.yaml)",
            )
        return _total(answer, MEMBERS), rows

    counted = Counted(page, size)
    return settled(NAME, MEMBERS, counted.walk, STREAMS["members"].record_key, total=lambda: counted.count)


def coupons(client: Client) -> Iterator[list[Record]]:
    """Every coupon of the store in full, status by status."""
    path = client.options.coupon_path
    for status in COUPON_STATUSES:
        yield from _in_full(
            client, _coupon_ids(client, status), "coupon_id", lambda one: client.one(path, "coupon", "coupon_id", one)
        )


def _coupon_ids(client: Client, status: int) -> Iterator[list[Record]]:
    size = client.page_size(COUPONS, COUPON_PAGE)
    total = [0]

    def walk() -> Iterator[list[Record]]:
        context = ""
        for page in range(1, MAX_PAGES + 1):
            body = {"status": status, "page": page, "page_size": size, "page_ctx": context}
            answer = client.call(COUPONS, body, page)
            total[0] = _total(answer, COUPONS)
            yield _ids(answer, COUPONS, "coupons", page)  # type: ignore[misc]
            context = str(answer.get("page_ctx") or "")
            if page * size >= total[0]:
                return

    return settled(NAME, COUPONS, walk, lambda row: _text(row.get("coupon_id")), total=lambda: total[0])


def _by_part(pages: Callable[..., Iterator[list[Record]]]) -> Callable[[Client, Plan], Iterator[Slice]]:
    """The slices of a stream of changes, at most 7 days each; one to be read once more is read through the list it came from."""

    def slices(client: Client, plan: Plan) -> Iterator[Slice]:
        for part, window in plan.reread:
            yield Slice(part, window, partial(pages, client, window, part))
        yield from by_window(partial(pages, part="modified"), largest=ORDER_WINDOW)(client, replace(plan, reread=()))

    return slices


def _total(answer: Record, path: str) -> int:
    total = answer.get("total_num")
    if not isinstance(total, int):
        raise BadPayload(NAME, path, "the answer has no total_num")
    return total


ADDRESS = "order_detail.delivery_info.address_info."
STREAMS: Mapping[str, Stream] = {
    stream.name: stream
    for stream in (
        Stream(
            name="orders",
            key=("order_id",),
            occurred_at=lambda record: _at(record, "update_time"),
            slices=_by_part(orders),
            backfill=backfill_by_window(partial(orders, part="created"), part="created", largest=ORDER_WINDOW),
            personal={
                ADDRESS + "user_name": "name",
                ADDRESS + "tel_number": "phone",
                ADDRESS + "virtual_order_tel_number": "phone",
                ADDRESS + "detail_info": "address",
                ADDRESS + "house_number": "address",
            },
            free_text=("order_detail.ext_info.customer_notes", "order_detail.ext_info.merchant_notes"),
            overlap=timedelta(hours=1),
            window=ORDER_WINDOW,
            priority=1,
            required=("order_id", "openid", "status", "create_time", "update_time", "order_detail.product_infos", "order_detail.price_info"),
        ),
        Stream(
            name="aftersales",
            key=("after_sale_order_id",),
            occurred_at=lambda record: _at(record, "update_time"),
            slices=_by_part(aftersales),
            backfill=backfill_by_window(partial(aftersales, part="created"), part="created"),
            personal={},
            free_text=("reason_text", "details.desc"),
            overlap=timedelta(hours=1),
            window=timedelta(days=7),
            priority=1,
            required=("after_sale_order_id", "order_id", "status", "type", "create_time", "update_time", "refund_info.amount"),
        ),
        Stream(
            name="products",
            key=("product_id",),
            occurred_at=lambda record: _at(record, "edit_time"),
            slices=snapshot(products),
            personal={},
            overlap=timedelta(0),
            priority=3,
            required=("product_id", "title", "status"),
        ),
        Stream(
            name="members",
            key=("openid",),
            occurred_at=lambda record: None,
            slices=snapshot(members),
            personal={"user_info.phone_number": "phone"},
            overlap=timedelta(0),
            priority=2,
            required=("openid", "user_grade_info.grade"),
        ),
        Stream(
            name="coupons",
            key=("coupon_id",),
            occurred_at=lambda record: _at(record, "update_time"),
            slices=snapshot(coupons),
            personal={},
            overlap=timedelta(0),
            priority=3,
            required=("coupon_id", "status", "coupon_info.name"),
        ),
    )
}  # fmt: skip


def streams(options: Options) -> Mapping[str, Stream]:
    """The streams of a store; they are the same with all options."""
    return STREAMS


def check(client: Client, names: Sequence[str]) -> Check:
    """Which shop the keys open, one cheap call per stream, and how the clocks agree."""
    shop = client.api.call("GET", SHOP).get("info")
    title = (shop.get("nickname") or shop.get("username")) if isinstance(shop, dict) else None
    end = int(dates.now().timestamp())
    bodies: dict[str, tuple[str, Record]] = {
        "orders": (ORDERS, {"update_time_range": {"start_time": end - 60, "end_time": end}, "page_size": 1}),
        "aftersales": (AFTERSALES, {"begin_update_time": end - 60, "end_update_time": end}),
        "products": (PRODUCTS, {"page_size": 1}),
        "members": (
            MEMBERS,
            {"page_num": client.options.member_first_page, "page_size": 1, "need_phone_number": False},
        ),
        "coupons": (COUPONS, {"status": 2, "page": 1, "page_size": 1, "page_ctx": ""}),
    }
    problems = probe({name: partial(client.call, *bodies[name]) for name in names if name in bodies})
    return Check(f"shop {title or '(without a name)'}", client.transport.clock_offset, problems)
