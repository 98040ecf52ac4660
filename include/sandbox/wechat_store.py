"""The WeChat store (微信小店, /channels/ec/): orders, after-sale, products, members and coupons of one shop of the world.

Same address and tokens as the official account, another appid: a token of the one is nobody at the other.
"""

import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from .clock import DAY, HOUR, day_of
from .faults import Fault, clock_of, shift_rows, spoil_page
from .people import LETTERS, Person
from .shops import Customer, Line, Sale, Shop, ShopItem, ShopRefund
from .state import World
from .wechat_tokens import Body, WechatAccount, WechatError
from .wire import Answer, Request, json_answer

APPID = "wxnightmarketstore1"
SHOP_NAME = "夜市微信小店"
ORDER_SPAN = 7 * DAY
ORDER_PAGE, PRODUCT_PAGE, COUPON_PAGE, MEMBER_PAGE = 100, 30, 200, 100
DAY_CALLS = 500_000
STATUSES = {"unpaid": 10, "paid": 20, "shipped": 30, "finished": 100, "refunded": 200, "closed_unpaid": 250}
CARRIERS = (("SF", "顺丰速运"), ("YTO", "圆通速递"), ("ZTO", "中通快递"))
LATER_UNPAID = 0.5  # of the orders closed without payment: bought "pay later", with a pay_time that proves nothing


@dataclass(frozen=True, slots=True)
class StoreCoupon:
    coupon_id: int
    name: str
    status: int  # 1 editing, 2 live, 3 expired, 4 void
    face: int  # fen
    minimum: int  # fen
    begins: int  # days from the anchor
    ends: int
    issued: int
    received: int
    used: int


COUPONS = (
    StoreCoupon(9_600_000_000_000_000_101, "新客立减5元", 2, 500, 0, -90, 90, 5000, 812, 301),
    StoreCoupon(9_600_000_000_000_000_103, "满100减15", 2, 1500, 10_000, -30, 60, 2000, 440, 96),
    StoreCoupon(9_600_000_000_000_000_107, "双十一满200减40", 3, 4000, 20_000, -200, -150, 3000, 3000, 1711),
    StoreCoupon(9_600_000_000_000_000_109, "中秋满99减20 🌕", 4, 2000, 9_900, -120, -80, 1000, 12, 3),
    StoreCoupon(9_600_000_000_000_000_113, "年货节满300减60", 1, 6000, 30_000, 20, 50, 1000, 0, 0),
)


class WechatStore(WechatAccount):
    platform = "wechat_store"
    prefixes = ("/channels/ec/",)

    def __init__(self, world: World) -> None:
        super().__init__(world, APPID, secrets.token_hex(16))
        self.handlers: dict[str, Callable[[Body, float, Fault | None], Body]] = {
            "order/list/get": self.order_list,
            "order/get": self.order_get,
            "aftersale/getaftersalelist": self.aftersale_list,
            "aftersale/getaftersaleorder": self.aftersale_get,
            "product/list/get": self.product_list,
            "product/get": self.product_get,
            "vip/user/list/get": self.member_list,
            "coupon/get_list": self.coupon_list,
            "coupon/get": self.coupon_get,
            "basics/info/get": self.basics,
        }
        self.reset()

    @property
    def shop(self) -> Shop:
        return self.world.shops[self.platform]

    def reset(self) -> None:
        self.reset_tokens()
        self.calls: Counter[str] = Counter()  # by day
        self.minute, self.minute_calls = 0, 0

    def access(self, base_url: str) -> dict[str, Any]:
        return {"base_url": base_url, "appid": self.appid, "secret": self.secret, "shop_name": SHOP_NAME}

    def method(self, request: Request) -> str:
        return request.path.removeprefix("/")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        path, now = request.path.removeprefix("/channels/ec/"), self.world.now()
        if not self.world.settings.wechat_store_ip_allowed:
            return Answer(b"", 403, content_type="text/plain")  # the one refusal without an errcode
        handler = self.handlers.get(path)
        if handler is None:
            return Answer(b"Not Found", 404, content_type="text/plain")
        try:
            if (request.method == "GET") != (path == "basics/info/get"):
                wanted = "GET" if path == "basics/info/get" else "POST"
                raise WechatError(43001, f"require {wanted} method")
            self._check_token(request, clock_of(fault, now), fault)
            if fault and fault.kind == "platform_busy":
                raise WechatError(-1, "system error, please try again later")
            self._check_quota(now, fault)
            return json_answer({"errcode": 0, **handler(self._body(request), now, fault)})
        except WechatError as error:
            self.world.counters.refused[self.platform][str(error.body["errcode"])] += 1
            number = self.world.chance.bits("rid", time.monotonic_ns())
            return json_answer({**error.body, "errmsg": f"{error.body['errmsg']} rid: {number:016x}"})

    def _check_quota(self, now: float, fault: Fault | None) -> None:
        minute = int(time.monotonic() / 60)
        if minute != self.minute:
            self.minute, self.minute_calls = minute, 0
        self.minute_calls += 1
        if self.minute_calls > self.world.settings.wechat_store_minute_calls:
            raise WechatError(45011, "api minute-quota reach limit, must slower, retry next minute")
        day = day_of(now).isoformat()
        self.calls[day] += 1
        if self.calls[day] > DAY_CALLS or (fault and fault.kind == "call_limit"):
            raise WechatError(45009, "reach max api daily quota limit")

    # ---------------------------------------------------------------------------------------------------- lists

    def _list(
        self, path: str, body: Body, size: int, found: Callable[[], list[int]], fault: Fault | None
    ) -> tuple[list[str], str, bool, int]:
        """(ids of the page, next_key, whether there is more, how many there are). A next_key knows the parameters it is for."""
        asked = sha256(orjson.dumps([path, {**body, "next_key": ""}], option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
        start = self._start(str(body.get("next_key") or ""), asked)
        ids = found()
        page = ids[start : start + size]
        has_more = start + size < len(ids)
        rows = spoil_page(fault, [{"id": str(one)} for one in page], start > 0 or has_more, ids=("id",))
        following = urlsafe_b64encode(f"{start + size}|{asked}".encode()).decode() if has_more else ""
        return [row["id"] for row in rows], following, has_more, len(ids)

    @staticmethod
    def _start(next_key: str, asked: str) -> int:
        if not next_key:
            return 0
        try:
            start, _, owner = urlsafe_b64decode(next_key).decode().partition("|")
            place = int(start)
        except ValueError:
            raise WechatError(40097, "invalid args: next_key") from None
        if owner != asked:
            raise WechatError(606006, "next_key does not match the other parameters")
        return place

    @staticmethod
    def _size(body: Body, name: str, largest: int) -> int:
        size = body.get(name, 10)
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= largest:
            raise WechatError(40097, f"invalid args: {name}")
        return size

    @staticmethod
    def _span(start: object, end: object, longest: int) -> tuple[int, int]:
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (start, end))
        if not whole or not 0 <= end - start <= longest:  # type: ignore[operator]
            raise WechatError(40097, "invalid args: time range")
        return start, end  # type: ignore[return-value]

    # ---------------------------------------------------------------------------------------------------- orders

    def order_list(self, body: Body, now: float, fault: Fault | None) -> Body:
        ranges = {name: body[name] for name in ("create_time_range", "update_time_range") if body.get(name)}
        if not ranges or not all(isinstance(value, dict) for value in ranges.values()):
            raise WechatError(40097, "invalid args: create_time_range or update_time_range")
        spans = {
            name: self._span(value.get("start_time"), value.get("end_time"), ORDER_SPAN)
            for name, value in ranges.items()
        }
        status, openid = body.get("status"), body.get("openid")
        if status is not None and status not in STATUSES.values():
            raise WechatError(40097, "invalid args: status")

        def found() -> list[int]:
            if "update_time_range" in spans:
                sales = self.shop.changed_between(*spans["update_time_range"], now)
            else:
                sales = self.shop.created_between(*spans["create_time_range"], now)
            if len(spans) == 2:
                low, high = spans["create_time_range"]
                sales = [sale for sale in sales if low <= sale.created <= high]
            if status is not None:
                sales = [sale for sale in sales if STATUSES[sale.state(now)] == status]
            if openid:
                sales = [sale for sale in sales if self._openid(sale.person) == openid]
            return [sale.order_id for sale in sales]

        ids = found()
        if len(ids) > self.world.settings.wechat_store_window_orders:
            raise WechatError(31042, "too many orders, please narrow the time range")
        sales = [sale for one in ids if (sale := self.shop.sale(one, now))]
        shift_rows(fault, sales, self.shop.touch, now)
        page, following, has_more, _ = self._list(
            "order/list/get", body, self._size(body, "page_size", ORDER_PAGE), found, fault
        )
        return {"order_id_list": page, "next_key": following, "has_more": has_more}

    def order_get(self, body: Body, now: float, fault: Fault | None) -> Body:
        sale = self.shop.sale(self._id(body, "order_id"), now)
        if sale is None:
            raise WechatError(40097, "invalid args: order_id")
        orders = spoil_page(
            fault,
            [self._order(sale, now)],
            False,
            ids=("order_id", "order_detail.product_infos.product_id", "order_detail.product_infos.sku_id"),
            nullable=("unionid", "order_detail.ext_info.customer_notes", "order_detail.delivery_info.address_info"),
            required=("order_id",),
            texts=("order_detail.product_infos.title", "order_detail.ext_info.customer_notes"),
        )
        return {"errmsg": "ok", "order": orders[0]}

    @staticmethod
    def _id(body: Body, name: str) -> int:
        value = body.get(name)
        if not isinstance(value, str) or not value.isdecimal():  # a number loses digits in half of the clients: refused
            raise WechatError(40097, f"invalid args: {name}")
        return int(value)

    def _openid(self, person: Person | None) -> str:
        assert person is not None
        return "o" + self.world.chance.text(LETTERS + "-_", 27, "store_openid", person.person_id)

    def _unionid(self, person: Person | None) -> str:
        """The id the person has in every account of the company; the same that the official account will show."""
        assert person is not None
        return "u" + self.world.chance.text(LETTERS + "-_", 27, "unionid", person.person_id)

    def _order(self, sale: Sale, now: float) -> Body:
        chance, person, state = self.world.chance, sale.person, sale.state(now)
        assert person is not None
        method, pay_time = self._payment(sale, now)
        shipped = sale.shipped_at is not None and sale.shipped_at <= now
        finished = state == "finished"
        carrier, carrier_name = chance.pick(CARRIERS, "carrier", sale.order_id)
        open_refunds = [refund for refund in sale.refunds if refund.state(now) == "requested"]
        known_refunds = [refund for refund in sale.refunds if refund.state(now)]
        detail: Body = {
            "product_infos": [self._product_info(sale, line, now) for line in sale.lines],
            "price_info": {
                "product_price": sale.goods,
                "order_price": sale.paid_amount,
                "freight": sale.postage,
                "discounted_price": sale.discount,
                "is_discounted": sale.discount > 0,
                "original_order_price": sale.goods + sale.postage,
            },
            "pay_info": {"payment_method": method},
            "delivery_info": {
                "address_info": {
                    "user_name": person.nick,
                    "tel_number": f"{person.phone[:3]}****{person.phone[-4:]}",
                    "province_name": person.place[0],
                    "city_name": person.place[1],
                    "county_name": person.place[2],
                    "hash_code": sha256(f"address{person.person_id}".encode()).hexdigest()[:32],
                },
                "delivery_product_info": [],
            },
            "ext_info": {"customer_notes": "", "merchant_notes": sale.remark or "", "order_scene": 1},
        }
        if pay_time is not None:
            detail["pay_info"] |= {"pay_time": pay_time, "prepay_time": sale.created}
            if method == 1:
                detail["pay_info"]["transaction_id"] = f"4200{chance.bits('transaction', sale.order_id)}"
        if shipped:
            detail["delivery_info"]["delivery_product_info"] = [
                {
                    "waybill_id": f"{carrier}{chance.bits('waybill', sale.order_id) % 10**12:012d}",
                    "delivery_id": carrier,
                    "delivery_name": carrier_name,
                    "delivery_time": sale.shipped_at,
                    "product_infos": [{"product_id": str(self._product_id(line.item)), "product_cnt": line.num} for line in sale.lines],
                }
            ]  # fmt: skip
        if finished:
            detail["ext_info"]["confirm_receipt_time"] = sale.ended_at
        return {
            "order_id": str(sale.order_id),
            "openid": self._openid(person),
            "unionid": self._unionid(person),
            "status": STATUSES[state],
            "create_time": sale.created,
            "update_time": sale.modified(now),
            "is_present": False,
            "order_detail": detail,
            "aftersale_detail": {
                "on_aftersale_order_cnt": len(open_refunds),
                "aftersale_order_list": [{"aftersale_order_id": str(refund.refund_id)} for refund in known_refunds],
            },
        }

    def _payment(self, sale: Sale, now: float) -> tuple[int, int | None]:
        """(payment_method, pay_time). Who pays later has a pay_time from the start and may never pay."""
        draw = self.world.chance("pays later", sale.order_id)
        if sale.paid_at is None:
            return (2, sale.created + 30) if draw < LATER_UNPAID else (1, None)
        if draw < self.world.settings.wechat_store_pay_later:
            return 2, sale.created + 30
        return 1, sale.paid_at if sale.paid_at <= now else None

    def _product_id(self, item: int) -> int:
        return self.world.items[item].num_iid

    def _sku_id(self, item: int) -> int:
        return self.world.items[item].num_iid * 10 + 1

    def _product_info(self, sale: Sale, line: Line, now: float) -> Body:
        item = self.world.items[line.item]
        refunds = [refund for refund in sale.refunds if sale.lines[refund.line] is line]
        return {
            "product_id": str(self._product_id(line.item)),
            "sku_id": str(self._sku_id(line.item)),
            "sku_code": item.code,
            "title": item.title,
            "sku_cnt": line.num,
            "sale_price": line.price,
            "market_price": line.price,
            "real_price": line.paid,
            "on_aftersale_sku_cnt": sum(refund.num for refund in refunds if refund.state(now) == "requested"),
            "finish_aftersale_sku_cnt": sum(refund.num for refund in refunds if refund.state(now) == "settled"),
            "is_free_gift": False,
            "sku_attrs": [],
        }

    # ---------------------------------------------------------------------------------------------------- after-sale

    def aftersale_list(self, body: Body, now: float, fault: Fault | None) -> Body:
        if "page_size" in body:
            raise WechatError(40097, "invalid args: page_size")
        for kind in ("update", "create"):
            start, end = body.get(f"begin_{kind}_time"), body.get(f"end_{kind}_time")
            if start is not None or end is not None:
                break
        low, high = self._span(start, end, self.world.settings.wechat_store_aftersale_hours * HOUR)

        def found() -> list[int]:
            if kind == "update":
                refunds = self.shop.refunds_changed_between(low, high, now)
            else:
                refunds = [
                    refund for refund in self.shop.refunds_changed_between(0, now, now) if low <= refund.created <= high
                ]
            return [refund.refund_id for refund in refunds]

        if fault and fault.kind == "shifting_page":  # what can be modified here are the orders behind them
            refunds = [refund for one in found() if (refund := self.shop.refund(one, now))]
            shift_rows(fault, [refund.sale for refund in refunds], self.shop.touch, now)
        size = self.world.settings.wechat_store_aftersale_page
        page, following, has_more, _ = self._list("aftersale/getaftersalelist", body, size, found, fault)
        return {"errmsg": "ok", "after_sale_order_id_list": page, "next_key": following, "has_more": has_more}

    def aftersale_get(self, body: Body, now: float, fault: Fault | None) -> Body:
        refund = self.shop.refund(self._id(body, "after_sale_order_id"), now)
        if refund is None:
            raise WechatError(40097, "invalid args: after_sale_order_id")
        rows = spoil_page(
            fault,
            [self._aftersale(refund, now)],
            False,
            ids=("after_sale_order_id", "order_id", "product_info.product_id", "product_info.sku_id"),
            nullable=("unionid", "reason"),
            required=("after_sale_order_id",),
            texts=("reason_text",),
        )
        return {"errmsg": "ok", "after_sale_order": rows[0]}

    def _aftersale(self, refund: ShopRefund, now: float) -> Body:
        state = refund.state(now)
        kind = "RETURN" if refund.returns_goods else "REFUND"
        status = {
            "requested": "USER_WAIT_RETURN" if refund.returns_goods else "MERCHANT_PROCESSING",
            "settled": f"MERCHANT_{kind}_SUCCESS",
            "refused": f"MERCHANT_REJECT_{kind}",
        }[state or "requested"]
        line = refund.sale.lines[refund.line]
        answer: Body = {
            "after_sale_order_id": str(refund.refund_id),
            "order_id": str(refund.sale.order_id),
            "openid": self._openid(refund.sale.person),
            "unionid": self._unionid(refund.sale.person),
            "type": kind,
            "status": status,
            "product_info": {
                "product_id": str(self._product_id(line.item)),
                "sku_id": str(self._sku_id(line.item)),
                "count": refund.num,
            },
            "refund_info": {"amount": refund.amount},
            "create_time": refund.created,
            "update_time": refund.modified(now),
            "reason": "RETURN_OTHER" if refund.returns_goods else "INCORRECT_SELECTION",
            "reason_text": "七天无理由" if refund.returns_goods else "拍错",
        }
        if state in ("settled", "refused"):
            answer["complete_time"] = refund.settled
        return answer

    # ---------------------------------------------------------------------------------------------------- products

    def product_list(self, body: Body, now: float, fault: Fault | None) -> Body:
        size = self._size(body, "page_size", PRODUCT_PAGE)
        status = body.get("status")

        def found() -> list[int]:
            return [item.num_iid for item in self.shop.items() if status in (None, self._item_status(item))]

        page, following, _, total = self._list("product/list/get", body, size, found, fault)
        return {"errmsg": "ok", "product_ids": page, "next_key": following, "total_num": total}

    @staticmethod
    def _item_status(item: ShopItem) -> int:
        return 5 if item.is_listed else 11  # on the shelf; taken off it by the shop

    def product_get(self, body: Body, now: float, fault: Fault | None) -> Body:
        wanted = self._id(body, "product_id")
        item = next((item for item in self.shop.items() if item.num_iid == wanted), None)
        if item is None:
            raise WechatError(40097, "invalid args: product_id")
        product = {
            "product_id": str(item.num_iid),
            "out_product_id": "",
            "spu_code": item.code,
            "title": item.title,
            "status": self._item_status(item),
            "edit_status": 4,
            "min_price": item.price,
            "edit_time": item.modified,
            "skus": [{"sku_id": str(self._sku_id(item.item)), "sku_code": item.code, "sale_price": item.price}],
        }
        rows = spoil_page(
            fault, [product], False, ids=("product_id", "skus.sku_id"), nullable=("out_product_id", "edit_status"),
            required=("product_id",), texts=("title",),
        )  # fmt: skip
        return {"errmsg": "ok", "product": rows[0]}

    # ---------------------------------------------------------------------------------------------------- members

    def member_list(self, body: Body, now: float, fault: Fault | None) -> Body:
        size, number = self._size(body, "page_size", MEMBER_PAGE), body.get("page_num")
        if not isinstance(number, int) or number < 1:
            raise WechatError(40097, "invalid args: page_num")
        customers = self.shop.customers(now)
        rows = [
            self._member(customer, bool(body.get("need_phone_number")), now)
            for customer in customers[(number - 1) * size : number * size]
        ]
        rows = spoil_page(
            fault, rows, True, nullable=("unionid", "user_grade_info.experience_value"), required=("openid",)
        )
        return {"errmsg": "ok", "list": rows, "total_num": len(customers)}

    def _member(self, customer: Customer, with_phone: bool, now: float) -> Body:
        return {
            "openid": self._openid(customer.person),
            "unionid": self._unionid(customer.person),
            "user_info": {"phone_number": customer.person.phone} if with_phone else {},
            "user_grade_info": {"grade": customer.level, "experience_value": str(customer.points(now))},
        }

    # ---------------------------------------------------------------------------------------------------- coupons

    def coupon_list(self, body: Body, now: float, fault: Fault | None) -> Body:
        if missing := [name for name in ("status", "page", "page_size", "page_ctx") if name not in body]:
            raise WechatError(40097, f"invalid args: {missing[0]}")
        size, page, status = self._size(body, "page_size", COUPON_PAGE), body["page"], body["status"]
        if status not in (1, 2, 3, 4, 5, 200):
            raise WechatError(40097, "invalid args: status")
        if not isinstance(page, int) or page < 1:
            raise WechatError(40097, "invalid args: page")
        before = int(body["page_ctx"]) if str(body["page_ctx"]).isdecimal() else 0
        if page - before > 10:
            raise WechatError(40097, "invalid args: page jumps too far")
        wanted = (3, 4) if status == 200 else (status,)
        ids = [coupon.coupon_id for coupon in COUPONS if coupon.status in wanted]
        rows = [{"coupon_id": str(one)} for one in ids[(page - 1) * size : page * size]]
        rows = spoil_page(fault, rows, True, ids=("coupon_id",))
        return {"errmsg": "ok", "coupons": rows, "total_num": len(ids), "page_ctx": str(page)}

    def coupon_get(self, body: Body, now: float, fault: Fault | None) -> Body:
        wanted = self._id(body, "coupon_id")
        coupon = next((coupon for coupon in COUPONS if coupon.coupon_id == wanted), None)
        if coupon is None:
            raise WechatError(40097, "invalid args: coupon_id")
        begins, ends = (self.world.history.end + days * DAY for days in (coupon.begins, coupon.ends))
        row = {
            "coupon_id": str(coupon.coupon_id),
            "type": 102,
            "status": coupon.status,
            "create_time": begins - DAY,
            "update_time": begins,
            "coupon_info": {
                "name": coupon.name,
                "valid_info": {"valid_type": 1, "start_time": begins, "end_time": ends},
                "discount_info": {
                    "discount_fee": coupon.face,
                    "discount_condition": {"product_price": coupon.minimum},
                },
                "receive_info": {"start_time": begins, "end_time": ends, "total_num": coupon.issued},
            },
            "stock_info": {
                "issued_num": coupon.issued - coupon.received,
                "receive_num": coupon.received,
                "used_num": coupon.used,
            },
        }
        rows = spoil_page(
            fault, [row], False, ids=("coupon_id",), nullable=("coupon_info.receive_info",), required=("coupon_id",),
            texts=("coupon_info.name",),
        )  # fmt: skip
        return {"errmsg": "ok", "coupon": rows[0]}

    def basics(self, body: Body, now: float, fault: Fault | None) -> Body:
        return {"errmsg": "ok", "info": {"username": "gh_nightmarketstore", "nickname": SHOP_NAME, "status": "opened"}}
