"""A Weibo account (微博) over the free API: own posts, what they have gathered, comments, mentions, a sample of the followers.

Wire facts: docs/connections/weibo.md. Lists run from the newest to the oldest and are paged by `max_id`, so that a row that comes
in meanwhile moves nothing. Nothing can be asked for by time: a run walks back until it meets what is older than its
window. The API shows its own account only, and of the followers never more than a sample: nobody is taken for gone because
the sample does not show them any more.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
    Check,
    NotFound,
    Plan,
    PlatformDown,
    PlatformError,
    RateLimited,
    Record,
    Refused,
    Slice,
    Stream,
    Transport,
    backfill_by_window,
    by_window,
    parse_json,
    probe,
)
from nightmarket.settings import ConfigError, Credentials, StrictModel

NAME = "weibo"
ZONE = ZoneInfo("Asia/Shanghai")  # a day of the counts is a day in China
TIMELINE, SHOW, COUNT = "/2/statuses/user_timeline.json", "/2/statuses/show.json", "/2/statuses/count.json"
COMMENTS, FOLLOWERS = "/2/comments/to_me.json", "/2/friendships/followers.json"
USER, USER_COUNTS = "/2/users/show.json", "/2/users/counts.json"
LIMITS, TOKEN = "/2/account/rate_limit_status.json", "/oauth2/get_token_info"

TIMELINE_PAGE, COMMENT_PAGE, MENTION_PAGE = 100, 200, 200
COUNT_IDS = 100  # posts a call of statuses/count
SAMPLE_PAGE, SAMPLE_CAP = 5, 500  # followers a call, and in all; at most 30 % of them besides
EMPTY_TRIES = 3  # how often a page is asked for that comes empty though more was counted
MAX_PAGES = 5_000
TOKEN_WARNING = timedelta(days=14)  # a server cannot renew a token: a person has to, and needs to know before
DEFAULT_WAIT_SECONDS = 3600.0  # limits are per hour

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TIME = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) (\d{2}) (\d{2}:\d{2}:\d{2}) ([+-]\d{4}) (\d{4})")
REAUTHORISE = "let the account's owner authorise the application again and put the new access token into the connection"
AUTH_ACTIONS = {
    10005: "the application's level does not allow this interface; apply for it in the Weibo console",
    10004: "this machine's address is not allowed; see the application's settings in the Weibo console",
    10006: "the access token (password of the connection) is missing",
    10013: "the account is not valid any more",
    10014: "the application lacks the permission for this interface; apply for it in the Weibo console",
    21314: f"the access token has been used up; {REAUTHORISE}",
    21315: f"the access token has expired; {REAUTHORISE}",
    21316: f"the access token has been revoked; {REAUTHORISE}",
    21317: f"the access token is rejected; {REAUTHORISE}",
    21319: f"the authorisation has been taken back; {REAUTHORISE}",
    21327: f"the access token has expired; {REAUTHORISE}",
    21332: f"the access token is not valid; {REAUTHORISE}",
    21335: "the access token belongs to another account than the uid (login) of the connection; the API shows only the account that authorised",
}
RATE_CODES = {10022: "of this address", 10023: "of this account", 10024: "of this interface"}
PASSING_CODES = {10001, 10002, 10003, 10009, 10010, 10011}
MISSING_CODES = {20003, 20101}


class Options(StrictModel):
    """What no current page confirms, and what depends on the level of one's application."""

    timeline: Literal["all", "newest"] = "all"  # newest: the application is shown only the newest rows of a list
    long_texts: bool = True  # ask for the whole of a post that its list cuts
    stats_days: int = Field(default=90, ge=1)  # how old a post may be to have its counts taken every day
    mentions_path: str = "/2/statuses/mentions.json"


# ----------------------------------------------------------------------------------------------------------- client
@dataclass(frozen=True)
class Client:
    """Calls as one authorised account. Raises the typed errors of platforms.base."""

    base_url: str
    access_token: str = field(repr=False)
    uid: str
    transport: Transport
    options: Options
    page_sizes: Mapping[str, int]

    def get(self, path: str, page: object = None, **parameters: str | int | None) -> object:
        """The JSON of an answer; parameters of None are left out."""
        return self.transport.retry(lambda: self._once("GET", path, page, parameters))

    def list_of(
        self, path: str, name: str, page: object, **parameters: str | int | None
    ) -> tuple[list[Record], Record]:
        """(rows, the whole answer) of a list."""
        answer = self.get(path, page, **parameters)
        rows = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or not isinstance(rows, list):
            raise BadPayload(NAME, path, f"page {page} has no list of {name}")
        return rows, answer

    def token_info(self) -> Record:
        """Whose token it is, and for how many seconds."""
        answer = self.transport.retry(lambda: self._once("POST", TOKEN, None, {}))
        if not isinstance(answer, dict):
            raise BadPayload(NAME, TOKEN, "the answer is not a JSON object")
        return answer

    def page_size(self, path: str, largest: int) -> int:
        """How many rows to ask for on a page: the largest the interface allows, unless tests make it small."""
        return min(self.page_sizes.get(path, self.page_sizes.get("*", largest)), largest)

    def _once(self, verb: str, path: str, page: object, parameters: Mapping[str, str | int | None]) -> object:
        sent = {"access_token": self.access_token} | {k: v for k, v in parameters.items() if v is not None}
        where = {"params": sent} if verb == "GET" else {"data": sent}
        status, body = self.transport.fetch(verb, self.base_url + path, method=path, **where)
        answer = parse_json(NAME, path, body, page)
        if isinstance(answer, dict) and answer.get("error_code"):
            raise self._refusal(path, answer)
        if status != 200:
            raise Refused(NAME, path, f"HTTP {status}; check the address (host of the connection)")
        return answer

    def _refusal(self, path: str, answer: Record) -> PlatformError:
        try:
            code = int(answer["error_code"])
        except (TypeError, ValueError):
            return BadPayload(NAME, path, "error_code is not a number")
        if code not in RATE_CODES:
            return to_error(path, code)
        wait = self._seconds_to_reset()
        problem = f"the hour's limit {RATE_CODES[code]} is used up (error {code}); it opens again in {wait:.0f} s"
        return RateLimited(NAME, path, problem, retry_after=wait, of_account=code != 10024, code=code)

    def _seconds_to_reset(self) -> float:
        """How long a limit lasts, as the platform says it; an hour when it does not."""
        try:
            status, body = self.transport.fetch(
                "GET", self.base_url + LIMITS, method=LIMITS, params={"access_token": self.access_token}
            )
            answer = parse_json(NAME, LIMITS, body)
            return float(answer["reset_time_in_seconds"]) if status == 200 else DEFAULT_WAIT_SECONDS
        except (PlatformError, KeyError, TypeError, ValueError):
            return DEFAULT_WAIT_SECONDS


def to_error(path: str, code: int) -> PlatformError:
    """The typed error of Weibo's error_code, other than the limits. Its text is left out: it may repeat the request."""
    said = f"error {code}"
    if code in AUTH_ACTIONS:
        return AuthError(NAME, path, f"{AUTH_ACTIONS[code]} ({said})", code=code)
    if code in PASSING_CODES:
        return PlatformDown(NAME, path, f"the service is not available right now ({said})", code=code)
    if code in MISSING_CODES:
        return NotFound(NAME, path, f"it does not exist ({said})", code=code)
    return Refused(NAME, path, f"the request is refused ({said})", code=code)


def to_time(text: object) -> datetime | None:
    """An instant from `Tue May 31 17:46:55 +0800 2011`, whatever language this machine speaks; None when it is not one."""
    found = TIME.fullmatch(str(text))
    if found is None or found[1] not in MONTHS:
        return None
    month, day, clock, offset, year = found.groups()
    try:
        return datetime.fromisoformat(f"{year}-{MONTHS.index(month) + 1:02d}-{day}T{clock}{offset}")
    except ValueError:
        return None


def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the account. Raises ConfigError when a part of the connection is missing."""
    credentials.require(
        {
            "host": "https://api.weibo.com",
            "login": "the account's numeric uid",
            "password": "access token",
        }
    )
    if not credentials.login.isdecimal():
        raise ConfigError(f"connection {credentials.conn_id!r}: login is not a uid, a number like 1404376560.")
    host, uid = credentials.host.rstrip("/"), credentials.login
    return Client(host, credentials.password, uid, transport, options, page_sizes or {})


# ------------------------------------------------------------------------------------------------------------ lists
Say = Callable[[str], None]


def _nothing(_: str) -> None:
    """Nobody wants to hear it."""


def number_of(row: object) -> int | None:
    """A row's 64-bit id, whether it came as a number or as text."""
    text = str(row.get("id")) if isinstance(row, dict) else ""
    return int(text) if text.isdecimal() else None


def back_to(
    client: Client, since: datetime, path: str, name: str, largest: int, say: Say = _nothing, **parameters: str | int
) -> Iterator[list[Record]]:
    """Rows from the newest back to the first that is older than `since`, or to the end of the list.

    The end is believed when as many rows were seen as the platform counts. Raises PlatformDown when a list ends before, unless
    options.timeline says that this application sees no more.
    """
    size = client.page_size(path, largest)
    seen: set[int] = set()
    nameless, counted, before, empty = 0, None, None, 0
    for page in range(1, MAX_PAGES + 1):
        rows, answer = client.list_of(path, name, page, count=size, max_id=before, **parameters)
        numbers = [number for row in rows if (number := number_of(row)) is not None]
        total = answer.get("total_number")
        if isinstance(
            total, int
        ):  # what is written meanwhile is newer than where this walk began: the smallest count holds
            counted = total if counted is None else min(counted, total)
        if rows:
            yield rows
        if any(at < since for row in rows if (at := _created(row)) is not None):
            return
        if numbers:
            seen.update(numbers)
            nameless += len(rows) - len(numbers)
            before, empty = min(numbers) - 1, 0
        else:
            empty += 1
        if counted is not None and len(seen) + nameless >= counted:
            return
        if empty >= EMPTY_TRIES:
            break
    if counted is None:
        return
    if client.options.timeline == "newest":
        say(f"the newest {len(seen)} of {counted} rows: this application is shown no more")
        return
    raise PlatformDown(
        NAME,
        path,
        f"the list ended after {len(seen)} of {counted} rows; when this application is shown only the newest ones, "
        "set options.timeline to newest in sources.yaml",
    )


def _created(row: object) -> datetime | None:
    return to_time(row.get("created_at")) if isinstance(row, dict) else None


# ---------------------------------------------------------------------------------------------------------- streams
def posts(client: Client, window: Window, say: Say = _nothing) -> Iterator[list[Record]]:
    """The account's own posts back to the window's start; one that its list cuts is read in full."""
    for rows in back_to(client, window.start, TIMELINE, "statuses", TIMELINE_PAGE, say, uid=client.uid):
        yield [_whole(client, row) for row in rows]


def _whole(client: Client, row: Record) -> Record:
    number = number_of(row)
    if not client.options.long_texts or number is None or not row.get("isLongText") or row.get("longText"):
        return row
    try:
        found = client.get(SHOW, id=number, isGetLongText=1)
    except NotFound:  # deleted since it was listed
        return row
    if not isinstance(found, dict):
        raise BadPayload(NAME, SHOW, f"the answer for post {number} is not a JSON object")
    return found


def comments(client: Client, window: Window, say: Say = _nothing) -> Iterator[list[Record]]:
    """Comments that others wrote under the account's posts, back to the window's start."""
    return back_to(client, window.start, COMMENTS, "comments", COMMENT_PAGE, say)


def mentions(client: Client, window: Window, say: Say = _nothing) -> Iterator[list[Record]]:
    """Posts of others that mention the account, back to the window's start."""
    return back_to(client, window.start, client.options.mentions_path, "statuses", MENTION_PAGE, say)


def _told(pages: Callable[..., Iterator[list[Record]]]) -> Callable[[Client, Plan], Iterator[Slice]]:
    """The slices of a list by creation; what the application is not shown goes into the run's summary."""
    return lambda client, plan: by_window(partial(pages, say=plan.say), part="created")(client, plan)


def observed_on(plan: Plan) -> str:
    """The day that counts taken now are written for: the last one that is over. The platform tells only what is now."""
    instant = max(plan.until, dates.now() - timedelta(days=1)) - timedelta(seconds=1)
    return instant.astimezone(ZONE).date().isoformat()


def _today(pages: Callable[[Client, Plan], Iterator[list[Record]]]) -> Callable[[Client, Plan], Iterator[Slice]]:
    """The slice of a stream of counts: what is now. A past day cannot be asked for."""

    def slices(client: Client, plan: Plan) -> Iterator[Slice]:
        start = min(plan.cursors.get("", plan.until - timedelta(days=1)), plan.until - timedelta(seconds=1))
        yield Slice("snapshot", Window(start, plan.until), lambda: pages(client, plan), {"": plan.until})

    return slices


def post_stats(client: Client, plan: Plan) -> Iterator[list[Record]]:
    """What the posts of the last options.stats_days have gathered by today, with the day it was observed on.

    A post that statuses/count leaves out is asked for once more; when it stays missing it was deleted in between.
    """
    day, since = observed_on(plan), plan.until - timedelta(days=client.options.stats_days)
    for rows in back_to(client, since, TIMELINE, "statuses", TIMELINE_PAGE, uid=client.uid, trim_user=1):
        wanted = [number for row in rows if (number := number_of(row)) is not None]
        for start in range(0, len(wanted), COUNT_IDS):
            part = wanted[start : start + COUNT_IDS]
            found = _counts(client, part)
            if missing := sorted(set(part) - {number_of(row) for row in found}):
                found += [row for row in _counts(client, missing) if number_of(row) is not None]
            yield [{"observed_on": day, **row} for row in found]


def _counts(client: Client, ids: Sequence[int]) -> list[Record]:
    found = client.get(COUNT, ids=",".join(map(str, ids)))
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise BadPayload(NAME, COUNT, "the answer is not a list of counts")
    return found


def account(client: Client, plan: Plan) -> Iterator[list[Record]]:
    """How many follow the account today; the only complete figure about them."""
    found = client.get(USER_COUNTS, uids=client.uid)
    rows = found if isinstance(found, list) else []
    if not rows or not isinstance(rows[0], dict):
        raise BadPayload(NAME, USER_COUNTS, "the answer has no counts of the account")
    yield [{"observed_on": observed_on(plan), **rows[0]}]


def followers(client: Client, plan: Plan) -> Iterator[list[Record]]:
    """The followers that the free API shows: 5 a page, at most 30 % of them and 500. The run's summary says of how many."""
    seen: set[int] = set()
    total, cursor, empty = 0, 0, 0
    for page in range(1, 2 * SAMPLE_CAP // SAMPLE_PAGE):
        rows, answer = client.list_of(
            FOLLOWERS, "users", page, uid=client.uid, count=client.page_size(FOLLOWERS, SAMPLE_PAGE), cursor=cursor
        )
        seen.update(number for row in rows if (number := number_of(row)) is not None)
        total = answer["total_number"] if isinstance(answer.get("total_number"), int) else total
        following = str(answer.get("next_cursor") or 0)
        if rows:
            yield rows
        elif empty < EMPTY_TRIES and (
            cursor or following != "0" or total
        ):  # a page that was promised: ask for it again
            empty += 1
            continue
        if not following.isdecimal() or int(following) == 0 or int(following) == cursor:
            break
        cursor, empty = int(following), 0
    plan.say(f"a sample of {len(seen)} of {total} followers: the free API shows no more")


STREAMS: Mapping[str, Stream] = {
    stream.name: stream
    for stream in (
        Stream(
            name="posts",
            key=("id",),
            occurred_at=_created,
            slices=_told(posts),
            backfill=backfill_by_window(posts, part="created"),
            personal={"retweeted_status.user.screen_name": "nick", "retweeted_status.user.name": "nick"},
            free_text=("text", "longText.longTextContent", "retweeted_status.text"),
            overlap=timedelta(days=7),  # a post may be edited
            window=timedelta(days=3650),  # a list has no window: one walk back is enough
            required=("id", "created_at", "text"),
        ),
        Stream(
            name="post_stats",
            key=("id", "observed_on"),
            occurred_at=lambda record: None,
            slices=_today(post_stats),
            personal={},
            overlap=timedelta(0),
            priority=3,
            required=("id", "comments", "reposts", "attitudes"),
        ),
        Stream(
            name="comments",
            key=("id",),
            occurred_at=_created,
            slices=_told(comments),
            backfill=backfill_by_window(comments, part="created"),
            personal={
                "user.screen_name": "nick",
                "user.name": "nick",
                "user.profile_image_url": "portrait",
                "user.avatar_large": "portrait",
                "user.avatar_hd": "portrait",
                "reply_comment.user.screen_name": "nick",
                "reply_comment.user.name": "nick",
            },
            free_text=("text", "user.description", "reply_comment.text", "status.text"),
            overlap=timedelta(days=2),
            window=timedelta(days=3650),
            required=("id", "created_at", "text", "user.id", "status.id"),
        ),
        Stream(
            name="mentions",
            key=("id",),
            occurred_at=_created,
            slices=_told(mentions),
            backfill=backfill_by_window(mentions, part="created"),
            personal={
                "user.screen_name": "nick",
                "user.name": "nick",
                "user.profile_image_url": "portrait",
                "user.avatar_large": "portrait",
                "user.avatar_hd": "portrait",
                "retweeted_status.user.screen_name": "nick",
                "retweeted_status.user.name": "nick",
            },
            free_text=("text", "longText.longTextContent", "user.description", "retweeted_status.text"),
            overlap=timedelta(days=2),
            window=timedelta(days=3650),
            required=("id", "created_at", "text", "user.id"),
        ),
        Stream(
            name="followers",
            key=("id",),
            occurred_at=lambda record: None,
            slices=_today(followers),
            personal={
                "screen_name": "nick",
                "name": "nick",
                "profile_image_url": "portrait",
                "avatar_large": "portrait",
                "avatar_hd": "portrait",
            },
            free_text=("description", "status.text"),
            overlap=timedelta(0),
            priority=3,
            required=("id",),
        ),
        Stream(
            name="account",
            key=("id", "observed_on"),
            occurred_at=lambda record: None,
            slices=_today(account),
            personal={},
            overlap=timedelta(0),
            priority=3,
            required=("id", "followers_count"),
        ),
    )
}


def streams(options: Options) -> Mapping[str, Stream]:
    """The streams of an account; they are the same with all options."""
    return STREAMS


def check(client: Client, names: Sequence[str]) -> Check:
    """Whose token it is and for how long, one cheap call per stream, and how the clocks agree."""
    info = client.token_info()
    if str(info.get("uid")) != client.uid:
        raise to_error(TOKEN, 21335)
    user = client.get(USER, uid=client.uid)
    name, count = (user.get("screen_name"), user.get("followers_count")) if isinstance(user, dict) else (None, None)
    calls: dict[str, Callable[[], object]] = {
        "posts": lambda: client.get(TIMELINE, uid=client.uid, count=1),
        "comments": lambda: client.get(COMMENTS, count=1),
        "mentions": lambda: client.get(client.options.mentions_path, count=1),
        "followers": lambda: client.get(FOLLOWERS, uid=client.uid, count=1, cursor=0),
        "account": lambda: client.get(USER_COUNTS, uids=client.uid),
    }
    problems = probe({stream: calls[stream] for stream in names if stream in calls})
    left = timedelta(seconds=int(info.get("expire_in") or 0))
    if left < TOKEN_WARNING:
        problems["token"] = f"it ends in {left.days} days and cannot be renewed by a program; {REAUTHORISE}"
    return Check(f"account {name} with {count} followers", client.transport.clock_offset, problems)
