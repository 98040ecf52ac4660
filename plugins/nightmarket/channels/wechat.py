"""What the channels of a WeChat official account share: the access token, the call, the meaning of error codes."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

import orjson

from nightmarket import dates
from nightmarket.channels.base import Answer, Family, HttpChannel, Outcome, post
from nightmarket.settings import Credentials

API = "https://api.weixin.qq.com"  # when the connection names no host
TOKEN_ERRORS = {40001, 40014, 41001, 42001}
NEEDS_A_PERSON = {
    40013: "invalid appid",
    40125: "invalid appsecret",
    40164: "this machine's address is not on the account's IP whitelist",
    40243: "the appsecret is frozen",
    48001: "the account may not use this interface",
    48004: "the interface is banned for this account",
    40037: "invalid template id",
    47001: "the platform could not read the request",
    47003: "a template parameter is invalid",
}
BAD_RECEIVER: dict[int, tuple[str, int | None]] = {  # reason, and for how many days; None = for good
    40003: ("invalid openid", None),
    43004: ("does not follow the account", 2),  # until the follower list says so, or the person follows again
    43019: ("on the account's black list", None),
    50002: ("limited by the platform", 7),
}
PERSON_PAUSE_SECONDS = 6 * 3600.0


class WeChatChannel(HttpChannel):
    """Base of the channels that call api.weixin.qq.com with an access token."""

    family: ClassVar[Family] = "wechat"

    def __init__(self, credentials: Credentials, *, connections: int, timeout_seconds: float) -> None:
        super().__init__(credentials, connections=connections, timeout_seconds=timeout_seconds)
        self._base = (credentials.host or API).rstrip("/")
        self._token = ""
        self._token_lock = asyncio.Lock()

    async def call(self, path: str, body: Mapping[str, Any]) -> Answer | Outcome:
        """POST `body` with the account's token; one fresh token when the old one is refused, never more.

        Returns an Answer when errcode is absent or 0 or means something only the caller knows (mass repeats), else an
        Outcome. JSON goes out as raw UTF-8: escaped Chinese would be shown literally.
        """
        used = ""
        for _attempt in range(2):
            token = self._token if self._token and self._token != used else await self._access_token(stale=used)
            if isinstance(token, Outcome):
                return token
            used = token
            url = f"{self._base}{path}?access_token={token}"
            answer = await post(self._session, url, orjson.dumps(body), {"Content-Type": "application/json"})
            if isinstance(answer, Outcome) or int(answer.data.get("errcode") or 0) not in TOKEN_ERRORS:
                break
        return answer if isinstance(answer, Outcome) else self._judge(answer)

    async def _access_token(self, stale: str) -> str | Outcome:
        """The account's stable token; asked for again when `stale` is the one just refused.

        Tokens of the stable_token endpoint do not displace each other, so every worker may ask for its own.
        """
        async with self._token_lock:
            if self._token and self._token != stale:
                return self._token
            body = {
                "grant_type": "client_credential",
                "appid": self.credentials.login,
                "secret": self.credentials.password,
                "force_refresh": False,
            }
            answer = await post(
                self._session,
                f"{self._base}/cgi-bin/stable_token",
                orjson.dumps(body),
                {"Content-Type": "application/json"},
            )
            if isinstance(answer, Outcome):  # no message left the house, whatever happened to this request
                return Outcome("retry", answer.platform_message_id, answer.http_status, answer.code,
                               f"no access token: {answer.message}", answer.retry_after or 5)  # fmt: skip
            token = str(answer.data.get("access_token") or "")
            if not token or token == stale:
                code = int(answer.data.get("errcode") or 40001)
                return Outcome("pause", "", answer.status, str(code),
                               f"WeChat gives no usable access token: {NEEDS_A_PERSON.get(code, 'check appid and secret')}",
                               PERSON_PAUSE_SECONDS)  # fmt: skip
            self._token = token
            return token

    def _judge(self, answer: Answer) -> Answer | Outcome:
        code = int(answer.data.get("errcode") or 0)
        text = str(answer.data.get("errmsg") or "")[:200]
        if code == 0 or code in self.own_codes:
            return answer
        if code == -1:
            return Outcome("retry", "", answer.status, "-1", "system busy", 5)
        if code == 45011:
            return Outcome("pause", "", answer.status, str(code), "limit per minute reached", 60)
        if code == 45009:
            tomorrow = dates.day_start(dates.today() + timedelta(days=1))
            return Outcome("pause", "", answer.status, str(code), "daily quota of this interface reached",
                           (tomorrow - dates.now()).total_seconds())  # fmt: skip
        if code in NEEDS_A_PERSON or code in TOKEN_ERRORS:
            return Outcome("pause", "", answer.status, str(code), NEEDS_A_PERSON.get(code, text), PERSON_PAUSE_SECONDS)
        reason, days = BAD_RECEIVER.get(code, ("", None))
        return Outcome("refused", "", answer.status, str(code), reason or text, suppress=reason, suppress_days=days)

    own_codes: ClassVar[frozenset[int]] = frozenset()  # errcodes a channel reads itself
