"""JD (京东 POP): the JOS gateway, `POST|GET /routerjson`, and its OAuth, `/oauth2/...`.

Verifies what the real gateway verifies (signature, token, clock, windows, page sizes, call rate) and refuses with its
envelopes, misspelt root included. What no published page confirms is assumed as README.md says.
"""

import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import md5
from typing import Any, ClassVar
from urllib.parse import urlencode

import orjson

from .clock import DAY, HOUR, MINUTE, day_of, months_before, parse_shop_time, shop_time
from .faults import Fault, clock_of, emptied, shift_rows, spoil_rows
from .people import LETTERS, Person
from .shops import Sale, ShopItem, ShopRefund, ShopReview, yuan
from .state import World
from .wire import Answer, Request, json_answer

Row = dict[str, Any]
VENDER_ID, SHOP_ID, SHOP_NAME = 10_820_731, 10_669_115, "夜市京东店"
CLOCK_TOLERANCE = 6 * MINUTE
CREATED_MONTHS, MODIFIED_MONTHS = 24, 3
APPLIED_DAYS, APPROVED_DAYS = 7, 10
REFRESH_BEFORE = 24 * HOUR
CODE_LIFE = 5 * MINUTE
PAY_LAG = 10 * MINUTE  # until `actualPay` follows a payment
DEEPEST_REFUND_PAGE = 100
NEVER = "0001-01-01 00:00:00"
PAYMENT_UNMAINTAINED = parse_shop_time("2024-10-01 00:00:00")  # orderPayment says nothing of later orders
STATES = (
    "WAIT_SELLER_STOCK_OUT",
    "WAIT_GOODS_RECEIVE_CONFIRM",
    "WAIT_SELLER_DELIVERY",
    "PAUSE",
    "FINISHED_L",
    "TRADE_CANCELED",
    "LOCKED",
    "POP_ORDER_PAUSE",
)
PRIVILEGED = ("jingdong.asc.serviceAndRefund.view", "jingdong.pop.PopCommentJsfService.getVenderCommentsForJos")


class JdError(Exception):
    """The gateway refuses: `error_response`."""

    def __init__(self, code: int, zh: str, en: str) -> None:
        super().__init__(en)
        self.code, self.zh, self.en = code, zh, en


class BusinessError(Exception):
    """The service refuses, inside a result: `success` is false."""

    def __init__(self, code: int, zh: str, en: str) -> None:
        super().__init__(en)
        self.code, self.zh, self.en = code, zh, en


@dataclass(slots=True)
class Grant:
    """An access token, its refresh token and their end."""

    app_key: str
    access: str
    refresh: str
    ends: float
    ended: bool = False  # before its time: replaced, or by the fault expired_token
    follower: "Grant | None" = None  # what it was renewed to


def signature(params: Mapping[str, str], secret: str) -> str:
    """JOS's rule: every parameter but `sign`, name and value, sorted by name, between two secrets, MD5, upper case."""
    joined = "".join(name + value for name, value in sorted(params.items()) if name != "sign")
    return md5(f"{secret}{joined}{secret}".encode()).hexdigest().upper()


def sku_of(num_iid: int) -> int:
    return num_iid * 10 + 1


class Jd:
    platform: ClassVar[str] = "jd"
    prefixes: ClassVar[tuple[str, ...]] = ("/routerjson", "/oauth2/")

    def __init__(self, world: World) -> None:
        self.world = world
        # The second application lacks the permission packages of PRIVILEGED.
        self.apps = {secrets.token_hex(16).upper(): secrets.token_hex(16) for _ in range(2)}
        self._first = (secrets.token_hex(20), secrets.token_hex(20))
        self.methods: dict[str, Callable[[Row, float, Fault | None], Row]] = {
            "jingdong.pop.order.search": self.orders,
            "jingdong.pop.order.get": self.order,
            "jingdong.vender.shop.query": self.shop,
            "jingdong.pop.afs.soa.refundapply.queryPageList": self.refunds,
            "jingdong.asc.serviceAndRefund.view": self.aftersales,
            "jingdong.pop.PopCommentJsfService.getVenderCommentsForJos": self.comments,
            "jingdong.sku.read.searchSkuList": self.skus,
            "jingdong.ware.read.searchWare4Valid": self.wares,
        }
        self.reset()

    def reset(self) -> None:
        main = next(iter(self.apps))
        ends = self.world.history.end + self.world.settings.jd_token_days * DAY
        grant = Grant(main, *self._first, ends)
        self.grants = {grant.access: grant}
        self.renewals = {grant.refresh: grant}
        self.codes: dict[str, tuple[str, float]] = {}  # OAuth code -> application, until when
        self._second, self._calls = 0, 0
        self._day, self._day_calls = "", 0
        self._answers = 0

    def access(self, base_url: str) -> Row:
        (app_key, app_secret), (basic_key, basic_secret) = self.apps.items()
        grant = next(iter(self.grants.values()))
        return {
            "gateway_url": f"{base_url}/routerjson",
            "oauth_url": f"{base_url}/oauth2",
            "app_key": app_key,
            "app_secret": app_secret,
            "access_token": grant.access,
            "refresh_token": grant.refresh,
            "expires_at": shop_time(int(grant.ends)).replace(" ", "T") + "+08:00",
            "basic_app": {"app_key": basic_key, "app_secret": basic_secret},
            "shop_name": SHOP_NAME,
        }

    def method(self, request: Request) -> str:
        """The JOS method, or `oauth2/refresh_token`."""
        if request.path.startswith("/oauth2/"):
            return request.path.strip("/")
        return request.form.get("method", "")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        now = clock_of(fault, self.world.now())
        if request.path.startswith("/oauth2/"):
            return self.oauth(request, now, fault)
        self._answers += 1
        try:
            name, body = self._check(request, now, fault)
        except JdError as error:
            self.world.counters.refused[self.platform][str(error.code)] += 1
            said = {"code": str(error.code), "zh_desc": error.zh, "en_desc": error.en}
            return json_answer({"error_response": said})
        if fault and fault.kind == "platform_busy":  # the newer gateway's form
            said = {"code": "503", "errorMessage": "服务繁忙", "errorSolution": "请稍后重试", "requestId": "0"}
            return json_answer(said)
        result = self.methods[name](body, self.world.now(), fault)
        return json_answer({f"{name.replace('.', '_')}_responce": {"code": "0", **result}})

    # ---------------------------------------------------------------------------------------------------- the gateway

    def _check(self, request: Request, now: float, fault: Fault | None) -> tuple[str, Row]:
        """Method and business parameters of a call that may be made."""
        params = request.form
        missing = (
            ("method", 14, "方法名缺失", "Missing method"),
            ("v", 4, "版本号缺失", "Missing version"),
            ("app_key", 20, "app_key缺失", "Missing app_key"),
            ("timestamp", 7, "时间戳缺失", "Missing timestamp"),
            ("sign", 11, "签名缺失", "Missing signature"),
        )
        for name, code, zh, en in missing:
            if not params.get(name):
                raise JdError(code, zh, en)
        if params["v"] != "2.0":
            raise JdError(5, "不支持的版本号", "Unsupported version")
        secret = self.apps.get(params["app_key"])
        if secret is None:
            raise JdError(21, "无效app_key", "Invalid app_key")
        if not hmac.compare_digest(signature(params, secret).encode(), params["sign"].encode()):
            raise JdError(12, "无效签名", "Invalid signature")
        try:
            at = parse_shop_time(params["timestamp"][:19])
        except ValueError:
            raise JdError(8, "无效时间戳", "Invalid timestamp") from None
        if abs(at - now) > CLOCK_TOLERANCE:
            raise JdError(8, "无效时间戳", "Invalid timestamp")
        name = params["method"]
        if name not in self.methods:
            raise JdError(15, "不存在的方法名", "Invalid method")
        self._check_token(params.get("access_token", ""), params["app_key"], now, fault)
        if name in PRIVILEGED and params["app_key"] != next(iter(self.apps)):
            raise JdError(24, "该应用没有调用此接口的权限", "No permission for this api")
        self._limit(now, fault)
        try:
            body = orjson.loads(params.get("360buy_param_json") or b"{}")
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict):
            raise JdError(10, "业务参数不是JSON对象", "Invalid 360buy_param_json")
        return name, {key: value for key, value in body.items() if value is not None}

    def _check_token(self, value: str, app_key: str, now: float, fault: Fault | None) -> None:
        if not value:
            raise JdError(18, "access_token缺失", "Missing access_token")
        grant = self.grants.get(value)
        if fault and fault.kind == "expired_token" and grant:
            grant.ended = True
        if fault and fault.kind == "revoked_token":
            raise JdError(19, "无效access_token", "Invalid access_token")
        if grant is None or grant.ended or grant.ends <= now or grant.app_key != app_key:
            raise JdError(19, "无效access_token", "Invalid access_token")

    def _limit(self, now: float, fault: Fault | None) -> None:
        """Calls of this second, by the machine's clock, and of this day, by the sandbox's."""
        settings, second, day = self.world.settings, int(time.monotonic()), day_of(now).isoformat()
        if second != self._second:
            self._second, self._calls = second, 0
        if day != self._day:
            self._day, self._day_calls = day, 0
        self._calls += 1
        self._day_calls += 1
        over = self._calls > settings.jd_rate or 0 < settings.jd_calls_per_day < self._day_calls
        if over or (fault and fault.kind == "call_limit"):
            raise JdError(2, "超过调用次数限制", "Call limit exceeded")

    # ---------------------------------------------------------------------------------------------------- OAuth

    def oauth(self, request: Request, now: float, fault: Fault | None) -> Answer:
        def refusal(code: int, words: str) -> Answer:
            self.world.counters.refused[self.platform][f"oauth {code}"] += 1
            return json_answer({"code": code, "msg": words, "requestId": secrets.token_hex(8)}, 400)

        params, call = request.form, request.path.removeprefix("/oauth2/")
        app_key = params.get("app_key", "")
        if app_key not in self.apps:
            return refusal(1004, "app_key不存在")
        if call == "to_login":  # the shop's owner logs in and agrees at once
            if params.get("response_type") != "code" or not params.get("redirect_uri"):
                return refusal(1001, "response_type或redirect_uri不正确")
            code = secrets.token_urlsafe(6)
            self.codes[code] = (app_key, now + CODE_LIFE)
            query = urlencode({"code": code, "state": params.get("state", "")})
            return Answer(b"", 302, {"Location": f"{params['redirect_uri']}?{query}"})
        if params.get("app_secret") != self.apps[app_key]:
            return refusal(1005, "app_secret不正确")
        if fault and fault.kind == "revoked_token":
            return refusal(1100, "授权已被取消")
        if call == "access_token" and params.get("grant_type") == "authorization_code":
            owner, until = self.codes.pop(params.get("code", ""), ("", 0.0))
            if owner != app_key or until <= now:
                return refusal(1010, "code无效或已过期")
            return json_answer(self._told(self._grant(app_key, now), now))
        if call == "refresh_token" and params.get("grant_type") == "refresh_token":
            grant = self.renewals.get(params.get("refresh_token", ""))
            if grant is None or grant.app_key != app_key or grant.ends <= now:
                return refusal(1011, "refresh_token无效或已过期")
            if grant.follower is None:
                if grant.ends - now > REFRESH_BEFORE and not grant.ended:
                    return refusal(1012, "access_token尚未到可刷新时间")
                grant.follower, grant.ended = self._grant(app_key, now), True
            return json_answer(self._told(grant.follower, now))
        return refusal(1000, "grant_type不支持")

    def _grant(self, app_key: str, now: float) -> Grant:
        ends = now + self.world.settings.jd_token_days * DAY
        grant = Grant(app_key, secrets.token_hex(20), secrets.token_hex(20), ends)
        self.grants[grant.access] = self.renewals[grant.refresh] = grant
        return grant

    def _told(self, grant: Grant, now: float) -> Row:
        return {
            "access_token": grant.access,
            "refresh_token": grant.refresh,
            "expires_in": int(grant.ends - now),
            "time": int(now * 1000),
            "token_type": "bearer",
            "scope": "snsapi_base",
            "xid": f"o*{SHOP_ID}",
        }

    # ---------------------------------------------------------------------------------------------------- arguments

    @staticmethod
    def _integer(body: Row, name: str, default: int | None, high: int, *, text: bool = False) -> int:
        """A number between 1 and `high`; `text`: JD wants it as a decimal string."""
        value = body.get(name, default)
        right = isinstance(value, str) if text else isinstance(value, int | str) and not isinstance(value, bool)
        number = int(str(value)) if right and re.fullmatch(r"\d{1,9}", str(value)) else 0
        if not 1 <= number <= high:
            raise BusinessError(10_100_012, f"参数{name}错误", f"{name} is invalid")
        return number

    @staticmethod
    def _range(body: Row, start: str, end: str) -> tuple[int, int] | None:
        """Both ends of a time range; None when neither is given."""
        if not body.get(start) and not body.get(end):
            return None
        try:
            first, last = parse_shop_time(str(body.get(start))), parse_shop_time(str(body.get(end)))
        except ValueError:
            raise BusinessError(10_100_013, f"参数{start}或{end}错误", f"{start} or {end} is invalid") from None
        if last < first:
            raise BusinessError(10_100_014, f"{end}早于{start}", f"{end} lies before {start}")
        return first, last

    def _flags(self) -> tuple[Any, Callable[[int], Any]]:
        """How this answer writes `true` and counts: every other one as text, as JD's services do."""
        return ("true", str) if self._answers % 2 else (True, int)

    def _api_result(self, error: BusinessError | None = None) -> Row:
        if error is None:
            return {"success": self._flags()[0], "numberCode": 0, "chineseErrCode": "成功", "englishErrCode": "success"}
        self.world.counters.refused[self.platform][str(error.code)] += 1
        said = {"numberCode": error.code, "chineseErrCode": error.zh, "englishErrCode": error.en}
        return {"success": "false" if self._answers % 2 else False, **said}

    def _failed(self, error: BusinessError) -> Row:
        """The refusal of the services that know no apiResult."""
        self.world.counters.refused[self.platform][str(error.code)] += 1
        return {"success": False, "code": str(error.code), "errorCode": str(error.code), "errorMsg": error.zh}

    # ---------------------------------------------------------------------------------------------------- orders

    def orders(self, body: Row, now: float, fault: Fault | None) -> Row:
        try:
            rows, total = self._search(body, now, fault)
        except BusinessError as error:
            return {"searchorderinfo_result": {"apiResult": self._api_result(error)}}
        result: Row = {"apiResult": self._api_result(), "orderTotal": self._flags()[1](total), "orderInfoList": rows}
        return {"searchorderinfo_result": result}

    def _search(self, body: Row, now: float, fault: Fault | None) -> tuple[list[Row], int]:
        shop = self.world.shops["jd"]
        states = [name for name in str(body.get("order_state", "")).split(",") if name]
        if not states or not set(states) <= set(STATES):
            raise BusinessError(10_100_015, "参数order_state错误", "order_state is invalid")
        fields = self._fields(body)
        page = self._integer(body, "page", None, 1_000_000, text=True)
        size = self._integer(body, "page_size", None, 100, text=True)
        span = self._range(body, "start_date", "end_date")
        if span is None:
            if states != ["WAIT_SELLER_STOCK_OUT"]:
                raise BusinessError(10_100_016, "start_date和end_date不能为空", "start_date and end_date are required")
            span = (int(now) - 28 * DAY, int(now))
        if span[1] > _month_after(span[0]):
            raise BusinessError(10_100_017, "查询时间跨度不能超过一个月", "the time span exceeds one month")
        by_creation = str(body.get("dateType")) == "1"

        def found() -> list[Sale]:
            if by_creation:
                sales = shop.created_between(max(span[0], months_before(now, CREATED_MONTHS)), span[1], now)
            else:
                sales = shop.changed_between(max(span[0], months_before(now, MODIFIED_MONTHS)), span[1], now)
            return [sale for sale in sales if self.state(sale, now) in states]

        sales = found()
        if shift_rows(fault, sales, shop.touch, now):
            sales = found()
        if body.get("open_id_buyer"):
            sales = [sale for sale in sales if sale.person and self.open_id(sale.person) == body["open_id_buyer"]]
        if str(body.get("sortType")) != "1":
            sales.reverse()
        rows = [self.order_row(sale, fields, now) for sale in sales[(page - 1) * size : page * size]]
        return emptied(fault, self._spoilt_orders(fault, rows)), len(sales)

    @staticmethod
    def _fields(body: Row) -> frozenset[str]:
        fields = frozenset(name.strip() for name in str(body.get("optional_fields", "")).split(",") if name.strip())
        if not fields:
            raise BusinessError(10_100_018, "optional_fields不能为空", "optional_fields is required")
        return fields

    @staticmethod
    def _spoilt_orders(fault: Fault | None, rows: list[Row]) -> list[Row]:
        return spoil_rows(
            fault,
            rows,
            ids=("orderId", "venderId", "itemInfoList.skuId", "itemInfoList.wareId"),
            nullable=("actualPay", "xid_buyer", "pin", "orderRemark", "venderRemark", "couponDetailList"),
            required=("orderId",),
            texts=("itemInfoList.skuName", "orderRemark", "venderRemark"),
        )

    def order(self, body: Row, now: float, fault: Fault | None) -> Row:
        try:
            fields = self._fields(body)
            order_id = str(body.get("order_id") or "")
            sale = self.world.shops["jd"].sale(int(order_id), now) if re.fullmatch(r"\d{1,19}", order_id) else None
            if sale is None:
                raise BusinessError(10_100_020, "订单不存在", "the order does not exist")
        except BusinessError as error:
            return {"orderDetailInfo": {"apiResult": self._api_result(error)}}
        one = fault if fault and fault.kind != "duplicate_page" else None
        (row,) = self._spoilt_orders(one, [self.order_row(sale, fields, now)])
        return {"orderDetailInfo": {"apiResult": self._api_result(), "orderInfo": row}}

    @staticmethod
    def state(sale: Sale, now: float) -> str:
        """JD's name of an order's state. It has none for "not paid yet": such an order waits like a paid one."""
        state = sale.state(now)
        if state == "paid" and any(calls_off(r) and r.state(now) == "requested" for r in sale.refunds):
            return "LOCKED"  # the buyer asked to call it off
        return {
            "unpaid": "WAIT_SELLER_STOCK_OUT",
            "paid": "WAIT_SELLER_STOCK_OUT",
            "shipped": "WAIT_GOODS_RECEIVE_CONFIRM",
            "finished": "FINISHED_L",
            "closed_unpaid": "TRADE_CANCELED",
            "refunded": "TRADE_CANCELED",
        }[state]

    def order_row(self, sale: Sale, fields: frozenset[str], now: float) -> Row:
        person, state = sale.person, self.state(sale, now)
        assert person is not None
        paid_at = sale.paid_at if sale.is_paid(now) else None
        shipped_at = sale.shipped_at if sale.shipped_at is not None and sale.shipped_at <= now else None
        ended_at = next((at for at in (sale.ended_at, sale.closed_at) if at is not None and at <= now), None)
        is_odd = sale.order_id % 2 == 1
        # Money is text in one order and a number in the next.
        money: Callable[[int], Any] = (lambda fen: fen / 100) if is_odd else yuan
        row: Row = {
            "orderId": str(sale.order_id),
            "venderId": str(VENDER_ID),
            "orderState": state,
            "orderStateRemark": "",
            "orderType": "22",
            "payType": "4-在线支付",
            "orderTotalPrice": money(sale.goods),
            "orderSellerPrice": money(sale.goods - sale.discount),
            "orderPayment": money(sale.paid_amount if sale.created < PAYMENT_UNMAINTAINED else 0),
            "actualPay": money(sale.paid_amount) if paid_at is not None and paid_at + PAY_LAG <= now else None,
            "shouldPay": money(sale.paid_amount),
            "payDiscount": money(0),
            "freightPrice": money(sale.postage),
            "sellerDiscount": money(sale.discount),
            "totalSellerDiscount": money(sale.discount),
            "totalOriginalPrice": money(sale.goods),
            "orderStartTime": shop_time(sale.created),
            "paymentConfirmTime": shop_time(paid_at) if paid_at is not None else NEVER,
            "outBoundDate": shop_time(shipped_at) if shipped_at is not None else NEVER,
            "orderEndTime": shop_time(ended_at) if ended_at is not None else NEVER,
            "modified": shop_time(sale.modified(now)),
            "pin": self.pin(person),
            "open_id_buyer": self.open_id(person),
            "xid_buyer": "x*" + self.open_id(person)[3:],
            "orderRemark": "",
            "venderRemark": sale.remark or "",
            "orderSource": "移动端订单",
            "returnOrder": "0",
            "consigneeInfo": {
                "fullname": person.name[0] + "**",
                "mobile": person.phone[:3] + "****" + person.phone[-4:],
                "telephone": "",
                "province": person.place[0],
                "city": person.place[1],
                "county": person.place[2],
                "fullAddress": "".join(person.place) + "***",
            },
            "itemInfoList": [self._item_row(line.item, line.num, line.price) for line in sale.lines],
            "couponDetailList": (
                [{"orderId": str(sale.order_id), "couponType": "100-店铺优惠", "couponPrice": yuan(sale.discount)}]
                if sale.discount
                else []
            ),
        }
        if shipped_at is not None:
            row |= {"waybill": f"JDX{sale.order_id % 10**12:012d}", "logisticsId": "2087"}
        return {name: value for name, value in row.items() if name in fields}

    def _item_row(self, number: int, num: int, price: int) -> Row:
        item = self.world.items[number]
        return {
            "skuId": str(sku_of(item.num_iid)),
            "wareId": str(item.num_iid),
            "skuName": item.title,
            "itemTotal": str(num),
            "jdPrice": yuan(price),
            "outerSkuId": item.code,
            "giftPoint": "0",
        }

    def open_id(self, person: Person) -> str:
        return "oJD" + self.world.chance.text(LETTERS, 25, "jd_open_id", person.person_id)

    def pin(self, person: Person) -> str:
        return "jd_" + self.world.chance.text(LETTERS, 13, "jd_pin", person.person_id)

    # ---------------------------------------------------------------------------------------------------- refunds

    def refunds(self, body: Row, now: float, fault: Fault | None) -> Row:
        """Requests to call off an order, by the time they were applied for or checked."""
        try:
            page = self._integer(body, "pageIndex", None, DEEPEST_REFUND_PAGE)
            size = self._integer(body, "pageSize", None, 50)
            applied = self._range(body, "applyTimeStart", "applyTimeEnd")
            checked = self._range(body, "checkTimeStart", "checkTimeEnd")
        except BusinessError as error:
            return {"queryResult": self._failed(error)}
        shop = self.world.shops["jd"]

        def found() -> list[ShopRefund]:
            rows = [refund for refund in shop.refunds_changed_between(0, now, now) if calls_off(refund)]
            if applied:
                rows = [refund for refund in rows if applied[0] <= refund.created <= applied[1]]
            if checked:
                rows = [refund for refund in rows if checked[0] <= (decided_at(refund, now) or -1) <= checked[1]]
            for name, value in (
                ("orderId", lambda refund: refund.sale.order_id),
                ("status", lambda refund: refund_status(refund, now)),
            ):
                if name in body:
                    rows = [refund for refund in rows if str(value(refund)) == str(body[name])]
            return sorted(rows, key=lambda refund: (-refund.created, refund.refund_id))

        rows = found()
        if shift_rows(fault, rows, lambda refund, at: shop.touch(refund.sale, at), now):
            rows = found()
        part = [
            self.refund_row(refund, body.get("showSku") is True, now)
            for refund in rows[(page - 1) * size : page * size]
        ]
        part = spoil_rows(
            fault,
            part,
            ids=("id", "orderId", "skuVoList.skuId"),
            nullable=("checkRemark", "checkUserName", "buyerName"),
            required=("id",),
            texts=("reason", "checkRemark"),
        )
        success, count = self._flags()
        return {"queryResult": {"success": success, "totalCount": count(len(rows)), "result": emptied(fault, part)}}

    def refund_row(self, refund: ShopRefund, with_skus: bool, now: float) -> Row:
        person, line = refund.sale.person, refund.sale.lines[refund.line]
        assert person is not None
        decided = decided_at(refund, now)
        row: Row = {
            "id": refund.refund_id,
            "orderId": str(refund.sale.order_id),
            "buyerId": self.pin(person),
            "buyerName": person.name[0] + "**",
            "status": refund_status(refund, now),
            "applyRefundSum": refund.amount,
            "applyTime": shop_time(refund.created),
            "checkTime": shop_time(decided) if decided is not None else None,
            "modified": shop_time(refund.modified(now)),
            "checkUserName": "客服小京" if decided is not None else None,
            "checkRemark": "",
            "reason": "不想要了",
            "systemId": 1,
        }
        if with_skus:
            item = self.world.items[line.item]
            row["skuVoList"] = [{"skuId": sku_of(item.num_iid), "skuName": item.title, "skuCount": refund.num}]
        return row

    def aftersales(self, body: Row, now: float, fault: Fault | None) -> Row:
        """Services for goods that were sent, with their refunds, by the time they were applied for or approved."""
        try:
            page = self._integer(body, "pageNumber", None, 1_000_000)
            size = self._integer(body, "pageSize", 10, 50)
            applied = self._range(body, "applyTimeBegin", "applyTimeEnd")
            approved = self._range(body, "approveTimeBegin", "approveTimeEnd")
            if not applied and not approved and "orderId" not in body:
                raise BusinessError(10_200_001, "申请时间、审核时间、订单号不能同时为空", "no condition")
            for span, days, what in ((applied, APPLIED_DAYS, "申请"), (approved, APPROVED_DAYS, "审核")):
                if span and span[1] - span[0] > days * DAY:
                    raise BusinessError(10_200_002, f"{what}时间跨度不能超过{days}天", f"more than {days} days")
        except BusinessError as error:
            return {"pageResult": self._failed(error)}
        shop = self.world.shops["jd"]

        def found() -> list[ShopRefund]:
            rows = [refund for refund in shop.refunds_changed_between(0, now, now) if not calls_off(refund)]
            if applied:
                rows = [refund for refund in rows if applied[0] <= refund.created <= applied[1]]
            if approved:
                rows = [refund for refund in rows if approved[0] <= (approved_at(refund, now) or -1) <= approved[1]]
            if "orderId" in body:
                rows = [refund for refund in rows if str(refund.sale.order_id) == str(body["orderId"])]
            return sorted(rows, key=lambda refund: (-refund.created, refund.refund_id))

        rows = found()
        if shift_rows(fault, rows, lambda refund, at: shop.touch(refund.sale, at), now):
            rows = found()
        part = spoil_rows(
            fault,
            [self.aftersale_row(refund, now) for refund in rows[(page - 1) * size : page * size]],
            ids=("afsRefundId", "sameOrderServiceBill.serviceId", "sameOrderServiceBill.orderId"),
            nullable=("sameOrderServiceBill.questionDesc", "sameOrderServiceBill.approveNotes"),
            required=("sameOrderServiceBill.serviceId",),
            texts=("sameOrderServiceBill.questionDesc", "sameOrderServiceBill.wareName"),
        )
        _, count = self._flags()
        result = {"success": True, "code": "00000", "pageNumber": page, "pageSize": size}
        return {"pageResult": {**result, "totalCount": count(len(rows)), "data": emptied(fault, part)}}

    def aftersale_row(self, refund: ShopRefund, now: float) -> Row:
        person, line = refund.sale.person, refund.sale.lines[refund.line]
        assert person is not None
        item, is_settled = self.world.items[line.item], refund.state(now) == "settled"
        approved = approved_at(refund, now)
        amount = refund.amount if self.world.settings.jd_aftersale_fen else refund.amount / 100
        return {
            "afsRefundId": refund.refund_id + 1 if is_settled else None,
            "status": 13 if is_settled else None,
            "refoundAmount": amount if is_settled else None,
            "completeTime": (refund.settled or 0) * 1000 if is_settled else None,
            "sameOrderServiceBill": {
                "serviceId": refund.refund_id,
                "afsApplyId": refund.refund_id + 2,
                "orderId": refund.sale.order_id,
                "wareId": sku_of(item.num_iid),
                "wareName": item.title,
                "customerPin": self.pin(person),
                "afsApplyTime": refund.created * 1000,
                "approveDate": approved * 1000 if approved is not None else None,
                "approveName": "客服小京" if approved is not None else None,
                "approveNotes": "不符合退货条件" if refund.state(now) == "refused" else "",
                "questionDesc": "商品与描述不符",
                "applyReason": "七天无理由",
            },
        }

    # ---------------------------------------------------------------------------------------------------- comments, items

    def comments(self, body: Row, now: float, fault: Fault | None) -> Row:
        try:
            page, size = self._integer(body, "page", None, 1_000_000), self._integer(body, "pageSize", None, 50)
            span = self._range(body, "beginTime", "endTime") or (0, int(now))
        except BusinessError as error:
            self.world.counters.refused[self.platform][str(error.code)] += 1
            return {"resultCode": str(error.code), "resultMsg": error.zh}
        shop = self.world.shops["jd"]

        def found() -> list[ShopReview]:
            rows = shop.reviews_between(span[0], span[1], now)
            wanted = {1: (1,), 2: (2, 3), 3: (4, 5)}.get(int(body.get("score") or 0))  # bad, neutral, good
            return [review for review in rows if wanted is None or review.stars in wanted]

        rows = found()
        if shift_rows(fault, rows, lambda review, at: shop.touch(review.sale, at), now):
            rows = found()
        part = spoil_rows(
            fault,
            [self.comment_row(review, now) for review in rows[(page - 1) * size : page * size]],
            ids=("commentId", "skuid", "orderId"),
            nullable=("nickName", "skuImage", "xid_buyer"),
            required=("commentId",),
            texts=("content", "skuName", "replies.content"),
        )
        answer: Row = {"comments": emptied(fault, part), "page": page, "resultCode": "0"}
        if self.world.settings.jd_comment_total:
            answer["totalItem"] = len(rows)
        return answer

    def comment_row(self, review: ShopReview, now: float) -> Row:
        person = review.sale.person
        assert person is not None
        item = self.world.items[review.sale.lines[review.line].item]
        is_answered = review.replied is not None and review.replied <= now
        # Nobody says how the time is written: one comment has text, the next milliseconds.
        written: Callable[[int], Any] = (lambda at: at * 1000) if review.review_id % 2 else shop_time
        replies = [
            {"replyId": review.review_id + 7, "content": review.reply, "creationTime": written(review.replied or 0)}
        ]
        return {
            "commentId": str(review.review_id),
            "skuid": str(sku_of(item.num_iid)),
            "skuName": item.title,
            "skuImage": "",
            "content": review.content,
            "creationTime": written(review.created),
            "score": review.stars,
            "status": 1,
            "usefulCount": 0,
            "replyCount": len(replies) if is_answered else 0,
            "isVenderReply": is_answered,
            "replies": replies if is_answered else [],
            "images": [],
            "videos": [],
            "imiageStatus": 0,
            "nickName": person.name[0] + "***",
            "pin": self.pin(person),
            "open_id_buyer": self.open_id(person),
            "xid_buyer": "x*" + self.open_id(person)[3:],
            "orderId": review.sale.order_id,
        }

    def skus(self, body: Row, now: float, fault: Fault | None) -> Row:
        states = {part for part in str(body.get("skuStatuValue") or "1,2").split(",") if part}
        return self._listing(body, fault, "page_size", self._sku_row, lambda row: str(row["status"]) in states)

    def wares(self, body: Row, now: float, fault: Fault | None) -> Row:
        return self._listing(body, fault, "pageSize", self._ware_row, lambda _: True)

    def _listing(
        self,
        body: Row,
        fault: Fault | None,
        size_name: str,
        make: Callable[[ShopItem, int], Row],
        wanted: Callable[[Row], bool],
    ) -> Row:
        try:
            page, size = self._integer(body, "pageNo", 1, 1_000_000), self._integer(body, size_name, 20, 50)
            span = self._range(body, "startModifiedTime", "endModifiedTime")
        except BusinessError as error:
            self.world.counters.refused[self.platform][str(error.code)] += 1
            return {"page": None, "code": str(error.code), "zh_desc": error.zh, "en_desc": error.en}
        rows = []
        for item in self.world.shops["jd"].items():
            changed = min(item.modified, self.world.history.end)  # a price of a sale to come is known already
            if span is None or span[0] <= changed <= span[1]:
                rows.append(make(item, changed))
        rows = [row for row in rows if wanted(row)]
        fields = {name.strip() for name in str(body.get("field") or "").split(",") if name.strip()}
        part = [
            {name: value for name, value in row.items() if not fields or name in fields}
            for row in rows[(page - 1) * size : page * size]
        ]
        part = spoil_rows(
            fault,
            part,
            ids=("skuId", "wareId"),
            nullable=("stockNum", "outerId"),
            required=("skuId", "wareId"),
            texts=("skuName", "wareTitle", "title"),
        )
        _, count = self._flags()
        return {"page": {"pageNo": page, "pageSize": size, "totalItem": count(len(rows)), "data": emptied(fault, part)}}

    @staticmethod
    def _sku_row(item: ShopItem, changed: int) -> Row:
        return {
            "skuId": sku_of(item.num_iid),
            "wareId": item.num_iid,
            "skuName": item.title,
            "wareTitle": item.title,
            "outerId": item.code,
            "jdPrice": item.price / 100,
            "status": 1 if item.is_listed else 2,
            "stockNum": 100,
            "created": shop_time(changed),
            "modified": shop_time(changed),
        }

    @staticmethod
    def _ware_row(item: ShopItem, changed: int) -> Row:
        return {
            "wareId": item.num_iid,
            "title": item.title,
            "outerId": item.code,
            "jdPrice": item.price / 100,
            "wareStatus": 8 if item.is_listed else 2,
            "stockNum": 100,
            "created": shop_time(changed),
            "modified": shop_time(changed),
        }

    def shop(self, body: Row, now: float, fault: Fault | None) -> Row:
        return {"shop_jos_result": {"shop_id": SHOP_ID, "vender_id": VENDER_ID, "shop_name": SHOP_NAME}}


def _month_after(at: int) -> int:
    """The same clock time one calendar month later; of a day that month does not have, its last day's end."""
    for days in (31, 30, 29, 28):
        later = at + days * DAY
        if months_before(later, 1) <= at:
            return later
    return at + 28 * DAY


def calls_off(refund: ShopRefund) -> bool:
    """Whether it calls off an order, or a part of it, before it arrives; the others are after-sale services."""
    if not refund.returns_goods or refund.sale.closed_at is not None:
        return True
    return refund.created < (refund.sale.ended_at or 0) and refund.created % 2 == 1  # the parcel is called back


def decided_at(refund: ShopRefund, now: float) -> int | None:
    return refund.settled if refund.settled is not None and refund.settled <= now else None


def approved_at(refund: ShopRefund, now: float) -> int | None:
    """The seller approves half-way between the request and the money; a refusal is its own decision."""
    if refund.settled is None:
        return None
    at = refund.settled if refund.refused else refund.created + (refund.settled - refund.created) // 2
    return at if at <= now else None


def refund_status(refund: ShopRefund, now: float) -> int:
    """0 unreviewed, 2 rejected, 3 approved by JD's finance, 6 called back on its way and refunded, 9 closed by force."""
    state = refund.state(now)
    if state == "settled":
        return 6 if refund.returns_goods else 9 if refund.refund_id % 5 == 0 else 3
    return 2 if state == "refused" else 0
