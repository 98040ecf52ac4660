"""The robots of two team chats, WeCom and DingTalk: 20 messages a minute, byte limits, and DingTalk's sign and clock check."""

import base64
import hashlib
import hmac
import secrets
from collections import deque
from typing import Any

import orjson

from .clock import HOUR, MINUTE
from .faults import Fault
from .state import World
from .wire import Answer, Request, json_answer

PER_MINUTE = 20
BYTES = {"text": 2048, "markdown": 4096}
BLOCKED = 10 * MINUTE  # DingTalk, over its limit


class RobotError(Exception):
    def __init__(self, errcode: int, errmsg: str) -> None:
        super().__init__(errmsg)
        self.body = {"errcode": errcode, "errmsg": errmsg}


class Robots:
    platform = "robots"
    prefixes = ("/cgi-bin/webhook/send", "/robot/send")

    def __init__(self, world: World) -> None:
        self.world = world
        self.key, self.token, self.secret = secrets.token_hex(16), secrets.token_hex(32), "SEC" + secrets.token_hex(32)
        self.reset()

    def reset(self) -> None:
        self.recent: dict[str, deque[float]] = {"wecom": deque(), "dingtalk": deque()}
        self.blocked_until = 0.0

    def access(self, base_url: str) -> dict[str, Any]:
        return {"wecom_url": base_url, "wecom_key": self.key, "dingtalk_url": base_url, "dingtalk_token": self.token,
                "dingtalk_secret": self.secret}  # fmt: skip

    def method(self, request: Request) -> str:
        return "wecom" if request.path.startswith("/cgi-bin/") else "dingtalk"

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        robot = self.method(request)
        try:
            (self._check_wecom if robot == "wecom" else self._check_dingtalk)(request)
            kind, text = self._content(request, robot)
            self._count(robot)
        except RobotError as error:
            self.world.counters.refused[self.platform][str(error.body["errcode"])] += 1
            return json_answer(error.body)
        self.world.counters.alerts.append({"robot": robot, "msgtype": kind, "text": text})
        return json_answer({"errcode": 0, "errmsg": "ok"})

    def _check_wecom(self, request: Request) -> None:
        if not hmac.compare_digest(request.query.get("key", "").encode(), self.key.encode()):
            raise RobotError(93000, "invalid webhook url")

    def _check_dingtalk(self, request: Request) -> None:
        if not hmac.compare_digest(request.query.get("access_token", "").encode(), self.token.encode()):
            raise RobotError(300001, "token is not exist")
        stamp = request.query.get("timestamp", "")
        if not stamp.isdigit() or abs(int(stamp) / 1000 - self.world.now()) > HOUR:
            raise RobotError(310000, "sign not match: invalid timestamp")
        digest = hmac.digest(self.secret.encode(), f"{stamp}\n{self.secret}".encode(), hashlib.sha256)
        if not hmac.compare_digest(request.query.get("sign", "").encode(), base64.b64encode(digest)):
            raise RobotError(310000, "sign not match")

    def _count(self, robot: str) -> None:
        now, recent = self.world.now(), self.recent[robot]
        while recent and now - recent[0] >= MINUTE:
            recent.popleft()
        if robot == "dingtalk" and now < self.blocked_until:
            raise RobotError(130101, "send too fast")
        if len(recent) >= PER_MINUTE:
            if robot == "dingtalk":
                self.blocked_until = now + BLOCKED
            raise RobotError(130101 if robot == "dingtalk" else 45009, "send too fast")
        recent.append(now)

    @staticmethod
    def _content(request: Request, robot: str) -> tuple[str, str]:
        try:
            body = request.json()
        except orjson.JSONDecodeError:
            body = None
        if request.method != "POST" or not isinstance(body, dict):
            raise RobotError(40008, "invalid message type")
        kind = str(body.get("msgtype", ""))
        part = body.get(kind)
        if kind not in BYTES or not isinstance(part, dict):
            raise RobotError(40008, "invalid message type")
        text = str(part.get("text" if robot == "dingtalk" and kind == "markdown" else "content") or "")
        if not text or (robot == "dingtalk" and kind == "markdown" and not part.get("title")):
            raise RobotError(44004, "content is empty")
        if robot == "wecom" and len(text.encode()) > BYTES[kind]:
            raise RobotError(40058, f"{kind}.content exceeds {BYTES[kind]} bytes")
        return kind, text
