"""WeCom broadcast to customers (企业微信客户群发): we make the task, an employee presses send, and only then does it go out.

So a call ends in `waiting`, and the outbox asks from time to time what came of each contact. The wire format comes from public
client libraries, not from a confirmed reference: the three interfaces can be given other paths in the connection's extra.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import aiohttp
import orjson

from nightmarket.channels.base import Answer, Call, Family, HttpChannel, Outcome, Question, post
from nightmarket.settings import Credentials

API = "https://qyapi.weixin.qq.com"  # when the connection names no host
MAX_RECEIVERS = 10_000
MAX_TEXT_BYTES = 4000
PAGE = 500
ANSWERS_SECONDS = 30.0  # what came of a task is read once for all its contacts, and believed for so long
TOKEN_ERRORS = {40014, 41001, 42001}
NEEDS_A_PERSON = {
    40001: "the secret is wrong",
    40013: "the corpid is wrong",
    48002: "the secret may not use this interface",
    60020: "this machine's address is not on the application's list of trusted addresses",
    84061: "the application may not see these contacts",
}
LIMITS = {45009: "too many calls of this interface", 45033: "too many calls at once"}
PERSON_PAUSE_SECONDS = 6 * 3600.0
WAITING, SENT, NO_CONTACT, HAD_ONE = 0, 1, 2, 3  # status of a contact in the result


@dataclass(frozen=True)
class Result:
    """What is known of a broadcast: a status per contact, and whether every employee has been asked for theirs."""

    statuses: Mapping[str, int]
    is_complete: bool


class WecomBroadcast(HttpChannel):
    """Login is the corpid, password the secret of 客户联系; `sender` in extra, when one employee sends to everybody."""

    name: ClassVar[str] = "wecom_broadcast"
    family: ClassVar[Family] = "wecom"
    is_group: ClassVar[bool] = True
    is_personal: ClassVar[bool] = False
    can_ask: ClassVar[bool] = True

    def __init__(self, credentials: Credentials, *, connections: int, timeout_seconds: float) -> None:
        super().__init__(credentials, connections=connections, timeout_seconds=timeout_seconds)
        credentials.require({"login": "corpid", "password": "secret of customer contact"})
        extra = credentials.extra
        self._base = (credentials.host or API).rstrip("/")
        self._sender = str(extra.get("sender") or "")
        self._create_path = str(extra.get("create_path") or "/cgi-bin/externalcontact/add_msg_template")
        self._task_path = str(extra.get("task_path") or "/cgi-bin/externalcontact/get_groupmsg_task")
        self._result_path = str(extra.get("result_path") or "/cgi-bin/externalcontact/get_groupmsg_send_result")
        self._token = ""
        self._token_lock = asyncio.Lock()
        self._result_lock = asyncio.Lock()
        self._results: dict[str, tuple[float, Result]] = {}

    async def send(self, call: Call) -> Outcome:
        if not 1 <= len(call.addresses) <= MAX_RECEIVERS:
            return Outcome("refused", code="receivers", message=f"a broadcast takes 1 to {MAX_RECEIVERS} contacts")
        if len(call.content.text.encode()) > MAX_TEXT_BYTES:
            return Outcome("refused", code="text", message=f"the text is longer than {MAX_TEXT_BYTES} bytes")
        body: dict[str, Any] = {
            "chat_type": "single",
            "external_userid": list(call.addresses),
            "text": {"content": call.content.text},
        }
        if self._sender:
            body["sender"] = self._sender
        answer = await self._call(self._create_path, body)
        if isinstance(answer, Outcome):
            return answer
        msgid = str(answer.data.get("msgid") or "")
        if not msgid:
            return Outcome("unknown", "", answer.status, "msgid", "WeCom answered without a msgid")
        return Outcome("waiting", msgid, answer.status, "0", "an employee must press send")

    async def ask(self, question: Question) -> Outcome:
        """What came of one contact. A broadcast whose answer was lost has no msgid to ask by, and stays unknown.

        A contact whom no employee was given (add_msg_template left it out) is refused.
        """
        msgid = question.platform_message_id
        if not msgid:
            return Outcome("unknown", code="msgid", message="the broadcast was never confirmed to exist", is_final=True)
        result = await self._result(msgid)
        if isinstance(result, Outcome):  # the question failed: the message waits as before
            return Outcome("waiting", msgid, result.http_status, result.code, result.message)
        status = result.statuses.get(question.address, WAITING if not result.is_complete else None)
        if status == SENT:
            return Outcome("accepted", msgid, 200, str(SENT))
        if status == NO_CONTACT:
            return Outcome(
                "refused", msgid, 200, str(status), "no contact of the employee any more", suppress="no contact"
            )
        if status == HAD_ONE:
            return Outcome("refused", msgid, 200, str(status), "had as many broadcasts today as WeCom allows")
        if status is None:
            return Outcome("refused", msgid, 200, "not_listed", "no employee has this contact")
        return Outcome("waiting", msgid, 200, str(status), "an employee must press send")

    async def _result(self, msgid: str) -> Result | Outcome:
        async with self._result_lock:
            read_at, result = self._results.get(msgid, (float("-inf"), None))
            if result is not None and time.monotonic() - read_at < ANSWERS_SECONDS:
                return result
            fresh = await self._read_result(msgid)
            if isinstance(fresh, Result):
                self._results[msgid] = time.monotonic(), fresh
            return fresh

    async def _read_result(self, msgid: str) -> Result | Outcome:
        tasks = await self._pages(self._task_path, "task_list", {"msgid": msgid})
        if isinstance(tasks, Outcome):
            return tasks
        statuses: dict[str, int] = {}
        for task in tasks:
            body = {"msgid": msgid, "userid": str(task.get("userid") or "")}
            rows = await self._pages(self._result_path, "send_list", body)
            if isinstance(rows, Outcome):
                return rows
            for row in rows:
                contact, status = str(row.get("external_userid") or ""), int(row.get("status") or 0)
                # of two employees who were given the same contact, the one who sent counts
                if statuses.get(contact) != SENT:
                    statuses[contact] = status
        return Result(statuses, is_complete=bool(tasks))

    async def _pages(self, path: str, name: str, body: Mapping[str, Any]) -> list[dict[str, Any]] | Outcome:
        rows: list[dict[str, Any]] = []
        cursor = ""
        while True:
            answer = await self._call(path, {**body, "limit": PAGE, "cursor": cursor})
            if isinstance(answer, Outcome):
                return answer
            page = answer.data.get(name)
            rows += page if isinstance(page, list) else []
            following = str(answer.data.get("next_cursor") or "")
            if not following or following == cursor:
                return rows
            cursor = following

    async def _call(self, path: str, body: Mapping[str, Any]) -> Answer | Outcome:
        """POST with the access token; one fresh token when the old one is refused. An Answer only when errcode is 0."""
        used = ""
        for _attempt in range(2):
            token = await self._access_token(stale=used)
            if isinstance(token, Outcome):
                return token
            used = token
            url = f"{self._base}{path}?access_token={token}"
            answer = await post(self._session, url, orjson.dumps(body), {"Content-Type": "application/json"})
            if isinstance(answer, Outcome) or int(answer.data.get("errcode") or 0) not in TOKEN_ERRORS:
                break
        return answer if isinstance(answer, Outcome) else _judge(answer)

    async def _access_token(self, stale: str) -> str | Outcome:
        async with self._token_lock:
            if self._token and self._token != stale:
                return self._token
            query = {"corpid": self.credentials.login, "corpsecret": self.credentials.password}
            try:
                async with self._session.get(f"{self._base}/cgi-bin/gettoken", params=query) as response:
                    data = orjson.loads(await response.read())
            except (TimeoutError, aiohttp.ClientError, OSError, orjson.JSONDecodeError) as error:
                return Outcome(
                    "retry", code="token", message=f"no access token: {type(error).__name__}", retry_after=10
                )
            token = str(data.get("access_token") or "") if isinstance(data, dict) else ""
            if not token or token == stale:
                code = int(data.get("errcode") or 40014) if isinstance(data, dict) else 40014
                text = NEEDS_A_PERSON.get(code, "check corpid and secret")
                return Outcome("pause", code=str(code), message=f"WeCom gives no usable access token: {text}",
                               retry_after=PERSON_PAUSE_SECONDS)  # fmt: skip
            self._token = token
            return token


def _judge(answer: Answer) -> Answer | Outcome:
    code = int(answer.data.get("errcode") or 0)
    text = str(answer.data.get("errmsg") or "")[:200]
    if code == 0:
        return answer
    if code == -1:
        return Outcome("retry", "", answer.status, "-1", "system busy", 10)
    if code in LIMITS:
        return Outcome("pause", "", answer.status, str(code), LIMITS[code], 600)
    if code in NEEDS_A_PERSON or code in TOKEN_ERRORS:
        return Outcome("pause", "", answer.status, str(code), NEEDS_A_PERSON.get(code, text), PERSON_PAUSE_SECONDS)
    return Outcome("refused", "", answer.status, str(code), text)
