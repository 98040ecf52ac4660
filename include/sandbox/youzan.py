"""Youzan (有赞): `POST /auth/token` and the gateway, `POST /api/{api name}/{version}?access_token=...`.

HTTP is always 200. A refusal of the gateway, an answer of today's business layer and one of the old layer come in three
different envelopes. What no page confirms (codes of business refusals, coupons, reviews) is said in README.md.
"""

import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import orjson

from .clock import DAY, months_before, parse_shop_time, shop_time
from .faults import Fault, clock_of, emptied, shift_rows, spoil_rows
from .people import LETTERS, Person
from .shops import Customer, Sale, ShopRefund, ShopReview, yuan
from .state import World
from .wire import Answer, Request, json_answer

Row = dict[str, Any]
GRANT_ID = "41200160"  # the shop's own number, kdt_id
INDEX_LAG = 30  # seconds until the order list shows a change
DEEPEST_PAGE = 100
REFUND_DEPTH = 3000
REFRESH_LIFE = 28 * DAY
FIRST_ACTIVITY = 9_007_199_254_740_993
STATUSES = {
    "unpaid": ("WAIT_BUYER_PAY", "待支付"),
    "paid": ("WAIT_SELLER_SEND_GOODS", "待发货"),
    "shipped": ("WAIT_BUYER_CONFIRM_GOODS", "待收货"),
    "finished": ("TRADE_SUCCESS", "已完成"),
    "closed_unpaid": ("TRADE_CLOSED", "已关闭"),
    "refunded": ("TRADE_CLOSED", "已关闭"),
}
COUPONS = (  # title, off (fen), from (fen), coupons
    ("满99减10", 1000, 9900, 5000),
    ("满199减30", 3000, 19900, 2000),
    ("新客立减5元", 500, 0, 10000),
    ("老客回馈20元", 2000, 10000, 800),
    ("夜市周年庆50元", 5000, 30000, 300),
    ("Tea set, 15 off", 1500, 8000, 600),
    ("已结束的活动", 800, 5000, 100),
)


class GatewayError(Exception):
    """The gateway refuses: `gw_err_resp`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class BusinessError(Exception):
    """The shop's system refuses: success false, or the old envelope's error_response."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Youzan:
    platform: ClassVar[str] = "youzan"
    prefixes: ClassVar[tuple[str, ...]] = ("/auth/token", "/api/")

    def __init__(self, world: World) -> None:
        self.world = world
        self.client_id, self.client_secret = secrets.token_hex(9), secrets.token_hex(16)
        self.apis: dict[tuple[str, str], Callable[[Row, float, Fault | None], Row]] = {
            ("youzan.trades.sold.get", "4.0.4"): self.trades,
            ("youzan.trade.get", "4.0.2"): self.trade,
            ("youzan.trade.refund.search", "3.0.1"): self.refunds,
            ("youzan.trade.refund.get", "3.0.1"): self.refund,
            ("youzan.scrm.customer.list", "1.0.0"): self.customers,
            ("youzan.ump.voucheractivity.query", "3.0.1"): self.coupons,
            ("youzan.ump.voucheractivity.send", "3.0.1"): self.send_voucher,
            ("youzan.ump.voucher.query.detail", "3.0.1"): self.voucher,
            ("youzan.item.reviews.query", "3.0.0"): self.reviews,
        }
        self.reset()

    def reset(self) -> None:
        self.tokens: dict[str, float] = {}  # value -> when it ends
        self.refresh_tokens: dict[str, float] = {}
        self._second, self._calls = 0, 0
        self._month_calls: Counter[str] = Counter()
        self.vouchers: dict[int, tuple[int, str, int]] = {}  # id -> activity, yz_open_id, when

    def access(self, base_url: str) -> Row:
        return {
            "base_url": base_url,
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "grant_id": GRANT_ID,
        }

    def method(self, request: Request) -> str:
        """`auth/token`, or the API's name without its version."""
        parts = request.path.strip("/").split("/")
        return "auth/token" if parts[0] == "auth" else parts[1] if len(parts) > 1 else ""

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        now = clock_of(fault, self.world.now())
        trace_id = f"yz7-{self.world.chance.bits('trace', time.monotonic_ns()):016x}"
        if self.method(request) == "auth/token":
            return json_answer(self.token(request, now))
        try:
            name, version, body = self._check(request, now, fault)
            data = self.apis[name, version](body, self.world.now(), fault)
        except GatewayError as error:
            self.world.counters.refused[self.platform][str(error.code)] += 1
            said = {"trace_id": trace_id, "err_code": error.code, "err_msg": error.message}
            return json_answer({"gw_err_resp": said})
        except BusinessError as error:
            self.world.counters.refused[self.platform][str(error.code)] += 1
            if version == "3.0.0":
                return json_answer({"error_response": {"code": error.code, "msg": error.message}})
            return json_answer(
                {"success": False, "code": error.code, "data": None, "message": error.message, "trace_id": trace_id}
            )
        if version == "3.0.0":
            return json_answer({"response": data})
        # some APIs write their code as text, and say success twice
        code = "200" if name.startswith("youzan.ump.") else 200
        return json_answer({"success": True, "code": code, "data": data, "message": "successful", "trace_id": trace_id})

    # ---------------------------------------------------------------------------------------------------- token

    def token(self, request: Request, now: float) -> Row:
        def refusal(code: int, message: str) -> Row:
            self.world.counters.refused[self.platform][str(code)] += 1
            return {"success": False, "code": code, "data": None, "message": message}

        if "application/json" not in request.headers.get("content-type", ""):
            return refusal(1000, "Content-Type必须为application/json")
        body = _object(request)
        if body is None:
            return refusal(1000, "请求体不是JSON")
        kind = body.get("authorize_type")
        if body.get("client_id") != self.client_id:
            return refusal(1103, "client_id不存在")
        if body.get("client_secret") != self.client_secret:
            return refusal(1105, "client_secret不正确")
        if kind == "silent":
            if str(body.get("grant_id") or "") != GRANT_ID:
                return refusal(1005, "店铺未授权该应用")
        elif kind == "refresh_token":
            if self.refresh_tokens.pop(str(body.get("refresh_token")), 0) <= now:
                return refusal(1005, "refresh_token无效")
        else:
            return refusal(1004, "authorize_type不支持")
        if self.world.settings.youzan_one_token:
            self.tokens.clear()
        value, ends = secrets.token_hex(16), now + self.world.settings.youzan_token_days * DAY
        self.tokens[value] = ends
        data: Row = {
            "access_token": value,
            "expires": int(ends * 1000),
            "scope": "trade scrm coupon item",
            "authority_id": GRANT_ID,
        }
        if body.get("refresh") is True or kind == "refresh_token":
            data["refresh_token"] = secrets.token_hex(16)
            self.refresh_tokens[data["refresh_token"]] = now + REFRESH_LIFE
        return {"success": True, "code": 200, "data": data, "message": None}

    # ---------------------------------------------------------------------------------------------------- the gateway

    def _check(self, request: Request, now: float, fault: Fault | None) -> tuple[str, str, Row]:
        """Name, version and body of a call that may be made."""
        parts = request.path.strip("/").split("/")
        if request.method != "POST" or len(parts) != 3:
            raise GatewayError(4001, "请求路径不正确")
        _, name, version = parts
        if "application/json" not in request.headers.get("content-type", ""):
            raise GatewayError(4007, "Content-Type不合法或IP不在白名单")
        body = _object(request)
        if body is None:
            raise GatewayError(4004, "请求体不是JSON")
        if (name, version) not in self.apis:
            raise GatewayError(4005, "API或版本不存在")
        self._check_token(request.query.get("access_token", ""), now, fault)
        settings = self.world.settings
        if int(time.monotonic()) != self._second:
            self._second, self._calls = int(time.monotonic()), 0
        self._calls += 1
        if self._calls > settings.youzan_rate or (fault and fault.kind == "call_limit"):
            raise GatewayError(4101, "请求太频繁")
        month = shop_time(int(now))[:7]
        self._month_calls[month] += 1
        if settings.youzan_month_calls and self._month_calls[month] > settings.youzan_month_calls:
            raise GatewayError(4204, "没有该API的能力包")
        if fault and fault.kind == "platform_busy":
            raise GatewayError(5001, "系统异常")
        return name, version, body

    def _check_token(self, value: str, now: float, fault: Fault | None) -> None:
        if fault and fault.kind == "expired_token":
            self.tokens = dict.fromkeys(self.tokens, 0.0)
        if fault and fault.kind == "revoked_token":
            raise GatewayError(4201, "店铺授权已失效")
        if not value:
            raise GatewayError(4201, "没有授权")
        if value not in self.tokens:
            raise GatewayError(4203, "token不存在")
        if self.tokens[value] <= now:
            raise GatewayError(4202, "token已过期")

    @staticmethod
    def _integer(body: Row, name: str, default: int, high: int) -> int:
        value = body.get(name, default)
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,18}", str(value)):
            raise GatewayError(5001, "系统异常")  # what a value of the wrong type comes to
        if not 1 <= int(value) <= high:
            raise BusinessError(101500002, f"{name}必须在1到{high}之间")
        return int(value)

    @staticmethod
    def _pair(body: Row, start: str, end: str, parse: Callable[[Any], float]) -> tuple[float, float] | None:
        """Both ends of a time range; an incomplete pair is ignored."""
        if not body.get(start) or not body.get(end):
            return None
        try:
            first, last = parse(body[start]), parse(body[end])
        except (ValueError, TypeError):
            raise GatewayError(5001, "系统异常") from None
        if last <= first:
            raise BusinessError(101500003, f"{end}必须晚于{start}")
        return first, last

    # ---------------------------------------------------------------------------------------------------- trades

    def trades(self, body: Row, now: float, fault: Fault | None) -> Row:
        shop, seen = self.world.shops["youzan"], now - INDEX_LAG
        page, size = self._integer(body, "page_no", 1, DEEPEST_PAGE), self._integer(body, "page_size", 20, 100)
        pairs = {
            name: self._pair(body, f"start_{name}", f"end_{name}", lambda text: parse_shop_time(str(text)))
            for name in ("created", "update", "success", "pay")
        }
        for name, pair in pairs.items():
            if pair and months_before(pair[1], 3) > pair[0]:
                raise BusinessError(101500004, f"{name}的时间跨度不能超过3个月")

        def found() -> list[Sale]:
            low, high = pairs["update"] or (0.0, seen)
            rows = shop.changed_between(low, high, seen)
            for name, instant in INSTANTS.items():
                if pair := pairs[name]:
                    rows = [sale for sale in rows if pair[0] <= (instant(sale, seen) or 0) <= pair[1]]
            if pairs["success"]:  # the strongest of several pairs is the order of the list
                rows.sort(key=lambda sale: -(sale.ended_at or 0))
            elif not pairs["update"]:
                rows.sort(key=lambda sale: -sale.created)
            if body.get("status"):
                rows = [sale for sale in rows if STATUSES[sale.state(seen)][0] == body["status"]]
            if body.get("tid"):
                rows = [sale for sale in rows if tid_of(sale) == body["tid"]]
            return rows

        rows = found()
        if shift_rows(fault, rows, shop.touch, seen):
            rows = found()
        part = [{"full_order_info": self.order(sale, seen)} for sale in rows[(page - 1) * size : page * size]]
        part = spoil_rows(
            fault,
            part,
            ids=("full_order_info.orders.oid", "full_order_info.orders.item_id", "full_order_info.buyer_info.buyer_id"),
            nullable=(
                "full_order_info.remark_info",
                "full_order_info.source_info",
                "full_order_info.buyer_info.fans_nickname",
                "full_order_info.order_info.expired_time",
            ),
            required=("full_order_info.order_info.tid",),
            texts=("full_order_info.buyer_info.fans_nickname", "full_order_info.remark_info.trade_memo"),
        )
        return {"total_results": len(rows), "full_order_info_list": emptied(fault, part)}

    def trade(self, body: Row, now: float, fault: Fault | None) -> Row:
        """One order as it is now, without the lag of the list; only here is what was really paid."""
        found = re.fullmatch(r"E\d{8}(\d{19})", str(body.get("tid") or ""))
        sale = self.world.shops["youzan"].sale(int(found[1]), now) if found else None
        if sale is None:
            raise BusinessError(101500005, "订单不存在")
        order = self.order(sale, now)
        order["pay_info"] |= {
            "payment": yuan(sale.paid_amount),
            "real_payment": yuan(sale.paid_amount if sale.is_paid(now) else 0),
        }
        (row,) = spoil_rows(
            fault if fault and fault.kind != "duplicate_page" else None,
            [{"full_order_info": order}],
            ids=("full_order_info.orders.oid", "full_order_info.orders.item_id"),
            nullable=("full_order_info.remark_info", "full_order_info.source_info"),
            required=("full_order_info.pay_info.real_payment",),
            texts=("full_order_info.buyer_info.fans_nickname", "full_order_info.orders.title"),
        )
        return row

    def order(self, sale: Sale, at: float) -> Row:
        """An order as it looks at `at`, as the list shows it. Times that have not come are empty texts."""
        person, state = sale.person, sale.state(at)
        assert person is not None
        status, words = STATUSES[state]

        def told(instant: int | None) -> str:
            return shop_time(instant) if instant is not None and instant <= at else ""

        return {
            "order_info": {
                "tid": tid_of(sale),
                "status": status,
                "status_str": words,
                "type": 0,
                "pay_type": 2 if sale.is_paid(at) else 0,
                "close_type": {"closed_unpaid": 1, "refunded": 2}.get(state, 0),
                "express_type": 0,
                "refund_state": self._refund_state(sale, at),
                "team_type": 0,
                "created": shop_time(sale.created),
                "update_time": shop_time(sale.modified(at)),
                "pay_time": told(sale.paid_at),
                "consign_time": told(sale.shipped_at),
                "confirm_time": told(sale.ended_at),
                "success_time": told(sale.ended_at),
                "expired_time": shop_time(sale.created + DAY),
                "order_tags": {"is_payed": sale.is_paid(at), "is_refund": state == "refunded"},
                "node_kdt_id": int(GRANT_ID),
            },
            # without postage: the list's payment is not what the buyer paid
            "pay_info": {
                "total_fee": yuan(sale.goods - sale.discount),
                "post_fee": yuan(sale.postage),
                "payment": yuan(sale.goods - sale.discount),
                "transaction": [str(sale.order_id)[:16]] if sale.is_paid(at) else [],
            },
            "buyer_info": {
                "yz_open_id": self.open_id(person),
                "buyer_id": 9_100_000_000_000_000 + person.person_id,
                "buyer_phone": person.phone,
                "fans_id": 0,
                "fans_type": 0,
                "fans_nickname": person.name,
                "outer_user_id": "",
            },
            "address_info": {
                "receiver_name": self._sealed("name", person.name),
                "receiver_tel": self._sealed("tel", person.phone),
                "delivery_province": person.place[0],
                "delivery_city": person.place[1],
                "delivery_district": person.place[2],
                "delivery_address": self._sealed("address", str(person.person_id)),
            },
            "remark_info": {"buyer_message": "", "trade_memo": sale.remark or "", "star": 0},
            "source_info": {"source": {"platform": "wx", "wx_entrance": "direct_buy"}, "is_offline_order": False},
            "orders": [
                {
                    "oid": str(oid_of(sale, number)),
                    "item_id": self.world.items[line.item].num_iid,
                    "sku_id": 0,
                    "outer_item_id": self.world.items[line.item].code,
                    "outer_sku_id": "",
                    "title": self.world.items[line.item].title,
                    "num": line.num,
                    "price": yuan(line.price),
                    "total_fee": yuan(line.paid),
                    "payment": yuan(line.paid),
                    "points_price": "0",
                    "is_present": False,
                    "item_type": 0,
                }
                for number, line in enumerate(sale.lines)
            ],
        }

    @staticmethod
    def _refund_state(sale: Sale, at: float) -> int:
        """0 none, 1 a part is being refunded, 2 was, 11 and 12 the whole."""
        states = [refund.state(at) for refund in sale.refunds]
        whole = {refund.line for refund in sale.refunds} == set(range(len(sale.lines)))
        if "requested" in states:
            return 11 if whole else 1
        if "settled" in states:
            return 12 if sale.state(at) == "refunded" else 2
        return 0

    def open_id(self, person: Person) -> str:
        return "yz" + self.world.chance.text(LETTERS, 22, "yz_open_id", person.person_id)

    def _sealed(self, kind: str, value: str) -> str:
        """A recipient's value as the shop's key encrypts it: unreadable, and the same for the same value."""
        return f"${self.world.chance.text(LETTERS + '+/', 32, 'yz key', kind, value)}$1$"

    # ---------------------------------------------------------------------------------------------------- refunds

    def refunds(self, body: Row, now: float, fault: Fault | None) -> Row:
        shop = self.world.shops["youzan"]
        page, size = self._integer(body, "page_no", 1, DEEPEST_PAGE), self._integer(body, "page_size", 20, 100)
        if page * size > REFUND_DEPTH:
            raise BusinessError(101500006, f"page_no乘以page_size不能超过{REFUND_DEPTH}")
        created = self._pair(body, "create_time_start", "create_time_end", _seconds)
        updated = self._pair(body, "update_time_start", "update_time_end", _seconds)
        if created is None and updated is None:
            created = (float(months_before(now, 3)), now)

        def found() -> list[ShopRefund]:
            first, last = updated or (0.0, now)
            rows = shop.refunds_changed_between(first, last, now)
            if created:
                rows = [refund for refund in rows if created[0] <= refund.created <= created[1]]
            if body.get("tid"):
                rows = [refund for refund in rows if tid_of(refund.sale) == body["tid"]]
            if body.get("status"):
                rows = [refund for refund in rows if refund_status(refund, now) == body["status"]]
            return rows

        rows = found()
        # a refund that is decided while the list is paged; the seller's remark moves only the order
        if shift_rows(fault, rows, lambda refund, at: shop.touch(refund.sale, at), now):
            rows = found()
        part = [self.refund_row(refund, now) for refund in rows[(page - 1) * size : page * size]]
        part = spoil_rows(
            fault,
            part,
            ids=("refund_id",),
            nullable=("reason", "cs_status"),
            required=("refund_id",),
            texts=("reason",),
        )
        return {"total": len(rows), "refunds": emptied(fault, part)}

    def refund_row(self, refund: ShopRefund, now: float) -> Row:
        return {
            "refund_id": str(refund.refund_id),
            "tid": tid_of(refund.sale),
            "status": refund_status(refund, now),
            "return_goods": refund.returns_goods,
            "reason": "质量问题" if refund.returns_goods else "多拍/拍错/不想要",
            "refund_fee": yuan(refund.amount),
            "created": refund.created,
            "modified": refund.modified(now),
            "cs_status": 1,
        }

    def refund(self, body: Row, now: float, fault: Fault | None) -> Row:
        found = str(body.get("refund_id") or "")
        refund = self.world.shops["youzan"].refund(int(found), now) if found.isdigit() else None
        if refund is None:
            raise BusinessError(101500007, "退款单不存在")
        row, settled = self.refund_row(refund, now), refund.state(now) == "settled"
        row["refund_fund_list"] = [
            {
                "refund_no": f"RF{refund.refund_id}",
                "refund_fee": refund.amount,
                "status": 2 if settled else 0,
                "pay_way": "WX_PAY",
                "refund_mode": 1,
            }
        ]
        if settled:
            row |= {"refund_account_time": refund.settled, "refund_success_time": refund.settled}
        if refund.state(now) == "refused":
            row["refund_fund_list"] = []
        (row,) = spoil_rows(
            fault if fault and fault.kind != "duplicate_page" else None,
            [row],
            ids=("refund_id",),
            nullable=("reason", "cs_status"),
            required=("refund_fee",),
            texts=("reason",),
        )
        return row

    # ---------------------------------------------------------------------------------------------------- people

    def customers(self, body: Row, now: float, fault: Fault | None) -> Row:
        page, size = self._integer(body, "page_no", 1, 500), self._integer(body, "page_size", 20, 50)
        if page * size > self.world.settings.youzan_customer_depth:
            raise BusinessError(142710032, "查询深度超过限制")
        unit = 1000 if self.world.settings.youzan_customer_milliseconds else 1
        created = self._pair(body, "created_at_start", "created_at_end", lambda value: _seconds(value) / unit)
        rows = [
            customer
            for customer in reversed(self.world.shops["youzan"].customers(now))
            if (created is None or created[0] <= customer.joined <= created[1])
            and (body.get("is_member") in (None, "") or int(body["is_member"]) == int(customer.is_member))
        ]
        part = [self.customer_row(customer, now) for customer in rows[(page - 1) * size : page * size]]
        part = spoil_rows(
            fault,
            part,
            nullable=("gender", "created_member_at", "name"),
            required=("yz_open_id",),
            texts=("show_name", "name"),
        )
        return {"total": len(rows), "record_list": emptied(fault, part)}

    def customer_row(self, customer: Customer, now: float) -> Row:
        return {
            "yz_open_id": self.open_id(customer.person),
            "show_name": customer.person.name,
            "name": customer.person.name,
            "mobile": customer.person.phone,
            "gender": 0,
            "is_member": int(customer.is_member),
            "points": customer.points(now),
            "trade_count": customer.order_count(now),
            "created_at": customer.joined,
            "created_member_at": customer.joined if customer.is_member else None,
        }

    # ---------------------------------------------------------------------------------------------------- coupons, reviews

    def coupons(self, body: Row, now: float, fault: Fault | None) -> Row:
        """Not confirmed by any page: the shop's voucher activities."""
        page, size = self._integer(body, "page_no", 1, DEEPEST_PAGE), self._integer(body, "page_size", 20, 50)
        rows: list[Row] = []
        for number, (title, off, least, total) in enumerate(COUPONS):
            begins, ends = self._activity_times(number)
            taken = max(0, min(total, int((min(now, ends) - begins) // DAY) * (number + 2)))
            rows.append(
                {
                    "activity_id": FIRST_ACTIVITY + number,
                    "title": title,
                    "status": "on" if begins <= now < ends else "end" if now >= ends else "future",
                    "value": yuan(off),
                    "condition": yuan(least),
                    "start_at": shop_time(begins),
                    "end_at": shop_time(ends),
                    "total_qty": total,
                    "taken_qty": taken,
                    "used_qty": taken // 3,
                    "updated_at": shop_time(begins),
                }
            )
        part = spoil_rows(
            fault,
            rows[(page - 1) * size : page * size],
            ids=("activity_id",),
            nullable=("total_qty",),
            required=("activity_id",),
            texts=("title",),
        )
        return {"is_success": "true", "total": len(rows), "list": emptied(fault, part)}

    def send_voucher(self, body: Row, now: float, fault: Fault | None) -> Row:
        """One more voucher with every call: there is no key that would make a repetition harmless."""
        number = body.get("activity_id")
        position = number - FIRST_ACTIVITY if isinstance(number, int) else -1
        if not 0 <= position < len(COUPONS):
            raise BusinessError(160000001, "活动不存在")
        assert isinstance(number, int)
        title, _off, _least, total = COUPONS[position]
        begins, ends = self._activity_times(position)
        if not begins <= now < ends:
            raise BusinessError(160000002, "活动未开始或已结束")
        open_id = str(body.get("yz_open_id") or "")
        if open_id not in {self.open_id(one.person) for one in self.world.shops["youzan"].customers(now)}:
            raise BusinessError(160000003, "用户不存在")
        if sum(activity == number for activity, _receiver, _at in self.vouchers.values()) >= total:
            raise BusinessError(160000004, "优惠券已领完")
        coupon_id = 9_100_000_000_000_001 + len(self.vouchers)
        self.vouchers[coupon_id] = (number, open_id, int(now))
        self.world.counters.grants[f"youzan:{number}:{open_id}"] += 1
        return {"voucher_identity": {"coupon_id": coupon_id, "coupon_type": 0}, "title": title}

    def voucher(self, body: Row, now: float, fault: Fault | None) -> Row:
        """The fields are those of the old answer to a taking; today's are not confirmed."""
        found = self.vouchers.get(body.get("coupon_id") or 0)
        if found is None or body.get("coupon_type") != 0:
            raise BusinessError(160000005, "优惠券不存在")
        activity, _open_id, given = found
        _begins, ends = self._activity_times(activity - FIRST_ACTIVITY)
        used = (
            given + DAY if self.world.chance("voucher used", body["coupon_id"]) < self.world.settings.redeem else None
        )
        is_used = used is not None and used <= now
        return {
            "coupon_id": body["coupon_id"],
            "coupon_type": 0,
            "is_used": is_used,
            "used_at": shop_time(used) if is_used and used is not None else "",
            "is_expired": not is_used and ends <= now,
            "is_invalid": False,
            "end_at": shop_time(ends),
        }

    def _activity_times(self, position: int) -> tuple[int, int]:
        begins = self.world.history.start + position * 40 * DAY
        return begins, begins + (30 if COUPONS[position][0] == "已结束的活动" else 365) * DAY

    def reviews(self, body: Row, now: float, fault: Fault | None) -> Row:
        """In the old SDK; whether it is still served, and with which fields, is not confirmed."""
        page, size = self._integer(body, "page", 1, DEEPEST_PAGE), self._integer(body, "page_size", 20, 100)
        rows: Sequence[ShopReview] = self.world.shops["youzan"].reviews_between(0, now, now)
        part = [
            {
                "id": str(review.review_id),
                "tid": tid_of(review.sale),
                "item_id": self.world.items[review.sale.lines[review.line].item].num_iid,
                "rate": review.stars,
                "content": review.content,
                "created": shop_time(review.created),
                "reply": review.reply if review.replied and review.replied <= now else "",
            }
            for review in rows[(page - 1) * size : page * size]
        ]
        part = spoil_rows(fault, part, ids=("id", "item_id"), nullable=("reply",), required=("id",), texts=("content",))
        return {"total_results": len(rows), "reviews": emptied(fault, part)}


INSTANTS: dict[str, Callable[[Sale, float], int | None]] = {
    "created": lambda sale, at: sale.created,
    "success": lambda sale, at: sale.ended_at if sale.state(at) == "finished" else None,
    "pay": lambda sale, at: sale.paid_at if sale.is_paid(at) else None,
}


def tid_of(sale: Sale) -> str:
    """E, the day, and the number of the order."""
    return f"E{shop_time(sale.created)[:10].replace('-', '')}{sale.order_id:019d}"


def oid_of(sale: Sale, line: int) -> int:
    return (sale.order_id - 5_000_000_000_000_000_000) * 10 + line


def refund_status(refund: ShopRefund, now: float) -> str:
    state = refund.state(now)
    if state == "requested":
        return "WAIT_BUYER_RETURN_GOODS" if refund.returns_goods else "WAIT_SELLER_AGREE"
    return "SUCCESS" if state == "settled" else "SELLER_REFUSE_BUYER"


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,13}", str(value)):
        raise ValueError(value)
    return float(value)


def _object(request: Request) -> Row | None:
    """The JSON object of a request; an empty body is an empty object."""
    try:
        body = request.json() if request.body else {}
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None
