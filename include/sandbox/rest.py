"""Two shops with plain JSON APIs of our own invention, for the platform that is declared in YAML. Both sell what the Weidian shop sells.

`/stall/v1`: cursor, HMAC signature, errors inside HTTP 200, fen, Unix seconds, numbers for statuses. `/bazaar/api`: page numbers,
offsets, links and next addresses at once; Basic, header, query and OAuth2; HTTP errors, decimal texts, ISO times, words for
statuses, lists within lists.
"""

import base64
import hmac
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

import orjson

from .clock import DAY, HOUR, MINUTE, iso
from .faults import Fault, clock_of, emptied, shift_rows, spoil_rows
from .shops import Customer, Sale, Shop, ShopItem, ShopRefund, ShopReview, yuan
from .state import World
from .wire import Answer, Request, json_answer

STALL, BAZAAR = "/stall/v1/", "/bazaar/api/"
SHOP = "weidian"
TOLERANCE = 5 * MINUTE
STALL_PAGE, STALL_DAYS = 50, 31
BAZAAR_PAGE, BAZAAR_DAYS = 100, 366
TOKEN_SECONDS = 2 * HOUR
STATES = {"unpaid": 10, "paid": 20, "shipped": 30, "finished": 40, "closed_unpaid": 50, "refunded": 60}
WORDS = {"unpaid": "待付款", "paid": "待发货", "shipped": "已发货", "finished": "已完成", "closed_unpaid": "已取消", "refunded": "已退款"}  # fmt: skip
RETURNS = {"requested": "处理中", "settled": "已退", "refused": "已拒绝"}
Row = dict[str, Any]
Found = list[tuple[int, int, Any]]  # when it changed, its id, the thing; ascending


class StallError(Exception):
    """A code inside HTTP 200."""

    def __init__(self, code: int, msg: str, **more: Any) -> None:
        super().__init__(msg)
        self.body = {"code": code, "msg": msg, **more}


class BazaarError(Exception):
    """An HTTP status with a reason."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


class Rest:
    platform = "rest"
    prefixes = ("/stall/", "/bazaar/")

    def __init__(self, world: World) -> None:
        self.world = world
        self.key, self.secret = "stall-" + secrets.token_hex(4), secrets.token_hex(24)
        self.user, self.password = "bazaar-" + secrets.token_hex(4), secrets.token_hex(16)
        self.api_key = secrets.token_hex(20)
        self.lists: dict[str, Callable[[float, float, float], Found]] = {
            "orders": self._orders,
            "refunds": self._refunds,
            "reviews": self._reviews,
            "members": self._members,
            "goods": self._goods,
        }
        self.reset()

    @property
    def shop(self) -> Shop:
        return self.world.shops[SHOP]

    def reset(self) -> None:
        self._nonces: dict[str, float] = {}
        self._tokens: dict[str, float] = {}

    def access(self, base_url: str) -> Row:
        return {
            "stall_url": base_url + STALL.rstrip("/"),
            "stall_key": self.key,
            "stall_secret": self.secret,
            "bazaar_url": base_url + BAZAAR.rstrip("/"),
            "bazaar_user": self.user,
            "bazaar_password": self.password,
            "bazaar_api_key": self.api_key,
        }

    def method(self, request: Request) -> str:
        return request.path.strip("/")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        now = clock_of(fault, self.world.now())
        try:
            if request.path.startswith("/stall/"):
                return json_answer({"code": 0, "msg": "ok", "data": self._stall(request, now, fault)})
            return self._bazaar(request, now, fault)
        except StallError as error:
            self.world.counters.refused[self.platform][str(error.body["code"])] += 1
            return json_answer(error.body)
        except BazaarError as error:
            self.world.counters.refused[self.platform][str(error.status)] += 1
            headers = {name.replace("_", "-"): value for name, value in error.headers.items()}
            return json_answer({"error": error.reason}, error.status, **headers)

    # ---------------------------------------------------------------------------------------------------- what there is

    def _orders(self, start: float, end: float, now: float) -> Found:
        sales = self.shop.changed_between(start, end, now)
        return sorted((sale.modified(now), sale.order_id, sale) for sale in sales)

    def _refunds(self, start: float, end: float, now: float) -> Found:
        refunds = self.shop.refunds_changed_between(start, end, now)
        return sorted((refund.modified(now), refund.refund_id, refund) for refund in refunds)

    def _reviews(self, start: float, end: float, now: float) -> Found:
        """By their last change: the reply, once there is one."""
        found = ((review.modified(now), review.review_id, review) for review in self.shop.reviews_between(0, now, now))
        return sorted(row for row in found if start <= row[0] <= end)

    def _members(self, start: float, end: float, now: float) -> Found:
        return sorted((0, customer.number, customer) for customer in self.shop.customers(now))

    def _goods(self, start: float, end: float, now: float) -> Found:
        return sorted((0, item.num_iid, item) for item in self.shop.items())

    def _find(self, name: str, start: float, end: float, now: float, fault: Fault | None) -> Found:
        found = self.lists[name](start, end, now)
        if name == "orders" and shift_rows(fault, [row[2] for row in found], self.shop.touch, now):
            found = self.lists[name](start, end, now)
        return found

    # ---------------------------------------------------------------------------------------------------- stall

    def _stall(self, request: Request, now: float, fault: Fault | None) -> Row:
        self._verify_stall(request, now, fault)
        name, query = request.path.removeprefix(STALL), request.query
        if request.method not in ("GET", "POST") or name not in self.lists:
            raise StallError(4040, "没有这个接口")
        if request.method == "POST":  # the same parameters, as JSON or as a form
            query = self._parameters(request)
        size = query.get("limit", "20")
        if not size.isdigit() or not 1 <= int(size) <= STALL_PAGE:
            raise StallError(4000, f"limit 应在 1 和 {STALL_PAGE} 之间")
        start, end = 0, 1 << 40
        if name not in ("members", "goods"):
            start, end = self._seconds(query, "since"), self._seconds(query, "until") - 1
            if not 0 <= end - start < STALL_DAYS * DAY:
                raise StallError(4000, f"since 和 until 最多相差 {STALL_DAYS} 天")
        rows = self._find(name, start, end, now, fault)
        if query.get("cursor"):
            rows = [row for row in rows if row[:2] > self._cursor(query["cursor"], name, start, end)]
        part = rows[: int(size)]
        has_more = len(rows) > len(part)
        following = orjson.dumps([name, start, end, *part[-1][:2]]) if has_more else b""
        shown = self._spoil(fault, name, [getattr(self, f"stall_{name}")(thing, now) for _, _, thing in part])
        if has_more or query.get("cursor"):  # a page that nobody promised may be empty
            shown = emptied(fault, shown)
        elif fault and fault.kind == "empty_last_page":
            fault.is_idle = True
        return {
            "list": shown,
            "next": base64.urlsafe_b64encode(following).decode() or None,
            "has_more": has_more,
        }

    @staticmethod
    def _parameters(request: Request) -> dict[str, str]:
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return request.form
        try:
            body = request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise StallError(4000, "请求体应为 JSON 对象")
        return {name: str(value) for name, value in body.items()}

    def _verify_stall(self, request: Request, now: float, fault: Fault | None) -> None:
        headers = request.headers
        at, nonce = headers.get("x-stall-time", ""), headers.get("x-stall-nonce", "")
        if headers.get("x-stall-key") != self.key:
            raise StallError(4003, "未知的应用")
        if not at.isdigit() or abs(int(at) - now) > TOLERANCE:
            raise StallError(4002, "时间戳与服务器时间相差过大")
        body = sha256(request.body).hexdigest()
        text = "\n".join((request.method, request.path, request.query_string, at, nonce, body))
        wanted = hmac.new(self.secret.encode(), text.encode(), "sha256").hexdigest()
        if not hmac.compare_digest(wanted.encode(), headers.get("x-stall-sign", "").encode()):
            raise StallError(4001, "签名错误")
        if fault and fault.kind in ("revoked_token", "expired_token"):
            raise StallError(4003, "应用已停用")
        if fault and fault.kind == "call_limit":
            raise StallError(4290, "调用太频繁", wait=max(1, round(fault.seconds)))
        if fault and fault.kind == "platform_busy":
            raise StallError(5000, "系统繁忙")
        self._nonces = {name: seen for name, seen in self._nonces.items() if seen > now - TOLERANCE}
        if not nonce or nonce in self._nonces:
            raise StallError(4004, "随机串为空或已使用")
        self._nonces[nonce] = now

    @staticmethod
    def _seconds(query: Row, name: str) -> int:
        if not query.get(name, "").isdigit():
            raise StallError(4000, f"{name} 应为秒级时间戳")
        return int(query[name])

    @staticmethod
    def _cursor(text: str, name: str, start: int, end: int) -> tuple[int, int]:
        try:
            cursor = orjson.loads(base64.urlsafe_b64decode(text))
            if cursor[:3] == [name, start, end]:
                return cursor[3], cursor[4]
        except (ValueError, IndexError, TypeError):
            pass
        raise StallError(4000, "cursor 与参数不符")

    def stall_orders(self, sale: Sale, now: float) -> Row:
        person = sale.person
        assert person is not None
        customer = self.shop.customer_of(person)
        return {
            "id": str(sale.order_id),
            "state": STATES[sale.state(now)],
            "created": sale.created,
            "updated": sale.modified(now),
            "paid": past(sale.paid_at, now) or 0,
            "shipped": past(sale.shipped_at, now) or 0,
            "finished": past(sale.ended_at, now) or 0,
            "fee": {"total": sale.paid_amount, "freight": sale.postage, "discount": sale.discount},
            "buyer": {
                "uid": customer.number if customer else 0,
                "mobile": person.phone,
                "name": person.name,
                "city": person.place[1],
                "lang": person.language,
            },
            "memo": sale.remark or "",
            "goods": [
                {
                    "line": index + 1,
                    "sku": self.world.items[line.item].num_iid,
                    "code": self.world.items[line.item].code,
                    "title": self.world.items[line.item].title,
                    "price": line.price,
                    "count": line.num,
                    "subtotal": line.paid,
                }
                for index, line in enumerate(sale.lines)
            ],
        }

    def stall_refunds(self, refund: ShopRefund, now: float) -> Row:
        return {
            "id": str(refund.refund_id),
            "order": str(refund.sale.order_id),
            "line": refund.line + 1,
            "state": {"requested": 1, "settled": 2, "refused": 3}[str(refund.state(now))],
            "amount": refund.amount,
            "count": refund.num,
            "created": refund.created,
            "updated": refund.modified(now),
        }

    def stall_reviews(self, review: ShopReview, now: float) -> Row:
        answered = past(review.replied, now)
        return {
            "id": str(review.review_id),
            "order": str(review.sale.order_id),
            "line": review.line + 1,
            "sku": self.world.items[review.sale.lines[review.line].item].num_iid,
            "stars": review.stars,
            "text": review.content,
            "reply": review.reply if answered else "",
            "created": review.created,
            "replied": answered or 0,
        }

    def stall_members(self, customer: Customer, now: float) -> Row:
        person = customer.person
        return {
            "uid": customer.number,
            "mobile": person.phone,
            "email": person.email or "",
            "name": person.name,
            "is_vip": int(customer.is_member),
            "vip_level": customer.level,
            "points": customer.points(now),
            "orders": customer.order_count(now),
            "spent": customer.spent(now),
            "joined": customer.joined,
            "last_order": customer.last_order(now) or 0,
        }

    def stall_goods(self, item: ShopItem, now: float) -> Row:
        return {
            "sku": item.num_iid,
            "code": item.code,
            "title": item.title,
            "price": item.price,
            "on_sale": int(item.is_listed),
        }

    # ---------------------------------------------------------------------------------------------------- bazaar

    def _bazaar(self, request: Request, now: float, fault: Fault | None) -> Answer:
        if request.path == BAZAAR + "token":
            return self._new_token(request, now)
        self._verify_bazaar(request, now, fault)
        name, query = request.path.removeprefix(BAZAAR), request.query
        if request.method == "GET" and name.startswith("orders/"):
            sale = self.shop.sale(int(name[7:]), now) if name[7:].isdigit() else None
            if sale is None:
                raise BazaarError(404, "no such order")
            return json_answer({"order": self.bazaar_orders(sale, now)})
        if request.method != "GET" or name not in ("orders", "reviews", "customers", "articles"):
            raise BazaarError(404, "no such resource")
        start, end = 0.0, float(1 << 40)
        if name in ("orders", "reviews"):
            start, end = self._moment(query, "modified_from"), self._moment(query, "modified_to") - 1
            if not -1 <= end - start <= BAZAAR_DAYS * DAY:
                raise BazaarError(400, f"modified_from and modified_to may lie {BAZAAR_DAYS} days apart")
        source = {"customers": "members", "articles": "goods"}.get(name, name)
        found = self._find(source, start, end, now, fault)
        size = self._count(query, "limit" if "offset" in query else "per_page", 20, BAZAAR_PAGE, 1)
        offset = (
            self._count(query, "offset", 0, 1 << 40, 0)
            if "offset" in query
            else (self._count(query, "page", 1, 1 << 40, 1) - 1) * size
        )
        part = found[offset : offset + size]
        shown = self._spoil(fault, name, [getattr(self, f"bazaar_{name}")(thing, now) for _, _, thing in part])
        if query.get("view") == "brief":
            shown = [{key: value for key, value in row.items() if key in ("number", "changed_on")} for row in shown]
        following = None
        if offset + size < len(found):
            kept = {key: value for key, value in query.items() if key not in ("page", "offset", "limit", "api_key")}
            page = {"offset": offset + size, "limit": size} if "offset" in query else {"page": offset // size + 2}
            following = f"http://{request.headers.get('host', '')}{request.path}?{urlencode(kept | page)}"
        meta = {"total": len(found), "pages": -(-len(found) // size), "more": following is not None, "next": following}
        headers = {"X-Total": str(len(found))} | ({"Link": f'<{following}>; rel="next"'} if following else {})
        return json_answer({"meta": meta, name: emptied(fault, shown)}, 200, **headers)

    def _verify_bazaar(self, request: Request, now: float, fault: Fault | None) -> None:
        """Any of four ways in."""
        head = request.headers.get("authorization", "")
        pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if fault and fault.kind == "expired_token":
            self._tokens.clear()
        is_known = (
            head == f"Basic {pair}"
            or request.headers.get("x-api-key") == self.api_key
            or request.query.get("api_key") == self.api_key
            or (head.startswith("Bearer ") and self._tokens.get(head[7:], 0) > now)
        )
        static = fault is not None and fault.kind == "expired_token" and not head.startswith("Bearer ")
        if not is_known or static or (fault and fault.kind == "revoked_token"):
            raise BazaarError(401, "who are you?", WWW_Authenticate="Basic")
        if fault and fault.kind == "call_limit":
            raise BazaarError(429, "too many requests", Retry_After=str(max(1, round(fault.seconds))))
        if fault and fault.kind == "platform_busy":
            raise BazaarError(503, "busy")

    def _new_token(self, request: Request, now: float) -> Answer:
        form = request.form
        pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        is_known = request.headers.get("authorization") == f"Basic {pair}" or (
            form.get("client_id") == self.user and form.get("client_secret") == self.password
        )
        if request.method != "POST" or form.get("grant_type") != "client_credentials":
            return json_answer({"error": "unsupported_grant_type"}, 400)
        if not is_known:
            return json_answer({"error": "invalid_client"}, 401)
        token = secrets.token_urlsafe(24)
        self._tokens[token] = now + TOKEN_SECONDS
        return json_answer({"access_token": token, "token_type": "bearer", "expires_in": TOKEN_SECONDS})

    @staticmethod
    def _moment(query: Row, name: str) -> float:
        try:
            moment = datetime.fromisoformat(query.get(name, ""))
        except ValueError:
            raise BazaarError(400, f"{name} is not an ISO time") from None
        if moment.tzinfo is None:
            raise BazaarError(400, f"{name} has no offset")
        return moment.timestamp()

    @staticmethod
    def _count(query: Row, name: str, default: int, largest: int, smallest: int) -> int:
        text = query.get(name, str(default))
        if not text.isdigit() or not smallest <= int(text) <= largest:
            raise BazaarError(400, f"{name} lies between {smallest} and {largest}")
        return int(text)

    def bazaar_orders(self, sale: Sale, now: float) -> Row:
        person = sale.person
        assert person is not None
        customer = self.shop.customer_of(person)
        paid, sent = past(sale.paid_at, now), past(sale.shipped_at, now)
        articles = [
            {
                "ref": f"{sale.order_id}-{index + 1}",
                "article": str(self.world.items[line.item].num_iid),
                "sku": self.world.items[line.item].code,
                "title": self.world.items[line.item].title,
                "unit_price": grouped(line.price),
                "qty": line.num,
                "net": grouped(line.paid),
            }
            for index, line in enumerate(sale.lines)
        ]
        middle = len(articles) // 2  # what is sent goes in two boxes; what is not lies in none
        boxes = [articles[:middle], articles[middle:]] if sent and middle else [articles]
        return {
            "number": sale.order_id,
            "status": WORDS[sale.state(now)],
            "placed_on": iso(sale.created),
            "changed_on": iso(sale.modified(now)),
            "payment": {"amount": grouped(sale.paid_amount), "at": iso(paid) if paid else None},
            "shipping_cost": grouped(sale.postage),
            "closed_on": iso(sale.ended_at) if past(sale.ended_at, now) and sale.ended_at else None,
            "customer": {
                "id": customer.number if customer else None,
                "name": person.name,
                "contact": {"phones": ["", person.phone], "emails": [person.email] if person.email else []},
                "town": person.place[1],
            },
            "parcels": [
                {
                    "tracking": f"B{sale.order_id % 10**10}{number}" if sent else None,
                    "carrier": "Bazaar Post" if sent else None,
                    "sent_on": iso(sent) if sent else None,
                    "articles": box,
                }
                for number, box in enumerate(boxes)
            ],
            "returns": [
                {
                    "id": refund.refund_id,
                    "article_ref": f"{sale.order_id}-{refund.line + 1}",
                    "state": RETURNS[str(refund.state(now))],
                    "money": grouped(refund.amount),
                    "qty": refund.num,
                    "asked_on": iso(refund.created),
                    "decided_on": iso(refund.modified(now)) if refund.state(now) != "requested" else None,
                }
                for refund in sale.refunds
                if refund.state(now)
            ],
        }

    def bazaar_reviews(self, review: ShopReview, now: float) -> Row:
        answered = past(review.replied, now)
        return {
            "id": review.review_id,
            "order": {"number": review.sale.order_id, "ref": f"{review.sale.order_id}-{review.line + 1}"},
            "article": str(self.world.items[review.sale.lines[review.line].item].num_iid),
            "grade": f"{review.stars * 20}%",
            "text": review.content,
            "answer": {"text": review.reply, "on": iso(answered)} if answered else None,
            "written_on": iso(review.created),
        }

    def bazaar_customers(self, customer: Customer, now: float) -> Row:
        person, last = customer.person, customer.last_order(now)
        return {
            "id": customer.number,
            "name": person.name,
            "contact": {"phones": [person.phone], "emails": [person.email] if person.email else []},
            "club": {
                "member": "yes" if customer.is_member else "no",
                "level": f"L{customer.level}",
                "points": customer.points(now),
            },
            "orders": {
                "count": customer.order_count(now),
                "sum": grouped(customer.spent(now)),
                "last": iso(last) if last else None,
            },
            "since": iso(customer.joined),
        }

    def bazaar_articles(self, item: ShopItem, now: float) -> Row:
        return {
            "article": str(item.num_iid),
            "sku": item.code,
            "title": item.title,
            "price": grouped(item.price),
            "visible": item.is_listed,
        }

    # ---------------------------------------------------------------------------------------------------- faults

    @staticmethod
    def _spoil(fault: Fault | None, name: str, rows: list[Row]) -> list[Row]:
        identities: Sequence[str] = (
            "id",
            "number",
            "uid",
            "sku",
            "order",
            "order.number",
            "customer.id",
            "buyer.uid",
            "goods.sku",
        )
        return spoil_rows(
            fault,
            rows,
            ids=identities,
            nullable=("memo", "reply", "answer", "buyer.lang", "goods.code", "parcels.carrier", "email", "club.level"),
            required=("id", "number", "uid", "article", "sku"),
            texts=("buyer.name", "customer.name", "name", "text", "title", "goods.title", "memo"),
        )


def past(at: int | None, now: float) -> int | None:
    return at if at is not None and at <= now else None


def grouped(fen: int) -> str:
    """Yuan with thousand signs."""
    whole, _, rest = yuan(fen).partition(".")
    return f"{int(whole):,}.{rest}"
