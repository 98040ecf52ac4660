"""What every WeChat account has: appid, secret, access tokens of the classic and the stable kind, and errors with an errcode."""

from dataclasses import dataclass
from typing import Any

import orjson

from .clock import HOUR, MINUTE, day_of
from .faults import Fault
from .state import World
from .wire import Request

Body = dict[str, Any]
TOKEN_LIFE = 2 * HOUR
ROTATION = 5 * MINUTE  # a token is replaced this long before its end; the old one works this long after
FORCED_PER_DAY, FORCED_APART = 20, 30
TOKEN_PATHS = ("cgi-bin/token", "cgi-bin/stable_token")


class WechatError(Exception):
    def __init__(self, errcode: int, errmsg: str, **more: Any) -> None:
        super().__init__(errmsg)
        self.body = {"errcode": errcode, "errmsg": errmsg, **more}


@dataclass(slots=True)
class Token:
    ends: float
    replaced: bool = False  # a newer one took its place; otherwise it ends by time


class Tokens:
    """The tokens of one endpoint (classic and stable are kept apart by the platform)."""

    def __init__(self) -> None:
        self.newest = ""
        self.known: dict[str, Token] = {}

    def issue(self, value: str, now: float) -> None:
        """A new token; the one before it works a little longer."""
        if self.newest:
            before = self.known[self.newest]
            before.ends, before.replaced = min(before.ends, now + ROTATION), True
        self.newest, self.known[value] = value, Token(now + TOKEN_LIFE)

    def left(self, now: float) -> float:
        """Seconds the newest token still has."""
        return self.known[self.newest].ends - now if self.newest else 0.0

    def end(self, now: float) -> None:
        """All tokens run out now."""
        for token in self.known.values():
            token.ends = min(token.ends, now)


class WechatAccount:
    """An account behind api.weixin.qq.com. All accounts ask the same address for their tokens; the appid says whose they are."""

    platform = ""

    def __init__(self, world: World, appid: str, secret: str) -> None:
        self.world, self.appid, self.secret = world, appid, secret
        self.serial = 200_000_000
        world.wechat_accounts[appid] = self
        self.reset_tokens()

    def reset_tokens(self) -> None:
        self.tokens = {"token": Tokens(), "stable_token": Tokens()}
        self.forced: list[float] = []

    def token_of_any(self, request: Request, path: str, now: float) -> Body:
        """The answer of a token endpoint, from the account whose appid the request names."""
        wanted = self._body(request) if path.endswith("stable_token") else dict(request.query)
        account: WechatAccount = self.world.wechat_accounts.get(str(wanted.get("appid")), self)
        return account.token(request, path, now, wanted)

    def token(self, request: Request, path: str, now: float, wanted: Body) -> Body:
        kind = path.rsplit("/", 1)[1]
        if kind == "stable_token" and request.method != "POST":
            raise WechatError(43002, "require POST method")
        if wanted.get("grant_type") != "client_credential":
            raise WechatError(40002, "invalid grant_type")
        if not wanted.get("appid"):
            raise WechatError(41002, "appid missing")
        if wanted["appid"] != self.appid:
            raise WechatError(40013, "invalid appid")
        if not wanted.get("secret"):
            raise WechatError(41004, "appsecret missing")
        if wanted["secret"] != self.secret:
            raise WechatError(40125, "invalid appsecret")
        tokens = self.tokens[kind]
        if wanted.get("force_refresh"):
            self.forced = [at for at in self.forced if day_of(at) == day_of(now)]
            if len(self.forced) >= FORCED_PER_DAY or (self.forced and now - self.forced[-1] < FORCED_APART):
                raise WechatError(45009, "reach max api daily quota limit")
            self.forced.append(now)
        if wanted.get("force_refresh") or kind == "token" or tokens.left(now) <= ROTATION:
            tokens.issue(self._token_value(kind, now), now)
        return {"access_token": tokens.newest, "expires_in": int(tokens.left(now))}

    def _token_value(self, kind: str, now: float) -> str:
        self.serial += 1
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
        parts = (self.world.chance.text(alphabet, 60, kind, self.appid, self.serial, now, part) for part in range(2))
        return "99_" + "".join(parts)

    def _check_token(self, request: Request, now: float, fault: Fault | None) -> None:
        value = request.query.get("access_token", "")
        if not value:
            raise WechatError(41001, "access_token missing")
        if fault and fault.kind in ("expired_session", "expired_token"):
            for tokens in self.tokens.values():
                tokens.end(now)
        if fault and fault.kind == "revoked_token":
            raise WechatError(40001, "invalid credential, access_token is invalid or not latest")
        known = next((tokens.known[value] for tokens in self.tokens.values() if value in tokens.known), None)
        if known and now < known.ends:
            return
        if known and not known.replaced:
            raise WechatError(42001, "access_token expired")
        if known or (value.startswith("99_") and len(value) > 100):
            raise WechatError(40001, "invalid credential, access_token is invalid or not latest")
        raise WechatError(40014, "invalid access_token")

    @staticmethod
    def _body(request: Request) -> Body:
        if request.method != "POST":
            return {}
        try:
            body = request.json()
        except orjson.JSONDecodeError:
            raise WechatError(47001, "data format error") from None
        if not isinstance(body, dict):
            raise WechatError(47001, "data format error")
        return body
