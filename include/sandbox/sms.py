"""What both SMS vendors do alike: carry a text to a phone, report about it, pass on what people reply, count and limit.

Receipts and replies are pushed in arrays to the address that `POST /control/sms` names, and wait when there is none:
`GET /control/sms` shows everything that was or would have been pushed.
"""

import asyncio
import re
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from .clock import DAY, HOUR, MINUTE, SHANGHAI
from .faults import Fault
from .people import Person
from .reactions import receive
from .state import World

NUMBER = re.compile(r"1\d{10}")
LINK = re.compile(r"://|www\.|\.(com|cn|net|test)\b", re.IGNORECASE)
LONGEST_VALUE = 35
REFUSE = "拒收请回复R"
RETRIES = (1 * MINUTE, 5 * MINUTE, 10 * MINUTE)
FLUSH = 5  # seconds for which receipts are collected into one array
ARRAY = 100
SECONDS = 5  # to answer a push
MARKETING_HOURS = range(8, 22)
SIGN = "夜市"
# The approved texts: code -> (kind, text). At the one vendor a parameter has a name, at the other one a number.
PROMOTION, NOTICE = "promotion", "notice"
TEXTS = {
    "100001": (PROMOTION, f"尊敬的会员${{name}}，好久不见。店里为会员留了几件新品，欢迎回来看看。{REFUSE}"),
    "100002": (PROMOTION, f"Dear member ${{name}}, we have kept some new things for our members. Come and have a look.{REFUSE}"),
    "100003": (PROMOTION, f"尊敬的会员${{name}}，有一阵子没见到您了。您常买的那些，最近又上新了。{REFUSE}"),
    "100004": (PROMOTION, f"Dear member ${{name}}, it has been a while. What you used to buy is new in the shop again.{REFUSE}"),
    "200001": (NOTICE, "您${date}签收的${title}用得怎么样？想听听您的真实评价，好的不好的都欢迎，打开订单就能写。"),
    "200002": (NOTICE, "${title}, received on ${date}: how do you like it? Any honest review is welcome, in your order."),
    "200003": (NOTICE, "您的${title}还没有评价。方便的话写几句真实的使用感受，这是最后一次提醒。"),
    "200004": (NOTICE, "You have not reviewed ${title} yet. A few honest words are welcome; we will not remind you again."),
}  # fmt: skip


def parameters_of(text: str) -> list[str]:
    return re.findall(r"\$\{(\w+)\}", text)


def parts_of(text: str) -> int:
    """For how many messages a text is billed."""
    units = len(text.encode("utf-16-le")) // 2
    return 1 if units <= 70 else -(-units // 67)


@dataclass(slots=True, eq=False)
class Sms:
    """One message to one number, from its acceptance on."""

    number: str
    text: str
    sign: str
    template: str
    key: str  # OutId or SessionContext
    serial: str  # the vendor's own number
    sent: int
    reported: int | None = None  # when the carrier reports; None: never
    success: bool = True
    code: str = ""  # the carrier's word


@dataclass
class Carrier:
    """The phones behind one vendor, and the pushes to its customer."""

    world: World
    platform: str
    answer_key: str  # field of the customer's answer that must be a number: code, result
    failures: tuple[str, str]  # the carrier's words: nobody there, and the person has refused
    sent: list[Sms] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)  # numbers whose owners replied R: the vendor's own black list
    windows: dict[tuple[str, ...], deque[float]] = field(default_factory=lambda: defaultdict(deque))
    pushed: list[dict[str, Any]] = field(default_factory=list)
    url: dict[str, str] = field(default_factory=dict)  # reports, replies -> where they are pushed

    def __post_init__(self) -> None:
        self.world.sms[self.platform] = self
        self._by_phone: dict[str, Person] = {}
        self._waiting: dict[str, list[dict[str, Any]]] = {"reports": [], "replies": []}
        self._tasks: set[asyncio.Task[None]] = set()

    def reset(self) -> None:
        self.sent.clear()
        self.refused.clear()
        self.windows.clear()
        self.pushed.clear()
        self.url.clear()
        self._waiting = {"reports": [], "replies": []}

    # ---------------------------------------------------------------------------------------------------- limits

    def over(self, key: tuple[str, ...], limits: Mapping[int, int], now: float) -> int | None:
        """The length of the first rolling window that is full (0 = no limit); counts the message when none is."""
        times = self.windows[key]
        while times and times[0] <= now - DAY:
            times.popleft()
        for seconds, most in limits.items():
            if most and sum(at > now - seconds for at in times) >= most:
                return seconds
        times.append(now)
        return None

    # ---------------------------------------------------------------------------------------------------- carrying

    def carry(self, sms: Sms, kind: str, fault: Fault | None, describe: Any) -> None:
        """Take a message: the carrier reports some seconds later, and a person who gets it may react.

        `describe` makes the vendor's report of it.
        """
        world, settings = self.world, self.world.settings
        self.sent.append(sms)
        world.counters.accept(
            self.platform,
            sms.number,
            sms.key or None,
            sms.text,
            sms.sent,
            template=sms.template,
            parts=parts_of(sms.text),
        )
        if kind == PROMOTION and datetime.fromtimestamp(sms.sent, SHANGHAI).hour not in MARKETING_HOURS:
            world.counters.violation("advertising outside 08:00 to 22:00", sms.number, sms.template, sms.sent)
        draw = world.chance("carried", self.platform, sms.serial)
        what = fault.kind if fault else ""
        sms.success = draw >= settings.sms_failed and what != "receipt_failed" and sms.number not in self.refused
        sms.code = "" if sms.success else self.failures[sms.number in self.refused]
        at = int(sms.sent) + world.chance.between(3, 40, "reported", self.platform, sms.serial)
        if sms.success:
            world.later(at, partial(self._arrive, sms, kind, at))
        if what == "receipt_lost":
            return
        sms.reported = at
        for _ in range(2 if what == "receipt_twice" else 1):
            world.later(at, partial(self._push_later, "reports", describe, sms, at))

    def _arrive(self, sms: Sms, kind: str, at: int) -> None:
        if not self._by_phone:
            self._by_phone = {person.phone: person for person in self.world.people}
        person = self._by_phone.get(sms.number)
        if person is not None:
            receive(self.world, person, self.platform, sms.number, sms.text, at, key=sms.key, is_notice=kind == NOTICE)

    def reply(self, number: str, text: str, at: int) -> None:
        """Somebody answers an SMS; R goes on the vendor's own black list too."""
        if text.strip().upper() in ("R", "T", "TD", "退订"):
            self.refused.add(number)
        self._push_later("replies", self.describe_reply, (number, text), at)

    def describe_reply(self, reply: tuple[str, str], at: int) -> dict[str, Any]:
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------------- pushing

    def _push_later(self, what: str, describe: Any, about: Any, at: int) -> None:
        if not self._waiting[what]:
            self.world.later(at + FLUSH, partial(self._flush, what))
        self._waiting[what].append(describe(about, at))

    def _flush(self, what: str) -> None:
        waiting, self._waiting[what] = self._waiting[what], []
        for start in range(0, len(waiting), ARRAY):
            for body in self.arrays(what, waiting[start : start + ARRAY]):
                self.pushed.append({"what": what, "body": body})
                self._post_soon(what, body, 0)

    def arrays(self, what: str, rows: list[dict[str, Any]]) -> list[Any]:
        """The bodies of pushes for some rows: one array, unless a vendor pushes them one by one."""
        return [rows]

    def _post_soon(self, what: str, body: Any, tries: int) -> None:
        if url := self.url.get(what):
            task = asyncio.get_running_loop().create_task(self._deliver(what, url, body, tries))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, what: str, url: str, body: Any, tries: int) -> None:
        if not await asyncio.to_thread(self._post, url, orjson.dumps(body)) and tries < len(RETRIES):
            at = self.world.now() + RETRIES[tries]
            self.world.later(at, partial(self._post_soon, what, body, tries + 1))

    def _post(self, url: str, body: bytes) -> bool:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json;charset=utf-8"})  # noqa: S310 - the user's own URL
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
                said = orjson.loads(answer.read())
        except (urllib.error.URLError, OSError, orjson.JSONDecodeError):
            return False
        return isinstance(said, dict) and isinstance(said.get(self.answer_key), int)


def windows(minute: int, hour: int, day: int) -> dict[int, int]:
    return {MINUTE: minute, HOUR: hour, DAY: day}
