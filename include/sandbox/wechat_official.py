"""The WeChat official account (a certified service account): followers, tags, QR codes, figures, and the three ways to send."""

import base64
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from .clock import HOUR, MINUTE, SHANGHAI, day_of
from .faults import Fault, emptied, spoil_rows
from .people import Person
from .reactions import links, qr_scene, receive
from .state import APPID, Follower, World
from .wechat_datacube import Datacube
from .wechat_tokens import Body, WechatAccount, WechatError
from .wire import Answer, Request, json_answer

BATCH = 100
WINDOWS = {"message": (5, 48 * HOUR), "tap": (3, MINUTE)}  # messages allowed, for how long
MASS_LEAST, MASS_MOST = 2, 10_000
CONTENT = {  # what a message of each type must carry, and the error when it does not
    "text": "content",
    "image": "media_id",
    "voice": "media_id",
    "news": "articles",
    "mpnews": "media_id",
    "mpnewsarticle": "article_id",
    "msgmenu": "list",
    "miniprogrampage": "appid",
}
QUOTAS = {  # per day
    "cgi-bin/message/custom/send": 500_000,
    "cgi-bin/message/template/send": 100_000,
    "cgi-bin/message/subscribe/bizsend": 100_000,
    "cgi-bin/message/mass/send": 100,
    "cgi-bin/user/get": 500,
    "cgi-bin/user/info": 5_000_000,
    "cgi-bin/user/info/batchget": 5_000_000,
    "cgi-bin/qrcode/create": 100_000,
    "cgi-bin/tags/get": 1_000,
}
TAGS = {2: "星标组", 134: "gold", 135: "新客", 136: "门店"}  # id -> name; 0 to 2 are the platform's own
TAGGED = {134: 0.1, 135: 0.25, 136: 0.2}  # share of the followers who carry it
TEMPORARY_SCENES, PERMANENT_SCENES = ("QR_SCENE", "QR_STR_SCENE"), ("QR_LIMIT_SCENE", "QR_LIMIT_STR_SCENE")
LONGEST_CODE = 2_592_000  # seconds a temporary code may live
PERMANENT_CODES = 100_000
TEMPLATES = {  # template id -> title, fields
    "SIMTEMPLATE00000000000000000000000000000001": ("评价提醒", ("thing1", "time2", "thing3")),
    "SIMTEMPLATE00000000000000000000000000000002": ("订单状态通知", ("character_string1", "phrase2", "time3")),
    "SIMTEMPLATE00000000000000000000000000000003": ("服务通知", ("thing1", "thing2", "time3")),
}
NOTICES = {  # template id of a subscription notice -> fields
    "SIMSUB000000000000000000000000000000000001": ("thing1", "time2", "thing3"),
    "SIMSUB000000000000000000000000000000000002": ("thing1", "thing2"),
}
FORBIDDEN_IN_TEMPLATES = re.compile(
    r"优惠券|代金券|红包|满减|折扣|促销|领券|coupon|voucher|discount|sale\b|% off", re.I
)


class WechatOfficial(WechatAccount):
    platform = "wechat_official"
    prefixes = ("/cgi-bin/", "/datacube/")

    def __init__(self, world: World) -> None:
        super().__init__(world, APPID, secrets.token_hex(16))
        self.push_token = secrets.token_hex(16)
        self.aes_key = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")  # EncodingAESKey, 43 characters
        self.datacube = Datacube(world)
        self.handlers: dict[str, Callable[[Request, Body, float, Fault | None], Body]] = {
            "cgi-bin/user/get": self.user_get,
            "cgi-bin/user/info": self.user_info,
            "cgi-bin/user/info/batchget": self.user_info_batch,
            "cgi-bin/message/custom/send": self.custom_send,
            "cgi-bin/message/template/send": self.template_send,
            "cgi-bin/message/subscribe/bizsend": self.subscribe_send,
            "cgi-bin/template/get_all_private_template": self.templates,
            "cgi-bin/message/mass/send": self.mass_send,
            "cgi-bin/message/mass/get": self.mass_get,
            "cgi-bin/openapi/quota/get": self.quota_get,
            "cgi-bin/tags/get": self.tags_get,
            "cgi-bin/qrcode/create": self.qrcode_create,
        }
        self.handlers |= {f"datacube/{name}": partial(self.figures, name) for name in self.datacube.interfaces}
        self.reset()

    def reset(self) -> None:
        self.reset_tokens()
        self.calls: Counter[tuple[str, str]] = Counter()  # (day, path)
        self.minute, self.minute_calls = 0, 0
        self.mass_jobs: dict[str, Body] = {}  # clientmsgid -> the first answer
        self.mass_done: dict[int, float] = {}  # msg_id -> when it is finished
        self.codes: set[tuple[str, Any]] = set()  # permanent QR codes
        self.serial = 200_000_000

    def access(self, base_url: str) -> dict[str, Any]:
        return {
            "base_url": base_url,
            "appid": APPID,
            "secret": self.secret,
            "push_token": self.push_token,
            "encoding_aes_key": self.aes_key,
            "templates": [
                {"template_id": template_id, "title": title, "fields": list(fields)}
                for template_id, (title, fields) in TEMPLATES.items()
            ],
            "notices": [
                {"template_id": template_id, "fields": list(fields)} for template_id, fields in NOTICES.items()
            ],
        }

    def method(self, request: Request) -> str:
        return request.path.lstrip("/")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        path, now = self.method(request), self.world.now()
        try:
            if path in ("cgi-bin/token", "cgi-bin/stable_token"):
                return json_answer(self.token_of_any(request, path, now))
            handler = self.handlers.get(path)
            if handler is None:
                return Answer(b"Not Found", 404, content_type="text/plain")
            self._check_token(request, now, fault)
            if fault and fault.kind == "platform_busy":
                raise WechatError(-1, "system error, please try again later")
            self._check_quota(path, now, fault)
            return json_answer(handler(request, self._body(request), now, fault))
        except WechatError as error:
            self.world.counters.refused[self.platform][str(error.body["errcode"])] += 1
            number = self.world.chance.bits("rid", time.monotonic_ns())
            return json_answer({**error.body, "errmsg": f"{error.body['errmsg']} rid: {number:016x}"})

    # ---------------------------------------------------------------------------------------------------- quotas

    def _check_quota(self, path: str, now: float, fault: Fault | None) -> None:
        limit = self.world.settings.wechat_rate
        if "/message/" in path and limit:
            minute = int(time.monotonic() / 60)
            if minute != self.minute:
                self.minute, self.minute_calls = minute, 0
            self.minute_calls += 1
            if self.minute_calls > limit:
                raise WechatError(45011, "api minute-quota reach limit, must slower, retry next minute")
        key = (day_of(now).isoformat(), path)
        self.calls[key] += 1
        quota = self.world.settings.wechat_datacube_calls if path.startswith("datacube/") else QUOTAS.get(path)
        over = quota is not None and self.calls[key] > quota
        if over or (fault and fault.kind == "call_limit"):
            raise WechatError(45009, "reach max api daily quota limit")

    def quota_get(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        path = str(body.get("cgi_path", "")).lstrip("/")
        if path not in QUOTAS:
            raise WechatError(76021, "cgi_path not found")
        used = min(self.calls[day_of(now).isoformat(), path], QUOTAS[path])
        quota = {"daily_limit": QUOTAS[path], "used": used, "remain": QUOTAS[path] - used}
        return {"errcode": 0, "errmsg": "ok", "quota": quota}

    # ---------------------------------------------------------------------------------------------------- followers

    def user_get(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        openids = [follower.openid for follower in self.world.following()]
        start, after = 0, request.query.get("next_openid", "")
        if after:
            follower = self.world.followers.get(after)
            if follower is None:
                raise WechatError(40003, "invalid openid")
            mark = (follower.since, follower.openid)
            start = sum((other.since, other.openid) <= mark for other in self.world.following())
        page = openids[start : start + self.world.settings.wechat_user_page]
        if fault and fault.kind == "duplicate_page":
            page = page + page
        if fault and fault.kind == "empty_last_page":
            page = []
        answer: Body = {"total": len(openids), "count": len(page)}
        if page:
            answer["data"] = {"openid": page}
        return answer | {"next_openid": page[-1] if page else ""}

    def user_info(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        return self._profile(request.query.get("openid", ""))

    def user_info_batch(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        users = body.get("user_list")
        if not isinstance(users, list) or not users or not all(isinstance(user, dict) for user in users):
            raise WechatError(40031, "invalid openid list")
        if len(users) > BATCH:
            raise WechatError(40032, "invalid openid list size")
        profiles = [self._profile(str(user.get("openid", ""))) for user in users]
        if fault and fault.kind == "missing_id":
            del profiles[0]["openid"]
        profiles = spoil_rows(
            fault, profiles, ids=("subscribe_time", "groupid", "tagid_list", "qr_scene"), required=("openid",), texts=("nickname", "remark"),
            nullable=("nickname", "headimgurl", "unionid", "remark", "tagid_list", "qr_scene_str", "subscribe_scene", "language"),
        )  # fmt: skip
        return {"user_info_list": emptied(fault, profiles)}

    def _profile(self, openid: str) -> Body:
        follower = self.world.followers.get(openid)
        if follower is None:
            raise WechatError(40003, "invalid openid")
        if not follower.following:
            return {"subscribe": 0, "openid": openid, "unionid": follower.person.unionid}
        by_code = follower.scene == "ADD_SCENE_QR_CODE"
        return {
            "subscribe": 1,
            "openid": openid,
            "nickname": "",
            "sex": 0,
            "language": "en" if follower.person.language == "en" else "zh_CN",
            "city": "",
            "province": "",
            "country": "",
            "headimgurl": "",
            "subscribe_time": follower.since,
            "unionid": follower.person.unionid,
            "remark": "",
            "groupid": 0,
            "tagid_list": self._tags_of(follower.person),
            "subscribe_scene": follower.scene,
            "qr_scene": 0,
            "qr_scene_str": qr_scene(self.world, follower.person) if by_code else "",
        }

    def _tags_of(self, person: Person) -> list[int]:
        return [tag for tag, share in TAGGED.items() if self.world.chance("tagged", tag, person.person_id) < share]

    def tags_get(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        counts = Counter(tag for follower in self.world.following() for tag in self._tags_of(follower.person))
        tags = [{"id": tag, "name": name, "count": counts[tag]} for tag, name in TAGS.items()]
        return {
            "tags": emptied(
                fault, spoil_rows(fault, tags, ids=("id",), required=("id",), nullable=("count",), texts=("name",))
            )
        }

    # ---------------------------------------------------------------------------------------------------- QR codes, figures

    def qrcode_create(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        action = body.get("action_name")
        info = body.get("action_info")
        scene = info.get("scene") if isinstance(info, dict) else None
        if action not in TEMPORARY_SCENES + PERMANENT_SCENES or not isinstance(scene, dict):
            raise WechatError(40053, "invalid action info")
        if "STR" in str(action):
            value = scene.get("scene_str")
            good = isinstance(value, str) and 1 <= len(value) <= 64
        else:
            value = scene.get("scene_id")
            good = isinstance(value, int) and 1 <= value <= (
                PERMANENT_CODES if action in PERMANENT_SCENES else 2**32 - 1
            )
        if not good:
            raise WechatError(40053, "invalid action info")
        alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789_-"
        ticket = "".join(self.world.chance.text(alphabet, 48, "ticket", action, value, part) for part in range(2))
        answer: Body = {"ticket": ticket}
        answer["url"] = f"http://weixin.qq.com/q/{ticket[:22]}"
        if action in TEMPORARY_SCENES:
            life = body.get("expire_seconds", 60)
            if not isinstance(life, int) or not 1 <= life <= LONGEST_CODE:
                raise WechatError(40052, "invalid expire_seconds")
            answer["expire_seconds"] = life
        elif (action, value) not in self.codes:
            if len(self.codes) >= PERMANENT_CODES:
                raise WechatError(45029, "qrcode count out of limit")
            self.codes.add((str(action), value))
        return answer

    def figures(self, interface: str, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        if request.method != "POST":
            raise WechatError(43002, "require POST method")
        return self.datacube.answer(interface, body, now, fault)

    # ---------------------------------------------------------------------------------------------------- customer service

    def custom_send(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        openid = str(body.get("touser", ""))
        follower = self.world.followers.get(openid)
        if follower is None:
            raise WechatError(40003, "invalid openid")
        content = self._content(body)
        if self.world.settings.custom_window:
            allowed, seconds = WINDOWS.get(follower.opened_by, (0, 0))
            if not follower.following or now - follower.opened_at >= seconds:
                raise WechatError(45015, "response out of time limit or subscription is canceled")
            if follower.answered >= allowed:
                raise WechatError(45047, "out of response count limit")
            follower.answered += 1
        self.world.counters.accept("wechat_service", openid, None, content, now, link_key=links(content)[0])
        receive(self.world, follower.person, "wechat_service", openid, content, now)
        return {"errcode": 0, "errmsg": "ok"}

    @staticmethod
    def _content(body: Body) -> str:
        """The message's content as text. Raises what the platform answers for an unknown type or an empty message."""
        kind = str(body.get("msgtype", ""))
        if kind not in CONTENT:
            raise WechatError(40008, "invalid message type")
        part = body.get(kind)
        value = part.get(CONTENT[kind]) if isinstance(part, dict) else None
        if not value:
            raise WechatError(44004, "empty content")
        if kind == "news" and len(value) > 1:
            raise WechatError(45008, "article size out of limit")
        return value if isinstance(value, str) else orjson.dumps(value).decode()

    # ---------------------------------------------------------------------------------------------------- templates

    def templates(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        return {
            "template_list": [
                {
                    "template_id": template_id,
                    "title": title,
                    "primary_industry": "消费品",
                    "deputy_industry": "消费品",
                    "content": "\n".join("{{" + name + ".DATA}}" for name in fields),
                    "example": "",
                }
                for template_id, (title, fields) in TEMPLATES.items()
            ]
        }

    def template_send(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        openid, template_id = str(body.get("touser", "")), str(body.get("template_id", ""))
        follower = self.world.followers.get(openid)
        if follower is None:
            raise WechatError(40003, "invalid openid")
        if template_id not in TEMPLATES:
            raise WechatError(40037, "invalid template_id")
        data = self._fields(body, TEMPLATES[template_id][1])
        if not follower.following:
            raise WechatError(43004, "require subscribe")
        self.serial += 1
        msgid = self.serial
        content = orjson.dumps({"template_id": template_id, "url": body.get("url"), "data": data}).decode()
        key = self.world.counters.accept(
            "wechat_template",
            openid,
            body.get("client_msg_id"),
            content,
            now,
            msgid=msgid,
            link_key=links(str(body.get("url") or ""))[0],
        )
        words = " ".join(str(entry.get("value")) for entry in data.values() if isinstance(entry, dict))
        if FORBIDDEN_IN_TEMPLATES.search(words):
            self.world.counters.violation("template message with advertising or a coupon (3.9)", openid, words, now)
        self._finish_template(follower, msgid, key, str(body.get("url") or ""), now, fault.kind if fault else "")
        return {"errcode": 0, "errmsg": "ok", "msgid": msgid}

    @staticmethod
    def _fields(body: Body, names: tuple[str, ...]) -> Body:
        """The fields of a template message or notice. Raises what the platform answers when one is missing or too long."""
        data = body.get("data")
        for name in names:
            entry = data.get(name) if isinstance(data, dict) else None
            value = str(entry.get("value") or "") if isinstance(entry, dict) else ""
            if not value:
                raise WechatError(47003, f"argument invalid! data.{name}.value is empty")
            if name.startswith("thing") and len(value) > 20:
                raise WechatError(47003, f"argument invalid! data.{name}.value invalid")
        return data if isinstance(data, dict) else {}

    def subscribe_send(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        """One consent, one notice."""
        openid, template_id = str(body.get("touser", "")), str(body.get("template_id", ""))
        follower, page = self.world.followers.get(openid), str(body.get("page") or "")
        if follower is None:
            raise WechatError(40003, "invalid openid")
        if template_id not in NOTICES:
            raise WechatError(40037, "invalid template_id")
        data = self._fields(body, NOTICES[template_id])
        if page and not page.startswith("https://"):
            raise WechatError(41030, "invalid page")
        if self.world.subscriptions[openid, template_id] < 1:
            raise WechatError(43101, "user refuse to accept the msg")
        self.world.subscriptions[openid, template_id] -= 1
        self.serial += 1
        msgid, key = self.serial, links(page)[0]
        content = orjson.dumps({"template_id": template_id, "page": page, "data": data}).decode()
        self.world.counters.accept("wechat_subscribe", openid, key, content, now, msgid=msgid, link_key=key)
        kind = fault.kind if fault else ""
        if kind != "user_block":
            receive(self.world, follower.person, "wechat_subscribe", openid, page, now)
        status = ("43101", "user refuse to accept the msg") if kind == "user_block" else ("0", "success")
        told = {"TemplateId": template_id, "MsgID": str(msgid), "ErrorCode": status[0], "ErrorStatus": status[1]}
        message = {"MsgType": "event", "Event": "subscribe_msg_sent_event", "SubscribeMsgSentEvent": {"List": [told]}}
        at = int(now) + self.world.chance.between(2, 20, "notice at", openid, msgid)
        for copy in range({"event_lost": 0, "event_twice": 2}.get(kind, 1)):
            self.world.later(at, partial(self.world.archive.add_push, APPID, openid, at, message, copy))
        return {"errcode": 0, "errmsg": "ok"} | ({"msgid": msgid} if self.world.settings.subscribe_msgid else {})

    def _finish_template(self, follower: Follower, msgid: int, key: str, url: str, now: float, fault: str) -> None:
        """Some seconds later the status event arrives; delivered messages reach the person."""
        world, draw = self.world, self.world.chance("template", follower.openid, key)
        settings = world.settings
        status = "success"
        if fault == "user_block" or draw < settings.template_blocked:
            status = "failed:user block"
        elif fault == "system_failed" or draw < settings.template_blocked + settings.template_failed:
            status = "failed: system failed"
        if status == "success":
            receive(world, follower.person, "wechat_template", follower.openid, url, now)
        if fault == "event_lost":
            return
        message = {"MsgType": "event", "Event": "TEMPLATESENDJOBFINISH", "MsgID": msgid, "Status": status}
        at = int(now) + world.chance.between(2, 20, "template at", follower.openid, key)
        for copy in range(2 if fault == "event_twice" else 1):
            world.later(at, partial(world.archive.add_push, APPID, follower.openid, at, message, copy))

    # ---------------------------------------------------------------------------------------------------- mass

    def mass_send(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        openids = body.get("touser")
        if not isinstance(openids, list) or len(openids) < MASS_LEAST:
            raise WechatError(40130, "invalid openid list size, at least two openid")
        if len(openids) > MASS_MOST:
            raise WechatError(40032, "invalid openid list size")
        content = self._content(body)
        client_id = body.get("clientmsgid")
        if client_id is not None:
            if not isinstance(client_id, str) or not 0 < len(client_id.encode()) <= 64:
                raise WechatError(40035, "invalid parameter, clientmsgid size out of limit")
            if client_id in self.mass_jobs:
                earlier = self.mass_jobs[client_id]
                raise WechatError(
                    45065, "clientmsgid exist", msg_id=earlier["msg_id"], msg_data_id=earlier["msg_data_id"]
                )
        self.serial += 1
        answer = {
            "errcode": 0,
            "errmsg": "send job submission success",
            "msg_id": self.serial,
            "msg_data_id": 2_600_000_000 + self.serial,
        }
        if client_id is not None:
            self.mass_jobs[client_id] = answer
        month = datetime.fromtimestamp(now, SHANGHAI).strftime("%Y-%m")
        reached: list[Follower] = []
        for openid in dict.fromkeys(map(str, openids)):
            follower = self.world.followers.get(openid)
            if follower and follower.following and follower.mass.get(month, 0) < self.world.settings.mass_per_month:
                follower.mass[month] = follower.mass.get(month, 0) + 1
                reached.append(follower)
        for follower in reached:
            self.world.counters.accept(
                "wechat_mass",
                follower.openid,
                client_id,
                content,
                now,
                msg_id=answer["msg_id"],
                link_key=links(content)[0],
            )
            receive(self.world, follower.person, "wechat_mass", follower.openid, content, now)
        at = int(now) + 60 + len(reached) // 1000
        self.mass_done[self.serial] = at
        message = {
            "MsgType": "event",
            "Event": "MASSSENDJOBFINISH",
            "MsgID": answer["msg_id"],
            "Status": "send success" if reached else "send fail",
            "TotalCount": len(openids),
            "FilterCount": len(reached),
            "SentCount": len(reached),
            "ErrorCount": 0,
        }
        if not (fault and fault.kind == "event_lost"):
            sender = reached[0].openid if reached else str(openids[0])  # the documents show some receiver
            for copy in range(2 if fault and fault.kind == "event_twice" else 1):
                self.world.later(at, partial(self.world.archive.add_push, APPID, sender, at, message, copy))
        return answer

    def mass_get(self, request: Request, body: Body, now: float, fault: Fault | None) -> Body:
        text = str(body.get("msg_id", ""))
        if not text.isdigit() or int(text) not in self.mass_done:
            raise WechatError(40059, "invalid msg id")
        status = "SEND_SUCCESS" if self.mass_done[int(text)] <= now else "SENDING"
        return {"msg_id": int(text), "msg_status": status}
