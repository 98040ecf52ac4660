"""What a platform that issues coupons can do, and the four things that can come of asking it."""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import ClassVar, Literal, Self

from nightmarket.accounts import Account
from nightmarket.campaigns.config import Stock
from nightmarket.platforms.base import Transport
from nightmarket.settings import Credentials

MAX_REQUESTS = 10_000_000  # of one run; a campaign is bounded by its budget


class IssuerError(Exception):
    """The issuer did not do what was asked; one sentence without personal values."""


class Refused(IssuerError):
    """This person cannot have this coupon; others can."""


class Stopped(IssuerError):
    """Nobody can have one: budget used up, stock not running, or our own permission is wrong. Nothing was given."""


class Busy(IssuerError):
    """Nothing was given, and nothing is wrong: ask again after `retry_after` seconds."""

    def __init__(self, sentence: str, retry_after: float = 1.0) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class InDoubt(Busy):
    """Nobody knows whether it was given. Only an issuer that recognises a repeated request may be asked again."""


@dataclass(frozen=True)
class StockFacts:
    """A stock as its issuer knows it; amounts in yuan. None: the issuer does not tell it."""

    is_running: bool
    status: str
    face_amount: Decimal | None = None
    minimum_amount: Decimal | None = None
    max_coupons: int | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None


@dataclass(frozen=True)
class Seen:
    """What became of an issued coupon, and when, where the issuer tells it."""

    state: Literal["open", "redeemed", "expired"]
    at: datetime | None = None


class Issuer(ABC):
    """One stock's platform. Use as `async with issuer`."""

    account: ClassVar[str] = ""  # connection, when the stock names none
    is_repeatable: ClassVar[bool]  # the identical request gives the same coupon again, never a second one
    tells_use: ClassVar[bool]  # can be asked whether a coupon was used

    def __init__(self, credentials: Credentials, stock: Stock, *, connections: int) -> None:
        self.credentials, self.wanted, self.connections = credentials, stock, connections

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(  # noqa: B027 - most have nothing to close
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @abstractmethod
    async def stock(self) -> StockFacts:
        """What the platform knows of the stock. Raises IssuerError."""

    @abstractmethod
    async def issue(self, receiver: str, request_key: str) -> str:
        """Give one coupon to `receiver`; returns the platform's id of it. Raises Refused, Stopped, Busy, InDoubt."""

    @abstractmethod
    async def seen(self, receiver: str, coupon_id: str) -> Seen:
        """What became of an issued coupon; only asked when `tells_use`. Raises IssuerError."""


class ShopIssuer(Issuer):
    """An issuer that is a shop we read as well: token, pace and bans are shared with everybody who uses the account."""

    platform: ClassVar[str]

    def __init__(self, credentials: Credentials, stock: Stock, *, connections: int) -> None:
        super().__init__(credentials, stock, connections=connections)
        pace = float(stock.calls_per_second) if stock.calls_per_second else None
        self._account = Account(self.platform, credentials, calls_per_second=pace)
        self._transport = Transport(
            self.platform, max_requests=MAX_REQUESTS, max_seconds=86_400, tokens=self._account, pace=self._account
        )
        self._open = asyncio.Semaphore(connections)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._account.__exit__(None, None, None)
