"""A WeChat official account (公众号): its followers, as a full snapshot each time.

Wire facts: docs/connections/wechat_official.md. The platform has no "changed since" for followers: each run lists all
openids, then asks for the profiles, and asks also for those whom we know as followers but who are not listed any more: the
platform then answers `subscribe: 0`, and that answer is the record of their leaving.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from nightmarket.dates import Window
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
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
    clock_words,
    parse_json,
)
from nightmarket.settings import ConfigError, Credentials

NAME = "wechat_official"
LIST = "/cgi-bin/user/get"  # 10,000 openids a call; fixed by the platform
PROFILES = "/cgi-bin/user/info/batchget"
PROFILE_PAGE = 100  # profiles a call
MAX_WALKS = 3
MAX_LIST_CALLS = 500  # the platform's daily quota of user/get
REFRESH_AHEAD_SECONDS = 300  # the platform itself rotates a token in its last five minutes

TOKEN_CODES = {40001, 40014, 42001}  # not the newest token, invalid, expired: fetch it once more, then give up
AUTH_ACTIONS = {
    40001: "the app secret or the access token is refused; check the password of the connection",
    40002: "the request for a token is malformed",
    40013: "the appid is not known to WeChat; check the login of the connection",
    40014: "the access token is refused",
    40125: "the app secret is wrong; check the password of the connection",
    40164: "this machine's address is not on the account's IP white list; add it in the WeChat console",
    40243: "the app secret is frozen; unfreeze it in the WeChat console",
    41001: "the access token is missing",
    41004: "the app secret is missing",
    42001: "the access token has expired",
    48001: "the account may not use this interface; it needs to be a certified account",
    48004: "the interface is banned for this account; see the WeChat console",
    50001: "the account may not use this interface",
}
MINUTE_LIMIT_SECONDS = 20.0  # 45011: the next minute is nearer than this three times out of four
DAY_LIMIT_SECONDS = 86_400.0


@dataclass
class Client:
    """Calls with an access token that is fetched ahead of its expiry, under a lock shared by the threads of this process.

    Other processes get the same token from the same `stable_token` call, so nothing has to be stored.
    """

    base_url: str
    appid: str
    secret: str = field(repr=False)
    transport: Transport
    _token: str = field(default="", repr=False)
    _good_until: float = 0  # time.monotonic() seconds
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def call(
        self, verb: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None, page: object = None
    ) -> Record:
        """The answer of one interface. A refused token is fetched anew once. Raises the typed errors of platforms.base."""
        for is_last in (False, True):
            token = self._access_token()
            try:
                return self.transport.retry(lambda t=token: self._call_once(verb, path, t, query, body, page))  # type: ignore[misc]
            except AuthError as error:
                if is_last or error.code not in TOKEN_CODES:
                    raise
                self._forget(token)
        raise AssertionError("the second round returns or raises")

    def _call_once(
        self, verb: str, path: str, token: str, query: Mapping[str, str] | None, body: Any, page: object
    ) -> Record:
        parameters = {"access_token": token, **(query or {})}
        status, answer = self.transport.fetch(
            verb, self.base_url + path, method=path, params=parameters, **({"json": body} if body is not None else {})
        )
        return read_answer(path, status, answer, page)

    def _access_token(self) -> str:
        with self._lock:
            if not self._token or time.monotonic() > self._good_until:
                answer = self.transport.retry(self._fetch_token)
                self._token = str(answer["access_token"])
                life = float(answer.get("expires_in") or 0)
                self._good_until = time.monotonic() + max(life - REFRESH_AHEAD_SECONDS, min(life, 60))
            return self._token

    def _fetch_token(self) -> Record:
        path = "/cgi-bin/stable_token"
        body = {"grant_type": "client_credential", "appid": self.appid, "secret": self.secret, "force_refresh": False}
        status, answer = self.transport.fetch("POST", self.base_url + path, method=path, json=body)
        content = read_answer(path, status, answer)
        if not content.get("access_token"):
            raise BadPayload(NAME, path, "the answer has no access_token")
        return content

    def _forget(self, token: str) -> None:
        with self._lock:
            if self._token == token:
                self._token = ""


def read_answer(path: str, status: int, body: bytes, page: object = None) -> Record:
    """The JSON object of an answer, or the typed error of its errcode. No errcode means success."""
    if status == 403:
        raise AuthError(NAME, path, AUTH_ACTIONS[40164])
    if status != 200:
        raise Refused(NAME, path, f"HTTP {status}; check the address (host of the connection)")
    content = parse_json(NAME, path, body, page)
    if not isinstance(content, dict):
        raise BadPayload(NAME, path, "the answer is not a JSON object")
    if code := content.get("errcode"):
        raise to_error(path, int(code))
    return content


def to_error(path: str, code: int) -> PlatformError:
    """The typed error of a WeChat errcode. Its errmsg is left out: it may repeat parts of the request."""
    said = f"errcode {code}"
    if code in AUTH_ACTIONS:
        return AuthError(NAME, path, f"{AUTH_ACTIONS[code]} ({said})", code=code)
    if code == -1:
        return PlatformDown(NAME, path, f"the system is busy ({said})", code=code)
    if code == 45009:
        problem = f"the daily quota of this interface is used up ({said}); it opens again at midnight, China time"
        return RateLimited(NAME, path, problem, retry_after=DAY_LIMIT_SECONDS, code=code)
    if code == 45011:
        problem = f"too many calls this minute ({said})"
        return RateLimited(NAME, path, problem, retry_after=MINUTE_LIMIT_SECONDS, code=code)
    if code in (40003, 46004):
        return NotFound(NAME, path, f"the account does not know this openid ({said})", code=code)
    return Refused(NAME, path, f"the request is refused ({said})", code=code)


def connect(credentials: Credentials, transport: Transport, page_sizes: Mapping[str, int] | None = None) -> Client:
    """A client of the account. Raises ConfigError when a part of the connection is missing. Page sizes are WeChat's own."""
    for name, value in {
        "host (https://api.weixin.qq.com)": credentials.host,
        "login (appid)": credentials.login,
        "password (app secret)": credentials.password,
    }.items():
        if not value:
            raise ConfigError(f"connection {credentials.conn_id!r}: {name} is missing.")
    return Client(credentials.host.rstrip("/"), credentials.login, credentials.password, transport)


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


def check(client: Client) -> str:
    """One cheap call: how many people follow the account, and how the clocks agree."""
    answer = client.call("GET", LIST, query={"next_openid": ""})
    total = answer.get("total")
    return f"works for account {client.appid} with {total} followers; {clock_words(client.transport.clock_offset)}"
