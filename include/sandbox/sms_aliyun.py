"""Aliyun SMS (Dysmsapi 2017-05-25): SendSms and QuerySendDetails behind both of the vendor's signatures, receipts, replies."""

import base64
import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote

import orjson

from .clock import DAY, MINUTE, SHANGHAI, day_of, shop_time
from .faults import Fault
from .sms import LINK, LONGEST_VALUE, NUMBER, SIGN, TEXTS, Carrier, Sms, parameters_of, parts_of, windows
from .state import World
from .wire import Answer, Request, json_answer

VERSION = "2017-05-25"
PREFIX = "/sms/aliyun"
TOLERANCE = 15 * MINUTE
MOST_NUMBERS = 1000
LONGEST_OUT_ID = 255
REMEMBERED = 30 * DAY
PERMITS = {60: "分钟", 3600: "小时", 86400: "天"}


class GatewayError(Exception):
    """The request does not get as far as the SMS service: 4xx."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class SmsError(Exception):
    """The SMS service says no: HTTP 200 with a code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Carrier(Carrier):
    def describe_reply(self, reply: tuple[str, str], at: int) -> dict[str, Any]:
        number, text = reply
        serial = self.world.chance.bits("reply", number, at) % 10**12
        return {
            "phone_number": number,
            "content": text,
            "sign_name": SIGN,
            "send_time": shop_time(at),
            "dest_code": "1069000000",
            "sequence_id": serial,
        }


def encode(text: str) -> str:
    return quote(text, safe="~")


def report(sms: Sms, at: int) -> dict[str, Any]:
    """One row of SmsReport."""
    return {
        "phone_number": sms.number,
        "send_time": shop_time(sms.sent),
        "report_time": shop_time(at),
        "success": sms.success,
        "err_code": sms.code or "DELIVERED",
        "err_msg": "用户接收成功" if sms.success else "用户未收到",
        "sms_size": str(parts_of(sms.text)),
        "biz_id": sms.serial,
        "out_id": sms.key,
    }


class SmsAliyun:
    platform = "sms_aliyun"
    prefixes = (f"{PREFIX}/",)

    def __init__(self, world: World) -> None:
        self.world = world
        self.key_id, self.secret = "LTAI" + secrets.token_hex(8), secrets.token_hex(15)
        self.push_secret = secrets.token_hex(16)
        self.carrier = _Carrier(world, self.platform, "code", ("MOBILE_NOT_ON_SERVICE", "USER_REJECT"))
        self.reset()

    def reset(self) -> None:
        self.nonces: set[str] = set()
        self.serial = 900_000_000_000_000_000
        self.carrier.reset()

    def access(self, base_url: str) -> dict[str, Any]:
        return {
            "base_url": base_url + PREFIX,
            "access_key_id": self.key_id,
            "access_key_secret": self.secret,
            "push_secret": self.push_secret,  # what the receiver of its pushes may ask for; the vendor has none
            "sign_name": SIGN,
            "templates": {f"SMS_{code}": text for code, (_, text) in TEXTS.items()},
        }

    def method(self, request: Request) -> str:
        return request.headers.get("x-acs-action") or request.form.get("Action", "")

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        number = self.world.chance.bits("request", self.platform, len(self.nonces))
        request_id = f"{number:016X}"
        try:
            parameters = self._verify(request)
            action = {"SendSms": self.send, "QuerySendDetails": self.details}.get(self.method(request))
            if action is None:
                raise GatewayError(404, "InvalidAction.NotFound", "Specified api is not found.")
            if fault and fault.kind == "call_limit":
                raise GatewayError(400, "Throttling.User", "Request was denied due to user flow control.")
            if fault and fault.kind == "platform_busy":
                raise SmsError("isp.SYSTEM_ERROR", "系统错误")
            body = action(parameters, fault)
            if fault and fault.kind == "busy_after":
                raise SmsError("isp.SYSTEM_ERROR", "系统错误")
            return json_answer({"RequestId": request_id, "Message": "OK", "Code": "OK", **body})
        except GatewayError as error:
            self.world.counters.refused[self.platform][error.code] += 1
            said = {
                "Code": error.code,
                "Message": str(error),
                "RequestId": request_id,
                "HostId": "dysmsapi.aliyuncs.com",
            }
            return json_answer(said, error.status)
        except SmsError as error:
            self.world.counters.refused[self.platform][error.code] += 1
            return json_answer({"Code": error.code, "Message": str(error), "RequestId": request_id})

    # ---------------------------------------------------------------------------------------------------- signatures

    def _verify(self, request: Request) -> dict[str, str]:
        """The parameters of a request whose signature, clock and nonce are good; V3 when it has the header, else V1."""
        sent = dict(parse_qsl(request.query_string, keep_blank_values=True))
        if "authorization" in request.headers:
            key_id, wanted, given = self._v3(request, sent)
            at, nonce = request.headers.get("x-acs-date", ""), request.headers.get("x-acs-signature-nonce", "")
            version = request.headers.get("x-acs-version")
        else:
            sent = dict(request.form)
            given = sent.pop("Signature", "")
            key_id, at, nonce = (sent.get(name, "") for name in ("AccessKeyId", "Timestamp", "SignatureNonce"))
            version, wanted = sent.get("Version"), self._v1(request.method, sent)
        if key_id != self.key_id:
            raise GatewayError(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise GatewayError(400, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation.")
        try:
            moment = datetime.strptime(at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
        except ValueError:
            raise GatewayError(
                400, "InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted."
            ) from None
        if abs(moment - self.world.now()) > TOLERANCE:
            raise GatewayError(400, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
        if not nonce or nonce in self.nonces:
            raise GatewayError(400, "SignatureNonceUsed", "Specified signature nonce was used already.")
        self.nonces.add(nonce)
        if version != VERSION:
            raise GatewayError(404, "InvalidVersion", "Specified parameter Version is not valid.")
        return sent

    def _v3(self, request: Request, query: dict[str, str]) -> tuple[str, str, str]:
        """(key id, the signature it should have, the one it has)"""
        scheme, _, rest = request.headers["authorization"].partition(" ")
        given = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        names = given.get("SignedHeaders", "").split(";")
        needed = {"host"} | {name for name in request.headers if name.startswith("x-acs-")}
        body_hash = hashlib.sha256(request.body).hexdigest()
        if (
            scheme != "ACS3-HMAC-SHA256"
            or not needed <= set(names)
            or request.headers.get("x-acs-content-sha256") != body_hash
        ):
            raise GatewayError(400, "IncompleteSignature", "The request signature does not conform to standards.")
        heads = "".join(f"{name}:{request.headers.get(name, '').strip()}\n" for name in sorted(names))
        path = request.raw_path.partition("?")[0]
        ordered = "&".join(f"{encode(name)}={encode(value)}" for name, value in sorted(query.items()))
        canonical = "\n".join([request.method, path, ordered, heads, ";".join(sorted(names)), body_hash])
        text = f"{scheme}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.new(self.secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        return given.get("Credential", ""), signature, given.get("Signature", "")

    def _v1(self, method: str, parameters: dict[str, str]) -> str:
        ordered = "&".join(f"{encode(name)}={encode(value)}" for name, value in sorted(parameters.items()))
        text = f"{method}&%2F&{encode(ordered)}"
        return base64.b64encode(hmac.new(f"{self.secret}&".encode(), text.encode(), hashlib.sha1).digest()).decode()

    # ---------------------------------------------------------------------------------------------------- SendSms

    def send(self, given: dict[str, str], fault: Fault | None) -> dict[str, Any]:
        now = self.world.now()
        numbers = given.get("PhoneNumbers", "").split(",")
        if len(numbers) > MOST_NUMBERS:
            raise SmsError("isv.MOBILE_COUNT_OVER_LIMIT", "手机号码数量超过限制")
        if not all(NUMBER.fullmatch(number) for number in numbers):
            raise SmsError(
                "isv.MOBILE_NUMBER_ILLEGAL",
                f"{next(n for n in numbers if not NUMBER.fullmatch(n))}invalid mobile number",
            )
        if given.get("SignName") != SIGN:
            raise SmsError("isv.SMS_SIGNATURE_ILLEGAL", "该账号下找不到对应签名")
        code = given.get("TemplateCode", "")
        kind, text = TEXTS.get(code.removeprefix("SMS_"), ("", "")) if code.startswith("SMS_") else ("", "")
        if not text:
            raise SmsError("isv.SMS_TEMPLATE_ILLEGAL", "该账号下找不到对应模板")
        if len(given.get("OutId", "").encode()) > LONGEST_OUT_ID:
            raise SmsError("isv.INVALID_PARAMETERS", "OutId过长")
        text = f"【{SIGN}】" + self._filled(text, given.get("TemplateParam", ""))
        if fault and fault.kind == "no_money":
            raise SmsError("isv.AMOUNT_NOT_ENOUGH", "账户余额不足")
        settings = self.world.settings
        limits = windows(settings.aliyun_sms_minute, settings.aliyun_sms_hour, settings.aliyun_sms_day)
        for number in numbers:
            full = self.carrier.over((number, SIGN, code), limits, now)
            if full is not None:
                raise SmsError("isv.BUSINESS_LIMIT_CONTROL", f"触发{PERMITS[full]}级流控Permits:{limits[full]}")
        self.serial += 1
        serial = f"{self.serial}^0"
        for number in numbers:
            sms = Sms(number, text, SIGN, code, given.get("OutId", ""), serial, int(now))
            self.carrier.carry(sms, kind, fault, report)
        return {"BizId": serial}

    @staticmethod
    def _filled(text: str, given: str) -> str:
        wanted = parameters_of(text)
        try:
            values = orjson.loads(given) if given else {}
        except orjson.JSONDecodeError:
            values = None
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise SmsError("isv.INVALID_JSON_PARAM", "JSON参数不合法，只接受字符串值")
        for name in wanted:
            value = values.get(name, "")
            if not value:
                raise SmsError("isv.TEMPLATE_MISSING_PARAMETERS", f"模板缺少变量{name}")
            if len(value) > LONGEST_VALUE:
                raise SmsError("isv.PARAM_LENGTH_LIMIT", "参数超出长度限制")
            if LINK.search(value):
                raise SmsError("isv.PARAM_NOT_SUPPORT_URL", "不支持URL")
            if "加微信" in value:
                raise SmsError("isv.BLACK_KEY_CONTROL_LIMIT", "黑名单管控")
        return re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], text)

    # ---------------------------------------------------------------------------------------------------- details

    def details(self, given: dict[str, str], fault: Fault | None) -> dict[str, Any]:
        now, number = self.world.now(), given.get("PhoneNumber", "")
        try:
            day = datetime.strptime(given.get("SendDate", ""), "%Y%m%d").replace(tzinfo=SHANGHAI)
            size, page = int(given.get("PageSize", "")), int(given.get("CurrentPage", ""))
        except ValueError:
            raise SmsError("isv.INVALID_PARAMETERS", "参数错误") from None
        if not NUMBER.fullmatch(number):
            raise SmsError("isv.MOBILE_NUMBER_ILLEGAL", "非法手机号")
        if not (1 <= size <= 50 and page >= 1) or now - day.timestamp() > REMEMBERED + DAY:
            raise SmsError("isv.INVALID_PARAMETERS", "参数错误")
        end = (day + timedelta(days=1)).date()
        found = [
            sms
            for sms in reversed(self.carrier.sent)
            if sms.number == number
            and day.date() <= day_of(sms.sent) < end
            and given.get("BizId", sms.serial) == sms.serial
        ]
        if fault and fault.kind == "details_late":
            found = []
        rows = [self._detail(sms, now) for sms in found[(page - 1) * size : page * size]]
        return {"TotalCount": str(len(found)), "SmsSendDetailDTOs": {"SmsSendDetailDTO": rows}}

    @staticmethod
    def _detail(sms: Sms, now: float) -> dict[str, Any]:
        is_reported = sms.reported is not None and sms.reported <= now
        row: dict[str, Any] = {
            "PhoneNum": sms.number,
            "SendStatus": (3 if sms.success else 2) if is_reported else 1,
            "TemplateCode": sms.template,
            "Content": sms.text,
            "SendDate": shop_time(sms.sent),
            "OutId": sms.key,
        }
        if is_reported and sms.reported is not None:
            row |= {"ErrCode": sms.code or "DELIVERED", "ReceiveDate": shop_time(sms.reported)}
        return row
