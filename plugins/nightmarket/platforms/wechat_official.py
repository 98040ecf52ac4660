"""A WeChat official account (公众号): its followers, as a full snapshot each time.

Wire facts: docs/connections/wechat_official.md. The platform has no "changed since" for followers: each run lists all
openids, then asks for the profiles, and asks also for those whom we know as followers but who are not listed any more: the
platform then answers `subscribe: 0`, and that answer is the record of their leaving.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from nightmarket.dates import Window
from nightmarket.platforms import wechat_push
from nightmarket.platforms.base import (
    BadPayload,
    Check,
    NoOptions,
    NotFound,
    Plan,
    PlatformDown,
    Record,
    Refused,
    Slice,
    Stream,
    Transport,
)
from nightmarket.platforms.wechat_api import Client, account
from nightmarket.settings import Credentials

NAME = "wechat_official"
Options = NoOptions
LIST = "/cgi-bin/user/get"  # 10,000 openids a call; fixed by the platform
PROFILES = "/cgi-bin/user/info/batchget"
PROFILE_PAGE = 100  # profiles a call
MAX_WALKS = 3
MAX_LIST_CALLS = 500  # the platform's daily quota of user/get


# ----------------------------------------------------------------------------------------------------------- client
def connect(
    credentials: Credentials, transport: Transport, *, options: NoOptions, page_sizes: Mapping[str, int] | None = None
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
STREAMS: Mapping[str, Stream] = {FOLLOWERS.name: FOLLOWERS}


def streams(options: NoOptions) -> Mapping[str, Stream]:
    """The streams of an official account."""
    return STREAMS


receive = wechat_push.receive


def check(client: Client, names: Sequence[str]) -> Check:
    """One cheap call: how many people follow the account, and how the clocks agree."""
    answer = client.call("GET", LIST, query={"next_openid": ""})
    account = f"account {client.appid} with {answer.get('total')} followers"
    return Check(account, client.transport.clock_offset)
