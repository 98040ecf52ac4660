"""App push over JPush v3 (极光推送): one push per message, the receiver is an alias of the own app.

`cid` makes a call repeatable: JPush answers a repeated cid with the first result and does not push again. It hands the cids out
itself and remembers them for a day, so the cid of a message is kept in push.platform_keys before the first call, and every later call
of that message carries the same one. A row there means that a call may have gone out: after a call that certainly left nothing behind
it is deleted again. Once the cid of a doubted call is a day old it protects no longer, and the doubt stays.
"""

import asyncio
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, ClassVar

import aiohttp
import orjson
import psycopg

from nightmarket import dates
from nightmarket.channels.base import Answer, Call, Family, HttpChannel, Outcome, post
from nightmarket.settings import ConfigError, Credentials
from nightmarket.warehouse import Row, connect

API = "https://api.jpush.cn"  # when the connection names no host
REPORT_API = "https://report.jpush.cn"
CID_LIFE = timedelta(hours=23)  # JPush says a day; our clock and theirs need not agree to the minute
CID_BATCH = 500  # taken at a time; JPush gives at most 1,000
SPARE_LIFE = timedelta(hours=1)  # a cid that was not used by then is not used any more
MAX_LIFE = 10 * 86_400  # seconds a push may wait for its phone
KEPT = timedelta(days=40)  # no message lives longer
REPORT_IDS = 100  # of one question about receipts
ALIAS = re.compile(r"[\w@!#$&*+=.|-]{1,40}")
PERSON_PAUSE_SECONDS = 6 * 3600.0
NO_DEVICE_DAYS = 7  # an alias without a device may have one again when the app is installed anew
NEEDS_A_PERSON = {
    1001: "JPush wants another HTTP method",
    1002: "a parameter is missing",
    1003: "a parameter is invalid",
    1004: "AppKey or Master Secret is wrong",
    1008: "the AppKey is not the one of this Master Secret",
    1009: "JPush could not read the push object",
    1012: "JPush does not know this address",
    1020: "JPush takes HTTPS only",
    2003: "this machine's address is not on the white list",
    2004: "the application is blocked",
    2005: "the application may not use this interface",
    2006: "the application may not use this interface",
    2007: "the application may not use this interface",
}
# How many devices got a push, by the way it went (received/detail); sent to a maker's service is not yet received.
RECEIVED = (
    "jpush_received",
    "android_pns_received",
    "ios_apns_received",
    "ios_msg_received",
    "quickapp_jpush_received",
    "hmos_hmpns_received",
)


@dataclass(frozen=True)
class Cid:
    """The platform's key of one message. `is_new`: no call with it was made before."""

    value: str
    obtained_at: datetime
    is_new: bool


class JPush(HttpChannel):
    """Sends with the AppKey (login) and Master Secret (password) of the connection.

    Of the connection's extra: `platforms` (default android and ios), `time_to_live` (seconds), `apns_production`, and `options`, an
    object that is sent as it is (the makers' class of a message, for example). JPush's reports are on another host: `report_host`.
    """

    name: ClassVar[str] = "jpush"
    family: ClassVar[Family] = "push"
    is_repeatable: ClassVar[bool] = True
    keeps_keys: ClassVar[bool] = True
    reports_delivery: ClassVar[bool] = True

    def __init__(self, credentials: Credentials, *, connections: int, timeout_seconds: float) -> None:
        super().__init__(credentials, connections=connections, timeout_seconds=timeout_seconds)
        credentials.require({"login": "AppKey", "password": "Master Secret"})
        extra = credentials.extra
        self._base = (credentials.host or API).rstrip("/")
        self._report_base = str(extra.get("report_host") or REPORT_API).rstrip("/")
        self._platforms = str(extra.get("platforms") or "android,ios").replace(" ", "").split(",")
        self._options = {
            "time_to_live": _seconds(credentials),
            "apns_production": str(extra.get("apns_production", True)).lower() != "false",
            **_options(credentials),
        }
        self._headers = {
            "Authorization": aiohttp.BasicAuth(credentials.login, credentials.password).encode(),
            "Content-Type": "application/json",
        }
        self._keys = _Keys(credentials.conn_id)
        self._spare: list[tuple[str, datetime]] = []
        self._waiting: dict[str, asyncio.Future[Cid | Outcome]] = {}
        self._filling: asyncio.Task[None] | None = None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._filling:
            await asyncio.wait([self._filling])
        await asyncio.to_thread(self._keys.close)
        await super().__aexit__(kind, error, trace)

    async def send(self, call: Call) -> Outcome:
        if not ALIAS.fullmatch(call.addresses[0]):
            return Outcome("refused", code="alias", message="not an alias JPush can know", suppress="invalid alias")
        cid = await self._cid(call.key)
        if isinstance(cid, Outcome):
            return cid
        if not cid.is_new and dates.now() - cid.obtained_at > CID_LIFE:
            return Outcome("unknown", code="cid_expired", is_final=True,
                           message="an earlier call is in doubt, and JPush no longer recognises its cid")  # fmt: skip
        answer = await post(self._session, f"{self._base}/v3/push", self.body(call, cid.value), self._headers)
        outcome = _judge(answer)
        if cid.is_new and outcome.kind in (
            "retry",
            "pause",
        ):  # nothing was left behind: the next call may be a first one
            await asyncio.to_thread(self._keys.forget, call.key)
        return outcome

    def body(self, call: Call, cid: str) -> bytes:
        """The push object; the same call and cid give the same bytes."""
        content = call.content
        extras = {"link": call.link, "unsubscribe_link": call.unsubscribe_link}
        extras = {name: value for name, value in extras.items() if value}
        title = {"title": content.subject} if content.subject else {}
        push = {
            "cid": cid,
            "platform": self._platforms,
            "audience": {"alias": [call.addresses[0]]},
            "notification": {
                "alert": content.text,
                "android": {"alert": content.text, **title, "extras": extras},
                "ios": {"alert": {**title, "body": content.text}, "extras": extras},
            },
            "options": self._options,
        }
        return orjson.dumps(push)

    async def received(self, msg_ids: Sequence[str]) -> set[str] | Outcome:
        """Those of at most REPORT_IDS pushes that reached a device; an Outcome when JPush did not answer."""
        url = f"{self._report_base}/v3/received/detail?msg_ids={','.join(msg_ids)}"
        rows = await self._get(url)
        if isinstance(rows, Outcome):
            return rows
        rows = rows if isinstance(rows, list) else []
        return {str(row["msg_id"]) for row in rows if row.get("msg_id") and any(row.get(name) for name in RECEIVED)}

    # -- cids
    async def _cid(self, message_key: str) -> Cid | Outcome:
        """The cid of a message, kept before it is used. Messages that ask at the same time share a look into the database."""
        if message_key not in self._waiting:
            self._waiting[message_key] = asyncio.get_running_loop().create_future()
        future = self._waiting[message_key]
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill())
        return await future

    async def _fill(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting, {}
            try:
                found: Mapping[str, Cid | Outcome] = await self._find(list(asked))
            except Exception as error:  # whoever waits must get an answer, and nothing was called yet
                failed = Outcome(
                    "retry", code="warehouse", message=f"the cid cannot be kept ({type(error).__name__})", retry_after=5
                )
                found = dict.fromkeys(asked, failed)
            for key, future in asked.items():
                if not future.done():
                    future.set_result(found[key])

    async def _find(self, keys: list[str]) -> dict[str, Cid | Outcome]:
        found: dict[str, Cid | Outcome] = {**await asyncio.to_thread(self._keys.find, keys)}
        missing = [key for key in keys if key not in found]
        if missing:
            problem = await self._stock_up(len(missing))
            if problem:
                return found | dict.fromkeys(missing, problem)
            taken = {key: self._spare.pop() for key in missing}
            found |= await asyncio.to_thread(self._keys.keep, taken)
        return found

    async def _stock_up(self, wanted: int) -> Outcome | None:
        """Have at least `wanted` fresh cids; an Outcome when JPush gives none: then no message left the house."""
        now = dates.now()
        self._spare = [(cid, at) for cid, at in self._spare if now - at < SPARE_LIFE]
        while len(self._spare) < wanted:
            answer = await self._get(f"{self._base}/v3/push/cid?count={CID_BATCH}&type=push")
            if isinstance(answer, Outcome):
                return answer
            cids = answer.get("cidlist") if isinstance(answer, dict) else None
            if not isinstance(cids, list) or not cids:
                return Outcome("retry", code="cid", message="JPush gave no cid", retry_after=30)
            self._spare += [(str(cid), now) for cid in cids]
        return None

    async def _get(self, url: str) -> Any:
        """The JSON of a GET, or an Outcome: retry or pause, because asking leaves nothing behind."""
        try:
            async with self._session.get(url, headers=self._headers) as response:
                raw = await response.read()
                if response.status == 200:
                    return orjson.loads(raw)
                answer = Answer(response.status, _object(raw), raw, response.headers)
        except (TimeoutError, aiohttp.ClientError, OSError, orjson.JSONDecodeError) as error:
            return Outcome("retry", code="network", message=type(error).__name__, retry_after=10)
        outcome = _judge(answer)
        return outcome if outcome.kind == "pause" else Outcome(
            "retry", "", answer.status, outcome.code, outcome.message, max(outcome.retry_after, 10.0)
        )  # fmt: skip


class _Keys:
    """push.platform_keys of one account, over a connection of its own that is used by one thread at a time."""

    def __init__(self, account: str) -> None:
        self.account = account
        self._stack = ExitStack()
        self._connection: psycopg.Connection[Row] | None = None
        self._lock = threading.Lock()

    def find(self, keys: list[str]) -> dict[str, Cid]:
        """What is kept for these messages: a call may have gone out for each of them."""
        return {
            row["message_key"]: Cid(row["platform_key"], row["obtained_at"], is_new=False)
            for row in self._execute(
                "SELECT message_key, platform_key, obtained_at FROM push.platform_keys"
                " WHERE account = %s AND message_key = ANY(%s)",
                (self.account, keys),
            )
        }

    def keep(self, taken: Mapping[str, tuple[str, datetime]]) -> dict[str, Cid]:
        """Keep a cid for each message, in a transaction of its own. Another worker may have been first: then its cid counts."""
        rows = self._execute(
            "INSERT INTO push.platform_keys (account, message_key, platform_key, obtained_at)"
            " SELECT %s, u.* FROM unnest(%s::text[], %s::text[], %s::timestamptz[]) AS u"
            " ON CONFLICT (account, message_key) DO NOTHING RETURNING message_key",
            (self.account, list(taken), [cid for cid, _ in taken.values()], [at for _, at in taken.values()]),
        )
        mine = {row["message_key"] for row in rows}
        kept = {key: Cid(*taken[key], is_new=True) for key in mine}
        others = [key for key in taken if key not in mine]
        return kept | (self.find(others) if others else {})

    def forget(self, key: str) -> None:
        """The call certainly left nothing behind."""
        self._execute(
            "DELETE FROM push.platform_keys WHERE account = %s AND message_key = %s RETURNING message_key",
            (self.account, key),
        )

    def close(self) -> None:
        with self._lock:
            self._connection = None
            self._stack.close()

    def _execute(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._stack.enter_context(
                        connect(autocommit=True, application_name="nightmarket-jpush")
                    )
                    self._connection.execute(
                        "DELETE FROM push.platform_keys WHERE account = %s AND obtained_at < %s",
                        (self.account, dates.now() - KEPT),
                    )
                return self._connection.execute(statement, parameters).fetchall()  # type: ignore[call-overload,no-any-return]
            except psycopg.OperationalError:
                self._connection = None
                raise


def _judge(answer: Answer | Outcome) -> Outcome:
    """What an answer to a push means. Answers of 5xx are in doubt already, and are repeated with the same cid."""
    if isinstance(answer, Outcome):
        return answer
    error = answer.data.get("error")
    if answer.status == 200 and not error:
        msg_id = str(answer.data.get("msg_id") or "")
        if not msg_id:
            return Outcome("unknown", "", 200, "msg_id", "JPush answered without a msg_id")
        return Outcome("accepted", msg_id, 200, "0")
    error = error if isinstance(error, dict) else {}
    code = int(error["code"]) if str(error.get("code")).isdigit() else 0
    text = NEEDS_A_PERSON.get(code) or str(error.get("message") or f"HTTP {answer.status}")[:200]
    if code in (1000, 1030):
        return Outcome("unknown", "", answer.status, str(code), "server error")
    if code == 2002:
        return Outcome("retry", "", answer.status, "2002", "too many pushes this minute", 60)
    if code == 1011:
        return Outcome("refused", "", answer.status, "1011", "no device has this alias", suppress="no device",
                       suppress_days=NO_DEVICE_DAYS)  # fmt: skip
    if code in NEEDS_A_PERSON or answer.status in (401, 403):
        return Outcome("pause", "", answer.status, str(code or answer.status), text, PERSON_PAUSE_SECONDS)
    return Outcome("refused", "", answer.status, str(code or answer.status), text)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    return data if isinstance(data, dict) else {}


def _seconds(credentials: Credentials) -> int:
    value = str(credentials.extra.get("time_to_live") or 86_400)
    if not value.isdigit() or int(value) > MAX_LIFE:
        raise ConfigError(
            f"connection {credentials.conn_id!r}: extra.time_to_live must be seconds, at most {MAX_LIFE}."
        )
    return int(value)


def _options(credentials: Credentials) -> dict[str, Any]:
    options = credentials.extra.get("options") or {}
    if isinstance(options, str):
        try:
            options = orjson.loads(options)
        except orjson.JSONDecodeError:
            options = None
    if not isinstance(options, dict):
        raise ConfigError(
            f'connection {credentials.conn_id!r}: extra.options must be a JSON object, e.g. {{"classification": 1}}.'
        )
    return options
