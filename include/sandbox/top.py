"""Taobao and Tmall: the TOP gateway, `POST|GET /router/rest`.

Verifies what the real gateway verifies (signature, session, clock, windows, page sizes, call rate) and refuses with its
error envelopes. Which methods there are, and what is assumed because no page confirms it, stands in README.md.
"""

import hmac
import math
import re
import secrets
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import md5
from typing import Any
from xml.sax.saxutils import escape

import orjson

from .clock import DAY, MINUTE, months_before, parse_shop_time, shop_time
from .faults import Fault, clock_of, emptied, spoil_rows
from .people import LETTERS, Person
from .state import World
from .wire import Answer, Request
from .world import Refund, Review, Trade

CLOCK_TOLERANCE = 10 * MINUTE
RELATION_ID, BENEFIT_TYPE = "77001", "1"
BENEFITS = {"88001": 300, "88002": 3}  # detail id -> how many there are; one for each buyer
RECEIVERS = ("receiver_id", "ouid", "uid", "nick", "plat_nick", "mix_receiver_id")
HISTORY_MONTHS = 3
REVIEW_DAYS = 180
ITEM_DEPTH = 20_000
SHOP_NICK = "夜市旗舰店"
SESSION_FAULTS = ("expired_session", "expired_token", "revoked_token")  # a session cannot be renewed by a call
SHIFTED = 3  # rows that the fault shifting_page modifies before it answers
MEMBER_PAGES = 1000
GRADES = ("店铺客户", "普通会员", "高级会员", "VIP会员", "至尊VIP")
# What the faults of a page do to which fields.
SPOILT: Mapping[str, Mapping[str, Sequence[str]]] = {
    "trades": {
        "ids": ("tid", "orders.order.oid", "orders.order.num_iid"),
        "nullable": ("buyer_message", "receiver_district", "receiver_zip", "orders.order.logistics_company"),
        "required": ("payment",),
        "texts": ("receiver_name", "orders.order.title"),
    },
    "refunds": {
        "ids": ("tid", "oid", "refund_id"),
        "nullable": ("desc", "reason", "good_status"),
        "required": ("refund_fee",),
        "texts": ("reason", "title"),
    },
    "trade_rates": {
        "ids": ("tid", "oid", "num_iid"),
        "nullable": ("item_price", "valid_score", "reply"),
        "required": ("result",),
        "texts": ("nick", "content"),
    },
    "members": {
        "ids": (),
        "nullable": ("province", "city", "avg_price", "group_ids"),
        "required": ("grade",),
        "texts": ("buyer_nick", "city"),
    },
    "items": {
        "ids": ("num_iid",),
        "nullable": ("outer_id", "list_time"),
        "required": ("title",),
        "texts": ("title",),
    },
}
STATUS_GROUPS = {
    "ALL_WAIT_PAY": {"WAIT_BUYER_PAY", "TRADE_NO_CREATE_PAY"},
    "ALL_CLOSED": {"TRADE_CLOSED", "TRADE_CLOSED_BY_TAOBAO"},
}
Params = Mapping[str, str]
Row = dict[str, Any]


class TopError(Exception):
    """An error envelope."""

    def __init__(self, code: int, msg: str, sub_code: str = "", sub_msg: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.body = {"code": code, "msg": msg}
        if sub_code:
            self.body |= {"sub_code": sub_code, "sub_msg": sub_msg or msg}


def missing(name: str) -> TopError:
    return TopError(40, f"Missing required arguments:{name}", f"isv.missing-parameter:{name}", f"缺少必要的参数:{name}")


def invalid(name: str, why: str) -> TopError:
    return TopError(41, f"Invalid arguments:{name}", f"isv.invalid-parameter:{name}", why)


def signature(params: Params, secret: str, sign_method: str) -> str:
    """The sign of a set of parameters: every non-empty one but `sign`, sorted by name, digested as `sign_method` says."""
    joined = "".join(name + value for name, value in sorted(params.items()) if name != "sign" and name and value)
    if sign_method == "md5":
        return md5((secret + joined + secret).encode()).hexdigest().upper()
    digest = {"hmac": "md5", "hmac-sha256": "sha256"}[sign_method]
    return hmac.new(secret.encode(), joined.encode(), digest).hexdigest().upper()


@dataclass(frozen=True, slots=True)
class Fields:
    """What `fields` asked for: names of the row itself, and of its orders (empty: none, {"*"}: all)."""

    own: frozenset[str]
    orders: frozenset[str]


@dataclass(slots=True)
class Member:
    """What the shop's customer list says of one buyer as of a moment."""

    person: Person
    trades: int = 0  # paid
    amount: int = 0  # milli
    closed: int = 0
    closed_amount: int = 0
    pieces: int = 0
    last_trade: int | None = None
    modified: int = 0

    @property
    def source(self) -> int:
        """1 traded, 2 has not; nobody here was added by the seller (3)."""
        return 1 if self.trades else 2


@lru_cache(1024)
def parse_fields(text: str) -> Fields:
    names = {name.strip() for name in text.split(",") if name.strip()}
    orders = {"*"} if "orders" in names else {name[7:] for name in names if name.startswith("orders.")}
    if "orders.order" in names:
        orders = {"*"}
    return Fields(frozenset(names), frozenset(orders))


@lru_cache(1 << 17)
def yuan(milli: int) -> str:
    """Thousandths as a decimal string: two decimals, three where the data has three."""
    sign, milli = ("-", -milli) if milli < 0 else ("", milli)
    whole, rest = divmod(milli, 1000)
    return f"{sign}{whole}.{rest:03d}" if rest % 10 else f"{sign}{whole}.{rest // 10:02d}"


class Top:
    platform = "taobao"
    prefixes = ("/router/rest",)

    def __init__(self, world: World) -> None:
        self.world = world
        self.app_key, self.app_secret = str(23_000_000 + secrets.randbelow(10**6)), secrets.token_hex(16)
        self.session = "6100" + secrets.token_hex(28)
        self.reset()
        self.methods: dict[str, Callable[[Params, float, Fault | None], Row]] = {
            "taobao.trades.sold.get": self.sold,
            "taobao.trades.sold.history.get": self.history,
            "taobao.trades.sold.increment.get": self.increment,
            "taobao.trade.fullinfo.get": self.fullinfo,
            "taobao.refunds.receive.get": self.refunds,
            "taobao.refund.get": self.refund,
            "taobao.traderates.get": self.traderates,
            "taobao.items.onsale.get": self.items,
            "taobao.trades.simple.sold.get": self.sold,
            "taobao.trades.simple.sold.increment.get": self.increment,
            "taobao.trade.simple.get": self.fullinfo,
            "taobao.crm.members.search": self.members,
            "taobao.crm.members.increment.get": self.changed_members,
            "taobao.user.seller.get": self.seller,
            "taobao.time.get": self.time,
            "taobao.promotion.benefit.activity.send": self.benefit_send,
            "taobao.promotion.benefit.activity.detail.get": self.benefit_detail,
        }

    def reset(self) -> None:
        self._members: tuple[tuple[int, ...], list[Member]] = ((), [])
        self._second = 0
        self._calls: Counter[str] = Counter()  # of this second, by method
        self._banned_until: dict[str, float] = {}
        self._benefits: dict[str, tuple[str, Row]] = {}  # unique_id -> (request, result)
        self._benefits_of: Counter[tuple[str, str]] = Counter()  # by benefit and receiver
        self._benefits_given: Counter[str] = Counter()

    def access(self, base_url: str) -> dict[str, Any]:
        return {
            "gateway_url": f"{base_url}/router/rest",
            "app_key": self.app_key,
            "app_secret": self.app_secret,
            "session": self.session,
            "shop_nick": SHOP_NICK,
            "benefits": [
                {"relation_id": RELATION_ID, "detail_id": detail_id, "benefit_type": BENEFIT_TYPE, "count": count}
                for detail_id, count in BENEFITS.items()
            ],
        }

    def method(self, request: Request) -> str:
        return request.form.get("method", "")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        params = request.form
        number = self.world.chance.bits("request", time.monotonic_ns())
        request_id = f"{number:016x}"[:13]
        try:
            self._check(request, params, fault)
            name = params["method"]
            result = self.methods[name](params, self.world.now(), fault)
            if ".simple." in name:
                result = _without_receivers(result)
            root = name.removeprefix("taobao.").replace(".", "_") + "_response"
            body: Row = {root: {**result, "request_id": request_id}}
        except TopError as error:
            self.world.counters.refused[self.platform][str(error.code)] += 1
            body = {"error_response": {**error.body, "request_id": request_id}}
        if params.get("format", "xml") != "json":
            root, content = next(iter(body.items()))
            text = '<?xml version="1.0" encoding="utf-8" ?>' + as_xml(root, content)
            return Answer(text.encode(), content_type="text/xml;charset=UTF-8")
        if params.get("simplify") == "true" and "error_response" not in body:
            body = _simplified(next(iter(body.values())))
        return Answer(orjson.dumps(body), content_type="text/javascript;charset=UTF-8")

    # ---------------------------------------------------------------------------------------------------- the gateway

    def _check(self, request: Request, params: Params, fault: Fault | None) -> None:
        if request.method not in ("GET", "POST"):
            raise TopError(9, "Http Action Not Allowed")
        for name, code, text in (("method", 21, "Missing Method"), ("app_key", 28, "Missing App Key")):
            if not params.get(name):
                raise TopError(code, text)
        if params["app_key"] != self.app_key:
            raise TopError(29, "Invalid app Key", "isv.appkey-not-exists", "appkey不存在")
        if not params.get("v"):
            raise TopError(32, "Missing Version")
        if params["v"] != "2.0":
            raise TopError(33, "Invalid Version")
        if params.get("format", "xml") not in ("json", "xml"):
            raise TopError(23, "Invalid Format")
        if not params.get("timestamp"):
            raise TopError(30, "Missing Timestamp")
        if not params.get("sign"):
            raise TopError(24, "Missing Signature")
        sign_method = params.get("sign_method", "md5")
        if sign_method not in ("md5", "hmac", "hmac-sha256"):
            raise TopError(25, "Invalid Signature")
        if not hmac.compare_digest(signature(params, self.app_secret, sign_method).encode(), params["sign"].encode()):
            raise TopError(25, "Invalid Signature")
        try:
            at = parse_shop_time(params["timestamp"])
        except ValueError:
            raise TopError(31, "Invalid Timestamp", "isv.invalid-parameter", "时间戳格式错误") from None
        if abs(at - clock_of(fault, self.world.now())) > CLOCK_TOLERANCE:
            raise TopError(31, "Invalid Timestamp", "isv.invalid-parameter", "时间戳与服务器时间相差超过10分钟")
        if params["method"] not in self.methods:
            raise TopError(22, "Invalid Method", "isv.invalid-method", "不存在的方法名")
        self._limit(params["method"], fault)
        if params["method"] != "taobao.time.get":
            if not params.get("session"):
                raise TopError(26, "Missing session", "isv.missing-parameter:session", "session不能为空")
            if params["session"] != self.session or (fault and fault.kind in SESSION_FAULTS):
                raise TopError(27, "Invalid session", "invalid-sessionkey", "SessionKey非法")
        if fault and fault.kind == "platform_busy":
            raise TopError(15, "Remote service error", "isp.service-unavailable", "服务不可用")

    def _limit(self, method: str, fault: Fault | None) -> None:
        """The call rate per method, by the machine's seconds, as callers pace themselves by them."""
        settings, now = self.world.settings, time.monotonic()
        if int(now) != self._second:
            self._second, self._calls = int(now), Counter()
        self._calls[method] += 1
        wait = self._banned_until.get(method, 0.0) - now
        if fault and fault.kind == "call_limit":
            wait = fault.seconds
        elif wait <= 0 and self._calls[method] > settings.top_rate:
            wait = settings.top_ban_seconds
            self._banned_until[method] = now + wait
        if wait > 0:
            raise TopError(
                7,
                "App Call Limited",
                "accesscontrol.limited-by-app-api-access-count",
                f"This ban will last for {max(1, round(wait))} more seconds",
            )

    # ------------------------------------------------------------------------------------------------- benefits

    def benefit_send(self, params: Params, now: float, fault: Fault | None) -> Row:
        """Idempotent on unique_id; what happens to the same one with another content is not confirmed: refused here."""
        request = self._object(params, "send_request")
        given = [name for name in RECEIVERS if params.get(name)]
        if len(given) != 1:
            raise invalid("receiver_id", "接收人参数必须且只能填写一个")
        unique_id = str(request.get("unique_id") or "")
        if not unique_id:
            raise invalid("send_request", "unique_id不能为空")
        self.world.counters.grant_calls[unique_id] += 1
        detail_id = str(request.get("detail_id"))
        if str(request.get("relation_id")) != RELATION_ID or detail_id not in BENEFITS:
            raise TopError(15, "Remote service error", "isv.benefit-not-exist", "权益不存在")
        if str(request.get("benefit_type")) != BENEFIT_TYPE or request.get("send_count") != 1:
            raise invalid("send_request", "benefit_type或send_count错误")
        receiver = params[given[0]]
        content = f"{given[0]}={receiver}&{params['send_request']}"
        earlier = self._benefits.get(unique_id)
        if earlier and earlier[0] != content:
            raise TopError(15, "Remote service error", "isv.unique-id-conflict", "unique_id重复且内容不一致")
        if earlier:
            return earlier[1]
        error = ""
        known = {
            "receiver_id": lambda: receiver in self.world.by_open_uid,
            "ouid": lambda: any(self._ouid(person) == receiver for person in self.world.buyers),
        }
        if not known.get(given[0], lambda: False)():
            error = "RECEIVER_NOT_EXIST"
        elif self._benefits_of[detail_id, receiver]:
            error = "EXCEED_USER_LIMIT"
        elif self._benefits_given[detail_id] >= BENEFITS[detail_id]:
            error = "BENEFIT_NOT_ENOUGH"
        row: Row = {"index_id": 0, "success_count": int(not error), "failure_count": int(bool(error))}
        if error:
            row["error_code_list"] = {"string": [error]}
        else:
            self._benefits_of[detail_id, receiver] += 1
            self._benefits_given[detail_id] += 1
            self.world.counters.grants[unique_id] += 1
        result = {"is_success": True, "unique_id": unique_id, "result_list": {"benefit_send_result_ext": [row]}}
        if not error:
            self._benefits[unique_id] = (content, result)
        return result

    def benefit_detail(self, params: Params, now: float, fault: Fault | None) -> Row:
        """The benefits of a relation, as a JSON text inside the JSON; which fields they have is not confirmed."""
        query = self._object(params, "query_request")
        if query.get("status") not in ("VALID", "DELETE"):
            raise invalid("query_request", "status必须为VALID或DELETE")
        found = str(query.get("relation_id")) == RELATION_ID and query["status"] == "VALID"
        rows = (
            [{"relation_id": RELATION_ID, "detail_id": name, "status": "VALID"} for name in BENEFITS] if found else []
        )
        return {"is_success": True, "relation_benefit_details": orjson.dumps(rows).decode()}

    @staticmethod
    def _object(params: Params, name: str) -> Row:
        if not params.get(name):
            raise missing(name)
        try:
            content = orjson.loads(params[name])
        except orjson.JSONDecodeError:
            content = None
        if not isinstance(content, dict):
            raise invalid(name, f"{name}必须是JSON对象")
        return content

    # ---------------------------------------------------------------------------------------------------- lists

    def _page(
        self, params: Params, rows: Sequence[Any], largest: int, default: int = 40, most: int | None = None
    ) -> tuple[Sequence[Any], Row]:
        """The rows of the page asked for, and the part of the answer that counts."""
        page_no = self._integer(params, "page_no", 1, 1, 1_000_000)
        size = self._integer(params, "page_size", default, 1, largest)
        if most is not None:
            rows = rows[:most]
        part = rows[(page_no - 1) * size : page_no * size]
        if params.get("use_has_next", "false").lower() == "true":
            return part, {"has_next": page_no * size < len(rows)}
        return part, {"total_results": len(rows)}

    @staticmethod
    def _integer(params: Params, name: str, default: int, low: int, high: int) -> int:
        text = params.get(name) or str(default)
        if not re.fullmatch(r"\d{1,19}", text) or not low <= int(text) <= high:
            raise invalid(name, f"{name}的值必须在{low}到{high}之间")
        return int(text)

    @staticmethod
    def _time(params: Params, name: str, default: float | None = None) -> float:
        text = params.get(name)
        if not text:
            if default is None:
                raise missing(name)
            return default
        try:
            return parse_shop_time(text)
        except ValueError:
            raise invalid(name, f"{name}的格式必须是yyyy-MM-dd HH:mm:ss") from None

    @staticmethod
    def _fields(params: Params) -> Fields:
        if not params.get("fields"):
            raise missing("fields")
        return parse_fields(params["fields"])

    def _listed(self, outer: str, inner: str, rows: list[Row], counts: Row, fault: Fault | None, id_name: str) -> Row:
        """A double-nested list; without rows it is absent."""
        rows = emptied(fault, spoil_rows(fault, rows, **SPOILT[outer]))
        if fault and rows:
            if fault.kind == "missing_id":
                rows[0].pop(id_name, None)
                rows[0].pop(f"{id_name}_str", None)
            elif fault.kind == "bad_value":
                rows[0] |= {name: "not a number" for name in ("payment", "refund_fee", "item_price") if name in rows[0]}
        return {**counts, outer: {inner: rows}} if rows else counts

    # ---------------------------------------------------------------------------------------------------- trades

    def _recent(self, now: float) -> int:
        """Trades created before this instant are history."""
        return months_before(now, HISTORY_MONTHS)

    def _answer_trades(
        self, params: Params, found: list[tuple[int, int]], largest: int, now: float, fault: Fault | None
    ) -> Row:
        """One page of the trades found, (instant, tid) each, filtered as the parameters say."""
        fields, trades = self._fields(params), self.world.trades
        for matches in self._filters(params, now):
            found = [entry for entry in found if matches(trades[entry[1]])]
        part, counts = self._page(params, found, largest)
        rows = [self.trade(trades[tid], fields, now) for _, tid in part]
        return self._listed("trades", "trade", rows, counts, fault, "tid")

    @staticmethod
    def _filters(params: Params, now: float) -> Iterator[Callable[[Trade], bool]]:
        status, nick = params.get("status"), params.get("buyer_nick")
        buyer = params.get("buyer_open_uid") or params.get("buyer_open_id")
        if status:
            wanted = STATUS_GROUPS.get(status, {status})
            yield lambda trade: trade.status(now) in wanted
        if buyer:
            yield lambda trade: trade.buyer.open_uid == buyer
        if nick:
            yield lambda trade: trade.buyer.nick == nick
        if params.get("type") and not {"fixed", "guarantee_trade"} & set(params["type"].split(",")):
            yield lambda trade: False  # every trade here is of type fixed

    def sold(self, params: Params, now: float, fault: Fault | None) -> Row:
        return self._by_creation(params, self._recent(now), now, 100, now, fault)

    def history(self, params: Params, now: float, fault: Fault | None) -> Row:
        return self._by_creation(params, 0, self._recent(now) - 1, 50, now, fault)

    def _by_creation(
        self, params: Params, first: float, last: float, largest: int, now: float, fault: Fault | None
    ) -> Row:
        start = self._time(params, "start_created", first)
        end = self._time(params, "end_created", now)
        if start > end:
            raise invalid("start_created", "start_created不能晚于end_created")
        found = self.world.created_between(max(start, first), min(end, last, now))
        return self._answer_trades(params, found, largest, now, fault)

    def increment(self, params: Params, now: float, fault: Fault | None) -> Row:
        self._fields(params)
        start, end = self._time(params, "start_modified"), self._time(params, "end_modified")
        if not 0 < end - start <= DAY:
            raise invalid("end_modified", "start_modified和end_modified的间隔必须大于0且不超过1天")
        if fault and fault.kind == "shifting_page":
            for _, tid in self.world.changed_between(start, end, now)[:SHIFTED]:
                self.world.touch(self.world.trades[tid], int(now))
        recent, trades = self._recent(now), self.world.trades
        found = [entry for entry in self.world.changed_between(start, end, now) if trades[entry[1]].created >= recent]
        return self._answer_trades(params, found, 100, now, fault)

    def fullinfo(self, params: Params, now: float, fault: Fault | None) -> Row:
        fields = self._fields(params)
        if not params.get("tid"):
            raise missing("tid")
        trade = self.world.trades.get(self._integer(params, "tid", 0, 1, 9 * 10**18))
        if trade is None or trade.created > now:
            raise TopError(15, "Remote service error", "isv.trade-not-exist", "交易不存在")
        return {"trade": spoil_rows(fault, [self.trade(trade, fields, now)], **SPOILT["trades"])[0]}

    def trade(self, trade: Trade, fields: Fields, now: float) -> Row:
        """A trade as it looks at `now`, with the fields asked for."""
        own, buyer, lines = fields.own, trade.buyer, self.world.lines
        status = trade.status(now)
        first, last = trade.first, trade.last
        single = last - first == 1
        amount = yuan(sum(lines.total(line) for line in range(first, last)))
        paid = trade.paid is not None and trade.paid <= now
        row: Row = {
            "tid": trade.tid,
            "tid_str": str(trade.tid),
            "status": status,
            "type": "fixed",
            "title": SHOP_NICK,
            "created": shop_time(trade.created),
            "modified": shop_time(trade.modified(now)),
            "payment": amount,
            "total_fee": amount,
            "post_fee": "0.00",
            "discount_fee": "0.00",
            "adjust_fee": "0.00",
            "received_payment": amount if status == "TRADE_FINISHED" else "0.00",
            "commission_fee": "0.00",
            "point_fee": 0,
            "real_point_fee": 0,
            "buyer_obtain_point_fee": 0,
            "num": lines.num[first] if single else 0,
            "seller_nick": SHOP_NICK,
            "buyer_nick": buyer.nick,
            "buyer_area": buyer.place[0] + buyer.place[1],
            "receiver_name": buyer.name,
            "receiver_mobile": buyer.phone,
            "receiver_state": buyer.place[0],
            "receiver_city": buyer.place[1],
            "receiver_district": buyer.place[2],
            "receiver_address": "******",
            "receiver_zip": "000000",
            "shipping_type": "express",
            "trade_from": "WAP,TAOBAO" if trade.tid % 7 else "TAOBAO",
            "seller_flag": trade.flag,
            "seller_rate": False,
            "buyer_rate": self._reviewed(trade, now),
        }
        if single:
            row["num_iid"] = self.world.items[lines.item[first]].num_iid
        for name, at in (("pay_time", trade.paid), ("consign_time", trade.consigned), ("end_time", trade.ended)):
            if at is not None and at <= now:
                row[name] = shop_time(at)
        if paid:
            row["alipay_no"] = str(trade.tid)[:18]
        row = {name: value for name, value in row.items() if name in own}
        if "buyer_nick" in own:
            row["buyer_open_uid"] = buyer.open_uid
        if "ouid" in own:
            row["ouid"] = self._ouid(buyer)
        if fields.orders:
            row["orders"] = {"order": self._orders(trade, status, fields.orders, now)}
        return row

    @staticmethod
    def _reviewed(trade: Trade, now: float) -> bool:
        return any(review.created <= now for review in trade.reviews)

    def _orders(self, trade: Trade, status: str, wanted: frozenset[str], now: float) -> list[Row]:
        lines, items, rated = self.world.lines, self.world.items, self._reviewed(trade, now)
        sent = trade.consigned is not None and trade.consigned <= now
        common: Row = {
            "refund_status": "NO_REFUND",
            "discount_fee": "0.00",
            "adjust_fee": "0.00",
            "part_mjz_discount": "0.00",
            "status": status,
            "seller_type": "B",
            "cid": 50_012_345,
            "buyer_rate": rated,
            "seller_rate": False,
            "order_from": "WAP,TAOBAO",
            "is_free_gift": False,
        }
        if sent:
            common["consign_time"] = shop_time(trade.consigned or 0)
            common["logistics_company"] = "中通快递"
            common["invoice_no"] = f"ZT{trade.tid % 10**12:012d}"
        if trade.ended is not None and trade.ended <= now:
            common["end_time"] = shop_time(trade.ended)
        every = "*" in wanted
        if not every:
            common = {name: value for name, value in common.items() if name in wanted}
        refunds = {refund.line: refund for refund in trade.refunds if refund.created <= now}  # the latest per line
        rows = []
        for line in range(trade.first, trade.last):
            item, num, milli = items[lines.item[line]], lines.num[line], lines.milli[line]
            oid, total = trade.oid(line), yuan(num * milli)
            row = {
                "oid": oid,
                "oid_str": str(oid),
                "num_iid": item.num_iid,
                "outer_iid": item.code,
                "title": item.title,
                "price": yuan(milli),
                "num": num,
                "total_fee": total,
                "payment": total,
                "divide_order_fee": total,
            }
            if not every:
                row = {name: value for name, value in row.items() if name in wanted}
            row |= common
            if refunds and line in refunds:
                row |= self._line_refund(trade, refunds[line], now, wanted)
            rows.append(row)
        return rows

    def _line_refund(self, trade: Trade, refund: Refund, now: float, wanted: frozenset[str]) -> Row:
        """What a refund changes on its order line."""
        changed: Row = {"refund_id": refund.refund_id, "refund_status": refund_status(refund, now)}
        whole = sum(r.num for r in trade.refunds if r.line == refund.line and not r.after_sale and r.settled <= now)
        if refund.line is not None and whole >= self.world.lines.num[refund.line]:
            changed["status"] = "TRADE_CLOSED"
        return changed if "*" in wanted else {name: value for name, value in changed.items() if name in wanted}

    # ---------------------------------------------------------------------------------------------------- refunds

    def refunds(self, params: Params, now: float, fault: Fault | None) -> Row:
        fields = self._fields(params)
        start, end = self._time(params, "start_modified", 0), self._time(params, "end_modified", now)
        if start > end:
            raise invalid("start_modified", "start_modified不能晚于end_modified")
        found = [refund for _, refund in self.world.refunds_changed_between(start, end, now)]
        if params.get("status"):
            found = [refund for refund in found if refund_status(refund, now) == params["status"]]
        if params.get("buyer_open_uid"):
            found = [refund for refund in found if refund.buyer.open_uid == params["buyer_open_uid"]]
        part, counts = self._page(params, found, 100)
        rows = [self.refund_row(refund, fields, now) for refund in part]
        return self._listed("refunds", "refund", rows, counts, fault, "refund_id")

    def refund(self, params: Params, now: float, fault: Fault | None) -> Row:
        fields = self._fields(params)
        if not params.get("refund_id"):
            raise missing("refund_id")
        refund = self.world.refunds.get(params["refund_id"])
        if refund is None or refund.created > now:
            raise TopError(15, "Remote service error", "isv.refund-not-exist", "退款不存在")
        return {"refund": self.refund_row(refund, fields, now)}

    def refund_row(self, refund: Refund, fields: Fields, now: float) -> Row:
        item, settled = self.world.items[refund.item], refund.settled <= now
        trade = self.world.trades.get(refund.tid)
        sent = refund.line is None or bool(trade and trade.consigned and trade.consigned <= refund.created)
        good_status = "BUYER_NOT_RECEIVED" if not sent else "BUYER_RECEIVED"
        row: Row = {
            "refund_id": refund.refund_id,
            "tid": refund.tid,
            "oid": refund.oid,
            "status": refund_status(refund, now),
            "order_status": trade.status(now) if trade else "TRADE_FINISHED",
            "good_status": "BUYER_RETURNED_GOODS" if refund.returns_goods and settled else good_status,
            "has_good_return": refund.returns_goods,
            "refund_fee": yuan(refund.fee),
            "payment": yuan(max(refund.line_total - refund.fee, 0)),
            "total_fee": yuan(refund.line_total),
            "reason": "退货退款" if refund.returns_goods else "不想要了",
            "desc": "",
            "created": shop_time(refund.created),
            "modified": shop_time(refund.settled if settled else refund.created),
            "refund_phase": "aftersale" if refund.after_sale else "onsale",
            "dispute_type": "REFUND_AND_RETURN" if refund.returns_goods else "REFUND",
            "refund_version": refund.created * 1000,
            "num": refund.num,
            "num_iid": item.num_iid,
            "title": item.title,
            "outer_id": item.code,
            "buyer_nick": refund.buyer.nick,
            "seller_nick": SHOP_NICK,
        }
        if settled:
            row["end_time"] = shop_time(refund.settled)
        row = {name: value for name, value in row.items() if name in fields.own}
        if "buyer_nick" in fields.own:
            row["buyer_open_uid"] = refund.buyer.open_uid
        return row

    # ---------------------------------------------------------------------------------------------------- reviews, items

    def traderates(self, params: Params, now: float, fault: Fault | None) -> Row:
        fields = self._fields(params)
        for name, known in (("rate_type", ("get", "give")), ("role", ("seller", "buyer"))):
            if not params.get(name):
                raise missing(name)
            if params[name] not in known:
                raise invalid(name, f"{name}只能是{known}之一")
        if params.get("result") and params["result"] not in ("good", "neutral", "bad"):
            raise invalid("result", "result只能是good、neutral、bad之一")
        start, end = self._time(params, "start_date", 0), self._time(params, "end_date", now)
        found: list[Review] = []
        if params["rate_type"] == "get" and params["role"] == "buyer":  # the shop itself writes no reviews
            found = self.world.reviews_between(max(start, now - REVIEW_DAYS * DAY), min(end, now))
        for name, matches in (
            ("result", lambda review, value: review.result == value),
            ("tid", lambda review, value: value in (str(review.tid), str(review.oid))),
            ("num_iid", lambda review, value: str(self.world.items[review.item].num_iid) == value),
        ):
            if params.get(name):
                found = [review for review in found if matches(review, params[name])]
        self._integer(params, "page_no", 1, 1, 200)
        part, counts = self._page(params, found, 150, most=self.world.settings.top_review_rows)
        rows = [self.review_row(review, fields, now) for review in part]
        return self._listed("trade_rates", "trade_rate", rows, counts, fault, "oid")

    def review_row(self, review: Review, fields: Fields, now: float) -> Row:
        item = self.world.items[review.item]
        row: Row = {
            "tid": review.tid,
            "oid": review.oid,
            "num_iid": item.num_iid,
            "role": "buyer",
            "nick": review.buyer.nick,
            "rated_nick": SHOP_NICK,
            "result": review.result,
            "created": shop_time(review.created),
            "item_title": item.title,
            "item_price": yuan(self.world.lines.milli[review.line]),
            "content": review.content,
            "valid_score": True,
        }
        if review.reply and review.replied and review.replied <= now:
            row["reply"] = review.reply
        return {name: value for name, value in row.items() if name in fields.own}

    def items(self, params: Params, now: float, fault: Fault | None) -> Row:
        fields = self._fields(params)
        depth = self._integer(params, "page_no", 1, 1, 1_000_000) * self._integer(params, "page_size", 40, 1, 200)
        if depth > ITEM_DEPTH:
            raise invalid("page_no", "page_no乘以page_size超出最大搜索深度")
        start, end = self._time(params, "start_modified", 0), self._time(params, "end_modified", now)
        # nothing is ever changed about an item: all were listed when the history began
        part, counts = self._page(params, self.world.items if start <= self.world.history.start <= end else (), 200)
        listed = shop_time(self.world.history.start)
        rows = [
            {
                name: value
                for name, value in (
                    ("num_iid", item.num_iid),
                    ("title", item.title),
                    ("outer_id", item.code),
                    ("nick", SHOP_NICK),
                    ("type", "fixed"),
                    ("price", yuan(self._prices.get(number, 1000))),
                    ("num", 100),
                    ("approve_status", "onsale"),
                    ("list_time", listed),
                    ("modified", listed),
                )
                if name in fields.own
            }
            for number, item in ((self._number_of[item.num_iid], item) for item in part)
        ]
        return self._listed("items", "item", rows, counts, fault, "num_iid")

    def seller(self, params: Params, now: float, fault: Fault | None) -> Row:
        row = {"user_id": 2_200_000_000_001, "nick": SHOP_NICK, "type": "B", "status": "normal"}
        own = self._fields(params).own
        return {"user": {name: value for name, value in row.items() if name in own}}

    def time(self, params: Params, now: float, fault: Fault | None) -> Row:
        return {"time": shop_time(int(clock_of(fault, now)))}

    @cached_property
    def _prices(self) -> dict[int, int]:
        """Item number -> thousandths of its first sale."""
        lines = self.world.lines
        return dict(zip(reversed(lines.item), reversed(lines.milli), strict=True))

    @cached_property
    def _number_of(self) -> dict[int, int]:
        return {item.num_iid: number for number, item in enumerate(self.world.items)}

    # ---------------------------------------------------------------------------------------------------- members

    def _ouid(self, person: Person) -> str:
        """A buyer's id in this shop, the same for every application."""
        return "O" + self.world.chance.text(LETTERS, 23, "ouid", person.person_id)

    def _all_members(self, now: float) -> list[Member]:
        """Everybody the shop knows, with the numbers of trades up to `now`; counted again only when a trade has changed."""
        logs = (self.world.created_log, self.world.change_log)
        state = tuple(count for log in logs for count in (len(log), bisect_right(log, (now, math.inf))))
        if self._members[0] != state:
            self._members = (state, self._counted_members(now))
        return list(self._members[1])

    def _counted_members(self, now: float) -> list[Member]:
        world = self.world
        found = {
            person.person_id: Member(person, modified=world.history.start) for person in world.people if person.open_uid
        }
        for created, tid in world.created_log:
            if created > now:
                break
            trade = world.trades[tid]
            member = found[trade.buyer.person_id]
            value = sum(world.lines.total(line) for line in range(trade.first, trade.last))
            if trade.paid is not None and trade.paid <= now:
                member.trades += 1
                member.amount += value
                member.pieces += sum(world.lines.num[line] for line in range(trade.first, trade.last))
                member.last_trade = created
                member.modified = max(member.modified, trade.paid)
            elif trade.closed and trade.ended is not None and trade.ended <= now:
                member.closed += 1
                member.closed_amount += value
                member.modified = max(member.modified, trade.ended)
        return list(found.values())

    def members(self, params: Params, now: float, fault: Fault | None) -> Row:
        found = self._all_members(now)
        if params.get("relation_source"):
            source = self._integer(params, "relation_source", 1, 1, 3)
            found = [member for member in found if member.source == source]
        for name, low in (("min_last_trade_time", True), ("max_last_trade_time", False)):
            if params.get(name):
                at = self._time(params, name)
                found = [m for m in found if m.last_trade and (m.last_trade >= at if low else m.last_trade <= at)]
        for name, low in (("min_trade_count", True), ("max_trade_count", False)):
            if params.get(name):
                count = self._integer(params, name, 0, 0, 10**9)
                found = [m for m in found if (m.trades >= count if low else m.trades <= count)]
        if params.get("grade"):
            grade = self._integer(params, "grade", 0, 0, 4)
            found = [member for member in found if self._grade(member) == grade]
        found.sort(key=lambda member: (-(member.last_trade or 0), member.person.person_id))
        return self._answer_members(params, found, "crm_member", fault)

    def changed_members(self, params: Params, now: float, fault: Fault | None) -> Row:
        start, end = self._time(params, "start_modify", 0), self._time(params, "end_modify", now)
        if start > end:
            raise invalid("start_modify", "start_modify不能晚于end_modify")
        found = [member for member in self._all_members(now) if start <= member.modified <= end]
        found.sort(key=lambda member: (-member.modified, member.person.person_id))
        return self._answer_members(params, found, "basic_member", fault)

    def _answer_members(self, params: Params, found: list[Member], inner: str, fault: Fault | None) -> Row:
        """A page past the end is empty, not an error; the count has a name of its own here."""
        if not params.get("current_page"):
            raise missing("current_page")
        page = self._integer(params, "current_page", 1, 1, MEMBER_PAGES)
        size = self._integer(params, "page_size", 40, 1, 100)
        rows = [self._member_row(member) for member in found[(page - 1) * size : page * size]]
        return self._listed("members", inner, rows, {"total_result": len(found)}, fault, "ouid")

    def _grade(self, member: Member) -> int:
        """0: no member of the shop's club."""
        return self.world.chance.pick((0, 1, 1, 2, 3, 4), "grade", member.person.person_id) if member.trades else 0

    def _member_row(self, member: Member) -> Row:
        person, grade = member.person, self._grade(member)
        row: Row = {
            "buyer_nick": person.nick,
            "ouid": self._ouid(person),
            "status": "normal",
            "grade": grade,
            "grade_name": GRADES[grade],
            "trade_count": member.trades,
            "trade_amount": yuan(member.amount),
            "close_trade_count": member.closed,
            "close_trade_amount": yuan(member.closed_amount),
            "item_num": member.pieces,
            "avg_price": yuan(member.amount // member.trades if member.trades else 0),
            "group_ids": "",
            "relation_source": member.source,
            "province": person.place[0],
            "city": person.place[1],
        }
        if member.last_trade is not None:
            row["last_trade_time"] = shop_time(member.last_trade)
        return row


def refund_status(refund: Refund, now: float) -> str:
    if refund.settled <= now:
        return "SUCCESS"
    return "WAIT_BUYER_RETURN_GOODS" if refund.returns_goods else "WAIT_SELLER_AGREE"


def _without_receivers(content: Row) -> Row:
    """What the simple order methods leave out."""
    trades = content["trades"]["trade"] if "trades" in content else [content["trade"]] if "trade" in content else []
    for trade in trades:
        for name in [name for name in trade if name.startswith("receiver_") and name != "receiver_city"]:
            del trade[name]
    return content


def _simplified(content: Row) -> Row:
    """`simplify=true`: no root, no inner list names."""
    return {name: _flat(value) for name, value in content.items()}


def _flat(value: Any) -> Any:
    if isinstance(value, dict):
        inner = next(iter(value.values())) if len(value) == 1 else None
        return [_flat(part) for part in inner] if isinstance(inner, list) else {k: _flat(v) for k, v in value.items()}
    return value


def as_xml(name: str, value: Any) -> str:
    """The XML form of an answer; lists become repeated elements."""
    if isinstance(value, dict):
        return f"<{name}>{''.join(as_xml(key, part) for key, part in value.items())}</{name}>"
    if isinstance(value, list):
        return "".join(as_xml(name, part) for part in value)
    if isinstance(value, bool):
        value = "true" if value else "false"
    return f"<{name}>{escape(str(value))}</{name}>"
