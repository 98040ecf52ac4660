"""Shopify REST Admin API, `GET /admin/api/{version}/...`: our own mall as a Shopify shop.

Verifies the access token, its scopes, the arguments and the leaky bucket of calls, and refuses as Shopify does. What is
assumed because no page confirms it stands in README.md.
"""

import base64
import re
import secrets
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import orjson

from .clock import DAY, iso
from .faults import Fault, clock_of, emptied, shift_rows, spoil_rows
from .people import Person
from .shops import Customer, Sale, Shop, ShopItem, ShopRefund, yuan
from .state import World
from .wire import Answer, Request

SHOP_NAME = "夜市海外商城"
LARGEST_PAGE = 250
DAYS_SHOWN = 60  # of orders, to an app without read_all_orders
SCOPES = ("read_orders", "read_all_orders", "read_customers", "read_products")
NARROW_SCOPES = ("read_orders", "read_products")
LISTS = ("orders", "customers", "products")
FILTERS = ("updated_at_min", "updated_at_max", "created_at_min", "created_at_max", "status", "order", "ids", "since_id")
PATH = re.compile(r"/admin/api/(?P<version>\d{4}-\d{2}|unstable)/(?P<name>[a-z_/]+)\.json")
Row = dict[str, Any]


class ShopifyError(Exception):
    """A refusal: status and the content of `errors`."""

    def __init__(self, status: int, errors: Any, **headers: str) -> None:
        super().__init__(str(errors))
        self.status, self.errors, self.headers = status, errors, headers


class Bucket:
    """A leaky bucket by the machine's seconds, as callers pace themselves by them."""

    def __init__(self) -> None:
        self.level, self.at = 0.0, time.monotonic()

    def pour(self, size: int, leak: float) -> bool:
        """One call; False when it does not fit."""
        now = time.monotonic()
        self.level, self.at = max(self.level - (now - self.at) * leak, 0.0), now
        if self.level + 1 > size:
            return False
        self.level += 1
        return True


class Shopify:
    platform = "shopify"
    prefixes = ("/admin/",)

    def __init__(self, world: World) -> None:
        self.world = world
        self.token, self.narrow_token = "shpat_" + secrets.token_hex(16), "shpat_" + secrets.token_hex(16)
        self.reset()

    @property
    def shop(self) -> Shop:
        return self.world.shops["shopify"]

    def reset(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def access(self, base_url: str) -> Row:
        # narrow_token: of an app with read_orders and read_products only
        return {"base_url": base_url, "access_token": self.token, "narrow_token": self.narrow_token}

    def method(self, request: Request) -> str:
        found = PATH.fullmatch(request.path)
        return found["name"] if found else request.path.removeprefix("/admin/").removesuffix(".json")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        now = clock_of(fault, self.world.now())
        headers: dict[str, str] = {}
        try:
            token = self._verify(request, fault)
            headers = self._limit(token, fault)
            content, more = self._content(request, token, now, fault)
            body, status = orjson.dumps(content), 200
            headers |= more
        except ShopifyError as error:
            self.world.counters.refused[self.platform][str(error.status)] += 1
            body, status = orjson.dumps({"errors": error.errors}), error.status
            headers |= {name.replace("_", "-"): value for name, value in error.headers.items()}
        return Answer(body, status, headers)

    # ---------------------------------------------------------------------------------------------------- the door

    def _verify(self, request: Request, fault: Fault | None) -> str:
        token = request.headers.get("x-shopify-access-token", "")
        is_refused = fault is not None and fault.kind in ("revoked_token", "expired_token")
        if token not in (self.token, self.narrow_token) or is_refused:
            raise ShopifyError(401, "[API] Invalid API key or access token (unrecognized login or wrong password)")
        return token

    def _limit(self, token: str, fault: Fault | None) -> dict[str, str]:
        """The bucket of this app, and the header that describes it."""
        settings = self.world.settings
        size = settings.shopify_bucket
        bucket = self._buckets.setdefault(token, Bucket())
        if fault and fault.kind == "platform_busy":
            raise ShopifyError(503, "Service Unavailable", Retry_After="1")
        fits = bucket.pour(size, settings.shopify_leak)
        if not fits or (fault and fault.kind == "call_limit"):
            wait = fault.seconds if fault and fault.kind == "call_limit" else 1 / settings.shopify_leak
            words = "Exceeded 2 calls per second for api client. Reduce request rates to resume uninterrupted service."
            full = f"{size}/{size}"
            raise ShopifyError(429, words, Retry_After=f"{wait:.1f}", **{"X-Shopify-Shop-Api-Call-Limit": full})
        return {"X-Shopify-Shop-Api-Call-Limit": f"{min(int(bucket.level + 0.999), size)}/{size}"}

    def _scopes(self, token: str) -> Sequence[str]:
        return SCOPES if token == self.token else NARROW_SCOPES

    # ---------------------------------------------------------------------------------------------------- answers

    def _content(self, request: Request, token: str, now: float, fault: Fault | None) -> tuple[Row, dict[str, str]]:
        if request.path == "/admin/oauth/access_scopes.json":
            return {"access_scopes": [{"handle": scope} for scope in self._scopes(token)]}, {}
        found = PATH.fullmatch(request.path)
        name, _, action = (found["name"] if found else "").partition("/")
        if request.method != "GET" or (
            (name, action) != ("shop", "") and (name not in LISTS or action not in ("", "count"))
        ):
            raise ShopifyError(404, "Not Found")
        if name == "shop":
            shop = {"id": 1, "name": SHOP_NAME, "currency": "CNY", "iana_timezone": "Asia/Shanghai"}
            return {"shop": shop}, {}
        scope = f"read_{name}"
        if scope not in self._scopes(token):
            raise ShopifyError(403, f"[API] This action requires merchant approval for {scope} scope.")
        query, cursor = dict(request.query), None
        if "page_info" in query:
            for parameter in query:
                if parameter in FILTERS:
                    raise ShopifyError(400, {parameter: f"{parameter} cannot be passed when page_info is present"})
            cursor = self._cursor(query["page_info"], name)
            query |= cursor["query"]
        if action == "count":
            return {"count": len(self._find(name, query, token, now, None))}, {}
        size = query.get("limit", "50")
        if not size.isdigit() or not 1 <= int(size) <= LARGEST_PAGE:
            raise ShopifyError(400, {"limit": f"must be between 1 and {LARGEST_PAGE}"})
        rows = self._find(name, query, token, now, fault)
        if cursor:  # a place in the order of the rows, not a number of rows: what moves away takes nothing with it
            rows = [row for row in rows if (row[0], row[1]) > (cursor["at"], cursor["id"])]
        part = rows[: int(size)]
        headers = {}
        if len(rows) > len(part):
            headers["Link"] = self._link(request, name, query, part[-1][:2], size)
        content = self._spoil(fault, name, [self._object(name, thing, now) for _, _, thing in part])
        return {name: emptied(fault, content)}, headers

    def _cursor(self, text: str, name: str) -> Row:
        try:
            cursor = orjson.loads(base64.urlsafe_b64decode(text))
            if cursor["list"] == name:
                return cursor  # type: ignore[no-any-return]
        except (ValueError, KeyError, TypeError):
            pass
        raise ShopifyError(400, {"page_info": "Invalid value."})

    def _link(self, request: Request, name: str, query: Row, last: tuple[int, int], size: str) -> str:
        kept = {key: value for key, value in query.items() if key in FILTERS}
        cursor = orjson.dumps({"list": name, "at": last[0], "id": last[1], "query": kept})
        text = urlencode({"limit": size, "page_info": base64.urlsafe_b64encode(cursor).decode()})
        return f'<https://nightmarket-mall.myshopify.test{request.path}?{text}>; rel="next"'

    def _find(self, name: str, query: Row, token: str, now: float, fault: Fault | None) -> list[tuple[int, int, Any]]:
        """(when it changed, id, the thing), ascending."""
        start, end = (
            self._instant(query, f"updated_at_{side}", default) for side, default in (("min", 0), ("max", 1 << 40))
        )
        if query.get("order", "updated_at asc") not in ("updated_at asc", "updated_at ASC"):
            raise ShopifyError(400, {"order": "Invalid value."})  # the real one knows more; nothing here asks for it
        if name == "orders":
            sales = self._orders(query, token, start, end, now)
            if shift_rows(fault, sales, self.shop.touch, now):
                sales = self._orders(query, token, start, end, now)
            return sorted((sale.modified(now), sale.order_id, sale) for sale in sales)
        if name == "customers":
            everybody = self.shop.customers(now)
            return [
                row
                for row in sorted((one.modified(now), one.number, one) for one in everybody)
                if start <= row[0] <= end
            ]
        found = sorted((self._changed(item), item.num_iid, item) for item in self.shop.items())
        return [row for row in found if start <= row[0] <= end]

    def _orders(self, query: Row, token: str, start: float, end: float, now: float) -> list[Sale]:
        status = query.get("status", "open")
        if status not in ("open", "closed", "cancelled", "any"):
            raise ShopifyError(400, {"status": "must be one of open, closed, cancelled, any"})
        first = self._instant(query, "created_at_min", 0)
        last = self._instant(query, "created_at_max", 1 << 40)
        if "read_all_orders" not in self._scopes(token):
            first = max(first, now - DAYS_SHOWN * DAY)
        return [
            sale
            for sale in reversed(self.shop.changed_between(start, end, now))
            if first <= sale.created <= last and status in ("any", self._status(sale, now))
        ]

    @staticmethod
    def _status(sale: Sale, now: float) -> str:
        state = sale.state(now)
        return {"closed_unpaid": "cancelled", "refunded": "cancelled", "finished": "closed"}.get(state, "open")

    @staticmethod
    def _instant(query: Row, name: str, default: float) -> float:
        if name not in query:
            return default
        try:
            moment = datetime.fromisoformat(query[name])
        except ValueError:
            raise ShopifyError(400, {name: "Invalid value."}) from None
        if moment.tzinfo is None:
            raise ShopifyError(400, {name: "Invalid value: an offset is missing."})
        return moment.timestamp()

    def _changed(self, item: ShopItem) -> int:
        return min(item.modified, self.world.history.end - 1)  # what sells after the anchor was on the shelf before

    # ---------------------------------------------------------------------------------------------------- objects

    def _object(self, name: str, thing: Any, now: float) -> Row:
        if name == "orders":
            return self.order(thing, now)
        return self.customer(thing, now) if name == "customers" else self.product(thing)

    def order(self, sale: Sale, now: float) -> Row:
        person = sale.person
        assert person is not None
        customer, state = self.shop.customer_of(person), sale.state(now)
        assert customer is not None
        refunds = [refund for refund in sale.refunds if refund.state(now) == "settled"]
        is_sent = sale.shipped_at is not None and sale.shipped_at <= now
        is_cancelled = state in ("closed_unpaid", "refunded")
        paid = {"unpaid": "pending", "closed_unpaid": "voided", "refunded": "refunded"}
        financial = paid.get(state, "partially_refunded" if refunds else "paid")
        at = sale.paid_at if sale.is_paid(now) and sale.paid_at else sale.created
        return {
            "id": sale.order_id,
            "admin_graphql_api_id": f"gid://shopify/Order/{sale.order_id}",
            "name": f"#{sale.order_id % 10**6}",
            "order_number": sale.order_id % 10**6,
            "created_at": iso(sale.created),
            "updated_at": iso(sale.modified(now)),
            "processed_at": iso(at),
            "closed_at": iso(sale.ended_at) if state == "finished" and sale.ended_at else None,
            "cancelled_at": iso(sale.closed_at) if is_cancelled and sale.closed_at else None,
            "cancel_reason": "customer" if is_cancelled else None,
            "financial_status": financial,
            "fulfillment_status": "fulfilled" if is_sent else None,
            "currency": "CNY",
            "customer_locale": "en" if person.language == "en" else "zh-CN",
            "email": person.email or "",
            "contact_email": person.email,
            "phone": None,
            "browser_ip": "198.51.100.9",
            "note": sale.remark,
            "note_attributes": [],
            "subtotal_price": yuan(sale.goods - sale.discount),
            "total_line_items_price": yuan(sale.goods),
            "total_discounts": yuan(sale.discount),
            "total_price": yuan(sale.paid_amount),
            "total_tax": "0.00",
            "total_shipping_price_set": {"shop_money": {"amount": yuan(sale.postage), "currency_code": "CNY"}},
            "customer": {"id": customer.number, **person_of(person)},
            "billing_address": None,
            "shipping_address": address(person),
            "line_items": [self._line(sale, index) for index in range(len(sale.lines))],
            "shipping_lines": [{"id": 1, "title": "快递", "price": yuan(sale.postage)}] if sale.postage else [],
            "fulfillments": [fulfilment(sale, now)] if is_sent else [],
            "refunds": [self._refund(refund) for refund in refunds],
        }

    def _line(self, sale: Sale, index: int) -> Row:
        line = sale.lines[index]
        item, discount = self.world.items[line.item], line.price * line.num - line.paid
        return {
            "id": line_id(sale, index),
            "product_id": item.num_iid,
            "variant_id": item.num_iid + 1,
            "title": item.title,
            "name": item.title,
            "sku": item.code,
            "quantity": line.num,
            "price": yuan(line.price),
            "total_discount": "0.00",
            "discount_allocations": [{"amount": yuan(discount), "discount_application_index": 0}] if discount else [],
        }

    @staticmethod
    def _refund(refund: ShopRefund) -> Row:
        amount = yuan(refund.amount)
        return {
            "id": refund.refund_id,
            "order_id": refund.sale.order_id,
            "created_at": iso(refund.settled or refund.created),
            "processed_at": iso(refund.settled or refund.created),
            "note": "",
            "restock": refund.returns_goods,
            "refund_line_items": [
                {
                    "id": refund.refund_id + 1,
                    "line_item_id": line_id(refund.sale, refund.line),
                    "quantity": refund.num,
                    "subtotal": float(amount),
                    "total_tax": 0.0,
                }
            ],
            "transactions": [
                {
                    "id": refund.refund_id + 2,
                    "kind": "refund",
                    "status": "success",
                    "amount": amount,
                    "currency": "CNY",
                },
            ],
            "order_adjustments": [],
        }

    def customer(self, customer: Customer, now: float) -> Row:
        person = customer.person
        return {
            "id": customer.number,
            "created_at": iso(customer.joined),
            "updated_at": iso(customer.modified(now)),
            **person_of(person),
            "state": "enabled" if customer.is_member else "disabled",
            "verified_email": bool(person.email),
            "orders_count": customer.order_count(now),
            "total_spent": yuan(customer.spent(now)),
            "currency": "CNY",
            "note": None,
            "tags": f"level-{customer.level}" if customer.level else "",
            "default_address": address(person),
        }

    def product(self, item: ShopItem) -> Row:
        return {
            "id": item.num_iid,
            "title": item.title,
            "created_at": iso(self.world.history.start),
            "updated_at": iso(self._changed(item)),
            "status": "active" if item.is_listed else "draft",
            "variants": [{"id": item.num_iid + 1, "sku": item.code, "price": yuan(item.price)}],
        }

    # ---------------------------------------------------------------------------------------------------- faults

    @staticmethod
    def _spoil(fault: Fault | None, name: str, rows: list[Row]) -> list[Row]:
        texts = {
            "orders": ("note", "shipping_address.first_name", "line_items.title"),
            "customers": ("first_name",),
            "products": ("title",),
        }
        nullable = {
            "orders": ("note", "browser_ip", "contact_email", "note_attributes", "line_items.sku", "line_items.total_discount"),
            "customers": ("note", "tags", "email"),
            "products": ("variants.sku",),
        }  # fmt: skip
        return spoil_rows(
            fault,
            rows,
            ids=(
                "id",
                "customer.id",
                "line_items.id",
                "line_items.product_id",
                "fulfillments.line_items.id",
                "refunds.id",
            ),
            nullable=nullable[name],
            required=("id",),
            texts=texts[name],
        )


def line_id(sale: Sale, index: int) -> int:
    return sale.order_id % 10**17 * 10 + index + 1


def fulfilment(sale: Sale, now: float) -> Row:
    assert sale.shipped_at is not None
    is_signed = sale.ended_at is not None and sale.ended_at <= now
    return {
        "id": sale.order_id + 1,
        "status": "success",
        "created_at": iso(sale.shipped_at),
        "tracking_company": "SF Express",
        "tracking_number": f"SF{sale.order_id % 10**12:012d}",
        "shipment_status": "delivered" if is_signed else "in_transit",
        "updated_at": iso(sale.ended_at if is_signed and sale.ended_at else sale.shipped_at),
        "line_items": [{"id": line_id(sale, index), "quantity": line.num} for index, line in enumerate(sale.lines)],
    }


def person_of(person: Person) -> Row:
    return {
        "email": person.email,
        "phone": "+86" + person.phone,
        "first_name": person.name[1:],
        "last_name": person.name[0],
    }


def address(person: Person) -> Row:
    province, city, district = person.place
    return {
        "first_name": person.name[1:],
        "last_name": person.name[0],
        "name": person.name,
        "company": None,
        "address1": f"{district}夜市路{person.person_id % 200 + 1}号",
        "address2": None,
        "city": city,
        "province": province,
        "country_code": "CN",
        "zip": "000000",
        "phone": "+86" + person.phone,
    }
