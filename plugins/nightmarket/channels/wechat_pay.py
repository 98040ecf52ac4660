"""WeChat Pay v3 cash coupons (代金券, favor): issue, query, stock detail. Requests signed, answers verified.

Issuing is idempotent on `out_request_no`: after a time-out or a crash the same request is repeated, never a new one.
"""

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from nightmarket import dates
from nightmarket.channels.base import http_session, retry_after
from nightmarket.settings import ConfigError, Credentials

API = "https://api.mch.weixin.qq.com"
MAX_CLOCK_DIFFERENCE = 300  # seconds; older answers are refused as replays
BUDGET_CODES = {"NOT_ENOUGH", "270079534"}
AUTH_CODES = {"SIGN_ERROR", "NO_AUTH", "APPID_MCHID_NOT_MATCH", "270079507", "270079509"}
STOCK_CODES = {
    "REQUEST_BLOCKED",
    "RESOURCE_NOT_EXISTS",
    "270079488",
    "270079533",
}  # the stock is not there or not running


class PayError(Exception):
    """WeChat Pay did not do what was asked. `code` is the platform's; the text is one sentence without personal values."""

    def __init__(self, sentence: str, code: str = "", http_status: int | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.http_status = http_status


class PayRefused(PayError):
    """This person cannot have this coupon; others can."""


class PayStopped(PayError):
    """Nobody can have one: budget used up, stock not running, or our own signature or permission is wrong."""


class PayInDoubt(PayError):
    """Nobody knows whether it was done: repeat the identical request. `retry_after` in seconds."""

    def __init__(self, sentence: str, code: str = "", http_status: int | None = None, retry_after: float = 1.0) -> None:
        super().__init__(sentence, code, http_status)
        self.retry_after = retry_after


@dataclass(frozen=True)
class CouponStatus:
    """A coupon as WeChat Pay sees it now."""

    status: Literal["SENDED", "USED", "EXPIRED"]
    used_at: datetime | None


@dataclass(frozen=True)
class StockDetail:
    """A stock as WeChat Pay knows it; amounts in yuan."""

    stock_id: str
    status: str
    face_amount: Decimal
    minimum_amount: Decimal
    max_coupons: int
    distributed_count: int
    valid_from: datetime
    valid_to: datetime


def string_to_sign(*lines: str) -> bytes:
    """Every line ends with a newline, the last one too."""
    return "".join(f"{line}\n" for line in lines).encode()


class WeChatPay:
    """A merchant's client. Use as `async with WeChatPay(credentials) as pay`."""

    def __init__(self, credentials: Credentials, *, connections: int = 16, timeout_seconds: float = 10) -> None:
        extra = credentials.extra
        missing = [
            key
            for key in ("appid", "serial_no", "private_key", "platform_key_id", "platform_public_key")
            if not extra.get(key)
        ]
        if missing:
            raise ConfigError(
                f"connection 'wechat_pay': extra.{missing[0]} is missing (docs/connections/wechat_pay.md)."
            )
        self._base = (credentials.host or API).rstrip("/")
        self._mchid = credentials.login
        self._appid = str(extra["appid"])
        self._serial = str(extra["serial_no"])
        self._key_id = str(extra["platform_key_id"])
        try:
            private = serialization.load_pem_private_key(str(extra["private_key"]).encode(), password=None)
            public = serialization.load_pem_public_key(str(extra["platform_public_key"]).encode())
        except ValueError:
            raise ConfigError("connection 'wechat_pay': a key in extra is not a readable PEM key.") from None
        if not isinstance(private, RSAPrivateKey) or not isinstance(public, RSAPublicKey):
            raise ConfigError("connection 'wechat_pay': both keys in extra must be RSA keys.")
        self._private, self._public = private, public
        self._connections, self._timeout = connections, timeout_seconds
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = http_session(self._connections, self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def issue(self, openid: str, platform_stock_id: str, request_key: str) -> str:
        """Put one coupon into the wallet of `openid`; returns the platform's coupon id. Repeatable with the same key.

        Raises PayRefused (this person), PayStopped (nobody), PayInDoubt (repeat the same).
        """
        body = {
            "stock_id": platform_stock_id,
            "out_request_no": request_key,
            "appid": self._appid,
            "stock_creator_mchid": self._mchid,
        }
        data = await self._call("POST", f"/v3/marketing/favor/users/{openid}/coupons", body)
        coupon_id = str(data.get("coupon_id") or "")
        if not coupon_id:
            raise PayInDoubt("WeChat Pay answered without a coupon id")
        return coupon_id

    async def coupon(self, openid: str, coupon_id: str) -> CouponStatus:
        """State of one issued coupon. Raises as `issue`."""
        data = await self._call("GET", f"/v3/marketing/favor/users/{openid}/coupons/{coupon_id}?appid={self._appid}")
        used = data.get("consume_information") or {}
        status = str(data.get("status") or "")
        if status not in ("SENDED", "USED", "EXPIRED"):
            raise PayInDoubt(f"WeChat Pay reports an unknown coupon status {status!r}")
        return CouponStatus(status, _instant(used["consume_time"]) if used.get("consume_time") else None)  # type: ignore[arg-type]

    async def stock(self, platform_stock_id: str) -> StockDetail:
        """What the platform knows about a stock. Raises as `issue`."""
        data = await self._call(
            "GET", f"/v3/marketing/favor/stocks/{platform_stock_id}?stock_creator_mchid={self._mchid}"
        )
        try:
            rule = data["stock_use_rule"]
            coupon = rule.get("fixed_normal_coupon") or data["coupon_use_rule"]["fixed_normal_coupon"]
            return StockDetail(
                str(data["stock_id"]),
                str(data["status"]),
                Decimal(coupon.get("coupon_amount", coupon.get("discount_amount"))) / 100,
                Decimal(coupon["transaction_minimum"]) / 100,
                int(rule["max_coupons"]),
                int(data.get("distributed_coupons") or 0),
                _instant(data["available_begin_time"]),
                _instant(data["available_end_time"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PayInDoubt(f"WeChat Pay's answer about stock {platform_stock_id} lacks {error}") from None

    def authorization(self, method: str, path: str, body: str, timestamp: str, nonce: str) -> str:
        """The Authorization header for exactly these bytes."""
        signature = self._private.sign(
            string_to_sign(method, path, timestamp, nonce, body), PKCS1v15(), hashes.SHA256()
        )
        return (
            f'WECHATPAY2-SHA256-RSA2048 mchid="{self._mchid}",nonce_str="{nonce}",'
            f'signature="{base64.b64encode(signature).decode()}",timestamp="{timestamp}",serial_no="{self._serial}"'
        )

    def is_genuine(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Is this answer signed by WeChat Pay, recently? (The platform sometimes sends a wrong signature as a probe.)"""
        timestamp, nonce = headers.get("Wechatpay-Timestamp", ""), headers.get("Wechatpay-Nonce", "")
        if headers.get("Wechatpay-Serial") != self._key_id or not timestamp.isdigit():
            return False
        if abs(dates.now().timestamp() - int(timestamp)) > MAX_CLOCK_DIFFERENCE:
            return False
        try:
            signature = base64.b64decode(headers.get("Wechatpay-Signature", ""), validate=True)
            self._public.verify(
                signature, f"{timestamp}\n{nonce}\n".encode() + body + b"\n", PKCS1v15(), hashes.SHA256()
            )
        except (InvalidSignature, ValueError):
            return False
        return True

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        text = orjson.dumps(body).decode() if body is not None else ""
        timestamp, nonce = str(int(dates.now().timestamp())), secrets.token_hex(16)
        headers = {
            "Authorization": self.authorization(method, path, text, timestamp, nonce),
            "Accept": "application/json",
            "Content-Type": "application/json",
        }
        try:
            async with self._session.request(
                method, self._base + path, data=text.encode() if text else None, headers=headers
            ) as answer:
                raw, status, answered = await answer.read(), answer.status, answer.headers
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise PayInDoubt(f"WeChat Pay did not answer ({type(error).__name__})") from None
        if status == 429 or status >= 500:
            raise PayInDoubt(f"WeChat Pay answered HTTP {status}", str(status), status, retry_after(answered, 1.0))
        try:
            data = orjson.loads(raw) if raw else {}
        except orjson.JSONDecodeError:
            raise PayInDoubt("WeChat Pay's answer is not JSON", http_status=status) from None
        if 200 <= status < 300:
            if not self.is_genuine(answered, raw):
                raise PayInDoubt(
                    "an answer was not signed by WeChat Pay or is too old; check the platform public key and this machine's clock"
                )
            return data if isinstance(data, dict) else {}
        raise _refusal(status, data if isinstance(data, dict) else {}, path)


def _refusal(status: int, data: Mapping[str, Any], path: str) -> PayError:
    code, text = str(data.get("code") or status), str(data.get("message") or "")[:200]
    if code in BUDGET_CODES:
        return PayStopped(f"WeChat Pay: the stock's budget is used up ({code}: {text})", code, status)
    if status == 401 or code in AUTH_CODES:
        return PayStopped(
            f"WeChat Pay refuses us ({code}: {text}); check merchant id, serial number and key", code, status
        )
    if code in STOCK_CODES:
        return PayStopped(f"WeChat Pay: the stock is not there or not running ({code}: {text})", code, status)
    return PayRefused(f"WeChat Pay refuses this coupon ({code}: {text})", code, status)


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def check(credentials: Credentials, platform_stock_id: str) -> str:
    """Ask for one stock and say in a sentence what came of it. Raises PayError or ConfigError."""
    async with WeChatPay(credentials, connections=1) as pay:
        stock = await pay.stock(platform_stock_id)
    return (
        f"WeChat Pay: merchant {credentials.login} may use stock {stock.stock_id} ({stock.status}, "
        f"{stock.distributed_count} of {stock.max_coupons} given out)"
    )
