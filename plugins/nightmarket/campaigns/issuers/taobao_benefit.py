"""Taobao and Tmall benefits (权益): `taobao.promotion.benefit.activity.send`, idempotent on `unique_id`, our request key.

The answer names no coupon, so our key is its id; TOP has no method that tells whether it was used (docs/connections/coupons.md).
"""

import asyncio
from typing import ClassVar

import orjson

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
from nightmarket.platforms import taobao
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
    LimitReached,
    PlatformDown,
    PlatformError,
    RateLimited,
    Record,
)
from nightmarket.settings import Credentials

SEND, DETAIL = "taobao.promotion.benefit.activity.send", "taobao.promotion.benefit.activity.detail.get"
RECEIVERS = {"open_uid": "receiver_id", "ouid": "ouid"}  # the parameter that names the person


class TaobaoBenefit(ShopIssuer):
    platform: ClassVar[str] = taobao.NAME
    is_repeatable: ClassVar[bool] = True
    tells_use: ClassVar[bool] = False

    def __init__(self, credentials: Credentials, stock: Stock, *, connections: int) -> None:
        super().__init__(credentials, stock, connections=connections)
        self._client = taobao.connect(credentials, self._transport, options=taobao.Options())

    async def stock(self) -> StockFacts:
        query = orjson.dumps({"relation_id": self.wanted.platform_stock_id, "status": "VALID"}).decode()
        try:
            content = await asyncio.to_thread(self._client.call, DETAIL, query_request=query)
        except PlatformError as error:
            raise IssuerError(str(error)) from None
        found = any(str(row.get("detail_id")) == self.wanted.detail_id for row in _details(content))
        return StockFacts(found, "running" if found else "not among the valid benefits of its relation")

    async def issue(self, receiver: str, request_key: str) -> str:
        request = {
            "relation_id": self.wanted.platform_stock_id,
            "detail_id": self.wanted.detail_id,
            "benefit_type": self.wanted.benefit_type,
            "send_count": 1,
            "unique_id": request_key,
        }
        parameters = {"send_request": orjson.dumps(request).decode(), RECEIVERS[self.wanted.receiver]: receiver}
        try:
            async with self._open:
                content = await asyncio.to_thread(self._client.call_once, SEND, **parameters)
        except PlatformError as error:
            raise self._ours(error) from None
        results = taobao.rows_of(content.get("result_list") or {}, "benefit_send_result_ext")
        results = results or taobao.rows_of(content, "result_list", "benefit_send_result_ext")
        if any(_count(row.get("success_count")) for row in results):
            return request_key
        codes = [str(code) for row in results for code in taobao.rows_of(row, "error_code_list", "string")]
        if not results:
            raise InDoubt("Taobao answered without a result")
        sentence = f"Taobao refuses this benefit ({', '.join(codes) or 'no reason given'})"
        raise (Stopped if set(codes) & set(self.wanted.stop_codes) else Refused)(sentence)

    def _ours(self, error: PlatformError) -> IssuerError:
        if isinstance(error, RateLimited | LimitReached):
            return Busy(str(error), getattr(error, "retry_after", 1.0))
        if isinstance(error, PlatformDown | BadPayload):
            return InDoubt(str(error))
        stops = isinstance(error, AuthError) or any(code in error.problem for code in self.wanted.stop_codes)
        return (Stopped if stops else Refused)(str(error))

    async def seen(self, receiver: str, coupon_id: str) -> Seen:
        raise NotImplementedError("TOP does not tell whether a benefit was used")


def _details(content: Record) -> list[Record]:
    """The benefits inside `relation_benefit_details`, a JSON text."""
    try:
        rows = orjson.loads(content.get("relation_benefit_details") or "[]")
    except orjson.JSONDecodeError:
        raise IssuerError("Taobao's list of benefits is not JSON") from None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _count(value: object) -> int:
    text = str(value)
    return int(text) if text.isdigit() else 0
