"""SMS through Aliyun (阿里云短信服务, Dysmsapi 2017-05-25): SendSms, and QuerySendDetails about what is in doubt.

Wire facts: docs/connections/sms_aliyun.md. Both of the vendor's signatures stand here as functions; calls use ACS3-HMAC-SHA256.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import orjson

from nightmarket import dates
from nightmarket.channels.base import Answer, Call, Outcome, Question, post
from nightmarket.channels.sms import SmsChannel, next_month, seconds_until, stopped, tomorrow, without_numbers
from nightmarket.privacy import normalise
from nightmarket.settings import ConfigError, Credentials

API = "https://dysmsapi.aliyuncs.com"  # when the connection names no host
VERSION = "2017-05-25"
ALGORITHM = "ACS3-HMAC-SHA256"
OUT_ID_BYTES = 255
PAGE_SIZE = 50
MAX_PAGES = 20  # a number that got a thousand messages on one day
NUMBER_LIMIT_SECONDS = 3600.0  # the windows of a number roll: minute, hour, day; an hour later is soon enough
MIDNIGHT_MINUTES = 10  # a call begun so shortly before midnight may stand under the next day
NOBODY = "10000000000"  # no Chinese mobile number begins with 100

DROP_RECEIVER = {
    "isv.MOBILE_NUMBER_ILLEGAL": "invalid number",
    "isv.DOMESTIC_NUMBER_NOT_SUPPORTED": "not a mainland number",
}
BAD_VALUES = {
    "isv.PARAM_LENGTH_LIMIT": "a value is longer than the template allows",
    "isv.PARAM_NOT_SUPPORT_URL": "a value holds a link",
    "isv.BLACK_KEY_CONTROL_LIMIT": "a value holds a forbidden word",
    "isv.SMS_CONTENT_ILLEGAL": "the text holds forbidden content",
}
NEEDS_A_PERSON = {
    "isv.SMS_TEMPLATE_ILLEGAL": "the template does not exist or is not approved",
    "isv.SMS_SIGNATURE_ILLEGAL": "the signature does not exist or is not approved",
    "isv.SMS_SIGN_ILLEGAL": "the signature is not approved",
    "isv.SIGN_STATE_ILLEGAL": "the signature is not usable",
    "isv.SMS_SIGNATURE_SCENE_ILLEGAL": "the signature is not for this kind of message",
    "isv.TEMPLATE_MISSING_PARAMETERS": "the template has a variable that we do not send",
    "isv.INVALID_PARAMETERS": "a parameter is invalid",
    "isv.INVALID_JSON_PARAM": "TemplateParam is not the JSON that is wanted",
    "isv.EXTEND_CODE_ERROR": "the extension code is wrong",
    "isv.MOBILE_COUNT_OVER_LIMIT": "too many numbers in one call",
    "isv.AMOUNT_NOT_ENOUGH": "the account has no money left",
    "isv.OUT_OF_SERVICE": "the account is stopped",
    "isv.PRODUCT_UN_SUBSCRIPT": "the account has not opened SMS",
    "isv.PRODUCT_UNSUBSCRIBE": "the account has not opened SMS",
    "isv.ACCOUNT_NOT_EXISTS": "the account does not exist",
    "isv.ACCOUNT_ABNORMAL": "the account is blocked",
    "isv.DENY_IP_RANGE": "this machine's address is not allowed",
    "isp.RAM_PERMISSION_DENY": "the access key may not send SMS; give it AliyunDysmsFullAccess",
    "SignatureDoesNotMatch": "the signature is refused; check the access key secret",
    "InvalidTimeStamp.Expired": "our clock is more than 15 minutes off",
}
SIGNATURE_NONCE_USED = "SignatureNonceUsed"


def encode(text: str) -> str:
    """Percent-encoding of RFC 3986, as both signatures want it."""
    return quote(text, safe="~")


def canonical_query(parameters: Mapping[str, str]) -> str:
    return "&".join(f"{encode(name)}={encode(value)}" for name, value in sorted(parameters.items()))


def sign_v1(method: str, parameters: Mapping[str, str], secret: str) -> str:
    """The RPC signature, HMAC-SHA1: base64, for the parameter `Signature`. Old interfaces of the vendor still want it."""
    text = f"{method}&{encode('/')}&{encode(canonical_query(parameters))}"
    return base64.b64encode(hmac.digest(f"{secret}&".encode(), text.encode(), "sha1")).decode()


def canonical_hash(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> str:
    """Hex SHA-256 of a request's canonical form; `headers` are the signed ones, their names in lower case."""
    lines = [f"{name}:{value.strip()}" for name, value in sorted(headers.items())]
    request = [method, path, canonical_query(query), *lines, "", ";".join(sorted(headers)), _sha256(body)]
    return _sha256("\n".join(request).encode())


def sign_v3(canonical: str, secret: str) -> str:
    """ACS3-HMAC-SHA256: hex, for the header Authorization."""
    return hmac.digest(secret.encode(), f"{ALGORITHM}\n{canonical}".encode(), "sha256").hex()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class SmsAliyun(SmsChannel):
    """One number a call: a call for many would be one answer for all of them, and all of them in doubt together."""

    name: ClassVar[str] = "sms_aliyun"

    def __init__(self, credentials: Credentials, *, connections: int, timeout_seconds: float) -> None:
        super().__init__(credentials, connections=connections, timeout_seconds=timeout_seconds)
        credentials.require({"login": "access key id", "password": "access key secret"})
        self._base = (credentials.host or API).rstrip("/")
        self._absent_seconds = _seconds_option(credentials)

    async def send_to(self, number: str, call: Call) -> Outcome:
        if len(call.key.encode()) > OUT_ID_BYTES:
            return Outcome("refused", code="out_id", message=f"the message key is longer than {OUT_ID_BYTES} bytes")
        parameters = {
            "PhoneNumbers": number,
            "SignName": call.content.sign,
            "TemplateCode": call.content.template_id,
            "OutId": call.key,
        }
        if call.content.fields:
            parameters["TemplateParam"] = orjson.dumps(dict(call.content.fields)).decode()
        answer = await self.call("SendSms", parameters)
        return answer if isinstance(answer, Outcome) else self._judge(answer)

    async def ask(self, question: Question) -> Outcome:
        """Looks for our key among what the number got on the day of the call (and the next one, around midnight).

        A message that is not there is unknown: the list may be late. Only extra.absent_is_unsent_after_seconds of the
        connection says after how long its absence proves that it was not sent.
        """
        first = question.asked_at.astimezone(dates.DEFAULT_ZONE)
        days = sorted({(first + timedelta(minutes=minutes)).date() for minutes in (0, MIDNIGHT_MINUTES)})
        found: list[Mapping[str, Any]] = []
        for day in days:
            for page in range(1, MAX_PAGES + 1):
                parameters = {
                    "PhoneNumber": normalise("phone", question.address),
                    "SendDate": f"{day:%Y%m%d}",
                    "PageSize": str(PAGE_SIZE),
                    "CurrentPage": str(page),
                }
                answer = await self.call("QuerySendDetails", parameters)
                rows = None if isinstance(answer, Outcome) else _details(answer)
                if rows is None:
                    code = answer.code if isinstance(answer, Outcome) else str(answer.data.get("Code") or "bad_payload")
                    return Outcome("unknown", code=code, message="the question was not answered")
                found += [row for row in rows if row.get("OutId") == question.key]
                if len(rows) < PAGE_SIZE:
                    break
            else:
                return Outcome("unknown", code="too_many", message="the number got too many messages to look through")
        return self._meaning(found, question)

    def _meaning(self, found: list[Mapping[str, Any]], question: Question) -> Outcome:
        states = {int(row.get("SendStatus") or 0): str(row.get("ErrCode") or "") for row in found}
        if 3 in states:
            return Outcome("accepted", question.platform_message_id, code=states[3], message="delivered")
        if 1 in states:
            return Outcome("unknown", code="waiting", message="the vendor has it and waits for the carrier")
        if 2 in states:
            return Outcome("refused", code=states[2], message="not delivered")
        age = (dates.now() - question.asked_at).total_seconds()
        if not found and self._absent_seconds is not None and age > self._absent_seconds:
            return Outcome("retry", code="absent", message=f"the vendor knows nothing of it after {age:.0f} s")
        return Outcome("unknown", code="absent", message="the vendor does not list it")

    async def call(self, action: str, parameters: Mapping[str, str]) -> Answer | Outcome:
        """One signed call; an Answer with whatever `Code`, an Outcome when the network or the gateway spoke."""
        address = urlsplit(self._base)
        signed = {
            "host": address.netloc,
            "x-acs-action": action,
            "x-acs-content-sha256": _sha256(b""),
            "x-acs-date": f"{dates.now().astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "x-acs-signature-nonce": secrets.token_hex(16),
            "x-acs-version": VERSION,
        }
        canonical = canonical_hash("POST", f"{address.path}/", parameters, signed, b"")
        signature = sign_v3(canonical, self.credentials.password)
        head = {name: value for name, value in signed.items() if name != "host"}
        names = ";".join(sorted(signed))
        head["Authorization"] = (
            f"{ALGORITHM} Credential={self.credentials.login},SignedHeaders={names},Signature={signature}"
        )
        return await post(self._session, f"{self._base}/?{canonical_query(parameters)}", b"", head)

    async def check(self) -> str:
        """Asks about a number that cannot exist: nothing is sent, but the key must be good."""
        today = f"{dates.today():%Y%m%d}"
        parameters = {"PhoneNumber": NOBODY, "SendDate": today, "PageSize": "1", "CurrentPage": "1"}
        answer = await self.call("QuerySendDetails", parameters)
        if isinstance(answer, Outcome):
            raise ConfigError(f"Aliyun SMS does not answer: {answer.message} ({answer.code}).")
        code = str(answer.data.get("Code") or "")
        if code in NEEDS_A_PERSON or not (code == "OK" or code.startswith("isv.")):
            words = NEEDS_A_PERSON.get(code) or without_numbers(answer.data.get("Message"))
            raise ConfigError(f"Aliyun SMS refuses us: {words} ({code}).")
        return f"Aliyun SMS: the access key {self.credentials.login[:4]}… works"

    def _judge(self, answer: Answer) -> Outcome:
        status, code = answer.status, str(answer.data.get("Code") or "")
        if code == "OK" and status == 200:
            return Outcome("accepted", str(answer.data.get("BizId") or ""), status, code)
        said = without_numbers(answer.data.get("Message"))
        if code in DROP_RECEIVER:
            return Outcome("refused", "", status, code, said, suppress=DROP_RECEIVER[code])
        if code == "isv.BUSINESS_LIMIT_CONTROL":
            return Outcome("retry", "", status, code, said, NUMBER_LIMIT_SECONDS)
        if code == "isv.DAY_LIMIT_CONTROL":
            return stopped(status, code, "the account's limit of today is reached", seconds_until(tomorrow()))
        if code == "isv.MONTH_LIMIT_CONTROL":
            return stopped(status, code, "the account's limit of this month is reached", seconds_until(next_month()))
        if code in BAD_VALUES:
            return self.bad_value(status, code, BAD_VALUES[code])
        if code.startswith("Throttling"):
            return Outcome("retry", "", status, code, "too many calls", 1)
        if code == SIGNATURE_NONCE_USED:  # a copy of this very call was there before, and may have been carried out
            return Outcome("unknown", "", status, code, "the vendor has seen this call before")
        if code in NEEDS_A_PERSON:
            return stopped(status, code, NEEDS_A_PERSON[code])
        if code.startswith("isv."):
            return Outcome("refused", "", status, code, said)
        if status != 200 and code:  # the gateway turned it away: nothing was sent
            return stopped(status, code, said)
        return Outcome("unknown", "", status, code or "bad_payload", said)  # isp.SYSTEM_ERROR: ask before sending again


def _details(answer: Answer) -> list[Mapping[str, Any]] | None:
    """The rows of QuerySendDetails, or None when it was refused or is not in the shape that is documented."""
    outer = answer.data.get("SmsSendDetailDTOs")
    rows = outer.get("SmsSendDetailDTO") if isinstance(outer, dict) else None
    if answer.data.get("Code") != "OK" or not isinstance(rows, list):
        return None
    return rows if all(isinstance(row, dict) for row in rows) else None


def _seconds_option(credentials: Credentials) -> float | None:
    value = credentials.extra.get("absent_is_unsent_after_seconds")
    if value in (None, ""):
        return None
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = -1
    if seconds <= 0:
        raise ConfigError(
            f"connection {credentials.conn_id!r}: extra.absent_is_unsent_after_seconds must be a number of seconds above 0."
        )
    return seconds
