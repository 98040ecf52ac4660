"""Tencent Cloud SMS (2021-01-11): SendSms with a code per number behind TC3-HMAC-SHA256, statuses by number, receipts, replies."""

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from typing import Any

from .clock import DAY, HOUR, MINUTE, SHANGHAI, shop_time
from .faults import Fault
from .sms import (
    LINK,
    LONGEST_VALUE,
    MARKETING_HOURS,
    NUMBER,
    PROMOTION,
    SIGN,
    TEXTS,
    Carrier,
    Sms,
    parameters_of,
    parts_of,
)
from .state import World
from .wire import Answer, Request, json_answer

VERSION = "2021-01-11"
PREFIX = "/sms/tencent"
APP_ID = "1400000000"
TOLERANCE = 5 * MINUTE
MOST_NUMBERS = 200
LONGEST_SESSION = 511
REMEMBERED = 7 * DAY
LIMITED = {30: "PhoneNumberThirtySecondLimit", HOUR: "PhoneNumberOneHourLimit", DAY: "PhoneNumberDailyLimit"}
Body = dict[str, Any]
# Parameters are counted, in this order: code -> names in the text.
ORDER = {"200001": ("date", "title"), "200002": ("date", "title")}


class TencentError(Exception):
    """The request is refused as a whole."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Carrier(Carrier):
    def describe_reply(self, reply: tuple[str, str], at: int) -> Body:
        number, text = reply
        return {"extend": "", "mobile": number, "nationcode": "86", "sign": SIGN, "text": text, "time": at}

    def arrays(self, what: str, rows: list[Body]) -> list[Any]:
        return list(rows) if what == "replies" else [rows]


def report(sms: Sms, at: int) -> Body:
    """One row of the status callback. It does not repeat the session context: only the serial number names the message."""
    return {
        "user_receive_time": shop_time(at),
        "nationcode": "86",
        "mobile": sms.number,
        "report_status": "SUCCESS" if sms.success else "FAIL",
        "errmsg": sms.code or "DELIVRD",
        "description": "用户短信送达成功" if sms.success else "用户短信接收失败",
        "sid": sms.serial,
    }


class SmsTencent:
    platform = "sms_tencent"
    prefixes = (f"{PREFIX}/",)

    def __init__(self, world: World) -> None:
        self.world = world
        self.secret_id, self.secret_key = "AKID" + secrets.token_hex(16), secrets.token_hex(16)
        self.push_secret = secrets.token_hex(16)
        self.carrier = _Carrier(world, self.platform, "result", ("UNDELIV", "BLACK"))
        self.reset()

    def reset(self) -> None:
        self.serial = 0
        self.calls = 0
        self.carrier.reset()

    def access(self, base_url: str) -> Body:
        return {
            "base_url": base_url + PREFIX,
            "secret_id": self.secret_id,
            "secret_key": self.secret_key,
            "sdk_app_id": APP_ID,
            "push_secret": self.push_secret,  # what the receiver of its pushes may ask for; the vendor has none
            "sign_name": SIGN,
            "templates": {code: _counted(code, text) for code, (_, text) in TEXTS.items()},
        }

    def method(self, request: Request) -> str:
        return request.headers.get("x-tc-action", "")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        self.calls += 1
        request_id = f"{self.world.chance.bits('request', self.platform, self.calls):016x}"
        try:
            self._verify(request)
            actions = {
                "SendSms": self.send,
                "PullSmsSendStatusByPhoneNumber": self.statuses,
                "SendStatusStatistics": self.statistics,
            }
            action = actions.get(self.method(request))
            if action is None or request.headers.get("x-tc-version") != VERSION:
                raise TencentError("InvalidAction", "The request action or version is wrong.")
            if fault and fault.kind == "call_limit":
                raise TencentError("RequestLimitExceeded", "请求的次数超过了频率限制。")
            if fault and fault.kind == "platform_busy":
                raise TencentError("InternalError.OtherError", "其他错误。")
            body = action(self._body(request), fault)
            if fault and fault.kind == "busy_after":
                raise TencentError("InternalError.Timeout", "请求下发短信超时。")
        except TencentError as error:
            self.world.counters.refused[self.platform][error.code] += 1
            body = {"Error": {"Code": error.code, "Message": str(error)}}
        return json_answer({"Response": {**body, "RequestId": request_id}})

    def _verify(self, request: Request) -> None:
        headers = request.headers
        if not headers.get("x-tc-region"):
            raise TencentError("MissingParameter", "缺少参数 Region。")
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        given = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        key_id, _, scope = given.get("Credential", "").partition("/")
        names, stamp = given.get("SignedHeaders", "").split(";"), headers.get("x-tc-timestamp", "")
        if scheme != "TC3-HMAC-SHA256" or not {"content-type", "host"} <= set(names) or not stamp.isdigit():
            raise TencentError("AuthFailure.InvalidAuthorization", "请求头部的 Authorization 不符合腾讯云标准。")
        if abs(int(stamp) - self.world.now()) > TOLERANCE:
            raise TencentError("AuthFailure.SignatureExpire", "签名过期。")
        if key_id != self.secret_id:
            raise TencentError("AuthFailure.SecretIdNotFound", "密钥不存在。")
        heads = "".join(f"{name}:{headers.get(name, '').strip().lower()}\n" for name in sorted(names))
        body_hash = hashlib.sha256(request.body).hexdigest()
        path = request.raw_path.partition("?")[0]
        canonical = "\n".join([request.method, path, request.query_string, heads, ";".join(sorted(names)), body_hash])
        day = datetime.fromtimestamp(int(stamp), UTC).strftime("%Y-%m-%d")
        key = ("TC3" + self.secret_key).encode()
        for part in (day, "sms", "tc3_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        text = f"{scheme}\n{stamp}\n{day}/sms/tc3_request\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        wanted = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        if scope != f"{day}/sms/tc3_request" or not hmac.compare_digest(
            wanted.encode(), given.get("Signature", "").encode()
        ):
            raise TencentError("AuthFailure.SignatureFailure", "签名错误。")

    def _body(self, request: Request) -> Body:
        try:
            body = request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise TencentError("InvalidRequest", "请求体不是 JSON 对象。")
        if body.get("SmsSdkAppId") != APP_ID:
            raise TencentError("UnauthorizedOperation.SmsSdkAppIdVerifyFail", "SmsSdkAppId 校验失败。")
        return body

    # ---------------------------------------------------------------------------------------------------- SendSms

    def send(self, body: Body, fault: Fault | None) -> Body:
        numbers, code = body.get("PhoneNumberSet"), str(body.get("TemplateId") or "")
        if not isinstance(numbers, list) or not 1 <= len(numbers) <= MOST_NUMBERS:
            raise TencentError("LimitExceeded.PhoneNumberCountLimit", "号码数量超过限制。")
        if body.get("SignName") != SIGN:
            raise TencentError("FailedOperation.SignatureIncorrectOrUnapproved", "签名未审批或格式错误。")
        kind, text = TEXTS.get(code, ("", ""))
        if not text:
            raise TencentError(
                "FailedOperation.TemplateIncorrectOrUnapproved", "模板未审批或请求的内容与审核通过的模板内容不匹配。"
            )
        text = f"【{SIGN}】" + self._filled(code, text, body.get("TemplateParamSet") or [])
        session = str(body.get("SessionContext") or "")
        if len(session.encode()) > LONGEST_SESSION:
            raise TencentError("InvalidParameterValue.SessionContext", "SessionContext 过长。")
        hour = datetime.fromtimestamp(self.world.now(), SHANGHAI).hour
        if kind == PROMOTION and hour not in MARKETING_HOURS:
            raise TencentError("FailedOperation.MarketingSendTimeConstraint", "营销短信发送时间限制。")
        if fault and fault.kind == "no_money":
            raise TencentError("FailedOperation.InsufficientBalanceInSmsPackage", "套餐包余量不足。")
        return {"SendStatusSet": [self._one(str(number), text, kind, code, session, fault) for number in numbers]}

    def _one(self, number: str, text: str, kind: str, code: str, session: str, fault: Fault | None) -> Body:
        """What comes of one number; the others are not touched by it."""
        bare, now, settings = number.removeprefix("+86"), self.world.now(), self.world.settings
        answer: Body = {"SerialNo": "", "PhoneNumber": number, "Fee": 0, "SessionContext": session, "IsoCode": "CN"}
        if not NUMBER.fullmatch(bare):
            return self._refused(answer, "InvalidParameterValue.IncorrectPhoneNumber", "手机号格式错误")
        if bare in self.carrier.refused:
            return self._refused(answer, "FailedOperation.PhoneNumberInBlacklist", "手机号在免打扰名单库中")
        limits = {30: settings.tencent_sms_30_seconds, HOUR: settings.tencent_sms_hour, DAY: settings.tencent_sms_day}
        full = self.carrier.over((bare,), limits, now)
        if full is not None:
            return self._refused(answer, f"LimitExceeded.{LIMITED[full]}", "下发短信条数超过设定的上限")
        self.serial += 1
        serial = f"5000:{int(now)}{self.serial:012d}"
        self.carrier.carry(Sms(bare, text, SIGN, code, session, serial, int(now)), kind, fault, report)
        return answer | {"SerialNo": serial, "Fee": parts_of(text), "Code": "Ok", "Message": "send success"}

    def _refused(self, answer: Body, code: str, message: str) -> Body:
        self.world.counters.refused[self.platform][code] += 1
        return answer | {"Code": code, "Message": message}

    @staticmethod
    def _filled(code: str, text: str, values: Any) -> str:
        names = ORDER.get(code) or tuple(parameters_of(text))
        if not isinstance(values, list) or len(values) != len(names):
            raise TencentError(
                "FailedOperation.TemplateParamSetNotMatchApprovedTemplate", "请求内容与审核通过的模板内容不匹配。"
            )
        for value in values:
            if not isinstance(value, str) or not value or len(value) > LONGEST_VALUE or LINK.search(value):
                raise TencentError("InvalidParameterValue.TemplateParameterFormatError", "模板参数格式错误。")
            if "加微信" in value:
                raise TencentError("FailedOperation.ContainSensitiveWord", "短信内容中含有敏感词。")
        given = dict(zip(names, values, strict=True))
        return re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], text)

    # ---------------------------------------------------------------------------------------------------- statuses

    def statuses(self, body: Body, fault: Fault | None) -> Body:
        now, begin = self.world.now(), body.get("BeginTime")
        end, limit = body.get("EndTime", now), body.get("Limit")
        number = str(body.get("PhoneNumber") or "").removeprefix("+86")
        if not isinstance(begin, int) or not isinstance(limit, int) or not 1 <= limit <= 100 or body.get("Offset") != 0:
            raise TencentError("InvalidParameterValue", "参数取值错误。")
        if now - begin > REMEMBERED + DAY:
            raise TencentError("InvalidParameterValue.BeginTimeVerifyFail", "最大可拉取当前时期前7天的数据。")
        rows = [
            {
                "UserReceiveTime": sms.reported,
                "CountryCode": "86",
                "SubscriberNumber": sms.number,
                "PhoneNumber": f"+86{sms.number}",
                "SerialNo": sms.serial,
                "ReportStatus": "SUCCESS" if sms.success else "FAIL",
                "Description": sms.code or "DELIVRD",
                "SessionContext": sms.key,
            }
            for sms in self.carrier.sent
            if sms.number == number and begin <= sms.sent <= end and sms.reported is not None and sms.reported <= now
        ]
        return {"PullSmsSendStatusSet": [] if fault and fault.kind == "details_late" else rows[:limit]}

    def statistics(self, body: Body, fault: Fault | None) -> Body:
        if not all(re.fullmatch(r"\d{10}", str(body.get(name))) for name in ("BeginTime", "EndTime")):
            raise TencentError("InvalidParameterValue", "参数取值错误。")
        count = len(self.carrier.sent)
        fee = sum(parts_of(sms.text) for sms in self.carrier.sent)
        return {"SendStatusStatistics": {"FeeCount": fee, "RequestCount": count, "RequestSuccessCount": count}}


def _counted(code: str, text: str) -> str:
    """The approved text as this vendor shows it: {1} for the first parameter."""
    names = ORDER.get(code) or tuple(parameters_of(text))
    return re.sub(r"\$\{(\w+)\}", lambda found: "{" + str(names.index(found[1]) + 1) + "}", text)
