"""A WeChat official account (公众号): its followers and tags, what it pushed to us, and its daily figures (datacube).

Wire facts: docs/connections/wechat_official.md. The platform has no "changed since" for followers: each run lists all
openids, then asks for the profiles, and asks also for those whom we know as followers but who are not listed any more: the
platform then answers `subscribe: 0`, and that answer is the record of their leaving. Events come from our own receiver
(raw.pushes). Figures of a day are ready after 08:00 of the next one; until then the day is left for the next run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from zoneinfo import ZoneInfo

from pydantic import Field

from nightmarket import dates
from nightmarket.dates import Window
from nightmarket.platforms import wechat_push
from nightmarket.platforms.base import (
    BadPayload,
    Check,
    NotFound,
    Plan,
    PlatformDown,
    Record,
    Refused,
    Slice,
    Stream,
    Transport,
    probe,
    pushed,
)
from nightmarket.platforms.wechat_api import Client, account
from nightmarket.settings import Credentials, StrictModel

NAME = "wechat_official"
ZONE = ZoneInfo("Asia/Shanghai")  # the days of the datacube
TAGS = "/cgi-bin/tags/get"
DATACUBE_FROM = date(2014, 12, 1)  # the platform has no figures before
LIST = "/cgi-bin/user/get"  # 10,000 openids a call; fixed by the platform
PROFILES = "/cgi-bin/user/info/batchget"
PROFILE_PAGE = 100  # profiles a call
MAX_WALKS = 3
MAX_LIST_CALLS = 500  # the platform's daily quota of user/get


class Options(StrictModel):
    """The block `options:` of an official account."""

    scenes: dict[str, str] = Field(
        default_factory=dict
    )  # scene of a parametric QR code -> the store or poster it hangs on
    ready_hour: int = Field(default=8, ge=0, le=23)  # China time at which the figures of yesterday are final
    article_days: int = Field(default=7, ge=1, le=30)  # for how long the figures of an article go on growing


# ----------------------------------------------------------------------------------------------------------- client
def connect(
    credentials: Credentials, transport: Transport, *, options: Options, page_sizes: Mapping[str, int] | None = None
) -> Client:
    """A client of the account. Raises ConfigError when a part of the connection is missing. Page sizes are WeChat's own."""
    return account(NAME, credentials, transport)


# --------------------------------------------------------------------------------------------------------- followers
def openids(client: Client) -> Iterator[list[str]]:
    """Openids of everybody who follows, each once, in following order; listed again when the platform counts more of them.

    Raises PlatformDown when the list and its own total do not agree over MAX_WALKS walks.
    """
    seen: set[str] = set()
    for _ in range(MAX_WALKS):
        total = 0
        for total, page in _list_pages(client):  # noqa: B007 - the last total counts
            fresh = [openid for openid in dict.fromkeys(page) if openid not in seen]
            seen.update(fresh)
            yield fresh
        if len(seen) >= total:
            return
    raise PlatformDown(
        NAME, LIST, f"the list kept changing: {len(seen)} openids after {MAX_WALKS} walks, the platform counts {total}"
    )


def _list_pages(client: Client) -> Iterator[tuple[int, list[str]]]:
    """(total, openids) of each page. An empty page ends the list, or a `next_openid` that does not move."""
    after = ""
    for page in range(1, MAX_LIST_CALLS + 1):
        answer = client.call("GET", LIST, query={"next_openid": after} if after else None, page=page)
        data = answer.get("data")
        found = data.get("openid") if isinstance(data, dict) else None
        if not answer.get("count") or not found:
            yield int(answer.get("total") or 0), []
            return
        if not isinstance(found, list):
            raise BadPayload(NAME, LIST, f"page {page} has no list of openids")
        yield int(answer.get("total") or 0), [str(openid) for openid in found]
        following = str(answer.get("next_openid") or "")
        if not following or following == after:  # the last page of the platform's own example repeats its last openid
            return
        after = following
    raise Refused(NAME, LIST, f"more followers than {MAX_LIST_CALLS} calls can list; the platform's quota ends there")


def profiles(client: Client, wanted: Sequence[str]) -> list[Record]:
    """Profiles of up to 100 openids. Somebody whom the platform has deleted comes back as `subscribe: 0`, like a leaver."""
    body = {"user_list": [{"openid": openid, "lang": "zh_CN"} for openid in wanted]}
    try:
        answer = client.call("POST", PROFILES, body=body)
    except NotFound:
        if len(wanted) == 1:
            return [{"subscribe": 0, "openid": wanted[0]}]
        half = len(wanted) // 2
        return profiles(client, wanted[:half]) + profiles(client, wanted[half:])
    found = answer.get("user_info_list")
    if not isinstance(found, list):
        raise BadPayload(NAME, PROFILES, "the answer has no user_info_list")
    if len(found) < len(wanted):
        raise BadPayload(NAME, PROFILES, f"{len(found)} profiles came for {len(wanted)} openids")
    return found


def follower_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """One slice: everybody. The watermark moves only when the whole snapshot is in raw."""

    def pages() -> Iterator[list[Record]]:
        gone = plan.present()
        for listed in openids(client):
            gone.difference_update(listed)
            for start in range(0, len(listed), PROFILE_PAGE):
                yield profiles(client, listed[start : start + PROFILE_PAGE])
        left = sorted(gone)
        for start in range(0, len(left), PROFILE_PAGE):
            yield profiles(client, left[start : start + PROFILE_PAGE])

    start = min(plan.cursors.get("", plan.until - plan.history), plan.until - timedelta(seconds=1))
    yield Slice("snapshot", Window(start, plan.until), pages, {"": plan.until})


def _subscribed_at(record: Record) -> datetime | None:
    seconds = record.get("subscribe_time")
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int) and 0 < seconds < 2**33 else None


FOLLOWERS = Stream(
    name="followers",
    key=("openid",),
    occurred_at=_subscribed_at,
    slices=follower_slices,
    personal={"nickname": "nick", "headimgurl": "portrait"},
    free_text=("remark",),
    overlap=timedelta(0),
    present=("subscribe", "1"),
)


# -------------------------------------------------------------------------------------------------------------- tags
def tag_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """How many followers carry each tag now, as figures of the day that `plan.until` ends: one record per tag and day."""

    def pages() -> Iterator[list[Record]]:
        answer = client.call("GET", TAGS)
        found = answer.get("tags")
        if not isinstance(found, list) or not all(isinstance(tag, dict) for tag in found):
            raise BadPayload(NAME, TAGS, "the answer has no list of tags")
        day = (plan.until - timedelta(microseconds=1)).astimezone(ZONE).date().isoformat()
        yield [{"stat_date": day, **tag} for tag in found]

    start = min(plan.cursors.get("", plan.until - plan.history), plan.until - timedelta(seconds=1))
    yield Slice("snapshot", Window(start, plan.until), pages, {"": plan.until})


TAG_COUNTS = Stream(
    name="tags",
    key=("stat_date", "id"),
    occurred_at=lambda record: None,
    slices=tag_slices,
    personal={},
    overlap=timedelta(0),
    priority=3,
    required=("id", "name", "count"),
)


# ------------------------------------------------------------------------------------------------------------ events
def event_slices(client: Client, plan: Plan) -> Iterator[Slice]:
    """What WeChat pushed to our receiver, in the shape in which our own pages keep the same pushes."""
    for piece in pushed(plan):
        yield Slice(piece.part, piece.window, partial(_events_of, piece.pages), piece.cursors)


def event_backfill(client: Client, plan: Plan, window: Window) -> Iterator[Slice]:
    """The pushes of a past range once more."""
    for piece in dates.windows(window.start, window.end, plan.window):
        yield Slice("pushed", piece, partial(_events_of, partial(plan.pushes, piece)))


def _events_of(pages: Callable[[], Iterator[list[Record]]]) -> Iterator[list[Record]]:
    for page in pages():
        yield [
            {
                "event_id": push["push_key"],
                "kind": "wechat.event",
                "received_at": push["received_at"],
                "data": push["body"],
            }
            for push in page
        ]


def _received_at(record: Record) -> datetime:
    return datetime.fromisoformat(record["received_at"])


EVENTS = Stream(
    name="events",
    key=("event_id",),
    occurred_at=_received_at,
    slices=event_slices,
    personal={},
    free_text=("data.xml", "data.json", "data.fields.Content", "data.fields.Recognition"),
    overlap=timedelta(minutes=10),
    window=timedelta(days=90),
    backfill=event_backfill,
)


# ---------------------------------------------------------------------------------------------------------- datacube
def _days(path: str, client: Client, window: Window) -> Iterator[list[Record]]:
    """The rows of the days of a window, which the caller keeps within the interface's span."""
    first, last = (
        instant.astimezone(ZONE).date() for instant in (window.start, window.end - timedelta(microseconds=1))
    )
    body = {"begin_date": first.isoformat(), "end_date": last.isoformat()}
    found = client.call("POST", path, body=body, page=f"of {first}").get("list")
    if not isinstance(found, list):
        raise BadPayload(NAME, path, f"{first} to {last}: the answer has no list")
    yield found


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, tzinfo=ZONE)


def _figures(
    path: str, span: int, overlap: timedelta, ready_hour: int
) -> tuple[Callable[[Client, Plan], Iterator[Slice]], Callable[[Client, Plan, Window], Iterator[Slice]]]:
    """Slices and backfill of one interface: whole days of China, at most `span` of them in a call, none that is not final.

    The mark that says how far the figures are final is its own ("final"); the stream's main mark says up to when we asked.
    """

    def pieces(client: Client, first: date, end: date) -> Iterator[Slice]:
        for window in dates.windows(_midnight(first), _midnight(end), timedelta(days=span)):
            yield Slice("days", window, partial(_days, path, client, window))

    def final_end(plan: Plan) -> date:
        """The first day that is not final yet, at most the day in which `plan.until` lies."""
        now = dates.now().astimezone(ZONE)
        first_open = now.date() if now.hour >= ready_hour else now.date() - timedelta(days=1)
        return min(first_open, plan.until.astimezone(ZONE).date())

    def slices(client: Client, plan: Plan) -> Iterator[Slice]:
        end = final_end(plan)
        yesterday = dates.now().astimezone(ZONE).date() - timedelta(days=1)
        if end == yesterday and plan.until >= _midnight(yesterday + timedelta(days=1)):
            plan.say(f"{yesterday} is not final before {ready_hour:02}:00 and is left for the next run")
        for part, window in plan.reread:
            yield Slice(part, window, partial(_days, path, client, window))
        start = plan.cursors["final"] - plan.overlap if "final" in plan.cursors else plan.until - plan.history
        first = max(min(start.astimezone(ZONE).date(), end - timedelta(days=1)), DATACUBE_FROM)
        for piece in pieces(client, first, end):
            cursors = {"final": piece.window.end} | ({"": plan.until} if piece.window.end == _midnight(end) else {})
            yield Slice(piece.part, piece.window, piece.pages, cursors)

    def backfill(client: Client, plan: Plan, window: Window) -> Iterator[Slice]:
        last = (window.end - timedelta(microseconds=1)).astimezone(ZONE).date()
        yield from pieces(
            client,
            max(window.start.astimezone(ZONE).date(), DATACUBE_FROM),
            min(last + timedelta(days=1), final_end(plan)),
        )

    return slices, backfill


def _on_day(record: Record) -> datetime | None:
    try:
        return _midnight(date.fromisoformat(str(record.get("ref_date"))[:10]))
    except ValueError:
        return None


# stream -> interface, days a call may span, what names a row
FIGURES: Mapping[str, tuple[str, int, tuple[str, ...]]] = {
    "user_summary": ("getusersummary", 7, ("ref_date", "user_source")),
    "user_cumulate": ("getusercumulate", 7, ("ref_date",)),
    "article_summary": ("getarticlesummary", 1, ("ref_date", "msgid")),
    "article_total": ("getarticletotal", 1, ("ref_date", "msgid")),
    "user_read": ("getuserread", 3, ("ref_date", "user_source")),
    "user_share": ("getusershare", 7, ("ref_date", "share_scene")),
    "upstream_messages": ("getupstreammsg", 7, ("ref_date", "msg_type")),
    "interface_summary": ("getinterfacesummary", 30, ("ref_date",)),
}


def _figure_stream(name: str, options: Options) -> Stream:
    interface, span, key = FIGURES[name]
    # figures are corrected for some days; those of an article grow for as long as the platform counts
    overlap = timedelta(days=options.article_days + 1 if name == "article_total" else 3)
    slices, backfill = _figures(f"/datacube/{interface}", span, overlap, options.ready_hour)
    return Stream(
        name=name,
        key=key,
        occurred_at=_on_day,
        slices=slices,
        personal={},
        overlap=overlap,
        window=timedelta(days=span),
        priority=3,
        required=key,
        backfill=backfill,
    )


def streams(options: Options) -> Mapping[str, Stream]:
    """The streams of an official account."""
    figures = {name: _figure_stream(name, options) for name in FIGURES}
    return {stream.name: stream for stream in (FOLLOWERS, TAG_COUNTS, EVENTS)} | figures


receive = wechat_push.receive


# ------------------------------------------------------------------------------------------------------------- check
def check(client: Client, names: Sequence[str]) -> Check:
    """How many people follow the account, whether each stream's interface may be called, and how the clocks agree."""
    answer = client.call("GET", LIST, query={"next_openid": ""})
    account = f"account {client.appid} with {answer.get('total')} followers"
    day = dates.now().astimezone(ZONE).date() - timedelta(days=2)
    body = {"begin_date": day.isoformat(), "end_date": day.isoformat()}
    calls: dict[str, Callable[[], object]] = {"tags": partial(client.call, "GET", TAGS)}
    calls |= {name: partial(client.call, "POST", f"/datacube/{FIGURES[name][0]}", body=body) for name in FIGURES}
    problems = probe({name: call for name, call in calls.items() if name in names})
    return Check(account, client.transport.clock_offset, problems)
