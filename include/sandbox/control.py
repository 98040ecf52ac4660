"""The control API, `/control/...` with the Bearer token of access.json: clock, faults, settings, counters, truth."""

import hmac
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from .clock import ClockError, day_of, iso, parse_iso
from .faults import SPECIAL, TRANSPORT, FaultError, parse_faults
from .people import Person
from .reactions import begin, subscribe
from .state import World
from .top import REVIEW_DAYS, yuan
from .wire import Answer, Request, json_answer


class Control:
    def __init__(self, world: World, token: str, on_reset: Callable[[], None]) -> None:
        self.world, self.token, self.on_reset = world, token, on_reset
        self.routes: dict[tuple[str, str], Callable[[Any], Any]] = {
            ("GET", "/clock"): lambda _: self.clock(),
            ("POST", "/clock"): self.move_clock,
            ("GET", "/faults"): lambda _: self.faults(),
            ("POST", "/faults"): self.set_faults,
            ("GET", "/settings"): lambda _: self.world.settings.as_dict(),
            ("POST", "/settings"): self.set_settings,
            ("GET", "/counters"): lambda _: self.world.counters.as_dict(),
            ("GET", "/messages"): lambda _: {"messages": self.world.counters.listing()},
            ("GET", "/truth"): lambda _: truth(self.world),
            ("GET", "/people"): lambda _: {"people": people(self.world)},
            ("POST", "/reset"): self.reset,
            ("POST", "/subscribe"): self.subscribe,
            ("POST", "/pos"): lambda _: self.world.tills.write(),
            ("GET", "/sms"): lambda _: {name: {"pushed": vendor.pushed} for name, vendor in self.world.sms.items()},
            ("POST", "/sms"): self.set_sms,
        }

    def answer(self, request: Request) -> Answer:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            return json_answer(
                {"error": "the control API needs `Authorization: Bearer <control.token of access.json>`"}, 401
            )
        handler = self.routes.get((request.method, request.path.removeprefix("/control")))
        if handler is None:
            known = ", ".join(f"{method} /control{path}" for method, path in self.routes)
            return json_answer({"error": f"there is no {request.method} {request.path}; known are {known}"}, 404)
        try:
            body = request.json() if request.body else {}
            return json_answer(handler(body))
        except orjson.JSONDecodeError as error:
            return json_answer({"error": f"the body is no JSON: {error}"}, 400)
        except (ClockError, FaultError, ValueError) as error:
            return json_answer({"error": str(error)}, 409 if isinstance(error, ClockError) else 400)

    def clock(self) -> dict[str, str]:
        return {"now": iso(self.world.now())}

    def move_clock(self, body: Any) -> dict[str, str]:
        if not isinstance(body, dict) or "now" not in body:
            raise ClockError('the body must be {"now": "2026-03-15T02:30:00+08:00"}')
        self.world.clock.move(parse_iso(body["now"]))
        self.world.settle()
        return self.clock()

    def faults(self) -> dict[str, Any]:
        return {
            "faults": [
                {name: getattr(fault, name) for name in ("platform", "method", "kind", "times", "after", "seconds")}
                for fault in self.world.faults
            ],
            "kinds": {"every HTTP platform": TRANSPORT, "only some": SPECIAL},
        }

    def set_faults(self, body: Any) -> dict[str, Any]:
        self.world.faults[:] = parse_faults(body)
        return {"faults": len(self.world.faults)}

    def set_settings(self, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise ValueError('the body must be {"setting": value}')
        self.world.settings.update(body)
        return self.world.settings.as_dict()

    def subscribe(self, body: Any) -> dict[str, int]:
        """A follower accepts or rejects a subscription notice: {"openid", "template_id", "answer": accept | reject | stop}."""
        if not isinstance(body, dict) or not {"openid", "template_id", "answer"} <= set(body):
            raise ValueError('the body must be {"openid": ..., "template_id": ..., "answer": "accept"}')
        key = str(body["openid"]), str(body["template_id"])
        subscribe(self.world, *key, str(body["answer"]), int(self.world.now()))
        return {"balance": self.world.subscriptions[key]}

    def set_sms(self, body: Any) -> dict[str, Any]:
        """Where an SMS vendor pushes receipts and replies, and replies that people send now; see README.md."""
        vendor = self.world.sms.get(str(body.get("vendor"))) if isinstance(body, dict) else None
        if vendor is None:
            raise ValueError(f'the body must be {{"vendor": ...}}; vendors are {", ".join(self.world.sms)}')
        for what in ("reports", "replies"):
            if what in body:
                vendor.url[what] = str(body[what])
        for reply in body.get("reply", []):
            vendor.reply(str(reply["number"]), str(reply["text"]), int(self.world.now()))
        return {"urls": vendor.url}

    def reset(self, _: Any) -> dict[str, str]:
        self.world.reset()
        begin(self.world)
        self.on_reset()
        self.world.settle()
        return self.clock()


def people(world: World) -> list[dict[str, Any]]:
    """Everybody's clear values, all of them invented: what a test looks for where none may stand."""
    return [
        {"name": person.name, "phone": person.phone, "email": person.email, "openid": person.openid}
        for person in (*world.people, *only_in_shops(world))
    ]


def only_in_shops(world: World) -> list[Person]:
    """The people whom a shop other than Taobao knows and nobody else does."""
    known = {person.person_id for person in world.people}
    return [person for shop in world.shops.values() for person in shop.people if person.person_id not in known]


def truth(world: World) -> dict[str, Any]:
    """What a complete extraction must hold as of the clock, and what really moved people."""
    now, lines = world.now(), world.lines
    paid_days: Counter[str] = Counter()
    created_days: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    buyers = set()
    value = line_count = total = unpaid_lines = 0
    for trade in world.trades.values():
        if trade.created > now:
            continue
        total += 1
        statuses[trade.status(now)] += 1
        created_days[day_of(trade.created).isoformat()] += 1
        if trade.paid is None or trade.paid > now:
            unpaid_lines += trade.last - trade.first
            continue
        buyers.add(trade.buyer.person_id)
        paid_days[day_of(trade.paid).isoformat()] += 1
        line_count += trade.last - trade.first
        value += sum(lines.total(line) for line in range(trade.first, trade.last))
    refunds = [refund for refund in world.refunds.values() if refund.created <= now]
    settled = [refund for refund in refunds if refund.settled <= now]
    reviews = [review for review in world.reviews if review.created <= now]
    events = [event for at, _, event in world.archive.events if at <= now]
    statuses_of_coupons = Counter(world.coupon_status(coupon, now) for coupon in world.coupons.values())
    settings = world.settings
    return {
        "now": iso(now),
        "seed": world.history.seed,
        "anchor": world.history.anchor.isoformat(),
        "history_start": iso(world.history.start),
        "buyers": len(buyers),
        "trades": total,
        "trades_by_status": statuses,
        "paid_orders": sum(paid_days.values()),
        "paid_lines": line_count,
        "lines": line_count + unpaid_lines,
        "paid_line_value": yuan(value),
        "unpaid_orders": total - sum(paid_days.values()),
        "refunds": len(settled),
        "refund_fee": yuan(sum(refund.fee for refund in settled)),
        "refunds_open": len(refunds) - len(settled),
        "members": sum(person.open_uid is not None for person in world.people),
        "items": len(world.items),
        "reviews": len(reviews),
        "reviews_readable": sum(review.created >= now - REVIEW_DAYS * 86400 for review in reviews),
        "reviews_by_result": Counter(review.result for review in reviews),
        "followers": len(world.following()),
        "ever_followed": len(world.followers),
        "bound_phones": len({event["data"]["phone"] for event in events if event["kind"] == "binding"}),
        "people": len(world.people),
        "events": len(events),
        "events_by_kind": Counter(event["kind"] for event in events),
        "coupons": {
            "granted": len(world.coupons),
            **{name: statuses_of_coupons[name] for name in ("SENDED", "USED", "EXPIRED")},
        },
        "paid_orders_by_day": dict(sorted(paid_days.items())),
        "created_orders_by_day": dict(sorted(created_days.items())),
        "shops": {name: shop.truth(now) for name, shop in world.shops.items()},
        "weibo": world.social.truth(now) if world.social else {},
        "experiment": {
            "purchase_base": settings.purchase_base,
            "purchase_treated": settings.purchase_treated,
            "uplift": round(settings.purchase_treated - settings.purchase_base, 6),
            "click": settings.click,
            "unsubscribe": settings.unsubscribe,
            "redeem": settings.redeem,
            "review_after_request": settings.review_after_request,
            "eligible_buyers": len(world.buyers),
            "treated": world.treated,
            "purchases": world.purchases,
        },
    }
