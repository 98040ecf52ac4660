"""The sandbox's vendors of SMS on the wire: signatures, limits, receipts and replies as pushes, what people do with a message."""

import base64
import hashlib
import hmac
import http.server
import json
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from sandbox_client import RawClient

MORNING = "2026-03-15T10:00:00+08:00"
EMPTY = hashlib.sha256(b"").hexdigest()


def encode(text: str) -> str:
    return quote(text, safe="~")


class Raw(RawClient):
    """Requests signed by code written from the vendors' documents."""

    def move(self, **by: float) -> None:
        moment = (datetime.fromisoformat(MORNING) + timedelta(**by)).isoformat()
        self.control("POST", "/clock", {"now": moment}).raise_for_status()

    def phones(self, count: int) -> list[str]:
        return [person["phone"] for person in self.control("GET", "/people").json()["people"][:count]]

    def settings(self, **values: Any) -> None:
        self.control("POST", "/settings", values).raise_for_status()

    def sms(self, **body: Any) -> Any:
        answer = self.control("POST" if body else "GET", "/sms", body or None)
        answer.raise_for_status()
        return answer.json()

    def messages(self) -> list[dict[str, Any]]:
        return list(self.control("GET", "/messages").json()["messages"])

    # Aliyun
    def aliyun(self, action: str = "SendSms", *, spoil: str = "", ago: float = 0, nonce: str = "", **query: str) -> Any:
        account = self.access["sms_aliyun"]
        at = self.now().astimezone(UTC) - timedelta(seconds=ago)
        heads = {
            "host": account["base_url"].split("/")[2],
            "x-acs-action": action,
            "x-acs-content-sha256": EMPTY,
            "x-acs-date": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "x-acs-signature-nonce": nonce or secrets.token_hex(8),
            "x-acs-version": "2017-05-25",
        }
        ordered = "&".join(f"{encode(name)}={encode(query[name])}" for name in sorted(query))
        lines = "".join(f"{name}:{heads[name]}\n" for name in sorted(heads))
        canonical = f"POST\n/sms/aliyun/\n{ordered}\n{lines}\n{';'.join(sorted(heads))}\n{EMPTY}"
        text = f"ACS3-HMAC-SHA256\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        secret = account["access_key_secret"] + ("x" if spoil == "secret" else "")
        signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        heads["Authorization"] = (
            f"ACS3-HMAC-SHA256 Credential={account['access_key_id']},SignedHeaders={';'.join(sorted(set(heads) - {'Authorization'}))},"
            f"Signature={signature}"
        )
        if spoil == "query":
            ordered += "&SmsUpExtendCode=1"
        return self.http.post(f"{account['base_url']}/?{ordered}", headers=heads, timeout=30)

    def text(self, number: str, key: str = "k", code: str = "SMS_100001", **changes: str) -> dict[str, str]:
        param = json.dumps({"name": "王小明"}, ensure_ascii=False)
        return {
            "PhoneNumbers": number,
            "SignName": "夜市",
            "TemplateCode": code,
            "TemplateParam": param,
            "OutId": key,
        } | changes

    def aliyun_v1(self, **parameters: str) -> Any:
        account = self.access["sms_aliyun"]
        signed = {
            "AccessKeyId": account["access_key_id"],
            "Action": "SendSms",
            "Format": "JSON",
            "SignatureMethod": "HMAC-SHA1",
            "SignatureNonce": secrets.token_hex(8),
            "SignatureVersion": "1.0",
            "Timestamp": self.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Version": "2017-05-25",
            **parameters,
        }
        ordered = "&".join(f"{encode(name)}={encode(signed[name])}" for name in sorted(signed))
        key = (account["access_key_secret"] + "&").encode()
        signature = base64.b64encode(
            hmac.new(key, f"GET&%2F&{encode(ordered)}".encode(), hashlib.sha1).digest()
        ).decode()
        return self.http.get(f"{account['base_url']}/?{ordered}&Signature={encode(signature)}", timeout=30)

    # Tencent
    def tencent(self, action: str = "SendSms", body: Any = None, *, ago: int = 0, spoil: str = "") -> Any:
        account = self.access["sms_tencent"]
        stamp = int(self.now().timestamp()) - ago
        payload = json.dumps({"SmsSdkAppId": account["sdk_app_id"], **(body or {})}).encode()
        day = datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d")
        lines = f"content-type:application/json; charset=utf-8\nhost:{account['base_url'].split('/')[2]}\n"
        canonical = f"POST\n/sms/tencent/\n\n{lines}\ncontent-type;host\n{hashlib.sha256(payload).hexdigest()}"
        text = f"TC3-HMAC-SHA256\n{stamp}\n{day}/sms/tc3_request\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = ("TC3" + account["secret_key"]).encode()
        for part in (day, "sms", "tc3_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        heads = {
            "Authorization": f"TC3-HMAC-SHA256 Credential={account['secret_id']}/{day}/sms/tc3_request, "
            f"SignedHeaders=content-type;host, Signature={signature}",
            "Content-Type": "application/json; charset=utf-8",
            "X-TC-Action": action,
            "X-TC-Version": "2021-01-11",
            "X-TC-Region": "" if spoil == "region" else "ap-guangzhou",
            "X-TC-Timestamp": str(stamp),
        }
        if spoil == "body":
            payload += b" "
        answer = self.http.post(account["base_url"] + "/", data=payload, headers=heads, timeout=30)
        assert answer.status_code == 200
        return answer.json()["Response"]

    def set(
        self, *numbers: str, code: str = "100001", values: tuple[str, ...] = ("王小明",), **changes: Any
    ) -> dict[str, Any]:
        body = {
            "PhoneNumberSet": list(numbers),
            "SignName": "夜市",
            "TemplateId": code,
            "TemplateParamSet": list(values),
        }
        return body | {"SessionContext": "k"} | changes


@pytest.fixture
def raw(sandbox_process: Any) -> Raw:
    client = Raw(sandbox_process.access)
    client.control("POST", "/reset", {}).raise_for_status()
    client.control("POST", "/faults", {"faults": []}).raise_for_status()
    client.move()
    client.settings(sms_failed=0.0, unsubscribe=0.0, purchase_treated=0.0, purchase_base=0.0)
    return client


# ------------------------------------------------------------------------------------------------------------- Aliyun
def test_aliyun_verifies_what_it_is_sent(raw: Raw) -> None:
    (number,) = raw.phones(1)
    good = raw.aliyun(**raw.text(number), nonce="once")
    assert (good.status_code, good.json()["Code"]) == (200, "OK")
    refused = [
        (raw.aliyun(**raw.text(number), nonce="once"), 400, "SignatureNonceUsed"),
        (raw.aliyun(**raw.text(number), spoil="secret"), 400, "SignatureDoesNotMatch"),
        (raw.aliyun(**raw.text(number), spoil="query"), 400, "SignatureDoesNotMatch"),
        (raw.aliyun(**raw.text(number), ago=16 * 60), 400, "InvalidTimeStamp.Expired"),
        (raw.aliyun("SendNothing", **raw.text(number)), 404, "InvalidAction.NotFound"),
    ]
    for answer, status, code in refused:
        assert (answer.status_code, answer.json()["Code"]) == (status, code)
        assert answer.json()["HostId"]
    assert len(raw.messages()) == 1


def test_aliyun_still_takes_its_old_signature(raw: Raw) -> None:
    (number,) = raw.phones(1)
    assert raw.aliyun_v1(**raw.text(number, "v1")).json()["Code"] == "OK"
    assert [message["key"] for message in raw.messages()] == ["v1"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"PhoneNumbers": "1234"}, "isv.MOBILE_NUMBER_ILLEGAL"),
        ({"PhoneNumbers": ",".join(f"100{i:08d}" for i in range(1001))}, "isv.MOBILE_COUNT_OVER_LIMIT"),
        ({"SignName": "别人"}, "isv.SMS_SIGNATURE_ILLEGAL"),
        ({"TemplateCode": "SMS_1"}, "isv.SMS_TEMPLATE_ILLEGAL"),
        ({"TemplateParam": "{"}, "isv.INVALID_JSON_PARAM"),
        ({"TemplateParam": '{"name": 1}'}, "isv.INVALID_JSON_PARAM"),
        ({"TemplateParam": "{}"}, "isv.TEMPLATE_MISSING_PARAMETERS"),
        ({"TemplateParam": '{"name": "http://x"}'}, "isv.PARAM_NOT_SUPPORT_URL"),
        ({"OutId": "k" * 256}, "isv.INVALID_PARAMETERS"),
    ],
)
def test_aliyun_refuses_inside_its_answer(raw: Raw, changes: dict[str, str], code: str) -> None:
    answer = raw.aliyun(**raw.text(raw.phones(1)[0], **changes))
    assert (answer.status_code, answer.json()["Code"]) == (200, code)
    assert raw.messages() == []


def test_aliyuns_windows_roll(raw: Raw) -> None:
    (number,) = raw.phones(1)
    raw.settings(aliyun_sms_hour=2)
    codes = [raw.aliyun(**raw.text(number, f"k{i}")).json() for i in range(3)]
    assert [code["Code"] for code in codes] == ["OK", "OK", "isv.BUSINESS_LIMIT_CONTROL"]
    assert codes[2]["Message"] == "触发小时级流控Permits:2"
    assert raw.aliyun(**raw.text(number, "other", "SMS_100003")).json()["Code"] == "OK"  # per template
    raw.move(minutes=61)
    assert raw.aliyun(**raw.text(number, "later")).json()["Code"] == "OK"


def test_what_became_of_a_message(raw: Raw) -> None:
    (number,) = raw.phones(1)
    serial = raw.aliyun(**raw.text(number)).json()["BizId"]

    def asked(**changes: str) -> Any:
        day = f"{raw.now():%Y%m%d}"
        query = {"PhoneNumber": number, "SendDate": day, "PageSize": "10", "CurrentPage": "1"} | changes
        return raw.aliyun("QuerySendDetails", **query).json()

    (row,) = asked(BizId=serial)["SmsSendDetailDTOs"]["SmsSendDetailDTO"]
    assert (row["SendStatus"], row["OutId"], "ErrCode" in row) == (1, "k", False)
    raw.move(minutes=1)
    (row,) = asked()["SmsSendDetailDTOs"]["SmsSendDetailDTO"]
    assert (row["SendStatus"], row["ErrCode"]) == (3, "DELIVERED")
    assert asked(CurrentPage="2")["SmsSendDetailDTOs"]["SmsSendDetailDTO"] == []
    assert asked(SendDate="20260314")["TotalCount"] == "0"
    assert asked(PageSize="51")["Code"] == asked(SendDate="20260101")["Code"] == "isv.INVALID_PARAMETERS"


# ------------------------------------------------------------------------------------------------------------ Tencent
def test_tencent_verifies_what_it_is_sent(raw: Raw) -> None:
    (number,) = raw.phones(1)
    body = raw.set(f"+86{number}")
    for answer, code in (
        (raw.tencent(body=body, spoil="body"), "AuthFailure.SignatureFailure"),
        (raw.tencent(body=body, spoil="region"), "MissingParameter"),
        (raw.tencent(body=body, ago=301), "AuthFailure.SignatureExpire"),
        (raw.tencent(body={**body, "SmsSdkAppId": "1"}), "UnauthorizedOperation.SmsSdkAppIdVerifyFail"),
        (raw.tencent("SendNothing", body), "InvalidAction"),
        (raw.tencent(body=raw.set(*["+8610000000001"] * 201)), "LimitExceeded.PhoneNumberCountLimit"),
        (
            raw.tencent(body=raw.set(f"+86{number}", values=())),
            "FailedOperation.TemplateParamSetNotMatchApprovedTemplate",
        ),
    ):
        assert answer["Error"]["Code"] == code
    assert raw.messages() == []
    assert raw.tencent(body=body)["SendStatusSet"][0]["Code"] == "Ok"


def test_tencent_answers_for_each_number(raw: Raw) -> None:
    good, gone, fresh = raw.phones(3)
    raw.sms(vendor="sms_tencent", reply=[{"number": gone, "text": "TD"}])
    answer = raw.tencent(body=raw.set(f"+86{good}", f"+86{gone}", "+861", f"+86{good}", f"+86{fresh}"))
    assert [row["Code"] for row in answer["SendStatusSet"]] == [
        "Ok",
        "FailedOperation.PhoneNumberInBlacklist",
        "InvalidParameterValue.IncorrectPhoneNumber",
        "LimitExceeded.PhoneNumberThirtySecondLimit",
        "Ok",
    ]
    assert [row["SessionContext"] for row in answer["SendStatusSet"]] == ["k"] * 5
    assert [message["receiver"] for message in raw.messages()] == [good, fresh]
    raw.move(minutes=1)
    begin = int(raw.now().timestamp()) - 600
    ask = {"BeginTime": begin, "EndTime": begin + 900, "Offset": 0, "Limit": 10, "PhoneNumber": f"+86{good}"}
    (row,) = raw.tencent("PullSmsSendStatusByPhoneNumber", ask)["PullSmsSendStatusSet"]
    assert (row["ReportStatus"], row["SessionContext"], row["SerialNo"]) == (
        "SUCCESS", "k", answer["SendStatusSet"][0]["SerialNo"],
    )  # fmt: skip


def test_tencent_sends_advertising_by_day_and_aliyun_is_only_told_of(raw: Raw) -> None:
    (number,) = raw.phones(1)
    raw.move(hours=13)
    night = raw.tencent(body=raw.set(f"+86{number}"))
    assert night["Error"]["Code"] == "FailedOperation.MarketingSendTimeConstraint"
    notice = raw.tencent(body=raw.set(f"+86{number}", code="200003", values=("烛台",)))
    assert notice["SendStatusSet"][0]["Code"] == "Ok"
    assert raw.aliyun(**raw.text(number)).json()["Code"] == "OK"
    (violation,) = raw.control("GET", "/counters").json()["violations"]
    assert violation["rule"] == "advertising outside 08:00 to 22:00"


# -------------------------------------------------------------------------------------------------- receipts and replies
class Sink:
    """An address that pushes arrive at; refuses the first `bad` of them."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.bad = 0
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sink.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                sink.bad -= 1
                answer = b'{"code":0,"msg":"ok","result":0}' if sink.bad < 0 else b"<html>"
                self.send_response(200 if sink.bad < 0 else 502)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/webhooks/sms?key=secret"

    def wait(self, count: int) -> list[Any]:
        deadline = time.monotonic() + 90
        while len(self.bodies) < count:
            assert time.monotonic() < deadline, f"{len(self.bodies)} of {count} pushes came"
            time.sleep(0.02)
        return self.bodies


@pytest.fixture
def sink() -> Iterator[Sink]:
    server = Sink()
    yield server
    server.server.shutdown()


def test_receipts_come_in_arrays_and_are_repeated_until_they_are_taken(raw: Raw, sink: Sink) -> None:
    numbers = raw.phones(3)
    raw.sms(vendor="sms_aliyun", reports=sink.url)
    sink.bad = 2
    for number in numbers:
        raw.aliyun(**raw.text(number, f"k/{number[-4:]}"))
    raw.move(minutes=2)
    first = len(sink.wait(1))
    rows = {row["out_id"]: row for body in raw.sms()["sms_aliyun"]["pushed"] for row in body["body"]}
    assert set(rows) == {f"k/{number[-4:]}" for number in numbers}
    assert all((row["success"], row["err_code"], row["sms_size"]) == (True, "DELIVERED", "1") for row in rows.values())
    time.sleep(0.3)
    raw.move(minutes=4)  # a minute after the first try
    sink.wait(first + 1)
    time.sleep(0.3)
    raw.move(minutes=20)
    deadline = time.monotonic() + 90
    while {row["out_id"] for body in sink.bodies for row in body} != set(rows) or sink.bad >= 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = len(sink.bodies)
    raw.move(minutes=60)
    time.sleep(0.2)
    assert len(sink.bodies) == before  # taken, and never again


def test_replies_arrive_as_each_vendor_writes_them(raw: Raw, sink: Sink) -> None:
    (number,) = raw.phones(1)
    for vendor in ("sms_aliyun", "sms_tencent"):
        raw.sms(
            vendor=vendor, replies=sink.url, reply=[{"number": number, "text": "R"}, {"number": number, "text": "谢谢"}]
        )
    raw.move(minutes=1)
    bodies = sink.wait(3)
    (array,) = [body for body in bodies if isinstance(body, list)]
    assert [(row["phone_number"], row["content"]) for row in array] == [(number, "R"), (number, "谢谢")]
    alone = [body for body in bodies if isinstance(body, dict)]
    assert sorted(body["text"] for body in alone) == ["R", "谢谢"]
    assert {(body["mobile"], body["nationcode"]) for body in alone} == {(number, "86")}
    raw.aliyun(**raw.text(number))  # the vendor keeps its own black list
    raw.move(minutes=3)
    (receipt,) = raw.sms()["sms_aliyun"]["pushed"][-1]["body"]
    assert (receipt["success"], receipt["err_code"]) == (False, "USER_REJECT")


@pytest.mark.parametrize(("kind", "receipts"), [("receipt_lost", 0), ("receipt_twice", 2)])
def test_receipts_that_never_come_and_that_come_twice(raw: Raw, kind: str, receipts: int) -> None:
    faults = [{"platform": "sms_aliyun", "method": "SendSms", "kind": kind}]
    raw.control("POST", "/faults", {"faults": faults}).raise_for_status()
    raw.aliyun(**raw.text(raw.phones(1)[0]))
    raw.move(hours=1)
    assert sum(len(push["body"]) for push in raw.sms()["sms_aliyun"]["pushed"]) == receipts


# ------------------------------------------------------------------------------------------------------------ people
@pytest.mark.parametrize("vendor", ["sms_aliyun", "sms_tencent"])
def test_some_people_reply_r_and_nobody_unfollows_by_phone(raw: Raw, vendor: str) -> None:
    raw.settings(unsubscribe=0.5)
    numbers = raw.phones(20)
    for number in numbers:
        if vendor == "sms_aliyun":
            raw.aliyun(**raw.text(number, f"winback/2026-03-14/{number}/send"))
        else:
            raw.tencent(body=raw.set(f"+86{number}", SessionContext=f"winback/2026-03-14/{number}/send"))
    raw.move(hours=8)
    pushed = [push["body"] for push in raw.sms()[vendor]["pushed"] if push["what"] == "replies"]
    replies = [row for body in pushed for row in (body if isinstance(body, list) else [body])]
    refused = {row.get("phone_number") or row.get("mobile") for row in replies}
    assert 3 <= len(refused) <= 17
    assert refused <= set(numbers)
    treated = raw.control("GET", "/truth").json()["experiment"]["treated"]
    assert {entry["key"] for entry in treated} == {f"winback/2026-03-14/{number}/send" for number in numbers}


def test_a_notice_is_no_advertising_but_a_request_for_a_review_may_be_followed(raw: Raw) -> None:
    raw.settings(unsubscribe=1.0)
    number = raw.phones(1)[0]
    param = json.dumps({"title": "烛台"})
    raw.aliyun(**raw.text(number, "review/taobao_flagship/1/remind", "SMS_200003", TemplateParam=param))
    raw.move(hours=8)
    assert raw.control("GET", "/truth").json()["experiment"]["treated"] == []
    assert [push for push in raw.sms()["sms_aliyun"]["pushed"] if push["what"] == "replies"] == []


def test_an_unknown_vendor_is_told(raw: Raw) -> None:
    answer = raw.control("POST", "/sms", {"vendor": "sms_nobody"})
    assert (answer.status_code, "vendors are sms_aliyun, sms_tencent" in answer.json()["error"]) == (400, True)
