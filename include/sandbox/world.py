"""The world's history: a Taobao shop whose trades are the invoices of include/data/online_retail.csv.gz.

Times are moved by whole days so that the data's last day (2011-12-09) becomes the anchor day, wall clock taken as China
time. Prices are kept as integers of a thousandth (`milli`), because the data has up to three decimals. Nothing in a
`History` ever changes: the running state copies what it needs (state.py), so a reset is cheap.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .chance import Chance
from .clock import DAY, HOUR, MINUTE, OFFSET, day_start
from .people import STRANGER_IDS, STRANGERS, Person, make_person

DATA_FILE = Path(__file__).resolve().parents[1] / "data" / "online_retail.csv.gz"
LAST_DAY = date(2011, 12, 9)  # of the data

# How a trade lives.
UNPAID = 0.04  # a second trade of the same basket that the buyer let expire, per paid trade
UNPAID_LIFE = DAY  # an unpaid trade is closed by the platform after this long
REVIEWED = 0.35  # of the trades that ended
RESULTS = ((0.92, "good"), (0.97, "neutral"), (1.0, "bad"))
ANSWERED = 0.6  # of the bad reviews
REVIEW_DAYS = 15  # the platform takes a review up to this long after the end of the trade

# Number spaces of 64-bit trade ids: TID_BASE + number * TID_STEP + customer * 100000 (+ line for the sub-order ids).
TID_BASE = 4_000_000_000_000_000_000
TID_STEP = 100_000_000_000
UNPAID_OFFSET = 300_000  # invoice number + this: the unpaid twin of an invoice
LIVE_NUMBER = 990_000  # + days since the anchor: trades that begin while the sandbox runs
BEFORE_HISTORY = 100_000  # subtracted from the invoice number: trades before the history that a refund names


@dataclass(frozen=True, slots=True)
class Item:
    num_iid: int
    code: str  # the data's StockCode
    title: str


@dataclass(slots=True, eq=False)
class Refund:
    refund_id: str
    tid: int
    oid: int
    buyer: Person
    item: int
    num: int
    fee: int  # milli, to the buyer
    line_total: int  # milli
    line: int | None  # index of the order line; None when the trade lies before the history
    created: int
    settled: int
    returns_goods: bool
    after_sale: bool


@dataclass(slots=True, eq=False)
class Review:
    tid: int
    oid: int
    line: int
    item: int
    buyer: Person
    created: int
    result: str
    content: str
    reply: str | None
    replied: int | None


@dataclass(slots=True, eq=False)
class Trade:
    tid: int
    buyer: Person
    first: int  # order lines [first, last)
    last: int
    created: int
    paid: int | None  # None: never
    consigned: int | None
    ended: int | None  # buyer confirmed, or closed
    closed: bool  # ended without success: never paid, or paid and refunded in full before it ended
    flag: int = 0  # seller's flag; moving it is a modification
    changes: list[int] = field(default_factory=list)  # ascending instants at which something visible changed
    refunds: list[Refund] = field(default_factory=list)
    reviews: list[Review] = field(default_factory=list)

    def copy(self) -> "Trade":
        return Trade(
            self.tid,
            self.buyer,
            self.first,
            self.last,
            self.created,
            self.paid,
            self.consigned,
            self.ended,
            self.closed,
            self.flag,
            list(self.changes),
            list(self.refunds),
            list(self.reviews),
        )

    def modified(self, now: float) -> int:
        """The last change up to `now`; the trade must exist by then."""
        return self.changes[bisect_right(self.changes, now) - 1]

    def status(self, now: float) -> str:
        if self.ended is not None and self.ended <= now:
            if not self.closed:
                return "TRADE_FINISHED"
            return "TRADE_CLOSED_BY_TAOBAO" if self.paid is None else "TRADE_CLOSED"
        if self.paid is None or now < self.paid:
            return "WAIT_BUYER_PAY"
        if self.consigned is None or now < self.consigned:
            return "WAIT_SELLER_SEND_GOODS"
        return "WAIT_BUYER_CONFIRM_GOODS"

    def oid(self, line: int) -> int:
        """The sub-order id of a line: the trade's own id when it is the only one."""
        return self.tid if self.last - self.first == 1 else self.tid + line - self.first + 1

    def note(self, at: int) -> None:
        """Remember that something visible changes at `at`."""
        position = bisect_left(self.changes, at)
        if position == len(self.changes) or self.changes[position] != at:
            self.changes.insert(position, at)


@dataclass(slots=True)
class Lines:
    """Order lines as columns: what was sold, how many, at what price in thousandths."""

    item: "array[int]"
    num: "array[int]"
    milli: "array[int]"

    def append(self, item: int, num: int, milli: int) -> None:
        self.item.append(item)
        self.num.append(num)
        self.milli.append(milli)

    def truncate(self, length: int) -> None:
        for column in (self.item, self.num, self.milli):
            del column[length:]

    def total(self, line: int) -> int:
        return self.num[line] * self.milli[line]


@dataclass(slots=True)
class History:
    seed: int
    anchor: date
    chance: Chance
    people: list[Person]
    items: list[Item]
    lines: Lines
    trades: list[Trade]
    refunds: list[Refund]
    reviews: list[Review]
    start: int
    end: int  # the first instant after the anchor day; the sandbox's clock starts here
    walk_in_lines: Lines  # of the invoices without a customer, which the tills of shops.py sell again
    walk_in_times: "array[int]"  # per line
    walk_ins: list[tuple[int, int]]  # lines [first, last) of each of these invoices


GOOD = ("很好，和描述一致", "包装仔细，发货快", "质量不错，会再来", "喜欢，送人也合适", "Lovely, just as described")
NEUTRAL = ("一般般", "还可以，物流有点慢", "颜色和图片有差别")
BAD = ("收到时已经破损", "和图片差得很远", "等了太久，客服不理人", "Broken on arrival")
REPLIES = ("非常抱歉，已为您安排补发，请留意短信。", "抱歉给您添麻烦了，我们已联系您处理退款。")


def load_history(seed: int, anchor: date, customers: int | None = None, data_file: Path = DATA_FILE) -> History:
    """Build the history up to the end of `anchor`; `customers` keeps a spread sample of that many customers."""
    chance = Chance(seed)
    frame = pd.read_csv(data_file, dtype=str, keep_default_na=False, na_filter=False)
    codes, items = _items(frame)
    # The row number in the file names refunds, so it must not depend on the sample.
    frame = frame.assign(code=codes, row=np.arange(len(frame)))
    is_known = (frame["CustomerID"] != "").to_numpy()
    walk_in_lines, walk_in_times, walk_ins = _walk_ins(frame[~is_known], anchor)
    frame = frame[is_known]
    is_cancellation = frame["InvoiceNo"].str.startswith("C")
    frame = frame.assign(
        customer=frame["CustomerID"].astype("int64"),
        invoice=frame["InvoiceNo"].str.lstrip("CA").astype("int64"),
        num=frame["Quantity"].astype("int64"),
        milli=(frame["UnitPrice"].astype("float64") * 1000).round().astype("int64"),
        at=_instants(frame["InvoiceDate"], anchor),
        cancels=is_cancellation,
    )
    clean = frame[~frame["cancels"] & (frame["num"] > 0) & (frame["milli"] > 0)]
    cancelled = frame[frame["cancels"]]
    if customers is not None:
        kept = _sample(clean, cancelled, customers)
        clean, cancelled = (part[part["customer"].isin(kept)] for part in (clean, cancelled))

    ids = sorted(set(clean["customer"]) | set(cancelled["customer"]))
    people = {person_id: make_person(person_id, chance) for person_id in ids}
    stranger_count = max(round(clean["customer"].nunique() * STRANGERS), 3)
    strangers = [make_person(STRANGER_IDS + number, chance) for number in range(stranger_count)]

    history = History(
        seed=seed,
        anchor=anchor,
        chance=chance,
        people=[*people.values(), *strangers],
        items=items,
        lines=Lines(array("q"), array("q"), array("q")),
        trades=[],
        refunds=[],
        reviews=[],
        start=day_start(anchor) - DAY * (LAST_DAY - date(2010, 12, 1)).days,
        end=day_start(anchor) + DAY,
        walk_in_lines=walk_in_lines,
        walk_in_times=walk_in_times,
        walk_ins=walk_ins,
    )
    line_customer = _add_trades(history, clean, people)
    _add_refunds(history, cancelled, people, line_customer)
    for trade in history.trades:
        close_if_refunded(trade, history.lines)
        history.reviews.extend(plan_reviews(trade, history))
        collect_changes(trade)
    return history


def _walk_ins(frame: pd.DataFrame, anchor: date) -> tuple[Lines, "array[int]", list[tuple[int, int]]]:
    """The invoices without a customer: their lines, when each was sold, and the lines of each invoice."""
    frame = frame[frame["InvoiceNo"].str.isdecimal().to_numpy()]  # neither cancellations nor adjustments of bad debt
    num, price = frame["Quantity"].astype("int64"), frame["UnitPrice"].astype("float64")
    frame = frame.assign(num=num, milli=(price * 1000).round().astype("int64"))[((num > 0) & (price > 0)).to_numpy()]
    frame = frame.sort_values(["InvoiceNo", "row"], kind="stable")
    sizes = frame.groupby("InvoiceNo", sort=True).size().tolist()
    ends = np.cumsum(sizes).tolist()
    columns = [array("q", frame[name].tolist()) for name in ("code", "num", "milli")]
    times = array("q", _instants(frame["InvoiceDate"], anchor).tolist())
    return Lines(*columns), times, [(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _items(frame: pd.DataFrame) -> tuple[np.ndarray[Any, Any], list[Item]]:
    """The item number of every row, and the items; the title is the most frequent description."""
    codes, names = pd.factorize(frame["StockCode"], sort=True)
    described = frame["Description"].str.strip()
    counts = pd.DataFrame({"code": codes, "title": described})[(described != "").to_numpy()].value_counts()
    titles: dict[int, str] = {}
    for (code, title), _ in sorted(zip(counts.index.tolist(), counts.tolist(), strict=True), key=_most_frequent):
        titles.setdefault(code, title)
    return codes, [
        Item(610_000_000_000 + number * 13, str(code), titles.get(number, str(code)))
        for number, code in enumerate(names)
    ]


def _most_frequent(entry: tuple[tuple[int, str], int]) -> tuple[int, tuple[int, str]]:
    return -entry[1], entry[0]


def _instants(times: "pd.Series[str]", anchor: date) -> np.ndarray[Any, Any]:
    """Unix seconds of the data's wall clock taken as China time, moved to the anchor by whole days."""
    texts, position = np.unique(times.to_numpy(dtype=str), return_inverse=True)
    seconds = texts.astype("datetime64[s]").astype("int64") - OFFSET + (anchor - LAST_DAY).days * DAY
    return seconds[position]  # type: ignore[no-any-return]


def _sample(clean: pd.DataFrame, cancelled: pd.DataFrame, customers: int) -> set[int]:
    """`customers` ids spread evenly over what people spent, wholesalers included, and some who only cancelled."""
    spent = (clean["num"] * clean["milli"]).groupby(clean["customer"]).sum()
    buyers = sorted(spent.index, key=lambda customer: (spent[customer], customer))
    others = sorted(set(cancelled["customer"]) - set(buyers))
    other_count = min(len(others), max(round(customers * len(others) / len(buyers)), 2 if customers >= 10 else 0))
    buyer_count = max(min(customers - other_count, len(buyers)), 1)
    if buyer_count == 1:
        chosen = {buyers[len(buyers) // 2]}
    else:
        chosen = {buyers[round(i * (len(buyers) - 1) / (buyer_count - 1))] for i in range(buyer_count)}
    return chosen | {others[i * len(others) // other_count] for i in range(other_count)}


def _add_trades(history: History, clean: pd.DataFrame, people: dict[int, Person]) -> list[int]:
    """One trade per invoice, one line per row; returns the customer of every line of a paid trade, by line index."""
    chance, lines = history.chance, history.lines
    clean = clean.sort_values(["invoice", "row"], kind="stable")
    lines.item.extend(clean["code"].tolist())
    lines.num.extend(clean["num"].tolist())
    lines.milli.extend(clean["milli"].tolist())
    line_customer: list[int] = clean["customer"].tolist()
    grouped = clean.groupby("invoice", sort=True)
    # An invoice may span two minutes: its time is the earliest.
    times, sizes = grouped["at"].min(), grouped.size()
    first, paid_lines = 0, len(line_customer)
    for invoice, created, size in zip(times.index.tolist(), times.tolist(), sizes.tolist(), strict=True):
        buyer = people[line_customer[first]]
        tid = TID_BASE + invoice * TID_STEP + buyer.person_id * 100_000
        trade = new_trade(tid, buyer, first, first + size, created, chance)
        history.trades.append(trade)
        buyer.baskets.append(tid)
        first += size
    assert first == paid_lines
    for trade in history.trades[:]:
        if chance("unpaid", trade.tid) < UNPAID:
            history.trades.append(_unpaid_twin(trade, history))
    history.trades.sort(key=lambda trade: (trade.created, trade.tid))
    return line_customer


def new_trade(tid: int, buyer: Person, first: int, last: int, created: int, chance: Chance) -> Trade:
    """A trade that will be paid within minutes of the same day, sent within two days, signed days later."""
    midnight = created - (created + OFFSET) % DAY + DAY
    paid = min(created + chance.between(30, 9 * MINUTE, "pay", tid), midnight - 1)
    consigned = paid + chance.between(2 * HOUR, 40 * HOUR, "consign", tid)
    ended = consigned + chance.between(2 * DAY, 10 * DAY, "end", tid)
    return Trade(tid, buyer, first, last, created, paid, consigned, ended, False)


def _unpaid_twin(trade: Trade, history: History) -> Trade:
    """The buyer's first try at part of the basket, earlier the same day, never paid."""
    chance, lines = history.chance, history.lines
    midnight = trade.created - (trade.created + OFFSET) % DAY
    created = max(trade.created - chance.between(5 * MINUTE, 90 * MINUTE, "early", trade.tid), midnight)
    first = len(lines.item)
    for line in range(trade.first, min(trade.last, trade.first + 5)):
        lines.append(lines.item[line], lines.num[line], lines.milli[line])
    return Trade(
        tid=trade.tid + UNPAID_OFFSET * TID_STEP,
        buyer=trade.buyer,
        first=first,
        last=len(lines.item),
        created=created,
        paid=None,
        consigned=None,
        ended=created + UNPAID_LIFE,
        closed=True,
    )


def _add_refunds(
    history: History, cancelled: pd.DataFrame, people: dict[int, Person], line_customer: list[int]
) -> None:
    """One settled refund per cancellation row, tied to the latest earlier line of the same customer and item."""
    chance, lines = history.chance, history.lines
    wanted = set(zip(cancelled["customer"].tolist(), cancelled["code"].tolist(), strict=True))
    sold: dict[tuple[int, int], list[tuple[int, int, Trade]]] = defaultdict(list)
    for trade in history.trades:  # ascending by creation
        if trade.paid is not None:
            for line in range(trade.first, trade.last):
                key = (line_customer[line], lines.item[line])
                if key in wanted:
                    sold[key].append((trade.paid, line, trade))
    for entries in sold.values():
        entries.sort(key=lambda entry: entry[:2])
    columns = (cancelled[name].tolist() for name in ("row", "invoice", "customer", "code", "num", "milli", "at"))
    for row, invoice, customer, code, num, milli, at in zip(*columns, strict=True):
        refund_id = str(70_000_000_000_000 + row * 1000 + 7)
        fee = -num * milli
        entries = sold.get((customer, code), [])
        position = bisect_left(entries, at, key=lambda entry: entry[0])
        asked = at - chance.between(HOUR, 72 * HOUR, "asked", refund_id)
        if position:
            paid, line, trade = entries[position - 1]
            refund = Refund(
                refund_id=refund_id,
                tid=trade.tid,
                oid=trade.oid(line),
                buyer=people[customer],
                item=code,
                num=-num,
                fee=fee,
                line_total=lines.total(line),
                line=line,
                created=min(max(asked, paid + 20), at - 1),
                settled=at,
                returns_goods=trade.consigned is not None and at > trade.consigned and chance("back", refund_id) < 0.6,
                after_sale=trade.ended is not None and at > trade.ended,
            )
            trade.refunds.append(refund)
        else:
            tid = TID_BASE + (invoice - BEFORE_HISTORY) * TID_STEP + customer * 100_000
            refund = Refund(refund_id, tid, tid, people[customer], code, -num, fee, fee, None, asked, at, False, True)
        history.refunds.append(refund)


def close_if_refunded(trade: Trade, lines: Lines) -> None:
    """A paid trade whose every line was refunded in full before it ended is closed by the last of these refunds."""
    if not trade.refunds or trade.ended is None:
        return
    returned: dict[int, int] = defaultdict(int)
    last = 0
    for refund in trade.refunds:
        if not refund.after_sale and refund.line is not None:
            returned[refund.line] += refund.num
            last = max(last, refund.settled)
    if all(returned.get(line, 0) >= lines.num[line] for line in range(trade.first, trade.last)):
        trade.ended, trade.closed = last, True
        if trade.consigned is not None and trade.consigned >= last:
            trade.consigned = None


def plan_reviews(trade: Trade, history: History) -> list[Review]:
    """The reviews the buyer will write of their own accord; added to the trade and returned."""
    chance = history.chance
    if trade.closed or trade.ended is None or chance("reviewed", trade.tid) >= REVIEWED:
        return []
    created = trade.ended + chance.between(HOUR, 10 * DAY, "review at", trade.tid)
    return write_reviews(trade, created, history.chance, history.lines)


def write_reviews(trade: Trade, created: int, chance: Chance, lines: Lines) -> list[Review]:
    """One to three lines of a trade reviewed at `created`; added to the trade and returned."""
    draw = chance("result", trade.tid)
    result = next(name for share, name in RESULTS if draw < share)
    content = chance.pick({"good": GOOD, "neutral": NEUTRAL, "bad": BAD}[result], "content", trade.tid)
    answered = result == "bad" and chance("answered", trade.tid) < ANSWERED
    count = min(trade.last - trade.first, chance.pick((1, 1, 1, 2, 3), "rows", trade.tid))
    start = chance.between(0, trade.last - trade.first - count, "first", trade.tid)
    written = [
        Review(
            tid=trade.tid,
            oid=trade.oid(line),
            line=line,
            item=lines.item[line],
            buyer=trade.buyer,
            created=created,
            result=result,
            content=content,
            reply=chance.pick(REPLIES, "reply", trade.tid) if answered else None,
            replied=created + chance.between(2 * HOUR, 3 * DAY, "replied", trade.tid) if answered else None,
        )
        for line in range(trade.first + start, trade.first + start + count)
    ]
    trade.reviews = written
    return written


def collect_changes(trade: Trade) -> None:
    """Every instant at which the trade as TOP shows it changes."""
    instants = {trade.created, trade.paid, trade.consigned, trade.ended}
    for refund in trade.refunds:
        instants |= {refund.created, refund.settled}
    instants |= {review.created for review in trade.reviews}
    trade.changes = sorted(at for at in instants if at is not None)
