"""Youzan vouchers: `youzan.ump.voucheractivity.send`. It takes no key of ours, so a call without an answer is never repeated.

What nobody has confirmed (the fields of the voucher's detail, its API's version) is said in docs/connections/coupons.md.
"""

import asyncio
from typing import ClassVar

from nightmarket.campaigns.config import Stock
from nightmarket.campaigns.issuers.base import (
    Busy,
    InDoubt,
    IssuerError,
    Refused,
    Seen,
    ShopIssuer,
    StockFacts,
    Stopped,
)
from nightmarket.platforms import youzan
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
    LimitReached,
    PlatformDown,
    PlatformError,
    RateLimited,
    Record,
)
from nightmarket.platforms.china import to_time
from nightmarket.settings import Credentials

WRONG_CALL = (4001, 4004, 4005)  # of the gateway: path, body, API


class YouzanVoucher(ShopIssuer):
    platform: ClassVar[str] = youzan.NAME
    is_repeatable: ClassVar[bool] = False
    tells_use: ClassVar[bool] = True

    def __init__(self, credentials: Credentials, stock: Stock, *, connections: int) -> None:
        super().__init__(credentials, stock, connections=connections)
        self._client = youzan.connect(credentials, self._transport, options=youzan.Options())

    async def stock(self) -> StockFacts:
        """No method that tells a single activity is confirmed: only that the shop lets us in is seen here."""
        try:
            await asyncio.to_thread(self._client.token)
        except PlatformError as error:
            raise IssuerError(str(error)) from None
        return StockFacts(True, "not told")

    async def issue(self, receiver: str, request_key: str) -> str:
        body = {"activity_id": int(self.wanted.platform_stock_id or 0), "yz_open_id": receiver}
        try:
            async with self._open:
                answer = await asyncio.to_thread(self._client.call_once, self.wanted.send_api, body)
        except RateLimited as error:
            raise Busy(str(error), error.retry_after) from None
        except LimitReached as error:
            raise Busy(str(error)) from None
        except (PlatformDown, BadPayload) as error:
            was_sent = error.method != youzan.TOKEN_CALL
            raise (InDoubt if was_sent else Busy)(str(error)) from None
        except AuthError as error:
            raise Stopped(str(error)) from None
        except PlatformError as error:
            # our request is wrong for everybody, or the shop says that nobody can have one
            stops = error.code in WRONG_CALL or error.code is None or str(error.code) in self.wanted.stop_codes
            raise (Stopped if stops else Refused)(f"Youzan refuses this voucher: {error}") from None
        coupon_id = _coupon_id(answer)
        if not coupon_id:
            raise InDoubt("Youzan answered without a coupon id")
        return coupon_id

    async def seen(self, receiver: str, coupon_id: str) -> Seen:
        if not coupon_id.isdecimal():  # typed in by a person who decided
            raise IssuerError(f"Youzan's coupon ids are digits, not {coupon_id!r}")
        body = {"coupon_id": int(coupon_id), "coupon_type": 0}
        try:
            async with self._open:
                answer = await asyncio.to_thread(self._client.call, self.wanted.detail_api, body)
        except PlatformError as error:
            raise IssuerError(str(error)) from None
        if not {"is_used", "is_expired"} & set(answer):
            raise IssuerError("Youzan's answer about a voucher says neither is_used nor is_expired")
        if youzan.is_true(answer.get("is_used")):
            return Seen("redeemed", to_time(answer.get("used_at")))
        return Seen("expired" if youzan.is_true(answer.get("is_expired")) else "open")


def _coupon_id(answer: Record) -> str:
    """Either place that clients have seen it in."""
    identity = answer.get("voucher_identity")
    found = identity.get("coupon_id") if isinstance(identity, dict) else answer.get("coupon_id")
    return str(found or "")
