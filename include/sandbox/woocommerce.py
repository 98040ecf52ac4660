"""WooCommerce REST API v3, `GET /wp-json/wc/v3/...`: our own mall on WordPress.

Verifies the key (OAuth 1.0a over http, HTTP Basic or keys in the query over https) and the arguments, and refuses with
WordPress's error objects. What is assumed because no page confirms it stands in README.md.
"""

import base64
import hmac
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote

from .clock import DAY, MINUTE, OFFSET
from .faults import Fault, clock_of, emptied, shift_rows, spoil_rows
from .people import Person
from .shops import Customer, Sale, Shop, ShopItem, ShopRefund, ShopReview, yuan
from .state import World
from .wire import Answer, Request, json_answer

API = "/wp-json/wc/v3"
SHOP_NAME = "夜市官方商城"
TOLERANCE = 15 * MINUTE
LARGEST_PAGE = 100
DIGESTS = {"HMAC-SHA1": "sha1", "HMAC-SHA256": "sha256"}
STATUSES = ("pending", "processing", "on-hold", "completed", "cancelled", "refunded", "failed", "trash")
COUPONS = (("night10", "percent", "10.00", "50.00"), ("welcome5", "fixed_cart", "5.00", "0.00"), ("moon8", "percent", "8.00", "0.00"))  # fmt: skip
Row = dict[str, Any]


class WooError(Exception):
    """An error object of WordPress."""

    def __init__(self, status: int, code: str, message: str, **data: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"code": code, "message": message, "data": {"status": status, **data}}


def bad_parameter(name: str, why: str) -> WooError:
    return WooError(400, "rest_invalid_param", f"Invalid parameter(s): {name}", params={name: why}, details={})


def unauthorised(message: str) -> WooError:
    return WooError(401, "woocommerce_rest_authentication_error", message)


def escape(text: str) -> str:
    return quote(text, safe="-._~")


def signature(verb: str, address: str, parameters: Sequence[tuple[str, str]], secret: str, digest: str) -> str:
    """OAuth 1.0a without a token: HMAC over verb, address and every parameter, each escaped twice as the RFC says."""
    pairs = sorted((escape(name), escape(value)) for name, value in parameters)
    text = f"{verb}&{escape(address)}&" + "%26".join(f"{escape(name)}%3D{escape(value)}" for name, value in pairs)
    return base64.b64encode(hmac.new(f"{secret}&".encode(), text.encode(), digest).digest()).decode()


def gmt(at: int | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def local(at: int | None) -> str | None:
    return None if at is None else gmt(at + OFFSET)


def times(name: str, at: int | None) -> Row:
    return {name: local(at), f"{name}_gmt": gmt(at)}


class WooCommerce:
    platform = "woocommerce"
    prefixes = ("/wp-json/",)

    def __init__(self, world: World) -> None:
        self.world = world
        self.key, self.secret = "ck_" + secrets.token_hex(20), "cs_" + secrets.token_hex(20)
        self.narrow_key, self.narrow_secret = "ck_" + secrets.token_hex(20), "cs_" + secrets.token_hex(20)
        self.routes: dict[str, Callable[[Row, float, Fault | None], tuple[list[Row], int]]] = {
            "orders": self.orders,
            "customers": self.customers,
            "products": self.products,
            "products/reviews": self.reviews,
            "coupons": self.coupons,
        }
        self.reset()

    @property
    def shop(self) -> Shop:
        return self.world.shops["woocommerce"]

    def reset(self) -> None:
        self._nonces: dict[str, float] = {}

    def access(self, base_url: str) -> Row:
        return {
            "base_url": base_url,
            "consumer_key": self.key,
            "consumer_secret": self.secret,
            # of a key whose user may see orders and products only
            "narrow_key": self.narrow_key,
            "narrow_secret": self.narrow_secret,
        }

    def method(self, request: Request) -> str:
        name = request.path.removeprefix(API).strip("/")
        return "orders/refunds" if name.startswith("orders/") else name or "index"

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        now = clock_of(fault, self.world.now())
        try:
            if request.path in ("/wp-json/", "/wp-json"):
                return json_answer({"name": SHOP_NAME, "gmt_offset": "8", "namespaces": ["wp/v2", "wc/v3"]})
            return self._list(request, now, fault)
        except WooError as error:
            self.world.counters.refused[self.platform][error.body["code"]] += 1
            return json_answer(error.body, error.status)

    # ---------------------------------------------------------------------------------------------------- the door

    def _list(self, request: Request, now: float, fault: Fault | None) -> Answer:
        key = self._verify(request, now, fault)
        if fault and fault.kind == "call_limit":  # WooCommerce has no limit of its own; hosts put one in front
            return Answer(b"Too Many Requests", 429, {"Retry-After": str(max(1, round(fault.seconds)))}, "text/html")
        if fault and fault.kind == "platform_busy":
            return Answer(
                "<html>暂时无法使用 / Briefly unavailable</html>".encode(), 503, {"Retry-After": "1"}, "text/html"
            )
        if request.method != "GET":
            raise WooError(404, "rest_no_route", "No route was found matching the URL and request method.")
        name = request.path.removeprefix(API).strip("/")
        query = request.query
        if name.startswith("orders/") and name.endswith("/refunds"):
            handler = lambda q, n, f: self.refunds(name.split("/")[1], n, f)  # noqa: E731
        elif name in self.routes and request.path.startswith(API):
            handler = self.routes[name]
        else:
            raise WooError(404, "rest_no_route", "No route was found matching the URL and request method.")
        if key == self.narrow_key and name in ("customers", "coupons", "products/reviews"):
            raise WooError(403, "woocommerce_rest_cannot_view", "Sorry, you cannot list resources.")
        page, size = self._number(query, "page", 1, 10**9), self._number(query, "per_page", 10, LARGEST_PAGE)
        self._one_of(query, "order", ("asc", "desc"))
        rows, total = handler(query, now, fault)
        part = rows[(page - 1) * size : page * size]
        part = emptied(fault, self._spoil(fault, name, part))
        pages = -(-total // size)
        headers = {"X-WP-Total": str(total), "X-WP-TotalPages": str(pages)}
        if page < pages:
            headers["Link"] = f'<{request.path}?page={page + 1}>; rel="next"'
        return json_answer(part, 200, **headers)

    def _verify(self, request: Request, now: float, fault: Fault | None) -> str:
        """The consumer key of the request."""
        query, headers = request.query, request.headers
        known = {self.key: self.secret, self.narrow_key: self.narrow_secret}
        if headers.get("x-forwarded-proto") == "https":  # how WordPress behind a proxy learns that it was https
            key, secret = query.get("consumer_key", ""), query.get("consumer_secret", "")
            if headers.get("authorization", "").startswith("Basic "):
                pair = base64.b64decode(headers["authorization"][6:]).decode("utf-8", "replace")
                key, _, secret = pair.partition(":")
            if not key:
                raise WooError(401, "woocommerce_rest_cannot_view", "Sorry, you cannot list resources.")
            if key not in known or not hmac.compare_digest(known[key].encode(), secret.encode()):
                raise unauthorised("Consumer secret is invalid.")
        else:
            key = self._verify_oauth(request, now, known)
        if fault and fault.kind in ("revoked_token", "expired_token"):
            raise unauthorised("Consumer key is invalid.")
        return key

    def _verify_oauth(self, request: Request, now: float, known: dict[str, str]) -> str:
        query = request.query
        names = ("consumer_key", "timestamp", "nonce", "signature", "signature_method")
        given = {name: query.get(f"oauth_{name}", "") for name in names}
        if not any(given.values()):  # Basic is not looked at without https
            raise WooError(401, "woocommerce_rest_cannot_view", "Sorry, you cannot list resources.")
        missing = [f"oauth_{name}" for name in names if not given[name]]
        if missing:
            raise unauthorised(f"Missing OAuth parameter {', '.join(missing)}")
        if given["consumer_key"] not in known:
            raise unauthorised("Consumer key is invalid.")
        if given["signature_method"] not in DIGESTS:
            raise unauthorised("Invalid signature - signature method is invalid.")
        parameters = [
            pair for pair in parse_qsl(request.query_string, keep_blank_values=True) if pair[0] != "oauth_signature"
        ]
        address = f"http://{request.headers.get('host', '')}{request.path}"
        digest = DIGESTS[given["signature_method"]]
        wanted = signature(request.method, address, parameters, known[given["consumer_key"]], digest)
        if not hmac.compare_digest(wanted.encode(), given["signature"].encode()):
            raise unauthorised("Invalid signature - provided signature does not match.")
        if not given["timestamp"].isdigit() or abs(int(given["timestamp"]) - now) > TOLERANCE:
            raise unauthorised("Invalid timestamp.")
        self._nonces = {name: at for name, at in self._nonces.items() if at > now - TOLERANCE}
        if given["nonce"] in self._nonces:
            raise unauthorised("Invalid nonce - nonce has already been used.")
        self._nonces[given["nonce"]] = now
        return given["consumer_key"]

    # ---------------------------------------------------------------------------------------------------- arguments

    @staticmethod
    def _number(query: Row, name: str, default: int, largest: int) -> int:
        text = query.get(name, str(default))
        if not text.isdigit() or not 1 <= int(text) <= largest:
            raise bad_parameter(name, f"{name} must be between 1 (inclusive) and {largest} (inclusive)")
        return int(text)

    @staticmethod
    def _one_of(query: Row, name: str, allowed: Sequence[str]) -> str:
        value = str(query.get(name, allowed[0]))
        if value not in allowed:
            raise bad_parameter(name, f"{name} is not one of {', '.join(allowed)}.")
        return value

    @staticmethod
    def _between(query: Row, after: str, before: str, is_gmt: bool) -> tuple[int, int]:
        """The first and the last second that count: both ends are exclusive."""
        found = []
        for name, default in ((after, 0), (before, 1 << 40)):
            if name not in query:
                found.append(default)
                continue
            try:
                moment = datetime.strptime(query[name], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
            except ValueError:
                raise bad_parameter(name, "Invalid date.") from None
            found.append(int(moment.timestamp()) - (0 if is_gmt else OFFSET))
        return found[0] + 1, found[1] - 1

    # ---------------------------------------------------------------------------------------------------- lists

    def orders(self, query: Row, now: float, fault: Fault | None) -> tuple[list[Row], int]:
        self._one_of(query, "orderby", ("date", "modified", "id", "include", "title", "slug"))
        wanted = query.get("status", "any").split(",")
        for status in wanted:
            if status not in ("any", *STATUSES):
                raise bad_parameter("status[0]", f"status[0] is not one of any, {', '.join(STATUSES)}.")
        is_gmt = query.get("dates_are_gmt") == "true"
        start, end = self._between(query, "modified_after", "modified_before", is_gmt)
        if not self.world.settings.woo_modified_filter:
            start, end = 0, 1 << 40
        first, last = self._between(query, "after", "before", is_gmt)

        def found() -> list[Sale]:
            sales = [
                sale
                for sale in self.shop.changed_between(start, end, now)
                if first <= sale.created <= last and self._has(order_status(sale, now), wanted)
            ]
            if query.get("orderby", "date") != "modified":
                sales.sort(key=lambda sale: (sale.created, sale.order_id), reverse=True)
            return sales[::-1] if query.get("order") == "asc" else sales

        sales = found()
        if shift_rows(fault, sales, self.shop.touch, now):
            sales = found()
        return [self.order(sale, now) for sale in sales], len(sales)

    @staticmethod
    def _has(status: str, wanted: Sequence[str]) -> bool:
        return status in wanted or ("any" in wanted and status != "trash")

    def refunds(self, order_id: str, now: float, fault: Fault | None) -> tuple[list[Row], int]:
        sale = self.shop.sale(int(order_id), now) if order_id.isdigit() else None
        if sale is None:
            raise WooError(404, "woocommerce_rest_invalid_order_id", "Invalid order ID.")
        rows = [refund_row(refund) for refund in done(sale, now)]
        return rows, len(rows)

    def customers(self, query: Row, now: float, fault: Fault | None) -> tuple[list[Row], int]:
        self._one_of(query, "orderby", ("name", "id", "include", "registered_date"))
        rows = [self.customer(customer, now) for customer in self.shop.customers(now)]
        rows.sort(key=lambda row: row["id"], reverse=query.get("order") == "desc")
        return rows, len(rows)

    def reviews(self, query: Row, now: float, fault: Fault | None) -> tuple[list[Row], int]:
        self._one_of(query, "orderby", ("date", "date_gmt", "id", "include", "product"))
        start, end = self._between(query, "after", "before", is_gmt=False)
        found = self.shop.reviews_between(start, end, now)
        rows = [self.review(review) for review in (found[::-1] if query.get("order") == "asc" else found)]
        return rows, len(rows)

    def products(self, query: Row, now: float, fault: Fault | None) -> tuple[list[Row], int]:
        self._one_of(query, "orderby", ("date", "modified", "id", "title", "price"))
        is_gmt = query.get("dates_are_gmt") == "true"
        start, end = self._between(query, "modified_after", "modified_before", is_gmt)
        if not self.world.settings.woo_modified_filter:
            start, end = 0, 1 << 40
        rows = [self.product(item) for item in self.shop.items() if start <= self._modified(item) <= end]
        rows.sort(key=lambda row: (row["date_modified_gmt"], row["id"]), reverse=query.get("order") != "asc")
        return rows, len(rows)

    def coupons(self, query: Row, now: float, fault: Fault | None) -> tuple[list[Row], int]:
        used = [sale for sale in self.shop.created_between(0, now, now) if sale.discount]
        rows = []
        for number, (code, kind, amount, minimum) in enumerate(COUPONS):
            created = self.world.history.start + number * DAY
            rows.append(
                {"id": 501 + number, "code": code, "amount": amount, "status": "publish", **times("date_created", created),
                 **times("date_modified", created), "discount_type": kind, "description": "", **times("date_expires", self.world.history.end if code == "moon8" else None),
                 "usage_count": sum(sale.order_id % 3 == number for sale in used), "usage_limit": None,
                 "minimum_amount": minimum, "maximum_amount": "0.00", "email_restrictions": []}
            )  # fmt: skip
        return rows, len(rows)

    # ---------------------------------------------------------------------------------------------------- objects

    def order(self, sale: Sale, now: float) -> Row:
        person = sale.person
        assert person is not None
        customer = self.shop.customer_of(person)
        paid = sale.paid_at if sale.is_paid(now) else None
        shipped = sale.shipped_at if sale.shipped_at is not None and sale.shipped_at <= now else None
        coupons = [
            {"id": 1, "code": COUPONS[sale.order_id % 3][0], "discount": yuan(sale.discount), "discount_tax": "0.00"}
        ]
        return {
            "id": sale.order_id,
            "parent_id": 0,
            "number": str(sale.order_id),
            "order_key": f"wc_order_{sale.order_id % 10**8:08d}",
            "created_via": "checkout",
            "version": "9.4.2",
            "status": order_status(sale, now),
            "currency": "CNY",
            **times("date_created", sale.created),
            **times("date_modified", sale.modified(now)),
            "discount_total": yuan(sale.discount),
            "discount_tax": "0.00",
            "shipping_total": yuan(sale.postage),
            "shipping_tax": "0.00",
            "total": yuan(sale.paid_amount),
            "total_tax": "0.00",
            "prices_include_tax": True,
            # who is no member checks out as a guest
            "customer_id": customer.number if customer and customer.is_member else 0,
            "customer_ip_address": "198.51.100.7",
            "customer_user_agent": "Mozilla/5.0",
            "customer_note": sale.remark or "",
            "billing": address(person) | {"email": person.email or ""},
            "shipping": address(person),
            "payment_method": "alipay",
            "payment_method_title": "支付宝",
            "transaction_id": f"T{sale.order_id}" if paid else "",
            **times("date_paid", paid),
            **times("date_completed", shipped),
            "line_items": [self._line(sale, index) for index in range(len(sale.lines))],
            "tax_lines": [],
            "shipping_lines": [
                {"id": 1, "method_title": "快递", "method_id": "flat_rate", "total": yuan(sale.postage)}
            ],
            "fee_lines": [],
            "coupon_lines": coupons if sale.discount else [],
            "refunds": [
                {"id": refund.refund_id, "reason": "", "total": yuan(-refund.amount)} for refund in done(sale, now)
            ],
            "meta_data": [],
        }

    def _line(self, sale: Sale, index: int) -> Row:
        line = sale.lines[index]
        item = self.world.items[line.item]
        return {
            "id": line_id(sale, index),
            "name": item.title,
            "product_id": item.num_iid,
            "variation_id": 0,
            "quantity": line.num,
            "subtotal": yuan(line.price * line.num),
            "subtotal_tax": "0.00",
            "total": yuan(line.paid),
            "total_tax": "0.00",
            "sku": item.code,
            "price": line.paid / line.num / 100,
            "meta_data": [],
        }

    def customer(self, customer: Customer, now: float) -> Row:
        person = customer.person
        return {
            "id": customer.number,
            **times("date_created", customer.joined),
            **times("date_modified", customer.joined),
            "email": person.email or "",
            "first_name": person.name[1:],
            "last_name": person.name[0],
            "role": "customer",
            "username": f"user{customer.number}",
            "billing": address(person) | {"email": person.email or ""},
            "shipping": address(person),
            "is_paying_customer": customer.order_count(now) > 0,
            "avatar_url": "https://secure.gravatar.test/avatar/0?s=96",
            "meta_data": [],
        }

    def review(self, review: ShopReview) -> Row:
        person, item = review.sale.person, self.world.items[review.sale.lines[review.line].item]
        assert person is not None
        return {
            "id": review.review_id,
            **times("date_created", review.created),
            "product_id": item.num_iid,
            "product_name": item.title,
            "status": "approved",
            "reviewer": person.name,
            "reviewer_email": person.email or "",
            "review": f"<p>{review.content}</p>\n",
            "rating": review.stars,
            "verified": True,
            "reviewer_avatar_urls": {"24": "https://secure.gravatar.test/avatar/0?s=24"},
        }

    def product(self, item: ShopItem) -> Row:
        return {
            "id": item.num_iid,
            "name": item.title,
            **times("date_created", self.world.history.start),
            **times("date_modified", self._modified(item)),
            "type": "simple",
            "status": "publish" if item.is_listed else "private",
            "sku": item.code,
            "price": yuan(item.price),
            "regular_price": yuan(item.price),
            "sale_price": "",
        }

    def _modified(self, item: ShopItem) -> int:
        return min(item.modified, self.world.history.end - 1)  # what sells after the anchor was on the shelf before

    # ---------------------------------------------------------------------------------------------------- faults

    @staticmethod
    def _spoil(fault: Fault | None, name: str, rows: list[Row]) -> list[Row]:
        texts = {
            "orders": ("billing.first_name", "customer_note", "line_items.name"),
            "customers": ("first_name",),
            "products/reviews": ("review", "reviewer"),
            "products": ("name",),
            "coupons": ("description",),
        }
        nullable = {
            "orders": ("customer_note", "transaction_id", "billing.company", "shipping.company", "coupon_lines", "line_items.sku"),
            "customers": ("username", "billing.company", "avatar_url"),
            "products/reviews": ("reviewer_avatar_urls",),
            "products": ("sale_price", "sku"),
            "coupons": ("usage_limit", "description"),
        }  # fmt: skip
        return spoil_rows(
            fault,
            rows,
            ids=("id", "customer_id", "line_items.id", "line_items.product_id", "refunds.id", "product_id"),
            nullable=nullable.get(name, ()),
            required=("id",),
            texts=texts.get(name, ()),
        )


def order_status(sale: Sale, now: float) -> str:
    """WooCommerce's word for where a sale stands; there is none between sent and finished."""
    state = sale.state(now)
    if state == "unpaid":
        return "on-hold" if sale.order_id % 3 == 0 else "pending"
    if state == "closed_unpaid":
        return ("cancelled", "failed", "trash")[sale.order_id % 3]
    return {"paid": "processing", "shipped": "completed", "finished": "completed", "refunded": "refunded"}[state]


def done(sale: Sale, now: float) -> list[ShopRefund]:
    """A refund exists here once the money went back; before that there is only talk."""
    return [refund for refund in sale.refunds if refund.state(now) == "settled"]


def line_id(sale: Sale, index: int) -> int:
    return sale.order_id % 10**17 * 10 + index + 1


def refund_row(refund: ShopRefund) -> Row:
    amount = yuan(refund.amount)
    return {
        "id": refund.refund_id,
        **times("date_created", refund.settled),
        "amount": amount,
        "reason": "",
        "refunded_by": 1,
        "refunded_payment": True,
        "meta_data": [],
        "line_items": [
            {
                "id": refund.refund_id + 1,
                "quantity": -refund.num,
                "total": f"-{amount}",
                "total_tax": "0.00",
                "meta_data": [{"id": 1, "key": "_refunded_item_id", "value": str(line_id(refund.sale, refund.line))}],
            }
        ],
    }


def address(person: Person) -> Row:
    province, city, district = person.place
    return {
        "first_name": person.name[1:],
        "last_name": person.name[0],
        "company": "",
        "address_1": f"{district}夜市路{person.person_id % 200 + 1}号",
        "address_2": "",
        "city": city,
        "state": province,
        "postcode": "000000",
        "country": "CN",
        "phone": person.phone,
    }
