"""WeChat Pay cash coupons (代金券): put into the wallet of an openid, idempotent on our request key."""

from types import TracebackType
from typing import Any, ClassVar, Self

from nightmarket.campaigns.config import Stock
from nightmarket.campaigns.issuers.base import InDoubt, Issuer, IssuerError, Refused, Seen, StockFacts, Stopped
from nightmarket.channels.wechat_pay import PayError, PayInDoubt, PayRefused, PayStopped, WeChatPay
from nightmarket.settings import Credentials

STATES: dict[str, Any] = {"SENDED": "open", "USED": "redeemed", "EXPIRED": "expired"}


class WeChatPayIssuer(Issuer):
    account: ClassVar[str] = "wechat_pay"
    is_repeatable: ClassVar[bool] = True
    tells_use: ClassVar[bool] = True

    def __init__(self, credentials: Credentials, stock: Stock, *, connections: int) -> None:
        super().__init__(credentials, stock, connections=connections)
        self._pay = WeChatPay(credentials, connections=connections)

    async def __aenter__(self) -> Self:
        await self._pay.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pay.__aexit__(kind, error, trace)

    async def stock(self) -> StockFacts:
        try:
            found = await self._pay.stock(self.wanted.platform_stock_id or "")
        except PayError as error:
            raise IssuerError(str(error)) from None
        return StockFacts(
            found.status == "running", found.status, found.face_amount, found.minimum_amount, found.max_coupons,
            found.valid_from, found.valid_to,
        )  # fmt: skip

    async def issue(self, receiver: str, request_key: str) -> str:
        try:
            return await self._pay.issue(receiver, self.wanted.platform_stock_id or "", request_key)
        except PayError as error:
            raise _ours(error) from None

    async def seen(self, receiver: str, coupon_id: str) -> Seen:
        try:
            coupon = await self._pay.coupon(receiver, coupon_id)
        except PayError as error:
            raise _ours(error) from None
        return Seen(STATES[coupon.status], coupon.used_at)


def _ours(error: PayError) -> IssuerError:
    if isinstance(error, PayInDoubt):
        return InDoubt(str(error), error.retry_after)
    return {PayRefused: Refused, PayStopped: Stopped}.get(type(error), IssuerError)(str(error))
