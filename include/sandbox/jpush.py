"""JPush v3: pushes to aliases, cids that make a push repeatable for a day, and who received what."""

import base64
import hmac
import re
import secrets
import time
import uuid
from typing import Any

import orjson

from .clock import DAY, MINUTE
from .faults import Fault
from .people import Person
from .reactions import links, receive
from .state import World
from .wire import Answer, Request, json_answer

HAS_APP = 0.6  # of the people: the app is installed and the alias is set
SILENT = 0.1  # of the devices: switched off, never receives
CIDS_MOST, REPORT_IDS, ALIASES_MOST = 1000, 100, 1000
REPORT_DAYS = 28
TTL_MOST = 10 * DAY
BODY_BYTES = 4000
ALIAS = re.compile(r"[\w@!#$&*+=.|-]{1,40}")


class JPushError(Exception):
    def __init__(self, status: int, code: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.answer = json_answer({"error": {"code": code, "message": message}}, status, **headers)


class JPush:
    platform = "jpush"
    prefixes = ("/v3/push", "/v3/received", "/v3/status/message")

    def __init__(self, world: World) -> None:
        self.world = world
        self.app_key, self.master_secret = secrets.token_hex(12), secrets.token_hex(12)
        self.handlers = {
            ("GET", "/v3/push/cid"): self.cids,
            ("POST", "/v3/push"): self.push,
            ("POST", "/v3/push/validate"): self.validate,
            ("GET", "/v3/received/detail"): self.received,
        }
        self.people = {self.alias(person): person for person in world.people if self.has_app(person)}
        self.reset()

    def reset(self) -> None:
        self.cid_births: dict[str, float] = {}
        self.results: dict[str, dict[str, str]] = {}  # cid -> the first answer
        self.pushed: dict[str, tuple[float, Person, str]] = {}  # msg_id -> when, to whom, alias
        self.minute, self.calls = 0, 0
        self.serial = 18_100_000_000_000_000

    @staticmethod
    def alias(person: Person) -> str:
        """What the app calls the person: the id in the own mall."""
        return f"m{person.person_id:06d}"

    def has_app(self, person: Person) -> bool:
        return self.world.chance("has the app", person.person_id) < HAS_APP

    def access(self, base_url: str) -> dict[str, Any]:
        return {
            "base_url": base_url,
            "report_url": base_url,
            "app_key": self.app_key,
            "master_secret": self.master_secret,
            "aliases": sorted(self.people),
        }

    def method(self, request: Request) -> str:
        return request.path.lstrip("/")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        try:
            self._check_auth(request)
            handler = self.handlers.get((request.method, request.path))
            if handler is None:
                known = any(path == request.path for _, path in self.handlers)
                raise JPushError(405 if known else 404, 1001 if known else 1012, "no such method")
            if fault and fault.kind == "call_limit":
                raise self._too_many(MINUTE)
            return handler(request)
        except JPushError as error:
            code = str(orjson.loads(error.answer.body)["error"]["code"])
            self.world.counters.refused[self.platform][code] += 1
            return error.answer

    def _check_auth(self, request: Request) -> None:
        wanted = "Basic " + base64.b64encode(f"{self.app_key}:{self.master_secret}".encode()).decode()
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), wanted.encode()):
            raise JPushError(401, 1004, "authen failed.")

    def _too_many(self, seconds: float) -> JPushError:
        limit = str(self.world.settings.jpush_minute_calls)
        headers = {"X-Rate-Limit-Limit": limit, "X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": str(int(seconds))}
        return JPushError(429, 2002, "Rate limit exceeded.", **headers)

    # ------------------------------------------------------------------------------------------------------------ pushes

    def cids(self, request: Request) -> Answer:
        count = request.query.get("count", "1")
        if not count.isdigit() or not 1 <= int(count) <= CIDS_MOST or request.query.get("type", "push") != "push":
            raise JPushError(400, 1003, f"count must be 1 to {CIDS_MOST} and type push")
        fresh = [f"{self.app_key}-{uuid.uuid4()}" for _ in range(int(count))]
        self.cid_births |= dict.fromkeys(fresh, self.world.now())
        return json_answer({"cidlist": fresh})

    def push(self, request: Request) -> Answer:
        now = self.world.now()
        body = self._push_object(request)
        cid = body.get("cid")
        if cid is not None:
            if cid not in self.cid_births:
                raise JPushError(400, 1003, "cid is invalid")
            if cid in self.results and now - self.cid_births[cid] <= DAY:  # later it is forgotten, and pushed again
                return json_answer(self.results[cid])
        self._count_call()
        aliases = body["audience"]["alias"]
        reached = [(alias, self.people[alias]) for alias in dict.fromkeys(aliases) if alias in self.people]
        if not reached:
            raise JPushError(400, 1011, "cannot find user by this audience")
        self.serial += 1
        result = {"sendno": str((body.get("options") or {}).get("sendno", 0)), "msg_id": str(self.serial)}
        if cid is not None:
            self.results[cid] = result
        text = self._words(body["notification"])
        for alias, person in reached:
            self.pushed[result["msg_id"]] = (now, person, alias)
            self.world.counters.accept(
                "jpush",
                alias,
                links(text)[0] or cid,
                text,
                now,
                msg_id=result["msg_id"],
                cid=cid,
                link_key=links(text)[0],
            )
            receive(self.world, person, "jpush", alias, text, now)
        return json_answer(result)

    def validate(self, request: Request) -> Answer:
        self._push_object(request)
        return json_answer({"sendno": "0", "msg_id": "1"})

    def _count_call(self) -> None:
        limit, minute = self.world.settings.jpush_minute_calls, int(time.monotonic() / 60)
        if minute != self.minute:
            self.minute, self.calls = minute, 0
        self.calls += 1
        if limit and self.calls > limit:
            raise self._too_many(60 - time.monotonic() % 60 + 1)

    def _push_object(self, request: Request) -> dict[str, Any]:
        if len(request.body) > BODY_BYTES:
            raise JPushError(400, 1005, "message body too long")
        try:
            body = request.json()
        except orjson.JSONDecodeError:
            raise JPushError(400, 1009, "the push object is no JSON") from None
        if not isinstance(body, dict):
            raise JPushError(400, 1009, "the push object is no object")
        for name in ("platform", "audience", "notification"):
            if not body.get(name):
                raise JPushError(400, 1002, f"{name} is missing")
        platforms = body["platform"]
        if platforms != "all" and not (
            isinstance(platforms, list) and set(platforms) <= {"android", "ios", "hmos", "quickapp"}
        ):
            raise JPushError(400, 1003, "platform is invalid")
        audience = body["audience"]
        aliases = audience.get("alias") if isinstance(audience, dict) else None
        if not isinstance(aliases, list) or not 0 < len(aliases) <= ALIASES_MOST:
            raise JPushError(400, 1003, "this sandbox knows audiences of 1 to 1000 aliases only")
        if not all(isinstance(alias, str) and ALIAS.fullmatch(alias) for alias in aliases):
            raise JPushError(400, 1003, "an alias is invalid")
        notification = body["notification"]
        if not isinstance(notification, dict) or not notification.get("alert"):
            raise JPushError(400, 1003, "notification.alert is empty")
        life = (body.get("options") or {}).get("time_to_live", DAY)
        if not isinstance(life, int) or not 0 <= life <= TTL_MOST:
            raise JPushError(400, 1003, "options.time_to_live is invalid")
        return body

    @staticmethod
    def _words(notification: dict[str, Any]) -> str:
        """What the phone shows, and the links behind it."""
        android = notification.get("android") or {}
        parts = (android.get("title"), notification["alert"], *(android.get("extras") or {}).values())
        return "\n".join(str(part) for part in parts if part)

    # ------------------------------------------------------------------------------------------------------------ reports

    def received(self, request: Request) -> Answer:
        ids = [part for part in request.query.get("msg_ids", "").split(",") if part]
        if not 0 < len(ids) <= REPORT_IDS or not all(part.isdigit() for part in ids):
            raise JPushError(400, 1003, f"msg_ids must be 1 to {REPORT_IDS} numbers")
        now = self.world.now()
        rows = []
        for msg_id in ids:
            at, person, alias = self.pushed.get(msg_id, (0.0, None, ""))
            if person is None or now - at > REPORT_DAYS * DAY:
                continue
            after = self.world.chance.between(1, 30 * MINUTE, "push received", msg_id)
            is_there = now >= at + after and self.world.chance("phone is off", alias) >= SILENT
            rows.append({"msg_id": msg_id, "jpush_received": int(is_there), "android_pns_sent": None, "ios_apns_sent": None,
                         "ios_apns_received": None, "ios_msg_received": None, "wp_mpns_sent": None})  # fmt: skip
        return json_answer(rows)
