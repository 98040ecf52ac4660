"""The world as it runs: the history, what happened since, the clock, and everything that will happen by itself.

One `World` per process. `settle()` is called before every request: whatever was due up to the clock's time happens then,
in order of time. Nothing depends on which requests came before, only on messages that were accepted.
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .archive import Archive
from .chance import Chance
from .clock import DAY, Clock
from .counters import Counters
from .faults import Fault
from .people import Person
from .settings import Settings
from .shops import Shops
from .world import History, Refund, Review, Trade

APPID = "wxnightmarket0001"
LINK_HOST = "https://m.nightmarket.test"


@dataclass(slots=True, eq=False)
class Follower:
    person: Person
    openid: str
    since: int
    scene: str
    following: bool = True
    opened_at: int = 0  # when the person last did something that opens the customer-service window
    opened_by: str = ""  # message, or tap (follow, menu, scan)
    answered: int = 0  # customer-service messages since then
    mass: dict[str, int] = field(default_factory=dict)  # mass messages received per calendar month


@dataclass(slots=True, eq=False)
class Coupon:
    coupon_id: str
    stock_id: str
    openid: str
    out_request_no: str
    created: int
    used: int | None = None
    used_tid: int | None = None


@dataclass(frozen=True, slots=True)
class Stock:
    stock_id: str
    name: str
    face_fen: int
    minimum_fen: int
    max_coupons: int
    max_per_user: int
    begins: int
    ends: int


class World:
    def __init__(self, history: History) -> None:
        self.history = history
        self.chance: Chance = history.chance
        self.lines = history.lines
        self.items = history.items
        self.people = history.people
        self.shops = Shops(history)
        self.social: Any = None  # what happens on Weibo (weibo.py)
        self.tills: Any = None  # the stores' back office (pos.py), and where it drops its files
        self.drop_folder = Path("var/sandbox/pos")
        self.sms: dict[str, Any] = {}  # the vendors of SMS by name, with what they push (sms.py)
        self.wechat_accounts: dict[str, Any] = {}  # by appid; they share one address for their tokens
        self.clock = Clock(history.end)
        self.buyers = [person for person in self.people if person.baskets]
        self.by_email = {person.email: person for person in self.people if person.email}
        self.by_open_uid = {person.open_uid: person for person in self.people if person.open_uid}
        self._line_count = len(self.lines.item)
        self._without_openid = [person for person in self.people if person.openid is None]
        self._first_trades = history.trades
        self._first_refunds = history.refunds
        self._first_reviews = sorted(history.reviews, key=lambda review: (review.created, review.oid))
        self._first_created = [(trade.created, trade.tid) for trade in history.trades]
        self._first_changes = sorted((at, trade.tid) for trade in history.trades for at in trade.changes)
        self.stocks = {
            stock.stock_id: stock
            for stock in (
                Stock("9856001", "满100减30 / 30 off 100", 3000, 10000, 5000, 1, history.end - 30 * DAY, history.end + 60 * DAY),
                Stock("9856002", "满20减10 / 10 off 20", 1000, 2000, 200, 1, history.end - 30 * DAY, history.end + 60 * DAY),
                Stock("9856999", "测试券 / test pool", 500, 1000, 1000, 20, history.end - 30 * DAY, history.end + 365 * DAY),
            )
        }  # fmt: skip
        self.reset()

    def reset(self) -> None:
        """Back to the first state: the end of the anchor day, nothing received, nobody reacted yet."""
        self.settings = Settings()
        self.counters = Counters()
        self.faults: list[Fault] = []
        self.clock.set(self.history.end)
        self.lines.truncate(self._line_count)
        for person in self._without_openid:
            person.openid = person.unionid = None
        self.by_openid: dict[str, Person] = {}
        self.trades = {trade.tid: trade.copy() for trade in self._first_trades}
        self.created_log = list(self._first_created)  # (created, tid), ascending
        self.change_log = list(self._first_changes)  # (instant, tid), ascending; entries may be outdated
        self.refunds = {refund.refund_id: refund for refund in self._first_refunds}
        self.refund_log: list[tuple[int, str]] = sorted(
            (at, refund.refund_id) for refund in self.refunds.values() for at in (refund.created, refund.settled)
        )
        self.reviews: list[Review] = list(self._first_reviews)  # by creation
        self.followers: dict[str, Follower] = {}
        self.subscriptions: Counter[tuple[str, str]] = Counter()  # (openid, template): notices accepted
        self.coupons: dict[str, Coupon] = {}
        self.distributed: Counter[str] = Counter()  # coupons given, per stock
        self.coupon_requests: dict[str, tuple[bytes, Coupon]] = {}
        self.coupons_of: dict[str, list[Coupon]] = defaultdict(list)
        self.archive = Archive()
        self.messages_at: dict[int, list[int]] = defaultdict(list)  # person id -> instants of marketing messages
        self.treated: list[dict[str, object]] = []  # experiment truth: marketing messages that reached somebody
        self.purchases: list[dict[str, object]] = []  # and what people bought since the anchor
        self.pending: list[tuple[int, int, Callable[[], object]]] = []
        self._sequence = 0
        self._settled_to = 0.0
        self.shops.reset()

    # ---------------------------------------------------------------------------------------------------- time

    def now(self) -> float:
        return self.clock.now()

    def later(self, at: float, happen: Callable[[], object]) -> None:
        """Let something happen at `at`, which must not lie before what has already happened."""
        self._sequence += 1
        heapq.heappush(self.pending, (int(at), self._sequence, happen))

    def settle(self) -> float:
        """Let everything happen that was due; returns the clock's time."""
        now = self.clock.now()
        while self.pending and self.pending[0][0] <= now:
            heapq.heappop(self.pending)[2]()
        return now

    # ---------------------------------------------------------------------------------------------------- trades

    def add_trade(self, trade: Trade) -> None:
        self.trades[trade.tid] = trade
        insort(self.created_log, (trade.created, trade.tid))
        for at in trade.changes:
            insort(self.change_log, (at, trade.tid))

    def touch(self, trade: Trade, at: int) -> None:
        """The seller moves the trade's flag: a modification now."""
        trade.flag = trade.flag % 5 + 1
        self.note(trade, at)

    def note(self, trade: Trade, at: int) -> None:
        trade.note(at)
        entry = (at, trade.tid)
        position = bisect_left(self.change_log, entry)
        if position == len(self.change_log) or self.change_log[position] != entry:
            self.change_log.insert(position, entry)

    def created_between(self, start: float, end: float) -> list[tuple[int, int]]:
        """(created, tid) of the trades created in [start, end], newest first."""
        low = bisect_left(self.created_log, (start, 0))
        high = bisect_right(self.created_log, (end, 1 << 63))
        return self.created_log[low:high][::-1]

    def changed_between(self, start: float, end: float, now: float) -> list[tuple[int, int]]:
        """(last change as of `now`, tid) of the trades where that change lies in [start, end], newest change first."""
        low = bisect_left(self.change_log, (start, 0))
        high = bisect_right(self.change_log, (min(end, now), 1 << 63))
        return [entry for entry in self.change_log[low:high][::-1] if self.trades[entry[1]].modified(now) == entry[0]]

    # ---------------------------------------------------------------------------------------------------- refunds, reviews

    def add_refund(self, refund: Refund) -> None:
        self.refunds[refund.refund_id] = refund
        for at in (refund.created, refund.settled):
            insort(self.refund_log, (at, refund.refund_id))

    def refunds_changed_between(self, start: float, end: float, now: float) -> list[tuple[int, Refund]]:
        """Refunds whose last change as of `now` lies in [start, end], newest change first."""
        low = bisect_left(self.refund_log, (start, ""))
        high = bisect_right(self.refund_log, (min(end, now), "~"))
        found = []
        for at, refund_id in reversed(self.refund_log[low:high]):
            refund = self.refunds[refund_id]
            if at == (refund.settled if refund.settled <= now else refund.created):
                found.append((at, refund))
        return found

    def add_reviews(self, reviews: list[Review]) -> None:
        for review in reviews:
            insort(self.reviews, review, key=lambda entry: (entry.created, entry.oid))

    def drop_reviews(self, trade: Trade) -> None:
        """Forget the reviews a trade was going to get."""
        for review in trade.reviews:
            self.reviews.remove(review)
            if review.created in trade.changes:
                trade.changes.remove(review.created)
        trade.reviews = []

    def reviews_between(self, start: float, end: float) -> list[Review]:
        """Reviews written in [start, end], newest first."""
        low = bisect_left(self.reviews, start, key=lambda review: review.created)
        high = bisect_right(self.reviews, end, key=lambda review: review.created)
        return self.reviews[low:high][::-1]

    # ---------------------------------------------------------------------------------------------------- followers

    def following(self) -> list[Follower]:
        """Everybody who follows now, in the order of following."""
        return sorted(
            (follower for follower in self.followers.values() if follower.following),
            key=lambda follower: (follower.since, follower.openid),
        )

    def coupon_status(self, coupon: Coupon, now: float) -> str:
        if coupon.used is not None and coupon.used <= now:
            return "USED"
        return "EXPIRED" if self.stocks[coupon.stock_id].ends <= now else "SENDED"
