"""WeCom (企业微信): broadcasts to customers, which an employee must confirm. No confirmed reference of the wire format: see README."""

import hmac
import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from .clock import HOUR, day_of
from .faults import Fault
from .people import Person
from .reactions import receive
from .state import World
from .wire import Answer, Request, json_answer

CONTACT = 0.3  # of the people: an employee added them
LEFT = 0.05  # of the contacts: removed the employee meanwhile
EMPLOYEES = ("lin", "zhou", "qian")
TOKEN_SECONDS = 2 * HOUR
RECEIVERS_MOST = 10_000
TEXT_BYTES = 4000


class WecomError(Exception):
    def __init__(self, errcode: int, errmsg: str) -> None:
        super().__init__(errmsg)
        self.errcode = errcode
        self.body = {"errcode": errcode, "errmsg": errmsg}


@dataclass(slots=True)
class Task:
    """A broadcast: who of the contacts each employee is to send it to, and what came of each."""

    msgid: str
    text: str
    created: float
    receivers: dict[str, list[str]]  # employee -> contacts
    status: dict[str, int]  # contact -> 0 not yet, 1 sent, 2 no contact any more, 3 had a broadcast today
    confirmed: dict[str, int] = field(default_factory=dict)  # employee -> when


class Wecom:
    platform = "wecom"
    prefixes = ("/cgi-bin/gettoken", "/cgi-bin/externalcontact/")

    def __init__(self, world: World) -> None:
        self.world = world
        self.corpid, self.secret = "ww" + secrets.token_hex(8), secrets.token_hex(20)
        self.contacts: dict[str, Person] = {
            self.contact_id(person): person
            for person in world.people
            if world.chance("is a contact", person.person_id) < CONTACT
        }
        self.handlers = {
            "add_msg_template": self.add_msg_template,
            "get_groupmsg_task": self.get_groupmsg_task,
            "get_groupmsg_send_result": self.get_groupmsg_send_result,
        }
        self.reset()

    def reset(self) -> None:
        self.tokens: dict[str, float] = {}
        self.tasks: dict[str, Task] = {}
        self.days: dict[tuple[str, str], int] = {}  # (contact, day) -> broadcasts received
        self.serial = 0

    @staticmethod
    def contact_id(person: Person) -> str:
        return f"wmSIM{person.person_id:08d}"

    def employee(self, contact: str) -> str:
        return EMPLOYEES[self.contacts[contact].person_id % len(EMPLOYEES)]

    def has_left(self, contact: str) -> bool:
        return self.world.chance("left the employee", contact) < LEFT

    def access(self, base_url: str) -> dict[str, Any]:
        staying = [contact for contact in sorted(self.contacts) if not self.has_left(contact)]
        gone = [contact for contact in sorted(self.contacts) if self.has_left(contact)]
        return {
            "base_url": base_url, "corpid": self.corpid, "secret": self.secret,
            "contacts": staying, "contacts_who_left": gone, "employees": list(EMPLOYEES),
        }  # fmt: skip

    def method(self, request: Request) -> str:
        return request.path.removeprefix("/")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        try:
            if request.path == "/cgi-bin/gettoken":
                return json_answer(self.token(request))
            handler = self.handlers.get(request.path.removeprefix("/cgi-bin/externalcontact/"))
            if handler is None:
                return Answer(b"Not Found", 404, content_type="text/plain")
            self._check_token(request, fault)
            if fault and fault.kind == "platform_busy":
                raise WecomError(-1, "system busy")
            if fault and fault.kind == "call_limit":
                raise WecomError(45009, "api freq out of limit")
            return json_answer(handler(self._body(request)))
        except WecomError as error:
            self.world.counters.refused[self.platform][str(error.errcode)] += 1
            return json_answer(error.body)

    def token(self, request: Request) -> dict[str, Any]:
        corpid, secret = request.query.get("corpid", ""), request.query.get("corpsecret", "")
        if corpid != self.corpid:
            raise WecomError(40013, "invalid corpid")
        if not hmac.compare_digest(secret.encode(), self.secret.encode()):
            raise WecomError(40001, "invalid credential")
        value = secrets.token_urlsafe(48)
        self.tokens[value] = self.world.now() + TOKEN_SECONDS
        return {"errcode": 0, "errmsg": "ok", "access_token": value, "expires_in": TOKEN_SECONDS}

    def _check_token(self, request: Request, fault: Fault | None) -> None:
        if fault and fault.kind == "expired_token":
            self.tokens.clear()
        value = request.query.get("access_token", "")
        if not value:
            raise WecomError(41001, "access_token missing")
        if value not in self.tokens:
            raise WecomError(40014, "invalid access_token")
        if self.tokens[value] <= self.world.now():
            raise WecomError(42001, "access_token expired")

    @staticmethod
    def _body(request: Request) -> dict[str, Any]:
        try:
            body = request.json()
        except orjson.JSONDecodeError:
            raise WecomError(47001, "data format error") from None
        if request.method != "POST" or not isinstance(body, dict):
            raise WecomError(43002, "require POST")
        return body

    # ------------------------------------------------------------------------------------------------------------ broadcasts

    def add_msg_template(self, body: dict[str, Any]) -> dict[str, Any]:
        wanted = body.get("external_userid")
        text = str((body.get("text") or {}).get("content") or "")
        if body.get("chat_type") != "single" or not isinstance(wanted, list) or not wanted:
            raise WecomError(40058, "chat_type must be single, external_userid a list")
        if len(wanted) > RECEIVERS_MOST:
            raise WecomError(40058, "too many external_userid")
        if not text or len(text.encode()) > TEXT_BYTES:
            raise WecomError(40058, "text.content is empty or too long")
        known = [str(contact) for contact in dict.fromkeys(wanted) if contact in self.contacts]
        failed = [str(contact) for contact in wanted if contact not in self.contacts]
        if not known:
            raise WecomError(41048, "no customer to send to")
        now = self.world.now()
        self.serial += 1
        msgid = f"msgSIM{self.serial:012d}"
        receivers: dict[str, list[str]] = {}
        for contact in known:
            receivers.setdefault(self.employee(contact), []).append(contact)
        task = Task(msgid, text, now, receivers, dict.fromkeys(known, 0))
        self.tasks[msgid] = task
        for name in receivers:
            if self.world.settings.wecom_confirm_minutes >= 0:
                at = int(now) + self.world.settings.wecom_confirm_minutes * 60
                self.world.later(at, partial(self.confirm, task, name, at))
        return {"errcode": 0, "errmsg": "ok", "fail_list": failed, "msgid": msgid}

    def confirm(self, task: Task, name: str, at: int) -> None:
        """The employee presses send: what goes out goes out now."""
        task.confirmed[name] = at
        day = day_of(at).isoformat()
        for contact in task.receivers[name]:
            if self.has_left(contact):
                task.status[contact] = 2
            elif self.days.get((contact, day), 0) >= self.world.settings.wecom_per_day:
                task.status[contact] = 3
            else:
                task.status[contact] = 1
                self.days[contact, day] = self.days.get((contact, day), 0) + 1
                self.world.counters.accept(
                    "wecom_broadcast", contact, None, task.text, at, msgid=task.msgid, employee=name
                )
                receive(self.world, self.contacts[contact], "wecom_broadcast", contact, task.text, at)

    def _task(self, body: dict[str, Any]) -> Task:
        task = self.tasks.get(str(body.get("msgid")))
        if task is None:
            raise WecomError(41047, "invalid msgid")
        return task

    def get_groupmsg_task(self, body: dict[str, Any]) -> dict[str, Any]:
        task = self._task(body)
        rows: list[dict[str, Any]] = [
            {"userid": name, "status": 2, "send_time": task.confirmed[name]}
            if name in task.confirmed
            else {"userid": name, "status": 0}
            for name in task.receivers
        ]
        return self._page(body, "task_list", rows)

    def get_groupmsg_send_result(self, body: dict[str, Any]) -> dict[str, Any]:
        task, name = self._task(body), str(body.get("userid"))
        if name not in task.receivers:
            raise WecomError(60111, "userid not found")
        rows: list[dict[str, Any]] = []
        for contact in task.receivers[name]:
            row: dict[str, Any] = {"external_userid": contact, "userid": name, "status": task.status[contact]}
            rows.append(row | ({"send_time": task.confirmed[name]} if task.status[contact] == 1 else {}))
        return self._page(body, "send_list", rows)

    @staticmethod
    def _page(body: dict[str, Any], name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        limit, start = int(body.get("limit") or 500), int(body.get("cursor") or 0)
        rest = start + limit < len(rows)
        return {
            "errcode": 0,
            "errmsg": "ok",
            "next_cursor": str(start + limit) if rest else "",
            name: rows[start : start + limit],
        }
