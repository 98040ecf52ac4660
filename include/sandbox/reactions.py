"""What people do by themselves and in answer to messages. Every probability stands in settings.py."""

import html
import re
from functools import partial
from urllib.parse import unquote

from .clock import DAY, HOUR, MINUTE, day_of, iso
from .people import UNFOLLOWED, WROTE, Person, make_follower
from .state import APPID, Coupon, Follower, World
from .world import (
    LIVE_NUMBER,
    REVIEW_DAYS,
    TID_BASE,
    TID_STEP,
    Refund,
    Trade,
    close_if_refunded,
    collect_changes,
    new_trade,
    plan_reviews,
    write_reviews,
)

LINK = re.compile(r"https?://[^/\s\"'<>]+/([ru])/([^?#\s\"'<>]+)")
FAMILIES = {"jpush": "push", "wecom_broadcast": "wecom"}  # channels whose messages are left by a link
SCENES = ("ADD_SCENE_SEARCH", "ADD_SCENE_QR_CODE", "ADD_SCENE_PAID", "ADD_SCENE_PROFILE_CARD", "ADD_SCENE_OTHERS")
QR_SCENES = ("store01", "store02", "poster_spring")  # parametric QR codes that hang somewhere
SAID = ("在吗？", "请问什么时候发货", "有没有优惠", "可以开发票吗", "Hello, is anybody there?", "谢谢，收到了")
SMS_OF_FORMS = 0.60  # of those who fill in a form: are asked about SMS too
BOUND_LATER = 0.70  # of people who follow while the sandbox runs


def begin(world: World) -> None:
    """Tell the archive what happened before the clock starts, and let the first day begin."""
    planned: list[tuple[int, int, partial[None]]] = []

    def plan(at: int, happen: partial[None]) -> None:
        planned.append((at, len(planned), happen))

    for person in world.people:
        _plan_history(world, person, plan)
    for _, _, happen in sorted(planned, key=lambda entry: entry[:2]):
        happen()
    world.later(world.history.end, partial(_begin_day, world, world.history.end))


def _plan_history(world: World, person: Person, plan) -> None:  # type: ignore[no-untyped-def]
    """When a person followed, filled in the form, wrote, left again; all before the end of the data."""
    chance, end, number = world.chance, world.history.end, person.person_id
    if person.baskets:
        trade = world.trades[chance.pick(person.baskets, "met", number)]
        met = trade.created + chance.between(HOUR, 48 * HOUR, "met at", number)
    else:
        met = chance.between(world.history.start, end - 3 * DAY, "met at", number)
    met = min(met, end - 2 * HOUR)
    if person.openid is None:
        if person.binds:
            plan(met, partial(bind, world, person, met))
        return
    plan(met, partial(follow, world, person, met))
    bound = met
    if person.binds:
        bound = min(met + chance.between(MINUTE, 20 * DAY, "bound at", number), end - HOUR)
        plan(bound, partial(bind, world, person, bound))
    if chance("unfollowed", number) < UNFOLLOWED:
        left = chance.between(bound, end - MINUTE, "left at", number)
        plan(left, partial(unfollow, world, person.openid, left))
    elif chance("wrote", number) < WROTE:
        wrote = max(end - chance.between(10 * MINUTE, 48 * HOUR, "wrote at", number), met + MINUTE)
        plan(wrote, partial(write, world, person.openid, wrote))


# ------------------------------------------------------------------------------------------------------------ by themselves


def _begin_day(world: World, start: int) -> None:
    """Draw what everybody does on the day that begins at `start`."""
    chance, settings, day = world.chance, world.settings, day_of(start).isoformat()
    likely = max(settings.purchase_base, settings.purchase_treated)
    for person in world.buyers:
        draw = chance("buys", person.person_id, day)
        if draw < likely:
            at = start + chance.between(9 * HOUR, 22 * HOUR - 1, "buys at", person.person_id, day)
            world.later(at, partial(_perhaps_buy, world, person, start, at, draw))
    for follower in world.following():
        number = follower.person.person_id
        at = start + chance.between(8 * HOUR, 23 * HOUR, "acts at", number, day)
        if chance("unfollows", number, day) < settings.unfollow_daily:
            world.later(at, partial(unfollow, world, follower.openid, at))
        elif chance("writes", number, day) < settings.write_daily:
            world.later(at, partial(write, world, follower.openid, at))
    for person in world.buyers:
        number = person.person_id
        follows = person.openid is not None and world.followers[person.openid].following
        if not follows and chance("follows", number, day) < settings.follow_daily:
            at = start + chance.between(8 * HOUR, 22 * HOUR, "follows at", number, day)
            world.later(at, partial(_follow_and_bind, world, person, at))
    world.later(start + DAY, partial(_begin_day, world, start + DAY))


def _follow_and_bind(world: World, person: Person, at: int) -> None:
    follow(world, person, at)
    if world.chance("binds", person.person_id) < BOUND_LATER:
        later = at + world.chance.between(MINUTE, HOUR, "bound at", person.person_id)
        world.later(later, partial(bind, world, person, later))


def follow(world: World, person: Person, at: int) -> None:
    if person.openid is None:
        make_follower(person, world.chance)
    assert person.openid is not None
    world.by_openid[person.openid] = person
    scene = world.chance.pick(SCENES, "scene", person.person_id)
    follower = world.followers.setdefault(person.openid, Follower(person, person.openid, at, scene))
    follower.following, follower.since = True, at
    follower.opened_at, follower.opened_by, follower.answered = at, "tap", 0
    key = f"qrscene_{qr_scene(world, person)}" if scene == "ADD_SCENE_QR_CODE" else ""
    world.archive.add_push(APPID, person.openid, at, {"MsgType": "event", "Event": "subscribe", "EventKey": key})


def qr_scene(world: World, person: Person) -> str:
    """Which of our QR codes somebody scanned who came by one."""
    return world.chance.pick(QR_SCENES, "qr", person.person_id)


def unfollow(world: World, openid: str, at: int) -> None:
    follower = world.followers[openid]
    if follower.following:
        follower.following = False
        world.archive.add_push(APPID, openid, at, {"MsgType": "event", "Event": "unsubscribe", "EventKey": ""})


def write(world: World, openid: str, at: int) -> None:
    """A follower writes to the account: the customer-service window opens."""
    follower = world.followers[openid]
    if not follower.following:
        return
    follower.opened_at, follower.opened_by, follower.answered = at, "message", 0
    message = {
        "MsgType": "text",
        "Content": world.chance.pick(SAID, "said", openid, at),
        "MsgId": 24_000_000_000_000_000 + world.chance.bits("said", openid, at) % 10**15,
    }
    world.archive.add_push(APPID, openid, at, message)


SUBSCRIBED = {"accept": "SubscribeMsgPopupEvent", "reject": "SubscribeMsgPopupEvent", "stop": "SubscribeMsgChangeEvent"}


def subscribe(world: World, openid: str, template_id: str, answer: str, at: int) -> None:
    """A follower answers the question whether one notice of a template may come, or (stop) refuses them in the settings."""
    if answer not in SUBSCRIBED or openid not in world.followers:
        raise ValueError(f"answer must be one of {', '.join(SUBSCRIBED)}, openid somebody who has followed")
    word = "accept" if answer == "accept" else "reject"
    said = {"TemplateId": template_id, "SubscribeStatusString": word}
    if answer != "stop":
        said["PopupScene"] = "1"
    if word == "accept":
        world.subscriptions[openid, template_id] += 1
    elif answer == "stop":
        world.subscriptions[openid, template_id] = 0
    event = "subscribe_msg_popup_event" if answer != "stop" else "subscribe_msg_change_event"
    message = {"MsgType": "event", "Event": event, SUBSCRIBED[answer]: {"List": [said]}}
    world.archive.add_push(APPID, openid, at, message)


def bind(world: World, person: Person, at: int) -> None:
    """The form on our page: phone, perhaps an e-mail address, and what the person allows."""
    by_sms = world.chance("takes sms", person.person_id) < SMS_OF_FORMS
    allowed = (("wechat", person.openid), ("email", person.email), ("sms", by_sms))
    channels = [name for name, value in allowed if value]
    data = {
        "openid": person.openid,
        "phone": person.phone,
        "email": person.email,
        "name": person.name,
        "language": person.language,
        "birthday": f"{1 + world.chance.bits('birth month', person.person_id) % 12:02}-"
        f"{1 + world.chance.bits('birth day', person.person_id) % 28:02}",
        "consents": [
            {"channel": channel, "purpose": "marketing", "granted": person.grants_marketing, "text_version": "v1"}
            for channel in channels
        ],
    }
    world.archive.add("binding", at, data)


def _perhaps_buy(world: World, person: Person, start: int, at: int, draw: float) -> None:
    reached = [sent for sent in world.messages_at.get(person.person_id, ()) if start - DAY <= sent <= at]
    settings = world.settings
    if draw < (settings.purchase_treated if reached else settings.purchase_base):
        buy(world, person, at, treated=bool(reached))


def buy(world: World, person: Person, at: int, treated: bool) -> Trade:
    """A new trade: one of the person's old baskets again, one that a coupon in hand applies to if there is one."""
    chance, lines = world.chance, world.lines
    coupon = _coupon_in_hand(world, person, at)
    minimum = world.stocks[coupon.stock_id].minimum_fen * 10 if coupon else 0  # fen -> thousandths
    baskets = [world.trades[tid] for tid in person.baskets]
    big = [old for old in baskets if sum(lines.total(line) for line in range(old.first, old.last)) >= minimum]
    day = (at - world.history.end) // DAY
    tid = TID_BASE + (LIVE_NUMBER + day) * TID_STEP + person.person_id * 100_000
    old = chance.pick(big or baskets, "basket", tid)
    first = len(lines.item)
    for line in range(old.first, old.last):
        lines.append(lines.item[line], lines.num[line], lines.milli[line])
    trade = new_trade(tid, person, first, len(lines.item), at, chance)
    assert trade.paid is not None
    assert trade.consigned is not None
    if chance("returns", tid) < world.settings.refund_live:
        asked = trade.consigned + chance.between(HOUR, 30 * HOUR, "asked", tid)
        refund = Refund(
            refund_id=str(80_000_000_000_000 + (tid - TID_BASE) // 100_000),
            tid=tid,
            oid=trade.oid(first),
            buyer=person,
            item=lines.item[first],
            num=lines.num[first],
            fee=lines.total(first),
            line_total=lines.total(first),
            line=first,
            created=asked,
            settled=asked + chance.between(HOUR, 12 * HOUR, "settled", tid),
            returns_goods=False,
            after_sale=False,
        )
        trade.refunds.append(refund)
        close_if_refunded(trade, lines)
        world.add_refund(refund)
    world.add_reviews(plan_reviews(trade, world.history))
    collect_changes(trade)
    world.add_trade(trade)
    used = bool(coupon and big and chance("redeems", tid) < world.settings.redeem)
    if coupon and used:
        coupon.used, coupon.used_tid = trade.paid, tid
    world.purchases.append(
        {
            "tid": str(tid),
            "buyer_open_uid": person.open_uid,
            "created": iso(at),
            "paid": iso(trade.paid),
            "treated": treated,
            "coupon_id": coupon.coupon_id if coupon and used else None,
        }
    )
    return trade


def _coupon_in_hand(world: World, person: Person, at: int) -> Coupon | None:
    """The most valuable coupon the person can still use."""
    own = [
        coupon
        for coupon in world.coupons_of.get(person.openid or "", ())
        if coupon.used is None and world.coupon_status(coupon, at) == "SENDED"
    ]
    return max(own, key=lambda coupon: (world.stocks[coupon.stock_id].face_fen, coupon.coupon_id), default=None)


# ------------------------------------------------------------------------------------------------------------ to messages


def links(text: str) -> tuple[str | None, str | None]:
    """The message keys in the first reading link (/r/) and the first unsubscribe link (/u/) of a text or HTML body."""
    found: dict[str, str] = {}
    for kind, key in LINK.findall(html.unescape(text)):
        found.setdefault(kind, unquote(key))
    return found.get("r"), found.get("u")


def receive(
    world: World,
    person: Person,
    channel: str,
    address: str,
    text: str,
    at: float,
    *,
    key: str = "",
    is_notice: bool = False,
) -> None:
    """A message reaches a person: perhaps they click, leave, write a review, or buy sooner than they would have."""
    chance, settings, number, now = world.chance, world.settings, person.person_id, int(at)
    read_key, leave_key = links(text)
    key = read_key or leave_key or key  # an SMS has no link; its vendor knows our key
    by_mail, by_wechat = channel == "email", channel.startswith("wechat_")
    named = key or f"{channel}@{now // DAY}"
    if read_key and chance("clicks", number, named) < settings.click:
        click_at = now + chance.between(MINUTE, 6 * HOUR, "clicks at", number, named)
        data = {"key": read_key, "openid": address if by_wechat else None}
        world.later(click_at, partial(world.archive.add, "click", click_at, data))
    if key and key.startswith("review/"):
        _perhaps_review(world, person, key, now)
        return
    if is_notice or (channel in ("wechat_template", "wechat_subscribe") and not key):
        return  # a service notice
    world.messages_at[number].append(now)
    world.treated.append(
        {
            "buyer_open_uid": person.open_uid,
            "openid": person.openid,
            "email": person.email,
            "channel": channel,
            "key": key,
            "at": iso(now),
        }
    )
    if chance("leaves", number, named) < settings.unsubscribe:
        leave_at = now + chance.between(MINUTE, 6 * HOUR, "leaves at", number, named)
        if by_mail:
            gone = {"key": leave_key or read_key, "channel": "email", "openid": None, "email": address}
            world.later(leave_at, partial(world.archive.add, "unsubscribe", leave_at, gone))
        elif channel in world.sms:
            world.later(leave_at, partial(world.sms[channel].reply, address, "R", leave_at))
        elif channel in FAMILIES:
            gone = {"key": leave_key or read_key, "channel": FAMILIES[channel], "openid": None, "email": None}
            world.later(leave_at, partial(world.archive.add, "unsubscribe", leave_at, gone))
        else:
            world.later(leave_at, partial(unfollow, world, address, leave_at))


def _perhaps_review(world: World, person: Person, key: str, at: int) -> None:
    """A request `review/<source>/<order>/<step>`: with some luck the buyer reviews that order within a day."""
    if world.chance("reviews", person.person_id, key) >= world.settings.review_after_request:
        return
    trade = next(
        (world.trades[int(part)] for part in key.split("/") if part.isdigit() and int(part) in world.trades), None
    )
    if trade is None or trade.buyer is not person:
        return
    write_at = at + world.chance.between(30 * MINUTE, 23 * HOUR, "reviews at", person.person_id, key)
    world.later(write_at, partial(review_now, world, trade, write_at))


def review_now(world: World, trade: Trade, at: int) -> None:
    """The buyer reviews the trade at `at`, if it was signed within the days the platform allows and has no review yet."""
    if trade.closed or trade.ended is None or not trade.ended <= at <= trade.ended + REVIEW_DAYS * DAY:
        return
    if any(review.created <= at for review in trade.reviews):
        return
    world.drop_reviews(trade)
    world.add_reviews(write_reviews(trade, at, world.chance, world.lines))
    world.note(trade, at)
