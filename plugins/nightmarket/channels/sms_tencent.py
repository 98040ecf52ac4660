"""SMS through Tencent Cloud (腾讯云短信, 2021-01-11): SendSms, and PullSmsSendStatusByPhoneNumber about what is in doubt.

Wire facts: docs/connections/sms_tencent.md. Signed with TC3-HMAC-SHA256.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import urlsplit

import orjson

from nightmarket import dates
from nightmarket.channels.base import Answer, Call, Outcome, Question, post
from nightmarket.channels.sms import SmsChannel, seconds_until, stopped, tomorrow, without_numbers
from nightmarket.privacy import normalise
from nightmarket.settings import ConfigError, Credentials

API = "https://sms.tencentcloudapi.com"  # when the connection names no host
VERSION = "2021-01-11"
SERVICE = "sms"
REGION = "ap-guangzhou"
ALGORITHM = "TC3-HMAC-SHA256"
CONTENT_TYPE = "application/json; charset=utf-8"
SESSION_BYTES = 511
REMEMBERED_DAYS = 7  # how far back statuses can be asked for
MARKETING_HOUR = 8  # marketing goes out from 08:00 to 22:00

DROP_RECEIVER = {
    "FailedOperation.PhoneNumberInBlacklist": "on the vendor's black list",
    "InvalidParameterValue.IncorrectPhoneNumber": "invalid number",
}
WAIT_SECONDS = {  # limits of one number; the vendor does not publish how many messages they allow
    "LimitExceeded.PhoneNumberThirtySecondLimit": 30.0,
    "LimitExceeded.PhoneNumberOneHourLimit": 3600.0,
    "LimitExceeded.DeliveryFrequencyLimit": 3600.0,
}
NUMBER_DAY_LIMIT = "LimitExceeded.PhoneNumberDailyLimit"
BAD_VALUES = {"FailedOperation.ContainSensitiveWord": "the text holds a forbidden word"}
NEEDS_A_PERSON = {
    "FailedOperation.TemplateIncorrectOrUnapproved": "the template does not exist, is not approved or has other variables",
    "FailedOperation.SignatureIncorrectOrUnapproved": "the signature does not exist or is not approved",
    "FailedOperation.InsufficientBalanceInSmsPackage": "the package of messages is used up",
    "AuthFailure.SignatureFailure": "the signature is refused; check the secret key",
    "AuthFailure.SignatureExpire": "our clock is more than 5 minutes off",
    "AuthFailure.SecretIdNotFound": "the secret id does not exist",
}


def canonical_hash(headers: Mapping[str, str], body: bytes, path: str = "/") -> str:
    """Hex SHA-256 of the canonical form of a POST; `headers` are the signed ones, their names in lower case."""
    lines = [f"{name}:{value}" for name, value in sorted(headers.items())]
    request = ["POST", path, "", *lines, "", ";".join(sorted(headers)), hashlib.sha256(body).hexdigest()]
    return hashlib.sha256("\n".join(request).encode()).hexdigest()


def sign_tc3(canonical: str, secret: str, service: str, timestamp: int) -> str:
    """TC3-HMAC-SHA256: hex, for the header Authorization."""
    day = f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d}"
    key = f"TC3{secret}".encode()
    for part in (day, service, "tc3_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"{ALGORITHM}\n{timestamp}\n{day}/{service}/tc3_request\n{canonical}"
    return hmac.digest(key, text.encode(), "sha256").hex()


class SmsTencent(SmsChannel):
    """One number a call, as with the other vendor; each number has a code of its own inside an answer that is always 200."""

    name: ClassVar[str] = "sms_tencent"

    def __init__(self, credentials: Credentials, *, connections: int, timeout_seconds: float) -> None:
        super().__init__(credentials, connections=connections, timeout_seconds=timeout_seconds)
        credentials.require({"login": "secret id", "password": "secret key", "extra.sdk_app_id": "SmsSdkAppId"})
        self._base = (credentials.host or API).rstrip("/")
        self._app = str(credentials.extra["sdk_app_id"])
        self._region = str(credentials.extra.get("region") or REGION)

    async def send_to(self, number: str, call: Call) -> Outcome:
        if len(call.key.encode()) > SESSION_BYTES:
            return Outcome("refused", code="session", message=f"the message key is longer than {SESSION_BYTES} bytes")
        answer = await self.call(
            "SendSms",
            {
                "PhoneNumberSet": [f"+86{number}"],
                "SmsSdkAppId": self._app,
                "SignName": call.content.sign,
                "TemplateId": call.content.template_id,
                "TemplateParamSet": list(call.content.fields.values()),  # {1}, {2}: in the template's order
                "SessionContext": call.key,
            },
        )
        if isinstance(answer, Outcome):
            return answer
        status, response = answer.status, _response(answer)
        if error := _error(response):
            return self._judge(status, *error)
        rows = response.get("SendStatusSet")
        if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], dict):
            return Outcome("unknown", "", status, "bad_payload", "the answer does not say what came of the number")
        code, serial = str(rows[0].get("Code") or ""), str(rows[0].get("SerialNo") or "")
        if code == "Ok":
            return Outcome("accepted", serial, status, code)
        return self._judge(status, code, without_numbers(rows[0].get("Message")))

    async def ask(self, question: Question) -> Outcome:
        """Looks for our key among the receipts of the number. Without a receipt nobody can know: never sent again by itself."""
        if dates.now() - question.asked_at > timedelta(days=REMEMBERED_DAYS):
            return Outcome("unknown", code="too_late", message=f"the vendor remembers {REMEMBERED_DAYS} days")
        answer = await self.call(
            "PullSmsSendStatusByPhoneNumber",
            {
                "BeginTime": int(question.asked_at.timestamp()) - 60,
                "EndTime": int(dates.now().timestamp()) + 60,
                "Offset": 0,
                "Limit": 100,
                "PhoneNumber": f"+86{normalise('phone', question.address)}",
                "SmsSdkAppId": self._app,
            },
        )
        if isinstance(answer, Outcome):
            return Outcome("unknown", code=answer.code, message="the question was not answered")
        response = _response(answer)
        rows = response.get("PullSmsSendStatusSet")
        if not isinstance(rows, list) or _error(response):
            code, words = _error(response) or ("bad_payload", "the answer holds no list")
            return Outcome("unknown", "", answer.status, code, words)
        for row in rows:
            serial = str(row.get("SerialNo") or "")
            if row.get("SessionContext") == question.key or (serial and serial == question.platform_message_id):
                code = str(row.get("Description") or "")[:100]
                if row.get("ReportStatus") == "SUCCESS":
                    return Outcome("accepted", serial, answer.status, code, "delivered")
                return Outcome("refused", serial, answer.status, code, "not delivered")
        return Outcome("unknown", "", answer.status, "absent", "the vendor has no receipt for it")

    async def check(self) -> str:
        """Reads the statistics of this hour: nothing is sent, but key and application must be good."""
        hour = f"{dates.now().astimezone(dates.DEFAULT_ZONE):%Y%m%d%H}"
        body = {"BeginTime": hour, "EndTime": hour, "Limit": 0, "Offset": 0, "SmsSdkAppId": self._app}
        answer = await self.call("SendStatusStatistics", body)
        if isinstance(answer, Outcome):
            raise ConfigError(f"Tencent SMS does not answer: {answer.message} ({answer.code}).")
        if error := _error(_response(answer)):
            raise ConfigError(f"Tencent SMS refuses us: {NEEDS_A_PERSON.get(error[0], error[1])} ({error[0]}).")
        return f"Tencent SMS: the key works for application {self._app}"

    async def call(self, action: str, body: Mapping[str, Any]) -> Answer | Outcome:
        """One signed call; an Answer with whatever `Response`, an Outcome when the network spoke."""
        payload, timestamp = orjson.dumps(body), int(dates.now().timestamp())
        address = urlsplit(self._base)
        signed = {"content-type": CONTENT_TYPE, "host": address.netloc}
        canonical = canonical_hash(signed, payload, f"{address.path}/")
        signature = sign_tc3(canonical, self.credentials.password, SERVICE, timestamp)
        day = f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d}"
        scope = f"{self.credentials.login}/{day}/{SERVICE}/tc3_request"
        head = {
            "Authorization": f"{ALGORITHM} Credential={scope}, SignedHeaders=content-type;host, Signature={signature}",
            "Content-Type": CONTENT_TYPE,
            "X-TC-Action": action,
            "X-TC-Version": VERSION,
            "X-TC-Region": self._region,
            "X-TC-Timestamp": str(timestamp),
        }
        return await post(self._session, f"{self._base}/", payload, head)

    def _judge(self, status: int, code: str, said: str) -> Outcome:
        """What a code means; the same ones come for a number and for the whole request."""
        if code in DROP_RECEIVER:
            return Outcome("refused", "", status, code, said, suppress=DROP_RECEIVER[code])
        if code in WAIT_SECONDS:
            return Outcome("retry", "", status, code, said, WAIT_SECONDS[code])
        if code == NUMBER_DAY_LIMIT:
            return Outcome("retry", "", status, code, said, seconds_until(tomorrow()))
        if code == "FailedOperation.MarketingSendTimeConstraint":
            today = seconds_until(dates.today(), MARKETING_HOUR)
            return stopped(
                status, code, "marketing may not go out now", today or seconds_until(tomorrow(), MARKETING_HOUR)
            )
        if code in BAD_VALUES:
            return self.bad_value(status, code, BAD_VALUES[code])
        if code in NEEDS_A_PERSON:
            return stopped(status, code, NEEDS_A_PERSON[code])
        if code.startswith(("RequestLimitExceeded", "LimitExceeded")):
            return Outcome("retry", "", status, code, "too many calls", 1)
        if not code or code.startswith("InternalError"):
            return Outcome("unknown", "", status, code or "bad_payload", said)
        if code.startswith(
            ("AuthFailure", "UnauthorizedOperation", "InvalidParameter", "MissingParameter", "Unsupported")
        ):
            return stopped(status, code, said)
        return Outcome("refused", "", status, code, said)


def _response(answer: Answer) -> Mapping[str, Any]:
    response = answer.data.get("Response")
    return response if isinstance(response, dict) else {}


def _error(response: Mapping[str, Any]) -> tuple[str, str] | None:
    """(code, words) of a request that was refused as a whole."""
    error = response.get("Error")
    return (str(error.get("Code") or ""), without_numbers(error.get("Message"))) if isinstance(error, dict) else None
