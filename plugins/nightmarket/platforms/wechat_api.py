"""What every account behind api.weixin.qq.com has in common: the access token, its renewal, and errors as errcodes.

Wire facts: docs/connections/wechat_official.md. Tokens come from `stable_token`: it answers the same token to every caller while
that token lasts and says how many seconds are left, so `expires_in` shrinks from call to call. Each appid has its own token; the
store's and the official account's are never exchanged, because `transport.tokens` belongs to one account.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from nightmarket import dates
from nightmarket.platforms.base import (
    AuthError,
    BadPayload,
    NotFound,
    PlatformDown,
    PlatformError,
    RateLimited,
    Record,
    Refused,
    Token,
    Transport,
    parse_json,
)
from nightmarket.settings import Credentials

HOST = "https://api.weixin.qq.com"
TOKEN_PATH = "/cgi-bin/stable_token"  # noqa: S105 - an address
TOKEN_NAME = "access_token"  # noqa: S105 - a name

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
    48001: "the account may not use this interface; in the WeChat console its permission is missing, or the account is not certified",
    48004: "the interface is banned for this account; see the WeChat console",
    50001: "the account may not use this interface",
}
REFUSALS = {
    31042: "too many orders in one window",
    40097: "a parameter is refused",
    43001: "the interface wants GET",
    43002: "the interface wants POST",
    47001: "the body is not the JSON the interface wants",
    606006: "next_key belongs to a list with other parameters",
}
MINUTE_LIMIT_SECONDS = 20.0  # 45011: the next minute is nearer than this three times out of four
DAY_LIMIT_SECONDS = 86_400.0


@dataclass
class Client:
    """Calls of one account with its access token; `platform` names the module in error sentences."""

    platform: str
    base_url: str
    appid: str
    secret: str = field(repr=False)
    transport: Transport

    def call(
        self, verb: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None, page: object = None
    ) -> Record:
        """The answer of one interface. A refused token is fetched anew once. Raises the typed errors of platforms.base."""
        refused = ""
        for is_last in (False, True):
            with self.transport.lock:
                token = self.transport.tokens.get(TOKEN_NAME, self._obtain, bad=refused).value
            try:
                return self.transport.retry(lambda t=token: self._call_once(verb, path, t, query, body, page))  # type: ignore[misc]
            except AuthError as error:
                if is_last or error.code not in TOKEN_CODES:
                    raise
                refused = token
        raise AssertionError("the second round returns or raises")

    def _call_once(
        self, verb: str, path: str, token: str, query: Mapping[str, str] | None, body: Any, page: object
    ) -> Record:
        parameters = {"access_token": token, **(query or {})}
        status, answer = self.transport.fetch(
            verb, self.base_url + path, method=path, params=parameters, **({"json": body} if body is not None else {})
        )
        return read_answer(self.platform, path, status, answer, page)

    def _obtain(self, _: Token | None) -> Token:
        """What `stable_token` answers now; it may be the token we have, with less time left."""
        answer = self.transport.retry(self._fetch_token)
        try:
            left = timedelta(seconds=float(answer.get("expires_in") or 0))
        except (TypeError, ValueError):
            raise BadPayload(self.platform, TOKEN_PATH, "expires_in is not a number of seconds") from None
        return Token(str(answer["access_token"]), dates.now() + left)

    def _fetch_token(self) -> Record:
        body = {"grant_type": "client_credential", "appid": self.appid, "secret": self.secret, "force_refresh": False}
        status, answer = self.transport.fetch("POST", self.base_url + TOKEN_PATH, method=TOKEN_PATH, json=body)
        content = read_answer(self.platform, TOKEN_PATH, status, answer)
        if not content.get("access_token"):
            raise BadPayload(self.platform, TOKEN_PATH, "the answer has no access_token")
        return content


def account(platform: str, credentials: Credentials, transport: Transport) -> Client:
    """A client of the account. Raises ConfigError when a part of the connection is missing."""
    credentials.require(
        {
            "host": HOST,
            "login": "appid",
            "password": "app secret",
        }
    )
    return Client(platform, credentials.host.rstrip("/"), credentials.login, credentials.password, transport)


def read_answer(platform: str, path: str, status: int, body: bytes, page: object = None) -> Record:
    """The JSON object of an answer, or the typed error of its errcode. No errcode means success."""
    if status == 403:  # without a body that could tell more
        raise AuthError(platform, path, AUTH_ACTIONS[40164])
    if status != 200:
        raise Refused(platform, path, f"HTTP {status}; check the address (host of the connection)")
    content = parse_json(platform, path, body, page)
    if not isinstance(content, dict):
        raise BadPayload(platform, path, "the answer is not a JSON object")
    code = content.get("errcode")
    if not code:
        return content
    try:
        raise to_error(platform, path, int(code))
    except (TypeError, ValueError):
        raise BadPayload(platform, path, "errcode is not a number") from None


def to_error(platform: str, path: str, code: int) -> PlatformError:
    """The typed error of a WeChat errcode. Its errmsg is left out: it may repeat parts of the request."""
    said = f"errcode {code}"
    if code in AUTH_ACTIONS:
        return AuthError(platform, path, f"{AUTH_ACTIONS[code]} ({said})", code=code)
    if code == -1:
        return PlatformDown(platform, path, f"the system is busy ({said})", code=code)
    if code == 45009:
        problem = f"the daily quota of this interface is used up ({said}); it opens again at midnight, China time"
        return RateLimited(platform, path, problem, retry_after=DAY_LIMIT_SECONDS, of_account=False, code=code)
    if code == 45011:
        problem = f"too many calls this minute ({said})"
        return RateLimited(platform, path, problem, retry_after=MINUTE_LIMIT_SECONDS, code=code)
    if code in (40003, 46004):
        return NotFound(platform, path, f"the account does not know this openid ({said})", code=code)
    return Refused(platform, path, f"{REFUSALS.get(code, 'the request is refused')} ({said})", code=code)
