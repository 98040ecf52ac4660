"""Weidian (微店): `GET /token` and everything else at `/api`, two JSON texts `public` and `param` in the query or form.

No page publishes its refusals: the codes here are the sandbox's own (README.md), the sentences carry the meaning.
"""

import re
import secrets
import time
from typing import Any, ClassVar

import orjson

from .clock import DAY, parse_shop_time, shop_time
from .faults import Fault, clock_of, emptied, shift_rows, spoil_rows
from .people import Person
from .shops import Sale, yuan
from .state import World
from .wire import Answer, Request, json_answer

Row = dict[str, Any]
LARGEST_PAGE, DEFAULT_PAGE = 50, 30
DEFAULT_DAYS = 31
STATUSES = {
    "unpaid": "unpay",
    "paid": "pay",
    "shipped": "ship",
    "finished": "finish",
    "closed_unpaid": "close",
    "refunded": "close",
}
ORDER_TYPES = {  # what order_type lists, by the state of the sale; refunding is judged by its refunds
    "unpay": {"unpaid"},
    "unship": {"paid"},
    "shiped": {"shipped"},
    "finish": {"finished"},
    "close": {"closed_unpaid", "refunded"},
}


class WeidianError(Exception):
    """A status that is not 0."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Weidian:
    platform: ClassVar[str] = "weidian"
    prefixes: ClassVar[tuple[str, ...]] = ("/token", "/api")

    def __init__(self, world: World) -> None:
        self.world = world
        self.app_key, self.app_secret = str(600_000 + secrets.randbelow(100_000)), secrets.token_hex(16)
        self.reset()

    def reset(self) -> None:
        self.tokens: dict[str, float] = {}  # value -> when it ends
        self._second, self._calls = 0, 0

    def access(self, base_url: str) -> Row:
        return {"base_url": base_url, "appkey": self.app_key, "secret": self.app_secret}

    def method(self, request: Request) -> str:
        """`token`, or the method that `public` names."""
        if request.path == "/token":
            return "token"
        return str(_json_object(request.form.get("public", "")).get("method") or "")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        now = clock_of(fault, self.world.now())
        try:
            if request.path == "/token":
                result = self.token(request, now)
            elif request.path == "/api":
                result = self._call(request, now, fault)
            else:
                return Answer(b"Not Found", 404, content_type="text/plain")
            status = {"status_code": 0, "status_reason": "success"}
            return json_answer({"status": status, "result": result})
        except WeidianError as error:
            self.world.counters.refused[self.platform][str(error.code)] += 1
            return json_answer({"status": {"status_code": error.code, "status_reason": error.reason}, "result": {}})

    def token(self, request: Request, now: float) -> Row:
        query = request.query
        if query.get("grant_type") != "client_credential":
            raise WeidianError(10001, "grant_type error")
        if query.get("appkey") != self.app_key:
            raise WeidianError(10002, "appkey not exist")
        if query.get("secret") != self.app_secret:
            raise WeidianError(10003, "secret error")
        settings = self.world.settings
        value, life = secrets.token_hex(20), settings.weidian_token_seconds
        if settings.weidian_one_token:
            self.tokens.clear()
        self.tokens[value] = now + life
        return {"access_token": value, "expires_in": life}

    def _call(self, request: Request, now: float, fault: Fault | None) -> Row:
        public = _json_object(request.form.get("public", ""))
        if not public:
            raise WeidianError(10005, "public param is not json")
        if public.get("format") != "json":
            raise WeidianError(10006, "format error")
        method, version = str(public.get("method")), str(public.get("version"))
        known = {("vdian.order.list.get", "1.5"): self.orders, ("vdian.order.get", "2.0"): self.order}
        if (method, version) not in known:
            raise WeidianError(10007, "method or version not exist")
        token = str(public.get("access_token") or "")
        if fault and fault.kind == "expired_token":
            self.tokens = dict.fromkeys(self.tokens, 0.0)
        if fault and fault.kind == "revoked_token":
            raise WeidianError(10013, "access_token revoked")
        if token not in self.tokens:
            raise WeidianError(10012, "access_token error")
        if self.tokens[token] <= now:
            raise WeidianError(10013, "access_token expired")
        if int(time.monotonic()) != self._second:
            self._second, self._calls = int(time.monotonic()), 0
        self._calls += 1
        if self._calls > self.world.settings.weidian_rate or (fault and fault.kind == "call_limit"):
            raise WeidianError(10020, "call frequency limit")
        if fault and fault.kind == "platform_busy":
            raise WeidianError(20000, "system busy")
        param = _json_object(request.form.get("param", ""))
        return known[method, version](param, self.world.now(), fault)

    # ---------------------------------------------------------------------------------------------------- orders

    def orders(self, param: Row, now: float, fault: Fault | None) -> Row:
        shop = self.world.shops["weidian"]
        page = self._integer(param, "page_num", 1, 1_000_000)
        size = self._integer(param, "page_size", DEFAULT_PAGE, LARGEST_PAGE)
        self._integer(param, "group_type", 1, 3)
        kind = param.get("order_type") or "all"
        if kind not in (*ORDER_TYPES, "refunding", "all"):
            raise WeidianError(10030, "order_type error")
        ranges = {name: self._range(param, f"{name}_start", f"{name}_end") for name in ("add", "update")}
        if not any(ranges.values()):
            ranges["add"] = (now - DEFAULT_DAYS * DAY, now)

        def found() -> list[Sale]:
            rows = shop.changed_between(*(ranges["update"] or (0.0, now)), now)
            if added := ranges["add"]:
                rows = [sale for sale in rows if added[0] <= sale.created <= added[1]]
            if kind == "refunding":
                rows = [sale for sale in rows if "requested" in [refund.state(now) for refund in sale.refunds]]
            elif kind != "all":
                rows = [sale for sale in rows if sale.state(now) in ORDER_TYPES[kind]]
            return rows

        rows = found()
        if shift_rows(fault, rows, shop.touch, now):
            rows = found()
        part = [
            {
                "order_id": str(sale.order_id),
                "status": STATUSES[sale.state(now)],
                "total": yuan(sale.paid_amount),
                "time": shop_time(sale.created),
                "update_time": shop_time(sale.modified(now)),
                "seller_note": sale.remark or "",
            }
            for sale in rows[(page - 1) * size : page * size]
        ]
        part = emptied(
            fault,
            spoil_rows(
                fault,
                part,
                ids=("order_id",),
                nullable=("seller_note",),
                required=("order_id",),
                texts=("seller_note",),
            ),
        )
        return {"order_num": len(part), "total_num": len(rows), "orders": part}

    def order(self, param: Row, now: float, fault: Fault | None) -> Row:
        """One order in full. Only order_id is confirmed; the rest follows the old interface description."""
        number = str(param.get("order_id") or "")
        sale = self.world.shops["weidian"].sale(int(number), now) if re.fullmatch(r"\d{1,19}", number) else None
        if sale is None:
            raise WeidianError(10031, "order not exist")
        person = sale.person
        assert person is not None

        def told(instant: int | None) -> str:
            return shop_time(instant) if instant is not None and instant <= now else ""

        sent = sale.shipped_at is not None and sale.shipped_at <= now
        row: Row = {
            "order_id": number,
            "status": STATUSES[sale.state(now)],
            "total": yuan(sale.paid_amount),
            "price": yuan(sale.goods - sale.discount),
            "express_fee": yuan(sale.postage),
            "discount_amount": yuan(sale.discount),
            "time": shop_time(sale.created),
            "update_time": shop_time(sale.modified(now)),
            "pay_time": told(sale.paid_at),
            "send_time": told(sale.shipped_at),
            "confirm_time": told(sale.ended_at),
            "express": "中通快递" if sent else "",
            "express_no": f"ZT{sale.order_id % 10**12:012d}" if sent else "",
            "note": "",
            "seller_note": sale.remark or "",
            "buyer_info": self._buyer(person),
            "items": [
                {
                    "item_id": str(self.world.items[line.item].num_iid),
                    "item_name": self.world.items[line.item].title,
                    "merchant_code": self.world.items[line.item].code,
                    "sku_id": "0",
                    "price": yuan(line.price),
                    "quantity": str(line.num),
                    "total_price": yuan(line.paid),
                }
                for line in sale.lines
            ],
        }
        (row,) = spoil_rows(
            fault if fault and fault.kind != "duplicate_page" else None,
            [row],
            ids=("order_id", "items.item_id", "buyer_info.buyer_id"),
            nullable=("note", "seller_note", "discount_amount"),
            required=("total",),
            texts=("buyer_info.name", "items.item_name", "note"),
        )
        return row

    def _buyer(self, person: Person) -> Row:
        return {
            "buyer_id": str(9_300_000_000_000_000_000 // 10 + person.person_id),
            "name": person.name,
            "phone": person.phone,
            "province": person.place[0],
            "city": person.place[1],
            "region": person.place[2],
            "self_address": f"{person.place[2]}{person.person_id % 900 + 1}号",
            "address": f"{''.join(person.place)}{person.person_id % 900 + 1}号",
            "post": "000000",
        }

    @staticmethod
    def _integer(param: Row, name: str, default: int, high: int) -> int:
        value = param.get(name, default)
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,18}", str(value)) or not 1 <= int(value) <= high:
            raise WeidianError(10030, f"{name} error")
        return int(value)

    @staticmethod
    def _range(param: Row, start: str, end: str) -> tuple[float, float] | None:
        if not param.get(start) and not param.get(end):
            return None
        try:
            first, last = parse_shop_time(str(param.get(start))), parse_shop_time(str(param.get(end)))
        except ValueError:
            raise WeidianError(10030, f"{start} or {end} error") from None
        if last < first:
            raise WeidianError(10030, f"{end} before {start}")
        return first, last


def _json_object(text: str) -> Row:
    """The JSON object of a text; {} when it is none."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
