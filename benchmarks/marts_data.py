"""Core rows for benchmarks/marts.py: a brand with as many members as wished, three years of orders, seeded.

About ten paid orders a member (few buy very often: log-normal), two lines an order, five shops, three identities a member of
which two are shops' for three members in five, 5 % refunds and reviews, followers with consents and interactions for two
members in five, campaigns with hold-outs. The same seed gives the same rows. Everything is made in pieces with numpy,
written as CSV by Arrow and streamed by COPY, so memory does not grow with the number of members beyond a few bytes each.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from pyarrow import csv

Columns = dict[str, Any]  # column name -> numpy array, Arrow array or one value for all rows

DAY = 86_400
SHOPS = (  # source, platform, kind of its identities, share of the members at home there
    ("taobao_flagship", "taobao", "taobao_open_uid", 0.40),
    ("jd_pop", "jd", "jd_open_id", 0.20),
    ("youzan_mall", "youzan", "youzan_open_id", 0.15),
    ("store_pos", "files", "pos_card", 0.10),
    ("own_mall", "woocommerce", "shop_customer_id", 0.15),
)
ACCOUNT = "wechat_official"
PRODUCTS = 5_000  # of each shop
PIECE = 20_000  # orders, or people, made and written at once
NO_SHOP = 255  # the third identity is an openid
CITIES = ("上海市", "杭州市", "北京市", "广州市", "成都市", "武汉市", "西安市", "沈阳市")
CAMPAIGNS, CAMPAIGN_SHARE = 20, 0.02
LOADED = (
    "core.members", "core.identities", "core.member_identities", "core.identity_links", "core.profiles", "core.customers",
    "core.orders", "core.order_lines", "core.refunds", "core.reviews", "core.followers", "core.follow_events", "core.consents",
    "core.interactions", "core.exposures", "core.message_events", "core.coupon_events", "core.products", "core.accounts",
    "core.social_posts", "core.social_post_stats", "core.social_stats_daily",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """What is true of the members before anything is written. `last_day` is the first business date."""

    members: int
    seed: int = 1
    last_day: date = date(2026, 3, 14)
    days: int = 1096
    orders_per_member: float = 10.4  # 4 % are never paid

    @property
    def first_day(self) -> date:
        return self.last_day - timedelta(days=self.days - 1)

    @cached_property
    def start(self) -> int:
        """Midnight of the first day in Shanghai, as seconds of the local clock."""
        return (self.first_day - date(1970, 1, 1)).days * DAY

    @cached_property
    def joined(self) -> Any:
        """Day index on which each member came, ascending, so that a member id grows with time."""
        chance = np.random.default_rng((self.seed, 1))
        return np.sort((self.days * chance.random(self.members) ** 0.8).astype(np.int16))

    @cached_property
    def leaves(self) -> Any:
        """Day index after which a member buys no more."""
        chance = np.random.default_rng((self.seed, 2))
        life = chance.exponential(900, self.members).clip(1, 20_000)
        return (self.joined + life).astype(np.int16)

    @cached_property
    def eagerness(self) -> Any:
        """Running sum of how often each member buys, relative to others."""
        chance = np.random.default_rng((self.seed, 3))
        return np.cumsum(np.minimum(chance.lognormal(0, 1.1, self.members), 60))

    @cached_property
    def shops(self) -> tuple[Any, Any]:
        """The shop of each member's second and third identity; NO_SHOP when the third is an openid."""
        chance = np.random.default_rng((self.seed, 4))
        home = chance.choice(len(SHOPS), self.members, p=[share for *_, share in SHOPS]).astype(np.uint8)
        other = ((home + chance.integers(1, len(SHOPS), self.members)) % len(SHOPS)).astype(np.uint8)
        other[chance.random(self.members) < 0.4] = NO_SHOP
        return home, other

    @cached_property
    def prices(self) -> Any:
        """Price of each product in fen."""
        chance = np.random.default_rng((self.seed, 5))
        return np.maximum(chance.lognormal(8.2, 0.9, PRODUCTS), 100).astype(np.int64)

    @cached_property
    def orders_by_day(self) -> Any:
        """How many orders each day has: the brand grows, weekends and 11 November are busy."""
        day = np.arange(self.days)
        dates = np.datetime64(self.first_day) + day
        weight = (1 + day / self.days) * np.where((day + self.first_day.weekday()) % 7 >= 5, 1.3, 1)
        month_day = (dates - dates.astype("datetime64[Y]").astype("datetime64[D]")).astype(int)
        weight = weight * np.where((month_day >= 313) & (month_day <= 315), 6, 1)
        whole = np.cumsum(weight / weight.sum() * self.members * self.orders_per_member).round().astype(np.int64)
        return np.diff(whole, prepend=0)

    def shops_of(self, member: Any) -> tuple[Any, Any]:
        """Both shops of members, who count from 0; somebody who came in a later night shops where an old one does."""
        return self.shops[0][member % self.members], self.shops[1][member % self.members]

    def midnight(self, night: int) -> int:
        """The end of the `night`-th day after last_day, on the same clock."""
        return self.start + (self.days + night) * DAY


# ------------------------------------------------------------------------------------------------------------- orders
def buyers(world: World, day: Any, chance: np.random.Generator) -> Any:
    """Who buys on each of the days: by eagerness, among those who have come and (mostly) not left."""
    known = np.searchsorted(world.joined, day, side="right")
    known = np.maximum(known, 1)
    found = np.zeros(len(day), np.int64)
    open_ = np.arange(len(day))
    for attempt in range(6):
        drawn = np.searchsorted(world.eagerness, chance.random(len(open_)) * world.eagerness[known[open_] - 1])
        found[open_] = drawn
        open_ = open_[world.leaves[drawn] < day[open_]]
        if not len(open_) or attempt == 5:
            break
    return found


def order_rows(
    world: World, day: Any, member: Any, first_number: int, horizon: int, chance: np.random.Generator
) -> dict[str, Columns]:
    """Rows of core.orders, order_lines, refunds and reviews for orders of `member` created on `day`, as of `horizon`
    (seconds of the local clock): what happens later is not known yet."""
    n = len(day)
    # more by day: half the world shops in the evening
    second = np.where(chance.random(n) < 0.5, chance.integers(19 * 3600, DAY, n), chance.integers(8 * 3600, DAY, n))
    created = world.start + day * DAY + second
    order = np.argsort(created, kind="stable")
    created, day, member = created[order], day[order], member[order]

    home, other = world.shops_of(member)
    shop = np.where((other != NO_SHOP) & (chance.random(n) < 0.3), other, home).astype(np.int64)
    identity = 3 * member + 2 + (shop != home)
    is_known = chance.random(n) >= 0.01
    number = 4_000_000_000_000_000_000 + (first_number + np.arange(n)) * 10

    is_paid = chance.random(n) >= 0.04
    paid = created + chance.exponential(900, n).astype(np.int64)
    is_paid &= paid < horizon
    shipped = paid + chance.exponential(20 * 3600, n).astype(np.int64) + 1800
    signed = shipped + chance.integers(1 * DAY, 8 * DAY, n)
    is_shipped, is_signed = is_paid & (shipped < horizon), is_paid & (signed < horizon)

    # lines: 1, 2 or 3
    count = 1 + (chance.random(n) < 0.67).astype(np.int64) + (chance.random(n) < 0.33)
    of = np.repeat(np.arange(n), count)
    position = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    product = (PRODUCTS * chance.random(len(of)) ** 3).astype(np.int64)
    quantity = np.minimum(chance.geometric(0.55, len(of)), 50)
    line_amount = world.prices[product] * quantity
    goods = np.bincount(of, line_amount, n).astype(np.int64)
    units = np.bincount(of, quantity, n).astype(np.int64)
    discount = np.where(chance.random(n) < 0.3, goods // 10, 0)
    postage = np.where(goods < 9_900, 600, 0)

    # refunds of 5 % of the orders: the first line, or all of it
    back = np.flatnonzero(is_paid & (chance.random(n) < 0.05))
    asked = paid[back] + chance.integers(1 * DAY, 10 * DAY, len(back))
    back, asked = back[asked < horizon], asked[asked < horizon]
    settled = asked + chance.integers(DAY // 2, 10 * DAY, len(back))
    is_refused = chance.random(len(back)) < 0.08
    is_over = settled < horizon
    is_whole = chance.random(len(back)) < 0.4
    first_line = (np.cumsum(count) - count)[back]
    status = np.select(
        [~is_paid & (created + DAY < horizon), ~is_paid, is_signed, is_shipped],
        ["cancelled", "unpaid", "finished", "shipped"],
        "paid",
    )
    status[back[is_whole & is_over & ~is_refused]] = "refunded"
    modified = np.where(is_signed, signed, np.where(is_shipped, shipped, np.where(is_paid, paid, created)))

    # reviews of 5 % of the orders that arrived
    told = np.flatnonzero(is_signed & (chance.random(n) < 0.05))
    written = signed[told] + chance.integers(DAY // 4, 10 * DAY, len(told))
    told, written = told[written < horizon], written[written < horizon]
    rating = chance.choice([5, 4, 3, 2, 1], len(told), p=[0.7, 0.12, 0.08, 0.04, 0.06]).astype(np.int64)
    replied = written + chance.exponential(30 * 3600, len(told)).astype(np.int64)
    is_replied = (chance.random(len(told)) < np.where(rating <= 2, 0.8, 0.2)) & (replied < horizon)

    return {
        "core.orders": {
            "source_id": names([s[0] for s in SHOPS], shop), "order_id": number, "identity_id": optional(identity, is_known),
            "status": status.astype(str), "status_original": "TRADE", "is_paid": is_paid, "currency_code": "CNY",
            "goods_amount": money(goods), "paid_amount": money(np.where(is_paid, goods - discount + postage, 0)),
            "postage_amount": money(postage), "line_count": count, "unit_count": units,
            "city": names(CITIES, member % len(CITIES)), "created_at": instants(created), "paid_at": instants(paid, is_paid),
            "shipped_at": instants(shipped, is_shipped), "signed_at": instants(signed, is_signed),
            "modified_at": instants(modified), "batch_id": 1, "loaded_at": instants(modified),
        },
        "core.order_lines": {
            "source_id": names([s[0] for s in SHOPS], shop[of]), "order_id": number[of], "line_id": number[of] + 1 + position,
            "product_id": product_number(shop[of], product), "outer_id": names(ARTICLES, product),
            "title": names(TITLES, product), "unit_price_amount": money(world.prices[product]), "quantity": quantity,
            "line_amount": money(line_amount), "paid_amount": money(line_amount - np.where(discount[of] > 0, line_amount // 10, 0)),
            "status": "TRADE", "batch_id": 1,
        },
        "core.refunds": {
            "source_id": names([s[0] for s in SHOPS], shop[back]), "refund_id": number[back] + 9, "order_id": number[back],
            "line_id": optional(number[back] + 1, ~is_whole),
            "identity_id": optional(identity[back], is_known[back] & (chance.random(len(back)) < 0.8)),
            "status": np.select([~is_over, is_refused], ["requested", "refused"], "settled"), "status_original": "REFUND",
            "is_money": is_over & ~is_refused, "currency_code": "CNY",
            "refund_amount": money(np.where(is_whole, goods[back], line_amount[first_line])),
            "reason": "七天无理由", "created_at": instants(asked), "settled_at": instants(settled, is_over & ~is_refused),
            "modified_at": instants(np.where(is_over, settled, asked)), "batch_id": 1,
        },
        "core.reviews": {
            "source_id": names([s[0] for s in SHOPS], shop[told]), "review_id": number[told] + 8, "order_id": number[told],
            "identity_id": optional(identity[told], is_known[told]), "rating": rating, "rating_original": "rate",
            "content": "好", "created_at": instants(written), "replied_at": instants(replied, is_replied), "batch_id": 1,
        },
    }  # fmt: skip


def pieces(world: World) -> Iterator[dict[str, Columns]]:
    """All orders in pieces of some days, oldest first."""
    horizon = world.midnight(0)
    comes = np.bincount(world.joined, minlength=world.days)
    edges = np.searchsorted(np.cumsum(world.orders_by_day), np.arange(PIECE, world.orders_by_day.sum() + PIECE, PIECE))
    number, before = 0, 0
    for piece, edge in enumerate(np.unique(np.minimum(edges + 1, world.days))):
        chance = np.random.default_rng((world.seed, 10, piece))
        span = np.arange(before, edge)
        # nine new members in ten come with an order; the others buy of the old ones
        first, last = np.searchsorted(world.joined, [before, edge])
        new = first + np.flatnonzero(chance.random(last - first) < 0.9)
        rest = np.repeat(span, np.maximum(world.orders_by_day[span] - (comes[span] * 0.9).astype(np.int64), 0))
        day = np.concatenate([world.joined[new].astype(np.int64), rest])
        member = np.concatenate([new, buyers(world, rest, chance)])
        for part in np.array_split(np.argsort(day, kind="stable"), -(-len(day) // (2 * PIECE))):  # 11 November
            yield order_rows(world, day[part], member[part], number, horizon, chance)
            number += len(part)
        before = int(edge)


# ------------------------------------------------------------------------------------------------------------- people
def people_rows(world: World, first: int, last: int, night: int = 0) -> dict[str, Columns]:
    """Members first..last-1 with their identities and what ties them; those of a night came that day."""
    chance = np.random.default_rng((world.seed, 20, first))
    member = np.arange(first, last)
    n = len(member)
    since = (
        np.full(n, world.midnight(night - 1)) if night else world.start + world.joined[member].astype(np.int64) * DAY
    )
    home, other = world.shops_of(member)
    kinds = [kind for _, _, kind, _ in SHOPS] + ["wechat_openid"]
    sources = [source for source, *_ in SHOPS] + [ACCOUNT]
    third = np.where(other == NO_SHOP, len(SHOPS), other)
    phone, shop, last_one = 3 * member + 1, 3 * member + 2, 3 * member + 3
    seen = instants(since)
    every = np.repeat(member, 3)
    ids = 3 * every + 1 + np.tile(np.arange(3), n)
    where = np.stack([home, home, third], 1).ravel().astype(np.int64)
    kind = np.where(np.tile([True, False, False], n), len(kinds), where)
    is_customer = chance.random(n) < 0.5
    customer = member[is_customer]
    return {
        "core.members": {"member_id": member + 1, "first_seen_at": seen},
        "core.identities": {
            "identity_id": ids, "kind": names([*kinds, "phone"], kind), "value": ids + 10**15,
            "source_id": names(sources, where), "first_seen_at": instants(np.repeat(since, 3)),
        },
        "core.member_identities": {"identity_id": ids, "member_id": every + 1, "linked_at": instants(np.repeat(since, 3))},
        "core.identity_links": {
            "identity_a": np.concatenate([phone, phone]), "identity_b": np.concatenate([shop, last_one]),
            "source_id": names(sources, np.concatenate([home, third]).astype(np.int64)),
            "evidence": "trade", "observed_at": instants(np.concatenate([since, since])),
        },
        "core.profiles": {
            "identity_id": shop, "source_id": names(sources, home.astype(np.int64)), "name": member + 10**15,
            "observed_at": seen,
        },
        "core.customers": {
            "source_id": names(sources, home[is_customer].astype(np.int64)), "customer_id": customer + 10**12,
            "identity_id": 3 * customer + 2, "is_member": True, "joined_at": instants(since[is_customer]),
            "modified_at": instants(since[is_customer]), "batch_id": 1,
        },
    } | social_rows(member[other == NO_SHOP], since[other == NO_SHOP], world.midnight(night), chance)  # fmt: skip


def social_rows(member: Any, since: Any, horizon: int, chance: np.random.Generator) -> dict[str, Columns]:
    """Followers, and what they allowed and did."""
    n = len(member)
    openid = 3 * member + 3
    span = np.maximum(horizon - since, 2)
    follows = np.minimum(since + (chance.random(n) * 30 * DAY).astype(np.int64), horizon - 1)
    is_gone = chance.random(n) < 0.15
    leaves = follows + (chance.random(n) * (horizon - follows)).astype(np.int64)
    allows = chance.random(n) < 0.7
    acts = chance.poisson(3, n)
    of = np.repeat(np.arange(n), acts)
    at = np.minimum(since[of] + (chance.random(len(of)) * span[of]).astype(np.int64), horizon - 1)
    doing = chance.integers(0, 5, len(of))
    key = openid[of] * 1000 + np.arange(len(of)) - np.repeat(np.cumsum(acts) - acts, acts)
    return {
        "core.followers": {
            "source_id": ACCOUNT, "openid": openid + 10**15, "identity_id": openid, "is_following": ~is_gone,
            "followed_at": instants(follows), "unfollowed_at": instants(leaves, is_gone), "batch_id": 1,
        },
        "core.follow_events": {
            "source_id": ACCOUNT, "event_id": np.concatenate([openid * 2, openid[is_gone] * 2 + 1]),
            "identity_id": np.concatenate([openid, openid[is_gone]]),
            "kind": names(["follow", "unfollow"], np.repeat([0, 1], [n, is_gone.sum()])),
            "occurred_at": instants(np.concatenate([follows, leaves[is_gone]])),
        },
        "core.consents": {
            "source_id": ACCOUNT, "event_id": openid[allows], "identity_id": openid[allows], "channel": "wechat",
            "purpose": "marketing", "is_granted": chance.random(int(allows.sum())) < 0.9, "evidence": "followed the account",
            "occurred_at": instants(follows[allows]),
        },
        "core.interactions": {
            "source_id": ACCOUNT, "event_id": key, "identity_id": openid[of],
            "kind": names(["message", "menu", "scan", "click", "visit"], doing),
            "scene": names(["store-1", "store-2", "parcel"], of % 3, doing == 2),
            "occurred_at": instants(at),
        },
    }  # fmt: skip


def campaign_rows(world: World, number: int) -> dict[str, Columns]:
    """One campaign of the last year: a share of the members, one in five held out, what came back."""
    chance = np.random.default_rng((world.seed, 30, number))
    day = world.days - 1 - number * 17
    known = int(np.searchsorted(world.joined, day))
    member = np.unique(chance.integers(0, max(known, 1), max(int(world.members * CAMPAIGN_SHARE), 10)))
    n = len(member)
    as_of = world.first_day + timedelta(days=int(day) - 1)
    run, at = f"winback_{number % 4}@{as_of}", world.start + day * DAY + 10 * 3600
    held = chance.random(n) < 0.2
    treated = np.flatnonzero(~held)
    key = 10**15 + number * 10**11 + member
    kinds = ("accepted", "delivered", "opened", "clicked")
    reach = chance.random(len(treated))
    events = [(index, treated[reach < share]) for index, share in enumerate((0.99, 0.97, 0.3, 0.1))]
    event_kind = np.concatenate([np.full(len(rows), index) for index, rows in events])
    event_of = np.concatenate([rows for _, rows in events])
    redeemed = treated[reach < 0.05]
    coupon = np.concatenate([treated, redeemed])
    return {
        "core.exposures": {
            "run_id": run, "member_id": member + 1, "step": "message", "campaign": run.split("@")[0],
            "arm": np.where(held, "holdout", "treatment"), "channel": optional(np.where(held, "", "wechat"), ~held),
            "purpose": "marketing", "message_key": optional(key, ~held), "coupon_request": optional(key, ~held),
            "cost_amount": money(np.where(held, 0, 5)), "as_of": str(as_of), "exposed_at": instants(np.full(n, at)),
            "attribution_until": instants(np.full(n, at + 7 * DAY)),
        },
        "core.message_events": {
            "source_id": ACCOUNT, "event_id": key[event_of] * 4 + event_kind, "message_key": key[event_of],
            "kind": names(kinds, event_kind), "occurred_at": instants(at + event_kind * 1800),
        },
        "core.coupon_events": {
            "issuer": "wechat_pay", "platform_coupon_id": key[coupon],
            "kind": names(["issued", "redeemed"], np.repeat([0, 1], [len(treated), len(redeemed)])),
            "coupon_request": key[coupon], "member_id": member[coupon] + 1, "face_amount": 30,
            "occurred_at": instants(at + np.repeat([0, 2 * DAY], [len(treated), len(redeemed)])),
        },
    }  # fmt: skip


def social_facts(world: World) -> dict[str, Columns]:
    """What the account published, every third day, and its daily figures; as many at any number of members."""
    chance = np.random.default_rng((world.seed, 50))
    published = np.arange(0, world.days, 3)
    post, age = np.repeat(published, 30), np.tile(np.arange(30), len(published))
    post, age = post[post + age < world.days], age[post + age < world.days]
    metrics = ("target_user", "int_page_read_user", "int_page_read_count", "like_user", "share_user", "comment_user")
    size = np.maximum((chance.lognormal(6, 0.5, len(published)))[post // 3], 20)
    shares = np.array([10, 3, 4, 0.3, 0.1, 0.05])
    values = (size[:, None] * shares * (1 - 0.8 ** (age + 1))[:, None]).astype(np.int64).ravel()
    when = np.repeat(post + age, len(metrics))
    day, figures = np.arange(world.days), ("new_user", "cancel_user", "cumulate_user")
    new = chance.poisson(world.members * 0.4 / world.days + 1, world.days)
    gone = (new * 0.15).astype(np.int64)
    return {
        "core.social_posts": {
            "source_id": ACCOUNT, "post_id": published, "kind": "article", "content": "今晚上新",
            "published_at": instants(world.start + published * DAY + 20 * 3600),
            "modified_at": instants(world.start + published * DAY + 20 * 3600), "batch_id": 1,
        },
        "core.social_post_stats": {
            "source_id": ACCOUNT, "post_id": np.repeat(post, len(metrics)), "stat_date": days_of(world, when),
            "metric": names(metrics, np.tile(np.arange(len(metrics)), len(post))), "value": values, "batch_id": 1,
        },
        "core.social_stats_daily": {
            "source_id": ACCOUNT, "stat_date": days_of(world, np.repeat(day, len(figures))),
            "report": names(["user_summary", "user_summary", "user_cumulate"], np.tile(np.arange(3), world.days)),
            "metric": names(figures, np.tile(np.arange(3), world.days)),
            "value": np.stack([new, gone, np.cumsum(new - gone)], 1).ravel(), "batch_id": 1,
        },
    }  # fmt: skip


ARTICLES = [f"A{number:04}" for number in range(PRODUCTS)]
TITLES = [f"WHITE HANGING HEART T-LIGHT {number:04}" for number in range(PRODUCTS)]


def product_number(shop: Any, product: Any) -> Any:
    return 610_000_000_000 + shop * 10_000 + product


def product_rows(world: World) -> dict[str, Columns]:
    shop = np.repeat(np.arange(len(SHOPS)), PRODUCTS)
    product = np.tile(np.arange(PRODUCTS), len(SHOPS))
    return {
        "core.accounts": {
            "source_id": [s[0] for s in SHOPS] + [ACCOUNT], "platform": [s[1] for s in SHOPS] + ["wechat_official"],
            "kind": ["shop"] * len(SHOPS) + ["social"], "name": [s[0] for s in SHOPS] + ["公众号"],
        },
        "core.products": {
            "source_id": names([s[0] for s in SHOPS], shop), "product_id": product_number(shop, product),
            "title": names(TITLES, product), "outer_id": names(ARTICLES, product), "price_amount": money(world.prices[product]),
            "is_listed": True, "seen_at": instants(np.full(len(shop), world.start)),
        },
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- arrays and COPY
def names(choices: Sequence[str], index: Any, is_there: Any = None) -> pa.Array:
    places = pa.array(np.asarray(index, np.int32), mask=None if is_there is None else ~is_there)
    return pa.DictionaryArray.from_arrays(places, pa.array(choices)).dictionary_decode()


def optional(values: Any, is_there: Any) -> pa.Array:
    return pa.array(values, mask=~is_there)


def instants(seconds: Any, is_there: Any = None) -> pa.Array:
    """Seconds of the local clock as `2026-03-14 10:00:00`."""
    return pa.array(np.asarray(seconds, np.int64).astype("datetime64[s]"), mask=None if is_there is None else ~is_there)


def days_of(world: World, index: Any) -> pa.Array:
    return pa.array(np.datetime64(world.first_day) + np.asarray(index))


def money(fen: Any) -> pa.Array:
    """Hundredths as exact decimals with two places."""
    fen = np.asarray(fen, np.int64)
    both = np.stack([fen, fen >> 63], 1)  # a decimal128, low word first
    return pa.Array.from_buffers(pa.decimal128(18, 2), len(fen), [None, pa.py_buffer(np.ascontiguousarray(both))])


def write(connection: psycopg.Connection[Any], table: str, columns: Columns) -> int:
    """COPY columns into a table; returns how many rows."""
    size = next(len(values) for values in columns.values() if not isinstance(values, str | int | bool))
    if not size:
        return 0
    arrays = [
        pa.repeat(pa.scalar(values), size)
        if isinstance(values, str | int | bool)
        else values
        if isinstance(values, pa.Array)
        else pa.array(values)
        for values in columns.values()
    ]
    sink = pa.BufferOutputStream()
    csv.write_csv(pa.table(arrays, names=list(columns)), sink, csv.WriteOptions(include_header=False))
    with connection.cursor().copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT csv)") as copy:
        copy.write(sink.getvalue())
    return size


@contextmanager
def without_indexes(connection: psycopg.Connection[Any], tables: Sequence[str]) -> Iterator[None]:
    """Take indexes and keys that nothing refers to away, and make them again at the end: sorting once is cheaper."""
    again = []
    for row in connection.execute(
        "SELECT i.indrelid::regclass::text AS table_name, i.indexrelid::regclass::text AS index_name,"
        " c.conname, pg_get_constraintdef(c.oid) AS key, pg_get_indexdef(i.indexrelid) AS index"
        " FROM pg_index AS i LEFT JOIN pg_constraint AS c ON c.conindid = i.indexrelid AND c.contype IN ('p', 'u')"
        " WHERE i.indrelid = ANY(%s::regclass[]) AND NOT EXISTS"
        " (SELECT 1 FROM pg_constraint AS f WHERE f.contype = 'f' AND f.conindid = i.indexrelid)"
        " ORDER BY i.indexrelid",
        (list(tables),),
    ).fetchall():
        if row["conname"]:
            connection.execute(f"ALTER TABLE {row['table_name']} DROP CONSTRAINT {row['conname']}")
            again.append(f"ALTER TABLE {row['table_name']} ADD CONSTRAINT {row['conname']} {row['key']}")
        else:
            connection.execute(f"DROP INDEX {row['index_name']}")
            again.append(row["index"])
    yield
    for statement in again:
        connection.execute(statement)


def load(connection: psycopg.Connection[Any], world: World) -> dict[str, int]:
    """Fill an empty core; the owner's connection, autocommit. Triggers rest: a full build follows anyway."""
    rows: dict[str, int] = {}

    def put(tables: dict[str, Columns]) -> None:
        with connection.transaction():
            for table, columns in tables.items():
                rows[table] = rows.get(table, 0) + write(connection, table, columns)

    connection.execute("SET session_replication_role = replica")  # neither touches nor foreign keys, row by row
    connection.execute("SET synchronous_commit = off")
    with without_indexes(connection, LOADED):
        put(product_rows(world) | social_facts(world))
        for first in range(0, world.members, PIECE):
            put(people_rows(world, first, min(first + PIECE, world.members)))
        for piece in pieces(world):
            put(piece)
        for number in range(CAMPAIGNS):
            put(campaign_rows(world, number))
    for table, key in (("core.members", "member_id"), ("core.identities", "identity_id")):
        connection.execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', '{key}'), (SELECT max({key}) FROM {table}))"
        )
    connection.execute("RESET session_replication_role")
    for table in LOADED:
        connection.execute(f"VACUUM (ANALYZE, FREEZE) {table}")
    connection.execute("CHECKPOINT")
    return rows


# ------------------------------------------------------------------------------------------------------------- a night
def add_night(connection: psycopg.Connection[Any], world: World, number: int, share: float = 0.01) -> dict[str, int]:
    """What the `number`-th night after `last_day` brings, by INSERT and UPDATE of the loading role, so that triggers fire.

    New orders (`share` of those there were), one in fifty of a new member and one in thirty up to ten days late, with their
    lines; orders of the days before move on; refunds and reviews of earlier orders; what followers did. Returns rows by table.
    """
    chance = np.random.default_rng((world.seed, 40, number))
    today = world.days - 1 + number
    count = max(int(world.members * world.orders_per_member * share), 1)
    newcomers = max(count // 50, 1)
    base = world.members + (number - 1) * newcomers
    member = np.concatenate([
        np.arange(base, base + newcomers),
        np.searchsorted(world.eagerness, chance.random(count - newcomers) * world.eagerness[-1]),
    ])  # fmt: skip
    day = np.where(chance.random(count) < 1 / 30, today - chance.integers(1, 11, count), today)
    tables = people_rows(world, base, base + newcomers, number)
    orders = order_rows(world, day, member, 10**9 + number * 10**7, world.midnight(number), chance)
    rows = {}
    with connection.transaction():
        for table, columns in (tables | orders).items():
            rows[table] = insert(connection, table, columns)
        for table, statement in NIGHT.items():
            rows[table] = (
                rows.get(table, 0)
                + connection.execute(
                    statement, {"day": str(world.first_day + timedelta(days=int(today))), "seed": number}
                ).rowcount
            )
    return rows


def insert(connection: psycopg.Connection[Any], table: str, columns: Columns) -> int:
    """As a mapping does it: COPY into a temporary table, one INSERT from there."""
    listed = ", ".join(columns)
    connection.execute(f"CREATE TEMPORARY TABLE arrived ON COMMIT DROP AS SELECT {listed} FROM {table} LIMIT 0")
    write(connection, "arrived", columns)
    count = connection.execute(
        f"INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE SELECT {listed} FROM arrived ON CONFLICT DO NOTHING"
    ).rowcount
    connection.execute("DROP TABLE arrived")
    return count


# hashint8 of the order number throws the dice, so that the same night is the same night again
NIGHT = {
    "orders that moved on": """
        UPDATE core.orders AS o SET
            shipped_at = coalesce(o.shipped_at, %(day)s::date + interval '9 hours'),
            signed_at = CASE WHEN o.shipped_at IS NOT NULL THEN %(day)s::date + interval '15 hours' END,
            status = CASE WHEN o.shipped_at IS NULL THEN 'shipped' ELSE 'finished' END,
            modified_at = %(day)s::date + interval '15 hours', loaded_at = %(day)s::date + interval '26 hours'
        WHERE o.is_paid AND o.signed_at IS NULL AND o.paid_at >= %(day)s::date - 12 AND o.paid_at < %(day)s::date
            AND abs(hashint8extended(o.order_id::bigint, %(seed)s)) %% 10 < 4
    """,
    "refunds of earlier orders": """
        INSERT INTO core.refunds (source_id, refund_id, order_id, identity_id, status, status_original, is_money, currency_code,
            refund_amount, created_at, settled_at, modified_at, batch_id)
        SELECT o.source_id, o.order_id || '9', o.order_id, o.identity_id, 'settled', 'REFUND', TRUE, 'CNY', o.goods_amount,
            %(day)s::date + interval '8 hours', %(day)s::date + interval '16 hours', %(day)s::date + interval '16 hours', 2
        FROM core.orders AS o
        WHERE o.is_paid AND o.paid_at >= %(day)s::date - 20 AND o.paid_at < %(day)s::date
            AND abs(hashint8extended(o.order_id::bigint, %(seed)s + 1000)) %% 100 = 0
        ON CONFLICT DO NOTHING
    """,
    "refunds that settled": """
        UPDATE core.refunds AS r SET status = 'settled', is_money = TRUE, settled_at = %(day)s::date + interval '14 hours',
            modified_at = %(day)s::date + interval '14 hours'
        WHERE r.status = 'requested' AND abs(hashint8extended(r.order_id::bigint, %(seed)s)) %% 6 = 0
    """,
    "reviews of earlier orders": """
        INSERT INTO core.reviews (source_id, review_id, order_id, identity_id, rating, rating_original, content, created_at, batch_id)
        SELECT o.source_id, o.order_id || '8', o.order_id, o.identity_id, 5, 'rate', '好', %(day)s::date + interval '20 hours', 2
        FROM core.orders AS o
        WHERE o.signed_at >= %(day)s::date - 8 AND o.signed_at < %(day)s::date
            AND abs(hashint8extended(o.order_id::bigint, %(seed)s + 2000)) %% 150 = 0
        ON CONFLICT DO NOTHING
    """,
    "interactions": """
        INSERT INTO core.interactions (source_id, event_id, identity_id, kind, occurred_at)
        SELECT f.source_id, 'night-' || %(seed)s || '-' || f.openid, f.identity_id, 'click', %(day)s::date + interval '21 hours'
        FROM core.followers AS f
        WHERE f.is_following AND abs(hashint8extended(f.identity_id, %(seed)s)) %% 50 = 0
    """,
}
