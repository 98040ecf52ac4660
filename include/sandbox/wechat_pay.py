"""WeChat Pay v3 cash coupons (favor): every request's signature is verified, every answer is signed."""

import base64
import re
import secrets
import time
from typing import Any
from urllib.parse import unquote

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from .clock import MINUTE, iso
from .faults import Fault
from .state import APPID, Coupon, Stock, World
from .wire import Answer, Request

MCHID = "1900000109"
SCHEME = "WECHATPAY2-SHA256-RSA2048"
TOLERANCE = 5 * MINUTE
ROUTES = (
    ("send_coupon", "POST", re.compile(r"/v3/marketing/favor/users/([^/]+)/coupons")),
    ("list_coupons", "GET", re.compile(r"/v3/marketing/favor/users/([^/]+)/coupons")),
    ("query_coupon", "GET", re.compile(r"/v3/marketing/favor/users/([^/]+)/coupons/([^/]+)")),
    ("query_stock", "GET", re.compile(r"/v3/marketing/favor/stocks/([^/]+)")),
)


class PayError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"code": code, "message": message}


def request_message(method: str, path_with_query: str, timestamp: str, nonce: str, body: bytes) -> bytes:
    """The string a request's signature is made of: five lines, each ended by a newline."""
    return f"{method}\n{path_with_query}\n{timestamp}\n{nonce}\n".encode() + body + b"\n"


class WechatPay:
    platform = "wechat_pay"
    prefixes = ("/v3/",)

    def __init__(self, world: World) -> None:
        self.world = world
        self._merchant = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._platform = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.serial_no = f"{secrets.randbits(160):040X}"
        self.platform_key_id = f"PUB_KEY_ID_0{MCHID}{secrets.randbelow(10**18):018d}"
        self.reset()

    def reset(self) -> None:
        self._second, self._calls = 0, 0

    def access(self, base_url: str) -> dict[str, Any]:
        return {
            "base_url": base_url,
            "mchid": MCHID,
            "appid": APPID,
            "serial_no": self.serial_no,
            "private_key_pem": self.private_key_pem,
            "platform_key_id": self.platform_key_id,
            "platform_public_key_pem": self.platform_public_key_pem,
            "stocks": [
                {
                    "stock_id": stock.stock_id,
                    "name": stock.name,
                    "face_amount_fen": stock.face_fen,
                    "minimum_fen": stock.minimum_fen,
                    "max_coupons": stock.max_coupons,
                    "max_coupons_per_user": stock.max_per_user,
                    "available_begin_time": iso(stock.begins),
                    "available_end_time": iso(stock.ends),
                }
                for stock in self.world.stocks.values()
            ],
        }

    @property
    def private_key_pem(self) -> str:
        """The merchant's key, as the merchant downloads it."""
        return self._merchant.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    @property
    def platform_public_key_pem(self) -> str:
        return (
            self._platform.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    def _route(self, request: Request) -> tuple[str, tuple[str, ...]]:
        path = request.raw_path.split("?", 1)[0]
        for name, method, pattern in ROUTES:
            match = pattern.fullmatch(path)
            if match and method == request.method:
                return name, tuple(unquote(part) for part in match.groups())
        return "", ()

    def method(self, request: Request) -> str:
        return self._route(request)[0] or f"{request.method} {request.path}"

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        name, parts = self._route(request)
        try:
            self._verify(request)
            self._limit(fault)
            if not name:
                raise PayError(404, "RESOURCE_NOT_EXISTS", "请求的资源不存在")
            status, body = 200, getattr(self, name)(request, *parts)
        except PayError as error:
            self.world.counters.refused[self.platform][str(error.body["code"])] += 1
            status, body = error.status, error.body
        return self._signed(orjson.dumps(body), status, broken=bool(fault and fault.kind == "bad_signature"))

    # ---------------------------------------------------------------------------------------------------- transport

    def _verify(self, request: Request) -> None:
        scheme, _, rest = request.headers.get("authorization", "").partition(" ")
        given = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        names = {"mchid", "nonce_str", "signature", "timestamp", "serial_no"}
        if scheme != SCHEME or set(given) != names or not given["timestamp"].isdigit():
            raise PayError(401, "SIGN_ERROR", "Http头Authorization值格式错误，请参考《微信支付商户REST API签名规则》")
        if given["mchid"] != MCHID or given["serial_no"] != self.serial_no:
            raise PayError(401, "SIGN_ERROR", "商户证书序列号有误")
        if abs(int(given["timestamp"]) - self.world.now()) > TOLERANCE:
            raise PayError(401, "SIGN_ERROR", "Http头Authorization中的timestamp与发起请求的时间不得超过5分钟")
        message = request_message(
            request.method, request.raw_path, given["timestamp"], given["nonce_str"], request.body
        )
        try:
            signature = base64.b64decode(given["signature"], validate=True)
            self._merchant.public_key().verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, ValueError):
            raise PayError(401, "SIGN_ERROR", "签名错误") from None
        if not request.headers.get("user-agent"):
            raise PayError(400, "PARAM_ERROR", "缺少User-Agent")
        accept = request.headers.get("accept", "*/*")
        if "application/json" not in accept and "*/*" not in accept:
            raise PayError(406, "PARAM_ERROR", "Accept必须包含application/json")

    def _limit(self, fault: Fault | None) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._calls = second, 0
        self._calls += 1
        if self._calls > self.world.settings.pay_rate or (fault and fault.kind == "call_limit"):
            raise PayError(429, "FREQUENCY_LIMITED", "频率超限")
        if fault and fault.kind == "platform_busy":
            raise PayError(500, "SYSTEM_ERROR", "系统错误")

    def _signed(self, body: bytes, status: int, broken: bool) -> Answer:
        timestamp, nonce = str(int(self.world.now())), secrets.token_hex(16)
        message = f"{timestamp}\n{nonce}\n".encode() + body + b"\n"
        signature = base64.b64encode(self._platform.sign(message, padding.PKCS1v15(), hashes.SHA256())).decode()
        if broken:
            signature = "WECHATPAY/SIGNTEST/" + signature[19:]
        headers = {
            "Wechatpay-Timestamp": timestamp,
            "Wechatpay-Nonce": nonce,
            "Wechatpay-Serial": self.platform_key_id,
            "Wechatpay-Signature": signature,
            "Wechatpay-Signature-Type": SCHEME,
            "Request-ID": nonce,
        }
        return Answer(body, status, headers, "application/json; charset=utf-8")

    # ---------------------------------------------------------------------------------------------------- coupons

    def send_coupon(self, request: Request, openid: str) -> dict[str, Any]:
        world, now = self.world, self.world.now()
        try:
            body = request.json()
        except orjson.JSONDecodeError:
            raise PayError(400, "PARAM_ERROR", "请求体不是合法的JSON") from None
        if not isinstance(body, dict):
            raise PayError(400, "PARAM_ERROR", "请求体不是合法的JSON")
        for name, longest in (("stock_id", 20), ("out_request_no", 128), ("appid", 128), ("stock_creator_mchid", 20)):
            if not isinstance(body.get(name), str) or not 0 < len(body[name]) <= longest:
                raise PayError(400, "PARAM_ERROR", f"参数错误：{name}")
        number = body["out_request_no"]
        world.counters.grant_calls[number] += 1
        if body["appid"] != APPID:
            raise PayError(400, "APPID_MCHID_NOT_MATCH", "商户号与appid不匹配")
        content = orjson.dumps([openid, body], option=orjson.OPT_SORT_KEYS)
        earlier = world.coupon_requests.get(number)
        if earlier:
            if earlier[0] != content:
                raise PayError(400, "INVALID_REQUEST", "商户单据号重复，且请求参数与首次请求不一致")
            return {"coupon_id": earlier[1].coupon_id}
        stock = self._stock(body["stock_id"], body["stock_creator_mchid"])
        if openid not in world.by_openid:
            raise PayError(400, "PARAM_ERROR", "openid与appid不匹配")
        if not stock.begins <= now < stock.ends:
            raise PayError(403, "REQUEST_BLOCKED", "活动未开始或已结束")
        if sum(coupon.stock_id == stock.stock_id for coupon in world.coupons_of[openid]) >= stock.max_per_user:
            raise PayError(403, "RULE_LIMIT", "用户已达领取上限")
        if world.distributed[stock.stock_id] >= stock.max_coupons:
            raise PayError(403, "NOT_ENOUGH", "批次预算不足")
        coupon_id = str(98_000_000_000 + world.chance.bits("coupon", number) % 10**9 * 1000 + len(world.coupons) % 1000)
        coupon = Coupon(coupon_id, stock.stock_id, openid, number, int(now))
        world.coupons[coupon_id] = coupon
        world.distributed[stock.stock_id] += 1
        world.coupons_of[openid].append(coupon)
        world.coupon_requests[number] = (content, coupon)
        world.counters.grants[number] += 1
        return {"coupon_id": coupon_id}

    def _stock(self, stock_id: str, creator: str) -> Stock:
        if creator != MCHID:
            raise PayError(403, "NO_AUTH", "无权限操作该批次")
        stock = self.world.stocks.get(stock_id)
        if stock is None:
            raise PayError(404, "RESOURCE_NOT_EXISTS", "批次不存在")
        return stock

    def query_coupon(self, request: Request, openid: str, coupon_id: str) -> dict[str, Any]:
        coupon = self.world.coupons.get(coupon_id)
        if request.query.get("appid") != APPID:
            raise PayError(400, "APPID_MCHID_NOT_MATCH", "商户号与appid不匹配")
        if coupon is None or coupon.openid != openid:
            raise PayError(404, "RESOURCE_NOT_EXISTS", "券不存在")
        return self._describe(coupon)

    def list_coupons(self, request: Request, openid: str) -> dict[str, Any]:
        query, now = request.query, self.world.now()
        if query.get("appid") != APPID:
            raise PayError(400, "APPID_MCHID_NOT_MATCH", "商户号与appid不匹配")
        offset, limit = query.get("offset", "0"), query.get("limit", "20")
        if not (offset.isdigit() and limit.isdigit() and 0 < int(limit) <= 100):
            raise PayError(400, "PARAM_ERROR", "参数错误：offset或limit")
        found = [
            coupon
            for coupon in self.world.coupons_of.get(openid, ())
            if query.get("stock_id", coupon.stock_id) == coupon.stock_id
            and query.get("status", self.world.coupon_status(coupon, now)) == self.world.coupon_status(coupon, now)
        ]
        page = found[int(offset) : int(offset) + int(limit)]
        return {
            "data": [self._describe(coupon) for coupon in page],
            "total_count": len(found),
            "limit": int(limit),
            "offset": int(offset),
        }

    def _describe(self, coupon: Coupon) -> dict[str, Any]:
        stock, status = self.world.stocks[coupon.stock_id], self.world.coupon_status(coupon, self.world.now())
        described: dict[str, Any] = {
            "stock_creator_mchid": MCHID,
            "stock_id": stock.stock_id,
            "coupon_id": coupon.coupon_id,
            "coupon_name": stock.name,
            "status": status,
            "description": "全场可用",
            "create_time": iso(coupon.created),
            "coupon_type": "NORMAL",
            "no_cash": False,
            "available_begin_time": iso(max(stock.begins, coupon.created)),
            "available_end_time": iso(stock.ends),
            "singleitem": False,
            "normal_coupon_information": {
                "coupon_amount": stock.face_fen,
                "transaction_minimum": stock.minimum_fen,
            },
        }
        if status == "USED" and coupon.used is not None:
            described["consume_information"] = {
                "consume_time": iso(coupon.used),
                "consume_mchid": MCHID,
                "transaction_id": f"42000{coupon.used_tid}",
                "consume_amount": stock.face_fen,
            }
        return described

    def query_stock(self, request: Request, stock_id: str) -> dict[str, Any]:
        stock = self._stock(stock_id, request.query.get("stock_creator_mchid", ""))
        return {
            "stock_id": stock.stock_id,
            "stock_creator_mchid": MCHID,
            "stock_name": stock.name,
            "status": "running" if self.world.now() < stock.ends else "stoped",
            "description": "全场可用",
            "create_time": iso(stock.begins),
            "start_time": iso(stock.begins),
            "available_begin_time": iso(stock.begins),
            "available_end_time": iso(stock.ends),
            "stock_type": "NORMAL",
            "no_cash": False,
            "singleitem": False,
            "distributed_coupons": self.world.distributed[stock.stock_id],
            "stock_use_rule": {
                "max_coupons": stock.max_coupons,
                "max_amount": stock.max_coupons * stock.face_fen,
                "max_amount_by_day": stock.max_coupons * stock.face_fen,
                "max_coupons_per_user": stock.max_per_user,
                "coupon_type": "NORMAL",
                "fixed_normal_coupon": {
                    "coupon_amount": stock.face_fen,
                    "transaction_minimum": stock.minimum_fen,
                },
            },
        }
