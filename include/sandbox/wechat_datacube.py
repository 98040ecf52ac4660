"""WeChat's figures of a day (datacube), counted from what happened in the world; articles and their readers are drawn."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, timedelta

from .clock import DAY, HOUR, day_of, day_start
from .faults import Fault, clock_of, emptied, spoil_rows
from .state import World
from .wechat_tokens import Body, WechatError

FIRST_DAY = date(2014, 12, 1)
SOURCES = {  # how somebody found us -> the datacube's user_source
    "ADD_SCENE_SEARCH": 1,
    "ADD_SCENE_PROFILE_CARD": 17,
    "ADD_SCENE_QR_CODE": 30,
}
MESSAGE_TYPES = {"text": 1, "image": 2, "voice": 3, "video": 4, "link": 6}
ARTICLE_WEEKDAY = 1  # one article every Tuesday
ARTICLE_FIRST = date(2024, 1, 2)
ARTICLE_NUMBER = 2_650_000_000
LEAST_READ = 3  # an article with less on a day is left out of the summary
READ_SHARE = (0.12, 0.05, 0.02, 0.01, 0.008, 0.004, 0.002)  # of the receivers, day by day after sending
READ_SOURCES = {0: 0.6, 1: 0.1, 2: 0.2, 4: 0.05, 6: 0.05}  # session, search, friends and so on
ALL_SOURCES = 99_999_999
SHARE_SCENES = {1: 0.5, 2: 0.3, 255: 0.2}
TITLES = ("本周上新", "夜市好物清单", "店长推荐", "周末去哪逛", "Night market picks")


class Datacube:
    """Answers /datacube/...; the caller has checked token and quota."""

    def __init__(self, world: World) -> None:
        self.world = world
        # interface -> (longest span in days, rows of one day)
        self.interfaces: dict[str, tuple[int, Callable[[date], Iterator[Body]]]] = {
            "getusersummary": (7, self.user_summary),
            "getusercumulate": (7, self.user_cumulate),
            "getarticlesummary": (1, self.article_summary),
            "getarticletotal": (1, self.article_total),
            "getuserread": (3, self.user_read),
            "getusershare": (7, self.user_share),
            "getupstreammsg": (7, self.upstream_messages),
            "getinterfacesummary": (30, self.interface_summary),
        }

    def answer(self, interface: str, body: Body, now: float, fault: Fault | None) -> Body:
        span, rows_of = self.interfaces[interface]
        try:
            first, last = (date.fromisoformat(str(body[name])) for name in ("begin_date", "end_date"))
        except (KeyError, ValueError):
            raise WechatError(61500, "date format error") from None
        if last < first or (last - first).days >= span or first < FIRST_DAY:
            raise WechatError(61501, "date range error")
        now = clock_of(fault, now)
        today = day_of(now)
        if last >= today:
            raise WechatError(61501, "date range error")
        # the figures of yesterday are made during the morning
        last = min(
            last,
            today - timedelta(days=1 if now - day_start(today) >= self.world.settings.wechat_ready_hour * HOUR else 2),
        )
        rows = [row for number in range((last - first).days + 1) for row in rows_of(first + timedelta(days=number))]
        rows = spoil_rows(
            fault, rows, ids=("user_source", "share_scene", "msg_type"), nullable=("new_user", "share_user", "msg_user", "int_page_read_user"),
            required=("ref_date",), texts=("title",),
        )  # fmt: skip
        return {"list": emptied(fault, rows)}

    # ---------------------------------------------------------------------------------------------------- people

    def _pushes(self, start: float, end: float) -> Iterator[Body]:
        """The fields of every push in [start, end)."""
        for event in self.world.archive.between(start, end):
            if event["kind"] == "wechat.event":
                yield event["data"]["fields"]

    def _of_day(self, day: date) -> Iterator[Body]:
        return self._pushes(day_start(day), day_start(day) + DAY)

    def user_summary(self, day: date) -> Iterator[Body]:
        new: Counter[int] = Counter()
        gone = 0
        for fields in self._of_day(day):
            if fields.get("Event") == "subscribe":
                scene = self.world.followers[fields["FromUserName"]].scene
                new[SOURCES.get(scene, 0)] += 1
            gone += fields.get("Event") == "unsubscribe"
        for source in sorted(set(new) | ({0} if gone else set())):
            yield {
                "ref_date": day.isoformat(),
                "user_source": source,
                "new_user": new[source],
                "cancel_user": 0 if source else gone,
            }

    def following(self, day: date) -> int:
        """Followers at the end of a day."""
        changes = Counter(fields.get("Event") for fields in self._pushes(0, day_start(day) + DAY))
        return changes["subscribe"] - changes["unsubscribe"]

    def user_cumulate(self, day: date) -> Iterator[Body]:
        if count := self.following(day):
            yield {"ref_date": day.isoformat(), "cumulate_user": count}

    def upstream_messages(self, day: date) -> Iterator[Body]:
        people: dict[int, set[str]] = {}
        count: Counter[int] = Counter()
        for fields in self._of_day(day):
            if kind := MESSAGE_TYPES.get(fields["MsgType"]):
                people.setdefault(kind, set()).add(fields["FromUserName"])
                count[kind] += 1
        for kind in sorted(count):
            yield {
                "ref_date": day.isoformat(),
                "msg_type": kind,
                "msg_user": len(people[kind]),
                "msg_count": count[kind],
            }

    def interface_summary(self, day: date) -> Iterator[Body]:
        if count := sum(1 for _ in self._of_day(day)):
            yield {
                "ref_date": day.isoformat(),
                "callback_count": count,
                "fail_count": 0,
                "total_time_cost": count * 35,
                "max_time_cost": 90,
            }

    # ---------------------------------------------------------------------------------------------------- articles

    def _sent(self, day: date) -> tuple[str, str, int] | None:
        """msgid, title and receivers of the article of a day, if one was sent."""
        if day < ARTICLE_FIRST or day.weekday() != ARTICLE_WEEKDAY or not (receivers := self.following(day)):
            return None
        number = (day - ARTICLE_FIRST).days // 7
        return f"{ARTICLE_NUMBER + number}_1", TITLES[number % len(TITLES)], receivers

    def _gathered(self, sent: date, receivers: int, day: date) -> Body:
        """What an article got on one day."""
        age = (day - sent).days
        readers = round(receivers * READ_SHARE[age] * (0.8 + 0.4 * self.world.chance("reads", sent.isoformat(), age)))
        shares = readers // 9
        return {
            "int_page_read_user": readers,
            "int_page_read_count": readers + readers // 4,
            "ori_page_read_user": readers // 20,
            "ori_page_read_count": readers // 18,
            "share_user": shares,
            "share_count": shares + shares // 3,
            "add_to_fav_user": readers // 30,
            "add_to_fav_count": readers // 30,
        }

    def _alive(self, day: date) -> Iterator[tuple[date, str, str, Body]]:
        """Articles that are still read on a day: when sent, msgid, title, what they got that day."""
        for age in range(len(READ_SHARE)):
            sent = day - timedelta(days=age)
            if article := self._sent(sent):
                yield sent, article[0], article[1], self._gathered(sent, article[2], day)

    def article_summary(self, day: date) -> Iterator[Body]:
        for _, msgid, title, measures in self._alive(day):
            if sum(measures.values()) >= LEAST_READ:
                yield {"ref_date": day.isoformat(), "msgid": msgid, "title": title, **measures}

    def article_total(self, day: date) -> Iterator[Body]:
        if not (article := self._sent(day)):
            return
        msgid, title, receivers = article
        sums: Counter[str] = Counter()
        details = []
        for age in range(len(READ_SHARE)):
            seen = day + timedelta(days=age)
            if seen >= day_of(self.world.now()):
                break
            sums.update(self._gathered(day, receivers, seen))
            details.append({"stat_date": seen.isoformat(), "target_user": receivers, **sums})
        yield {"ref_date": day.isoformat(), "msgid": msgid, "title": title, "details": details}

    def user_read(self, day: date) -> Iterator[Body]:
        total: Counter[str] = Counter()
        for _, _, _, measures in self._alive(day):
            total.update(measures)
        if not total["int_page_read_user"]:
            return
        for source, share in READ_SOURCES.items():
            part = {name: round(value * share) for name, value in total.items()}
            if any(part.values()):
                yield {"ref_date": day.isoformat(), "user_source": source, **part}
        yield {"ref_date": day.isoformat(), "user_source": ALL_SOURCES, **total}

    def user_share(self, day: date) -> Iterator[Body]:
        shares = sum(measures["share_count"] for _, _, _, measures in self._alive(day))
        for scene, share in SHARE_SCENES.items():
            if count := round(shares * share):
                yield {
                    "ref_date": day.isoformat(),
                    "share_scene": scene,
                    "share_count": count,
                    "share_user": -(-count * 3 // 4),
                }
