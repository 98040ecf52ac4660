"""The world's other shops: what JD, Youzan, Weidian, the WeChat store, Shopify, WooCommerce and the tills have sold.

Real baskets: an online order is an invoice of a known customer, bought again in that shop (its first five lines, at most 20
of a thing, prices rounded to fen) some hours or days later; a sale of the tills is a piece of an invoice without a
customer. Everything follows from the seed; sales of the 30 days after the anchor exist already and become visible as the
clock moves. Amounts are integers of a fen, instants are Unix seconds. A shop is built when it is first asked for.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .chance import Chance
from .clock import DAY, HOUR, MINUTE, day_of, day_start
from .people import Person, make_person
from .world import History, Item

# Orders per paid trade of the Taobao shop, so that a sample of the customers makes every shop smaller alike.
SHARES = {
    "jd": 0.06,
    "youzan": 0.04,
    "weidian": 0.02,
    "wechat_store": 0.04,
    "shopify": 0.02,
    "woocommerce": 0.04,
    "pos": 0.20,
}
FEWEST, FEWEST_LIVE = 12, 4  # sales up to the anchor, and in the days after it, in the smallest world
LIVE_DAYS = 30
HISTORY_DAYS = 374
ONLINE_LINES, TILL_LINES = 5, 8
LARGEST_QUANTITY = 20
UNPAID_LIFE = DAY
OWN_PEOPLE = 700_001  # + 10,000 per shop: people only that shop knows
STARS = ((0.70, 5), (0.85, 4), (0.92, 3), (0.96, 2), (1.0, 1))
TEXTS = {
    5: (
        "很好，和描述一致",
        "包装很用心，送人有面子👍",
        "回购第三次了😀",
        "Lovely, exactly as described",
        "质量𠮷棒，推荐",
    ),
    4: ("不错，就是物流慢了一天", "Good value, box a bit dented", "好看，比想象的小一点"),
    3: ("一般般", "颜色和图片有差别", "It is all right"),
    2: ("有划痕，客服回复慢", "Smaller than in the pictures 😕"),
    1: ("收到时已经破损😡", "Broken on arrival", "发错货了，还没解决"),
}
REPLIES = (
    "非常抱歉，已为您安排补发。",
    "抱歉给您添麻烦了，我们已联系您处理。",
    "Sorry about that, a replacement is on its way.",
)
REMARKS = ("已电话确认", "尽快发货", "老客户，加赠一份", "请核对地址")


@dataclass(slots=True)
class Line:
    item: int  # world.items[item]: num_iid, code, title
    num: int
    price: int  # fen each
    paid: int  # fen of the line, after its share of the discount; always more than 0


@dataclass(slots=True, eq=False)
class ShopRefund:
    """One refund of one line of one sale."""

    refund_id: int
    sale: "Sale" = field(repr=False)
    line: int  # index into sale.lines
    num: int
    amount: int  # fen, to the buyer
    created: int
    settled: int | None  # when it was paid back or refused; None: never decided
    refused: bool
    returns_goods: bool

    def state(self, now: float) -> str | None:
        """None (not asked for yet), 'requested', 'settled' or 'refused'."""
        if self.created > now:
            return None
        if self.settled is None or self.settled > now:
            return "requested"
        return "refused" if self.refused else "settled"

    def modified(self, now: float) -> int:
        return self.settled if self.settled is not None and self.settled <= now else self.created


@dataclass(slots=True, eq=False)
class ShopReview:
    """One review of one line of one sale."""

    review_id: int
    sale: "Sale" = field(repr=False)
    line: int
    created: int
    stars: int  # 1..5
    content: str
    reply: str | None
    replied: int | None

    def modified(self, now: float) -> int:
        return self.replied if self.replied is not None and self.replied <= now else self.created


@dataclass(slots=True, eq=False)
class Sale:
    """One order of one shop (of the tills: one receipt, paid and handed over at once)."""

    order_id: int  # 64 bits, above 2**53, unique in the shop
    person: Person | None  # None only at the tills: nobody showed a card
    lines: list[Line]
    goods: int  # sum of price x num
    discount: int
    postage: int
    paid_amount: int  # goods - discount + postage: what is to be paid, or was
    created: int
    paid_at: int | None  # None: never paid
    shipped_at: int | None
    ended_at: int | None  # the buyer confirmed; None when it was closed
    closed_at: int | None  # never paid, or every line refunded in full before it ended
    refunds: list[ShopRefund] = field(default_factory=list)
    reviews: list[ShopReview] = field(default_factory=list)
    remark: str | None = None  # the seller's, see Shop.touch
    touched: list[int] = field(default_factory=list)  # ascending

    def state(self, now: float) -> str:
        """'unpaid', 'paid', 'shipped', 'finished', 'closed_unpaid' or 'refunded' at `now`."""
        if self.closed_at is not None and self.closed_at <= now:
            return "closed_unpaid" if self.paid_at is None else "refunded"
        if self.paid_at is None or self.paid_at > now:
            return "unpaid"
        if self.ended_at is not None and self.ended_at <= now:
            return "finished"
        return "shipped" if self.shipped_at is not None and self.shipped_at <= now else "paid"

    def is_paid(self, now: float) -> bool:
        """Whether it was paid at some time, also when it was refunded since."""
        return self.paid_at is not None and self.paid_at <= now

    def changes(self) -> set[int]:
        """Every instant at which something visible of the order changes; reviews do not change it."""
        instants = {self.created, self.paid_at, self.shipped_at, self.ended_at, self.closed_at, *self.touched}
        for refund in self.refunds:
            instants |= {refund.created, refund.settled}
        return {at for at in instants if at is not None}

    def modified(self, now: float) -> int:
        """The last change up to `now`; the sale must exist by then."""
        return max(at for at in self.changes() if at <= now)


@dataclass(slots=True, eq=False)
class Customer:
    """Somebody the shop has an account (at the tills: a card) of; not everybody has bought."""

    person: Person
    number: int  # of the account or card, unique in the shop
    joined: int
    is_member: bool
    level: int  # 0 when no member, else 1..4
    sales: list[Sale] = field(default_factory=list, repr=False)  # by creation

    def _paid(self, now: float) -> Iterator[Sale]:
        return (sale for sale in self.sales if sale.is_paid(now))

    def order_count(self, now: float) -> int:
        """Orders paid up to `now`, refunded ones included."""
        return sum(1 for _ in self._paid(now))

    def spent(self, now: float) -> int:
        """Fen paid up to `now`, refunds not taken off."""
        return sum(sale.paid_amount for sale in self._paid(now))

    def points(self, now: float) -> int:
        """One point per yuan, members only."""
        return self.spent(now) // 100 if self.is_member else 0

    def last_order(self, now: float) -> int | None:
        """When the newest paid order was created."""
        return max((sale.created for sale in self._paid(now)), default=None)

    def modified(self, now: float) -> int:
        """When the numbers above last changed."""
        return max((sale.paid_at or 0 for sale in self._paid(now)), default=0) or self.joined


@dataclass(frozen=True, slots=True)
class ShopItem:
    """An item as the shop lists it."""

    item: int  # index of world.items
    num_iid: int
    code: str
    title: str
    price: int  # fen
    is_listed: bool
    modified: int


class Shop:
    """One shop. Every list holds only what exists at `now`; ranges include both ends."""

    def __init__(self, name: str, history: History) -> None:
        self.name = name
        self._items = history.items
        self._sales, self._customers = _build(name, history)
        self._by_id = {sale.order_id: sale for sale in self._sales}
        self._created = [sale.created for sale in self._sales]
        self._first_changes = sorted((at, sale.order_id) for sale in self._sales for at in sale.changes())
        refunds = [refund for sale in self._sales for refund in sale.refunds]
        self._refunds = {refund.refund_id: refund for refund in refunds}
        self._refund_changes = sorted(
            (at, refund.refund_id) for refund in refunds for at in (refund.created, refund.settled) if at is not None
        )
        self._reviews = sorted(
            (review for sale in self._sales for review in sale.reviews), key=lambda r: (r.created, r.review_id)
        )
        self.reset()

    def reset(self) -> None:
        """Forget what sellers did since the start."""
        self._changes = list(self._first_changes)
        for sale in self._sales:
            if sale.touched:
                sale.touched, sale.remark = [], None

    # ---------------------------------------------------------------------------------------------------- reading

    def created_between(self, start: float, end: float, now: float) -> list[Sale]:
        """Sales created in [start, end], newest first."""
        low, high = bisect_left(self._created, start), bisect_right(self._created, min(end, now))
        return self._sales[low:high][::-1]

    def changed_between(self, start: float, end: float, now: float) -> list[Sale]:
        """Sales whose last change as of `now` lies in [start, end], newest change first."""
        low = bisect_left(self._changes, (start, 0))
        high = bisect_right(self._changes, (min(end, now), 1 << 63))
        found = ((at, self._by_id[order_id]) for at, order_id in reversed(self._changes[low:high]))
        return [sale for at, sale in found if sale.modified(now) == at]

    def sale(self, order_id: int, now: float) -> Sale | None:
        sale = self._by_id.get(order_id)
        return sale if sale is not None and sale.created <= now else None

    def refunds_changed_between(self, start: float, end: float, now: float) -> list[ShopRefund]:
        """Refunds whose last change as of `now` lies in [start, end], newest change first."""
        low = bisect_left(self._refund_changes, (start, 0))
        high = bisect_right(self._refund_changes, (min(end, now), 1 << 63))
        found = ((at, self._refunds[refund_id]) for at, refund_id in reversed(self._refund_changes[low:high]))
        return [refund for at, refund in found if refund.modified(now) == at]

    def refund(self, refund_id: int, now: float) -> ShopRefund | None:
        refund = self._refunds.get(refund_id)
        return refund if refund is not None and refund.created <= now else None

    def reviews_between(self, start: float, end: float, now: float) -> list[ShopReview]:
        """Reviews written in [start, end], newest first."""
        low = bisect_left(self._reviews, start, key=lambda review: review.created)
        high = bisect_right(self._reviews, min(end, now), key=lambda review: review.created)
        return self._reviews[low:high][::-1]

    def customers(self, now: float) -> list[Customer]:
        """Everybody who has joined, in that order."""
        return [customer for customer in self._customers if customer.joined <= now]

    def customer(self, number: int, now: float) -> Customer | None:
        return next((one for one in self._customers if one.number == number and one.joined <= now), None)

    def customer_of(self, person: Person) -> Customer | None:
        return self._customer_of.get(person.person_id)

    @cached_property
    def _customer_of(self) -> dict[int, Customer]:
        return {customer.person.person_id: customer for customer in self._customers}

    @property
    def people(self) -> list[Person]:
        """Everybody who will ever be a customer here."""
        return [customer.person for customer in self._customers]

    def items(self) -> list[ShopItem]:
        """What the shop lists, by item number: every item it ever sells, at its latest price; one in 20 is off the shelf."""
        return self._listing

    @cached_property
    def _listing(self) -> list[ShopItem]:
        latest: dict[int, tuple[int, int]] = {}
        for sale in self._sales:
            for line in sale.lines:
                latest[line.item] = (line.price, min(sale.created, self._sales[0].created + HISTORY_DAYS * DAY))
        return [
            ShopItem(
                number, item.num_iid, item.code, item.title, latest[number][0], number % 20 != 7, latest[number][1]
            )
            for number, item in ((number, self._item(number)) for number in sorted(latest))
        ]

    def _item(self, number: int) -> Item:
        return self._items[number]

    # ---------------------------------------------------------------------------------------------------- changing

    def touch(self, sale: Sale, at: float) -> None:
        """The seller writes a remark: a modification at `at`."""
        instant = int(at)
        sale.remark = REMARKS[len(sale.touched) % len(REMARKS)]
        if instant not in sale.changes():
            insort(sale.touched, instant)
            insort(self._changes, (instant, sale.order_id))

    def truth(self, now: float) -> dict[str, Any]:
        """What a complete reading of the shop must hold as of `now`. Amounts are yuan as text.

        orders, lines, goods_amount: of all orders; paid_orders, paid_amount: of those ever paid (refunded ones included);
        refunds: all asked for; refunds_settled, refund_amount: the ones paid back; buyers: people with a paid order.
        """
        sales = [sale for sale in self._sales if sale.created <= now]
        paid = [sale for sale in sales if sale.is_paid(now)]
        refunds = [refund for refund in self._refunds.values() if refund.created <= now]
        settled = [refund for refund in refunds if refund.state(now) == "settled"]
        return {
            "orders": len(sales),
            "paid_orders": len(paid),
            "orders_by_state": dict(sorted(Counter(sale.state(now) for sale in sales).items())),
            "lines": sum(len(sale.lines) for sale in sales),
            "quantity": sum(line.num for sale in sales for line in sale.lines),
            "paid_amount": yuan(sum(sale.paid_amount for sale in paid)),
            "goods_amount": yuan(sum(sale.goods for sale in sales)),
            "postage_amount": yuan(sum(sale.postage for sale in paid)),
            "refunds": len(refunds),
            "refunds_settled": len(settled),
            "refund_amount": yuan(sum(refund.amount for refund in settled)),
            "reviews": sum(1 for review in self._reviews if review.created <= now),
            "customers": len(self.customers(now)),
            "buyers": len({sale.person.person_id for sale in paid if sale.person}),
            "products": len(self.items()),
        }


class Shops(Mapping[str, Shop]):
    """All shops by name; one is built when it is first asked for, so that what needs none pays for none."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._built: dict[str, Shop] = {}

    def __getitem__(self, name: str) -> Shop:
        if name not in SHARES:
            raise KeyError(name)
        if name not in self._built:
            self._built[name] = Shop(name, self._history)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SHARES)

    def __len__(self) -> int:
        return len(SHARES)

    def reset(self) -> None:
        for shop in self._built.values():
            shop.reset()


def yuan(fen: int) -> str:
    """Fen as yuan with two decimals."""
    sign, fen = ("-", -fen) if fen < 0 else ("", fen)
    return f"{sign}{fen // 100}.{fen % 100:02d}"


# -------------------------------------------------------------------------------------------------------- building


@dataclass(frozen=True, slots=True)
class _Basket:
    """What somebody bought once: the material of a sale."""

    name: int  # of the invoice and its part
    person: Person | None
    at: int
    lines: list[tuple[int, int, int]]  # item, num, thousandths each


def _build(name: str, history: History) -> tuple[list[Sale], list[Customer]]:
    """All sales by creation, and all customers by the time they joined."""
    chance, number = history.chance, list(SHARES).index(name)
    paid_trades = sum(trade.paid is not None for trade in history.trades)
    count = max(FEWEST, round(paid_trades * SHARES[name]))
    live = max(FEWEST_LIVE, round(count * LIVE_DAYS / HISTORY_DAYS))
    material = _walk_ins(history) if name == "pos" else _invoices(history)
    # The smallest share of a hash of (seed, shop, invoice): the same invoices whatever the order of the data.
    material = sorted(material, key=lambda key: chance.bits("shop", name, key[0]))
    shop = _Maker(name, number, history)
    sales = [
        shop.sale(rank, shop.basket(material[rank % len(material)]), rank >= count)
        for rank in range(count + live if material else 0)
    ]
    sales.sort(key=lambda sale: (sale.created, sale.order_id))
    return sales, shop.customers(sales)


def _invoices(history: History) -> list[tuple[int, int]]:
    """(tid, position) of the paid trades."""
    return [(trade.tid, place) for place, trade in enumerate(history.trades) if trade.paid is not None]


def _walk_ins(history: History) -> list[tuple[int, int]]:
    """(first line, last line + 1) of pieces of at most TILL_LINES lines of the invoices without a customer."""
    return [
        (first, min(first + TILL_LINES, end))
        for start, end in history.walk_ins
        for first in range(start, end, TILL_LINES)
    ]


class _Maker:
    """Makes the sales of one shop. What a sale goes through follows from its rank, so that the smallest world has it all."""

    def __init__(self, name: str, number: int, history: History) -> None:
        self.name, self.history = name, history
        self.chance: Chance = history.chance
        self.order_base = 5_000_000_000_000_000_000 + number * 100_000_000_000_000_000
        self.people_base = OWN_PEOPLE + number * 10_000
        self._own: dict[int, Person] = {}
        self._buyers = [person for person in history.people if person.baskets]

    def basket(self, key: tuple[int, int]) -> _Basket:
        history, (name, place) = self.history, key
        if self.name == "pos":
            lines, at = history.walk_in_lines, history.walk_in_times[name]
            last = min(place, name + 1 + self.chance.bits("pos", "size", name) % TILL_LINES)
            person, span = None, range(name, last)
        else:
            lines, trade = history.lines, history.trades[place]
            person, at, span = (
                trade.buyer,
                trade.created,
                range(trade.first, min(trade.last, trade.first + ONLINE_LINES)),
            )
        return _Basket(name, person, at, [(lines.item[line], lines.num[line], lines.milli[line]) for line in span])

    def own_person(self, number: int) -> Person:
        """Somebody only this shop knows."""
        person_id = self.people_base + number
        if person_id not in self._own:
            person = make_person(person_id, self.chance)
            person.open_uid = person.openid = person.unionid = None
            person.binds = False
            self._own[person_id] = person
        return self._own[person_id]

    def _person(self, rank: int, known: Person | None) -> Person | None:
        if self.name != "pos":
            return self.own_person(rank // 12) if rank % 8 == 6 else known
        if rank % 6 not in (0, 3):  # most people at the tills show no card
            return None
        return self.own_person(rank // 18) if rank % 12 == 9 else self.chance.pick(self._buyers, "pos", "card", rank)

    def sale(self, rank: int, basket: _Basket, live: bool) -> Sale:
        chance, name = self.chance, self.name
        lines = [
            Line(item, min(num, LARGEST_QUANTITY), fen, min(num, LARGEST_QUANTITY) * fen)
            for item, num, fen in ((item, num, max((milli + 5) // 10, 1)) for item, num, milli in basket.lines)
        ]
        goods = sum(line.paid for line in lines)
        discount = 0
        if rank % 4 == 1:
            discount = goods * chance.between(5, 20, name, "discount", rank) // 100
            _share(lines, goods, discount)
        postage = chance.pick((600, 800, 1000, 1250), name, "postage", rank) if rank % 5 == 2 and name != "pos" else 0
        if live:
            created = self.history.end + chance.between(MINUTE, LIVE_DAYS * DAY, name, "live", rank)
        else:
            created = basket.at + chance.between(1, 130, name, "later", rank) * HOUR + rank % 3599
        if name == "pos":  # opening hours
            created = day_start(day_of(created)) + chance.between(10 * HOUR, 22 * HOUR, name, "hour", rank)
        sale = Sale(
            order_id=self.order_base + created * 10_000_000 + rank,
            person=self._person(rank, basket.person),
            lines=lines,
            goods=goods,
            discount=discount,
            postage=postage,
            paid_amount=goods - discount + postage,
            created=created,
            paid_at=None,
            shipped_at=None,
            ended_at=None,
            closed_at=None,
        )
        self._live(sale, rank)
        return sale

    def _live(self, sale: Sale, rank: int) -> None:
        """Pay, send, end, send back, review; or none of it."""
        chance, name = self.chance, self.name
        if name == "pos":
            sale.paid_at = sale.ended_at = sale.created
        elif rank % 16 == 3:
            sale.closed_at = sale.created + UNPAID_LIFE
            return
        else:
            sale.paid_at = sale.created + chance.between(20, 9 * MINUTE, name, "pay", rank)
            sale.shipped_at = sale.paid_at + chance.between(3 * HOUR, 40 * HOUR, name, "ship", rank)
            sale.ended_at = sale.shipped_at + chance.between(2 * DAY, 9 * DAY, name, "end", rank)
        # Every kind once among the first twelve, so that the smallest world has them; then one in 20 sales.
        kinds = {7: "full", 9: "part", 10: "refused", 11: "open"}
        if rank < FEWEST or rank % 20 == 7:
            kind = kinds.get(rank) if rank < FEWEST else kinds[(7, 9, 10, 11, 9)[rank // 20 % 5]]
            if kind:
                self._refund(sale, rank, "part" if kind == "full" and name == "pos" else kind)
        if rank % 10 in (0, 4, 8) and sale.ended_at is not None and name != "pos":
            self._review(sale, rank, sale.ended_at)

    def _refund(self, sale: Sale, rank: int, kind: str) -> None:
        chance, name = self.chance, self.name
        assert sale.paid_at is not None
        asked = sale.paid_at + chance.between(HOUR, 3 * DAY, name, "asked", rank)
        decided = asked + chance.between(HOUR, 40 * HOUR, name, "decided", rank)
        if name == "pos":
            asked = max(_while_open(asked), sale.paid_at + MINUTE)
            decided = max(_while_open(decided), asked + MINUTE)
        sent = sale.shipped_at is None or asked > sale.shipped_at
        if kind == "full":
            assert sale.ended_at is not None
            decided = min(decided, sale.ended_at - 1)
            asked = min(asked, decided - 1)
            if sale.shipped_at is not None and sale.shipped_at >= asked:
                sale.shipped_at, sent = None, False
            sale.ended_at, sale.closed_at = None, decided
            parts = [(line, sale.lines[line].num) for line in range(len(sale.lines))]
        else:
            line = chance.bits(name, "sent back", rank) % len(sale.lines)
            parts = [(line, chance.between(1, sale.lines[line].num, name, "pieces", rank))]
        for line, num in parts:
            amount = sale.lines[line].paid * num // sale.lines[line].num
            if not amount:
                amount, num = sale.lines[line].paid, sale.lines[line].num
            sale.refunds.append(
                ShopRefund(
                    refund_id=sale.order_id - 4_000_000_000_000_000_000 + (line + 1) * 10_000_000_000_000_000,
                    sale=sale,
                    line=line,
                    num=num,
                    amount=amount,
                    created=asked,
                    settled=None if kind == "open" else decided,
                    refused=kind == "refused",
                    returns_goods=sent,
                )
            )

    def _review(self, sale: Sale, rank: int, ended: int) -> None:
        chance, name = self.chance, self.name
        draw = chance(name, "stars", rank)
        stars = next(value for share, value in STARS if draw < share)
        created = ended + chance.between(HOUR, 10 * DAY, name, "reviewed", rank)
        answered = stars <= 2 and rank % 3 != 0
        for line in range(min(len(sale.lines), 1 + (rank % 20 == 4))):
            sale.reviews.append(
                ShopReview(
                    review_id=sale.order_id - 3_000_000_000_000_000_000 + line,
                    sale=sale,
                    line=line,
                    created=created,
                    stars=stars,
                    content=chance.pick(TEXTS[stars], name, "text", rank, line),
                    reply=chance.pick(REPLIES, name, "reply", rank) if answered else None,
                    replied=created + chance.between(HOUR, 3 * DAY, name, "replied", rank) if answered else None,
                )
            )

    def customers(self, sales: Iterable[Sale]) -> list[Customer]:
        """Everybody who buys, from just before their first order on, and some members who never do."""
        chance, name = self.chance, self.name
        found: dict[int, Customer] = {}
        for sale in sales:
            person = sale.person
            if person is None:
                continue
            if person.person_id not in found:
                key = (name, "member", person.person_id)
                is_member = name == "pos" or chance(*key) < 0.6
                level = chance.between(1, 4, *key, "level") if is_member else 0
                joined = sale.created - chance.between(1, 20 * MINUTE, *key, "joined")
                found[person.person_id] = Customer(person, 0, joined, is_member, level)
            found[person.person_id].sales.append(sale)
        for number in range(max(2, len(found) // 20)):
            joined = self.history.start + chance.between(DAY, 360 * DAY, name, "looks on", number)
            person = self.own_person(9_000 + number)
            found[person.person_id] = Customer(person, 0, joined, True, 1)
        customers = sorted(found.values(), key=lambda customer: (customer.joined, customer.person.person_id))
        for number, customer in enumerate(customers):
            customer.number = 10_001 + number * 3
        return customers


def _while_open(at: int) -> int:
    """The instant moved into the opening hours of its day, 10:00 to 22:00; the order of instants stays."""
    midnight = day_start(day_of(at))
    return midnight + 10 * HOUR + (at - midnight) // 2


def _share(lines: list[Line], goods: int, discount: int) -> None:
    """Take the discount off the lines in proportion, to the fen; the dearest line takes what is left over."""
    left = discount
    for line in lines:
        part = discount * line.paid // goods if goods else 0
        line.paid -= part
        left -= part
    max(lines, key=lambda line: line.paid).paid -= left
