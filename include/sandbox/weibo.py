"""Weibo (微博): the brand's own account over the free API, and a small social world of its own.

The account posts a few times a week; people of the world comment, mention it and follow. Everything follows from the seed;
what lies ahead of the clock is not there yet, and counts grow with every hour.
"""

import secrets
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import exp
from typing import Any

from .chance import Chance
from .clock import DAY, HOUR, MINUTE, SHANGHAI, iso
from .faults import EMOJI, Fault, clock_of, spoil_page
from .people import Person
from .state import World
from .wire import Answer, Request, json_answer

Row = dict[str, Any]
UID = 1_404_376_560
SCREEN_NAME = "夜市官方微博"
FIRST_SECOND = 1_230_739_200  # 2009-01-01 08:00 +08:00: ids grow with time from there, far above 2**53
ID_BASE = 4_800_000_000_000_000_000
LIVE_DAYS = 120  # what happens after the anchor exists this far ahead
POSTS_A_WEEK, MENTIONS_A_WEEK = (2, 5), (0, 3)
MOST_COMMENTS = 14
REPOSTED, LONG = 0.12, 0.20  # of the posts
SHORT_TEXT = 140  # a list shows so much of a long text
HAS_WEIBO, FOLLOWS, LEFT = 0.35, 0.60, 0.10  # of the people; of these; of these
SAMPLE_SHARE, SAMPLE_CAP, SAMPLE_PAGE = 0.3, 500, 5
TOKEN_LIFE = 157_679_999
PAGES = {"user_timeline": (20, 100), "mentions": (20, 200), "comments": (50, 200)}  # default and largest count
TEXTS = (
    "周末上新！夜市限定马克杯，手绘款只有一批。",
    "今晚八点直播间见，老朋友有惊喜🎁",
    "谢谢大家晒单，转发这条抽三位送同款茶巾。",
    "入秋第一杯热可可，你想用哪只杯子喝？☕",
    "Our night market is open: new tins, old friends.",
    "仓库实拍：今天打包了六百个小包裹，辛苦同事们！",
)
LONG_PART = "从选料到上釉，每一只杯子都要经过十一道工序，师傅们说慢一点才好看。"
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")  # in English whatever the machine speaks
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SAID = (
    "好看！已下单",
    "什么时候补货呀",
    "收到了，比图片还好看😍",
    "客服怎么不回消息",
    "Love it!",
    "求同款链接",
    "加我微信 {phone}，想批发",
    "质量𠮷棒",
)
MENTIONED = (
    "@夜市官方微博 家的杯子真的耐摔，推荐给大家",
    "晒一下今天的快递 @夜市官方微博 包装太用心了🎀",
    "@夜市官方微博 这个有瑕疵能换吗？",
    "Best mug ever @夜市官方微博",
)


class WeiboError(Exception):
    def __init__(self, code: int, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code, self.text, self.status = code, text, status


@dataclass(frozen=True, slots=True, eq=False)
class Post:
    post_id: int
    created: int
    text: str
    is_repost: bool
    reposts: int  # in the end
    likes: int
    comments: "list[Note]" = field(default_factory=list)  # by time


@dataclass(frozen=True, slots=True, eq=False)
class Note:
    """A comment under one of the brand's posts, or a post of somebody else that mentions the brand."""

    note_id: int
    created: int
    person: Person
    text: str
    post: Post | None


@dataclass(frozen=True, slots=True)
class Fan:
    person: Person
    since: int
    left: int | None

    def follows(self, now: float) -> bool:
        return self.since <= now and (self.left is None or self.left > now)


class Social:
    """Who said what when: nothing of it ever changes, it only becomes visible."""

    def __init__(self, world: World) -> None:
        self.world, chance = world, world.chance
        start, self.end = world.history.start, world.history.end + LIVE_DAYS * DAY
        self.users = [one for one in world.people if chance("weibo", one.person_id) < HAS_WEIBO] or world.people[:1]
        self.by_uid = {uid_of(one): one for one in self.users}
        self.fans = sorted(self._fans(start), key=lambda fan: (fan.since, fan.person.person_id))
        self.posts: list[Post] = []
        self.mentions: list[Note] = []
        for week in range((self.end - start) // (7 * DAY)):
            begins = start + week * 7 * DAY
            for number in range(chance.between(*POSTS_A_WEEK, "posts", week)):
                self.posts.append(self._post(begins, (week, number)))
            for number in range(chance.between(*MENTIONS_A_WEEK, "mentions", week)):
                self.mentions.append(self._mention(begins, (week, number)))
        self.posts.sort(key=lambda post: post.post_id)
        self.mentions.sort(key=lambda note: note.note_id)
        self.comments = sorted((note for post in self.posts for note in post.comments), key=lambda note: note.note_id)
        self.by_id = {post.post_id: post for post in self.posts}

    def _fans(self, start: int) -> list[Fan]:
        chance, found = self.world.chance, []
        for person in self.users:
            key = person.person_id
            if chance("follows on weibo", key) < FOLLOWS:
                since = chance.between(start, self.end, "fan since", key)
                left = since + chance.between(10, 200, "fan until", key) * DAY
                found.append(Fan(person, since, left if chance("fan leaves", key) < LEFT else None))
        return found

    def _post(self, begins: int, key: tuple[int, int]) -> Post:
        chance = self.world.chance
        created = _awake(chance, begins, "post", key)
        text = chance.pick(TEXTS, "text", key)
        if chance("long", key) < LONG:
            text += LONG_PART * chance.between(5, 9, "length", key)
        post = Post(
            _id(created, key[1]),
            created,
            text,
            chance("repost", key) < REPOSTED,
            chance.between(0, 400, "reposts", key),
            chance.between(5, 3000, "likes", key),
        )
        for number in range(chance.between(0, MOST_COMMENTS, "comments", key)):
            name = ("comment", *key, number)
            at = created + MINUTE + int(10 * DAY * chance(*name, "at") ** 3)  # most of them early
            person = chance.pick(self.users, *name, "by")
            said = chance.pick(SAID, *name, "text").format(phone=person.phone)
            post.comments.append(Note(_id(at, 100 + number + 20 * key[1]), at, person, said, post))
        post.comments.sort(key=lambda note: note.created)
        return post

    def _mention(self, begins: int, key: tuple[int, int]) -> Note:
        chance = self.world.chance
        created = _awake(chance, begins, "mention", key)
        person = chance.pick(self.users, "mention by", key)
        return Note(_id(created, 500 + key[1]), created, person, chance.pick(MENTIONED, "mention text", key), None)

    def followers(self, now: float) -> list[Person]:
        """Everybody who follows now, newest first."""
        return [fan.person for fan in reversed(self.fans) if fan.follows(now)]

    def sample(self, now: float) -> list[Person]:
        """Those whom the free API shows: the newest, at most 30 % of all and 500."""
        followers = self.followers(now)
        return followers[: min(SAMPLE_CAP, int(len(followers) * SAMPLE_SHARE))]

    def counts(self, post: Post, now: float) -> dict[str, int]:
        """What the post has gathered. Reposts and likes move on the hour."""
        age = now // HOUR * HOUR - post.created
        share = 1 - exp(-max(age, 0) / (2 * DAY))
        said = bisect_right(post.comments, now, key=lambda note: note.created)
        return {"comments": said, "reposts": int(post.reposts * share), "attitudes": int(post.likes * share)}

    def truth(self, now: float) -> Row:
        """What a complete reading must hold; `sample` is how many of the followers can be seen."""
        posts = [post for post in self.posts if post.created <= now]
        totals: Counter[str] = Counter()
        for post in posts:
            totals.update(self.counts(post, now))
        return {
            "posts": len(posts),
            "comments": sum(note.created <= now for note in self.comments),
            "mentions": sum(note.created <= now for note in self.mentions),
            "followers": len(self.followers(now)),
            "sample": len(self.sample(now)),
            "post_stats": {"reposts": totals["reposts"], "comments": totals["comments"], "likes": totals["attitudes"]},
        }


def uid_of(person: Person) -> int:
    return 6_000_000_007 + person.person_id * 13


def _id(created: int, number: int) -> int:
    """Ids grow with time and are odd, so that a float cannot hold one."""
    return ID_BASE + (created - FIRST_SECOND) * 1_000_000_000 + number * 2 + 1


def _awake(chance: Chance, begins: int, name: str, key: tuple[int, int]) -> int:
    day = chance.between(0, 6, name, "day", key)
    return begins + day * DAY + chance.between(8 * HOUR, 22 * HOUR, name, "at", key)


def weibo_time(at: int) -> str:
    """`Tue May 31 17:46:55 +0800 2011`"""
    moment = datetime.fromtimestamp(at, SHANGHAI)
    return f"{DAYS[moment.weekday()]} {MONTHS[moment.month - 1]} {moment.day:02d} {moment:%H:%M:%S} +0800 {moment.year}"


class Weibo:
    platform = "weibo"
    prefixes = ("/2/", "/oauth2/get_token_info")

    def __init__(self, world: World) -> None:
        self.world = world
        self.social = world.social = Social(world)
        self.app_key, self.app_secret = str(3_000_000_000 + secrets.randbelow(10**9)), secrets.token_hex(16)
        self.access_token = "2.00" + secrets.token_urlsafe(20)
        self.handlers: dict[str, Callable[[Request, float, Fault | None], Any]] = {
            "2/statuses/user_timeline.json": self.user_timeline,
            "2/statuses/mentions.json": self.mentions,
            "2/statuses/show.json": self.show,
            "2/statuses/count.json": self.count,
            "2/comments/to_me.json": self.comments_to_me,
            "2/comments/show.json": self.comments_show,
            "2/friendships/followers.json": self.followers,
            "2/users/show.json": self.user_show,
            "2/users/counts.json": self.user_counts,
            "2/account/rate_limit_status.json": self.rate_limit_status,
            "oauth2/get_token_info": self.token_info,
        }
        self.reset()

    def reset(self) -> None:
        self.calls: Counter[int] = Counter()  # by hour of the sandbox's clock
        self.granted = self.world.history.end - 30 * DAY

    def access(self, base_url: str) -> Row:
        return {
            "base_url": base_url,
            "app_key": self.app_key,
            "app_secret": self.app_secret,
            "access_token": self.access_token,
            "uid": str(UID),
            "screen_name": SCREEN_NAME,
        }

    def method(self, request: Request) -> str:
        return request.path.removeprefix("/")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        path, now = self.method(request), self.world.now()
        try:
            handler = self.handlers.get(path)
            if handler is None:
                raise WeiboError(10020, "request api not found", 404)
            if (request.method == "POST") != path.startswith("oauth2/"):
                raise WeiboError(10021, "http method is not suported for this request", 405)
            self._check_token(request, clock_of(fault, now), fault)
            if fault and fault.kind == "platform_busy":
                raise WeiboError(10009, "too many pending tasks, system is busy", 403)
            if path != "2/account/rate_limit_status.json":
                self._check_rate(now, fault)
            return json_answer(handler(request, now, fault))
        except WeiboError as error:
            self.world.counters.refused[self.platform][str(error.code)] += 1
            body = {"request": f"/{path}", "error_code": error.code, "error": error.text}
            return json_answer(body, error.status)

    def _check_token(self, request: Request, now: float, fault: Fault | None) -> None:
        value = request.form.get("access_token", "")
        if not value:
            raise WeiboError(10006, "source paramter(appkey) is missing", 403)
        if fault and fault.kind == "revoked_token":
            raise WeiboError(21317, "token_rejected", 403)
        if value != self.access_token:
            raise WeiboError(21332, "invalid_access_token", 403)
        if now >= self.granted + self.world.settings.weibo_token_days * DAY or (
            fault and fault.kind == "expired_token"
        ):
            raise WeiboError(21327, "expired_token", 403)

    def _check_rate(self, now: float, fault: Fault | None) -> None:
        hour = int(now // HOUR)
        self.calls[hour] += 1
        if fault and fault.kind == "call_limit":
            raise WeiboError(10024, "user requests for this api out of rate limit", 403)
        if self.calls[hour] > self.world.settings.weibo_hour_calls:
            raise WeiboError(10023, "user requests out of rate limit", 403)

    # ---------------------------------------------------------------------------------------------------- parameters

    @staticmethod
    def _number(request: Request, name: str, default: int) -> int:
        text = request.query.get(name, "")
        if not text:
            return default
        if not text.isdecimal():
            raise WeiboError(10017, f"parameter ({name})'s value invalid")
        return int(text)

    def _own(self, request: Request) -> None:
        if self._number(request, "uid", UID) != UID:
            raise WeiboError(21335, "request uid's value must be the current user")

    def _page(
        self, request: Request, ids: Sequence[int], kind: str, fault: Fault | None, most: int = 0
    ) -> tuple[list[int], int, int]:
        """(ids of the page, newest first; next_cursor; total). `ids` ascend. Pages end at since_id (>) and begin at max_id (<=)."""
        default, largest = PAGES[kind]
        count = min(self._number(request, "count", default) or default, largest)
        page = self._number(request, "page", 1) or 1
        since, until = self._number(request, "since_id", 0), self._number(request, "max_id", 0)
        shown = list(reversed(ids))[: most or len(ids)]
        wanted = [one for one in shown if one > since and (not until or one <= until)]
        found = wanted[(page - 1) * count : page * count]
        has_more = len(wanted) > page * count
        following = wanted[page * count] if has_more else 0
        return found, following, len(ids)

    # ---------------------------------------------------------------------------------------------------- posts

    def _user(self, person: Person | None) -> Row:
        uid = uid_of(person) if person else UID
        chance = self.world.chance
        return {
            "id": uid,
            "idstr": str(uid),
            "screen_name": f"{person.name}_{uid % 1000:03d}" if person else SCREEN_NAME,
            "gender": chance.pick(("m", "f", "n"), "gender", uid),
            "location": f"{person.place[0]} {person.place[1]}" if person else "上海",
            "verified": person is None,
            "followers_count": chance.between(3, 900, "their fans", uid) if person else len(self.social.followers(self.world.now())),
            "friends_count": chance.between(10, 500, "their friends", uid),
            "statuses_count": chance.between(1, 2000, "their posts", uid),
        }  # fmt: skip

    def _status(self, post: Post, now: float, in_full: bool = False) -> Row:
        counts = self.social.counts(post, now)
        is_long = len(post.text) > SHORT_TEXT
        row: Row = {
            "created_at": weibo_time(post.created),
            "id": post.post_id,
            "idstr": str(post.post_id),
            "mid": str(post.post_id),
            "text": post.text[:SHORT_TEXT] + " ...全文" if is_long else post.text,
            "isLongText": is_long,
            "source": '<a href="http://app.weibo.com" rel="nofollow">夜市后台</a>',
            "reposts_count": counts["reposts"],
            "comments_count": counts["comments"],
            "attitudes_count": counts["attitudes"],
            "user": self._user(None),
        }
        if is_long and in_full:
            row["longText"] = {"longTextContent": post.text}
        if post.is_repost:
            row["retweeted_status"] = {
                "id": post.post_id - 2 * DAY * 1_000_000_000,
                "text": "转自客户的晒单",
                "created_at": weibo_time(post.created - 2 * DAY),
            }
        return row

    def user_timeline(self, request: Request, now: float, fault: Fault | None) -> Row:
        self._own(request)
        ids = [post.post_id for post in self.social.posts if post.created <= now]
        found, following, total = self._page(
            request, ids, "user_timeline", fault, self.world.settings.weibo_timeline_rows
        )
        rows = [self._status(self.social.by_id[one], now) for one in found]
        if request.query.get("trim_user") == "1":
            rows = [row | {"user": UID} for row in rows]
        return self._list("statuses", self._spoilt(fault, rows, True, "text"), following, total)

    def mentions(self, request: Request, now: float, fault: Fault | None) -> Row:
        notes = {note.note_id: note for note in self.social.mentions if note.created <= now}
        found, following, total = self._page(request, sorted(notes), "mentions", fault)
        rows = []
        for note in (notes[one] for one in found):
            rows.append(
                {
                    "created_at": weibo_time(note.created),
                    "id": note.note_id,
                    "idstr": str(note.note_id),
                    "mid": str(note.note_id),
                    "text": note.text,
                    "source": '<a href="http://app.weibo.com" rel="nofollow">iPhone客户端</a>',
                    "reposts_count": 0,
                    "comments_count": 0,
                    "attitudes_count": 0,
                    "user": self._user(note.person),
                }
            )
        return self._list("statuses", self._spoilt(fault, rows, True, "text", "user.screen_name"), following, total)

    @staticmethod
    def _spoilt(fault: Fault | None, rows: list[Row], promised: bool, *texts: str) -> list[Row]:
        return spoil_page(
            fault,
            rows,
            promised,
            ids=("id", "idstr", "status.id", "status.idstr"),
            nullable=("source", "user.location", "retweeted_status", "reply_comment"),
            required=("id",),
            texts=texts,
        )

    @staticmethod
    def _list(name: str, rows: list[Row], following: int, total: int) -> Row:
        return {name: rows, "previous_cursor": 0, "next_cursor": following, "total_number": total}

    def _post_of(self, request: Request, now: float) -> Post:
        post = self.social.by_id.get(self._number(request, "id", 0))
        if post is None or post.created > now:
            raise WeiboError(20101, "target weibo does not exist")
        return post

    def show(self, request: Request, now: float, fault: Fault | None) -> Row:
        row = self._status(self._post_of(request, now), now, request.query.get("isGetLongText") == "1")
        if fault and fault.kind == "emoji" and "longText" in row:
            row["longText"]["longTextContent"] += EMOJI
        return self._spoilt(fault, [row], False, "text")[0]

    def count(self, request: Request, now: float, fault: Fault | None) -> list[Row]:
        ids = [part for part in request.query.get("ids", "").split(",") if part]
        if not ids:
            raise WeiboError(10016, "miss required parameter (ids)")
        if len(ids) > 100 or not all(part.isdecimal() for part in ids):
            raise WeiboError(10017, "parameter (ids)'s value invalid")
        posts = [self.social.by_id.get(int(part)) for part in ids]
        rows = [
            {"id": post.post_id, **self.social.counts(post, now)}
            for post in posts
            if post is not None and post.created <= now  # the others are silently left out
        ]
        return spoil_page(fault, rows, False, ids=("id",), required=("id",))

    # ---------------------------------------------------------------------------------------------------- comments

    def _comments(self, request: Request, notes: list[Note], now: float, fault: Fault | None) -> Row:
        known = {note.note_id: note for note in notes if note.created <= now}
        found, following, total = self._page(request, sorted(known), "comments", fault)
        rows = []
        for note in (known[one] for one in found):
            assert note.post is not None
            rows.append(
                {
                    "created_at": weibo_time(note.created),
                    "id": note.note_id,
                    "idstr": str(note.note_id),
                    "mid": str(note.note_id),
                    "text": note.text,
                    "source": '<a href="http://app.weibo.com" rel="nofollow">HUAWEI</a>',
                    "user": self._user(note.person),
                    "status": {
                        "id": note.post.post_id,
                        "idstr": str(note.post.post_id),
                        "created_at": weibo_time(note.post.created),
                    },
                    "reply_comment": None,
                }
            )
        return self._list("comments", self._spoilt(fault, rows, True, "text", "user.screen_name"), following, total)

    def comments_to_me(self, request: Request, now: float, fault: Fault | None) -> Row:
        return self._comments(request, self.social.comments, now, fault)

    def comments_show(self, request: Request, now: float, fault: Fault | None) -> Row:
        return self._comments(request, self._post_of(request, now).comments, now, fault)

    # ---------------------------------------------------------------------------------------------------- people

    def followers(self, request: Request, now: float, fault: Fault | None) -> Row:
        self._own(request)
        count = min(self._number(request, "count", SAMPLE_PAGE) or SAMPLE_PAGE, SAMPLE_PAGE)
        cursor = self._number(request, "cursor", 0)
        people, total = self.social.sample(now), len(self.social.followers(now))
        rows = [self._user(person) for person in people[cursor : cursor + count]]
        rows = spoil_page(
            fault, rows, True, ids=("id", "idstr"), nullable=("location",), required=("id",), texts=("screen_name",)
        )
        following = cursor + count if cursor + count < len(people) else 0
        return self._list("users", rows, following, total)

    def user_show(self, request: Request, now: float, fault: Fault | None) -> Row:
        uid = self._number(request, "uid", 0)
        if uid != UID and uid not in self.social.by_uid:
            raise WeiboError(20003, "user does not exists")
        return self._user(self.social.by_uid.get(uid))

    def user_counts(self, request: Request, now: float, fault: Fault | None) -> list[Row]:
        uids = [part for part in request.query.get("uids", "").split(",") if part]
        if not 1 <= len(uids) <= 100 or not all(part.isdecimal() for part in uids):
            raise WeiboError(10017, "parameter (uids)'s value invalid")
        rows = []
        for uid in map(int, uids):
            if uid == UID or uid in self.social.by_uid:
                user = self._user(self.social.by_uid.get(uid))
                if uid == UID:
                    user["statuses_count"] = sum(post.created <= now for post in self.social.posts)
                rows.append({name: user[name] for name in ("id", "followers_count", "friends_count", "statuses_count")})
        return spoil_page(fault, rows, False, ids=("id",), nullable=("friends_count",), required=("id",))

    # ---------------------------------------------------------------------------------------------------- the application

    def rate_limit_status(self, request: Request, now: float, fault: Fault | None) -> Row:
        limit, hour = self.world.settings.weibo_hour_calls, int(now // HOUR)
        return {
            "limit_time_unit": "HOURS",
            "user_limit": limit,
            "remaining_user_hits": max(limit - self.calls[hour], 0),
            "reset_time": iso((hour + 1) * HOUR),
            "reset_time_in_seconds": int((hour + 1) * HOUR - now),
        }

    def token_info(self, request: Request, now: float, fault: Fault | None) -> Row:
        ends = self.granted + min(self.world.settings.weibo_token_days * DAY, TOKEN_LIFE)
        return {
            "uid": UID,
            "appkey": self.app_key,
            "scope": "follow_app_official_microblog",
            "create_at": self.granted,
            "expire_in": int(ends - now),
        }
