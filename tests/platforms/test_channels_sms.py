"""The SMS channels against the sandbox: sent once, every code and silence means what the outbox needs, questions are answered."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from campaign_world import received
from nightmarket import dates
from nightmarket.channels.base import Call, Content, Outcome, Question
from nightmarket.channels.registry import CHANNELS
from nightmarket.settings import ConfigError, Credentials, credentials

VENDORS = ("sms_aliyun", "sms_tencent")
MORNING = "2026-03-15T10:00:00+08:00"


@pytest.fixture(autouse=True)
def _day(sandbox: Any, set_clock: Callable[[str], None]) -> None:
    """Ten in the morning: a vendor refuses advertising at night."""
    set_clock(MORNING)
    sandbox.control("POST", "/clock", {"now": MORNING})
    sandbox.control("POST", "/settings", {"sms_failed": 0.0, "unsubscribe": 0.0})


@pytest.fixture
def fault(sandbox: Any) -> Callable[..., None]:
    def set_faults(vendor: str, method: str, kind: str, **more: Any) -> None:
        faults = [{"platform": vendor, "method": method, "kind": kind, **more}]
        sandbox.control("POST", "/faults", {"faults": faults})

    return set_faults


@pytest.fixture
def later(sandbox: Any, set_clock: Callable[[str], None]) -> Callable[..., None]:
    def move(**by: float) -> None:
        moment = (datetime.fromisoformat(MORNING) + timedelta(**by)).isoformat()
        set_clock(moment)
        sandbox.control("POST", "/clock", {"now": moment})

    return move


def phones(sandbox: Any, count: int) -> list[str]:
    return [person["phone"] for person in sandbox.control("GET", "/people")["people"][:count]]


def call(
    vendor: str, number: str, key: str = "winback/2026-03-14/7/send", *, name: str = "王小明", code: str = ""
) -> Call:
    template = code or {"sms_aliyun": "SMS_100001", "sms_tencent": "100001"}[vendor]
    return Call(key, (number,), Content(text="(as it looks)", fields={"name": name}, template_id=template, sign="夜市"))


def use(vendor: str, work: Callable[[Any], Any], account: Credentials | None = None, timeout: float = 3) -> Any:
    async def run() -> Any:
        async with CHANNELS[vendor](account or credentials(vendor), connections=4, timeout_seconds=timeout) as channel:
            return await work(channel)

    return asyncio.run(run())


def send(vendor: str, *calls: Call, account: Credentials | None = None, timeout: float = 3) -> list[Outcome]:
    async def one_by_one(channel: Any) -> list[Outcome]:
        return [await channel.send(each) for each in calls]

    return list(use(vendor, one_by_one, account, timeout))


def ask(
    vendor: str, number: str, key: str = "k", account: Credentials | None = None, ago: float = 0, serial: str = ""
) -> Outcome:
    question = Question(key, number, serial, dates.now() - timedelta(seconds=ago))
    outcome = use(vendor, lambda channel: channel.ask(question), account)
    assert isinstance(outcome, Outcome)
    return outcome


def with_extra(vendor: str, **extra: Any) -> Credentials:
    account = credentials(vendor)
    return replace(account, extra={**account.extra, **extra})


# ------------------------------------------------------------------------------------------------------------ sending
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_message_arrives_once_with_our_key(sandbox: Any, vendor: str) -> None:
    first, second = phones(sandbox, 2)
    outcomes = send(
        vendor, call(vendor, first, "a/1"), call(vendor, f"+86 {second[:3]}-{second[3:7]}-{second[7:]}", "a/2")
    )
    assert [(outcome.kind, bool(outcome.platform_message_id)) for outcome in outcomes] == [("accepted", True)] * 2
    messages = sandbox.control("GET", "/messages")["messages"]
    assert [(m["channel"], m["receiver"], m["key"]) for m in messages] == [
        (vendor, first, "a/1"),
        (vendor, second, "a/2"),
    ]
    assert (
        messages[0]["content"]
        == "【夜市】尊敬的会员王小明，好久不见。店里为会员留了几件新品，欢迎回来看看。拒收请回复R"
    )
    assert received(sandbox)["max_per_receiver_and_key"] == 1


@pytest.mark.parametrize("vendor", VENDORS)
def test_positions_of_parameters_are_the_templates_own(sandbox: Any, vendor: str) -> None:
    content = Content(
        fields={"date": "2026-03-10", "title": "白色烛台"}, sign="夜市",
        template_id={"sms_aliyun": "SMS_200001", "sms_tencent": "200001"}[vendor],
    )  # fmt: skip
    (outcome,) = send(vendor, Call("review/x/1/ask", (phones(sandbox, 1)[0],), content))
    assert outcome.kind == "accepted"
    (message,) = sandbox.control("GET", "/messages")["messages"]
    assert message["content"].startswith("【夜市】您2026-03-10签收的白色烛台")


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("number", ["12345", "+1 202 555 0100", "85291234567x", ""])
def test_what_is_no_mainland_number_is_never_called(sandbox: Any, vendor: str, number: str) -> None:
    (outcome,) = send(vendor, call(vendor, number))
    assert (outcome.kind, outcome.suppress) == ("refused", "invalid number")
    assert received(sandbox)["total"] == 0


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("kind", "outcome", "arrived"),
    [
        ("http_500", "unknown", 0),
        ("http_500_after", "unknown", 1),
        ("timeout_before", "unknown", 0),
        ("timeout_after", "unknown", 1),
        ("cut", "unknown", 1),
        ("garbage", "unknown", 1),
        ("truncated_json", "unknown", 1),
        ("empty", "unknown", 1),
        ("platform_busy", "unknown", 0),
        ("busy_after", "unknown", 1),
        ("http_429", "retry", 0),
        ("call_limit", "retry", 0),
        ("no_money", "pause", 0),
    ],
)
def test_what_faults_mean(
    sandbox: Any, fault: Callable[..., None], vendor: str, kind: str, outcome: str, arrived: int
) -> None:
    fault(vendor, "SendSms", kind, seconds=0.6)
    (answer,) = send(vendor, call(vendor, phones(sandbox, 1)[0]), timeout=0.3)
    assert (answer.kind, received(sandbox)["total"]) == (outcome, arrived)


@pytest.mark.parametrize(
    ("vendor", "changes", "kind", "code"),
    [
        ("sms_aliyun", {"code": "SMS_9"}, "pause", "isv.SMS_TEMPLATE_ILLEGAL"),
        ("sms_aliyun", {"sign": "别人"}, "pause", "isv.SMS_SIGNATURE_ILLEGAL"),
        ("sms_aliyun", {"fields": {}}, "pause", "isv.TEMPLATE_MISSING_PARAMETERS"),
        ("sms_aliyun", {"name": "长" * 36}, "refused", "isv.PARAM_LENGTH_LIMIT"),
        ("sms_aliyun", {"name": "www.x.com"}, "refused", "isv.PARAM_NOT_SUPPORT_URL"),
        ("sms_aliyun", {"name": "加微信"}, "refused", "isv.BLACK_KEY_CONTROL_LIMIT"),
        ("sms_aliyun", {"key": "k" * 256}, "refused", "out_id"),
        ("sms_tencent", {"code": "9"}, "pause", "FailedOperation.TemplateIncorrectOrUnapproved"),
        ("sms_tencent", {"sign": "别人"}, "pause", "FailedOperation.SignatureIncorrectOrUnapproved"),
        ("sms_tencent", {"fields": {}}, "refused", "FailedOperation.TemplateParamSetNotMatchApprovedTemplate"),
        ("sms_tencent", {"name": "加微信"}, "refused", "FailedOperation.ContainSensitiveWord"),
        ("sms_tencent", {"key": "k" * 512}, "refused", "session"),
    ],
)
def test_what_refusals_mean(sandbox: Any, vendor: str, changes: dict[str, Any], kind: str, code: str) -> None:
    content = {name: changes.pop(name) for name in ("sign", "fields") if name in changes}
    wrong = call(vendor, phones(sandbox, 1)[0], **changes)
    (outcome,) = send(vendor, replace(wrong, content=replace(wrong.content, **content)))
    assert (outcome.kind, outcome.code, outcome.suppress) == (kind, code, "")
    assert received(sandbox)["total"] == 0


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_bad_name_fails_alone_and_a_bad_template_stops_the_channel(sandbox: Any, vendor: str) -> None:
    numbers = phones(sandbox, 6)
    bad = [call(vendor, number, f"k{i}", name="加微信") for i, number in enumerate(numbers[:5])]
    assert [outcome.kind for outcome in send(vendor, *bad)] == ["refused"] * 4 + ["pause"]
    mixed = [*bad[:3], call(vendor, numbers[5], "good"), *bad[3:]]
    assert "pause" not in {outcome.kind for outcome in send(vendor, *mixed)}


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_message_without_template_or_signature_is_not_sent(sandbox: Any, vendor: str) -> None:
    (outcome,) = send(vendor, replace(call(vendor, phones(sandbox, 1)[0]), content=Content(text="x")))
    assert (outcome.kind, outcome.code) == ("pause", "template")
    assert sandbox.control("GET", "/counters")["requests"].get(vendor) is None


def test_a_number_that_got_enough_waits_and_the_others_do_not(sandbox: Any) -> None:
    first, second = phones(sandbox, 2)
    sandbox.control("POST", "/settings", {"aliyun_sms_hour": 2})
    calls = [call("sms_aliyun", first, f"a{i}") for i in range(3)] + [call("sms_aliyun", second, "b")]
    outcomes = send("sms_aliyun", *calls)
    assert [outcome.kind for outcome in outcomes] == ["accepted", "accepted", "retry", "accepted"]
    assert (outcomes[2].code, outcomes[2].retry_after) == ("isv.BUSINESS_LIMIT_CONTROL", 3600)
    calls = [call("sms_tencent", first, "a0"), call("sms_tencent", first, "a1"), call("sms_tencent", second, "b")]
    outcomes = send("sms_tencent", *calls)
    assert [outcome.kind for outcome in outcomes] == ["accepted", "retry", "accepted"]
    assert (outcomes[1].code, outcomes[1].retry_after) == ("LimitExceeded.PhoneNumberThirtySecondLimit", 30)


def test_the_limit_of_a_day_ends_with_the_day(sandbox: Any) -> None:
    sandbox.control("POST", "/settings", {"tencent_sms_30_seconds": 0, "tencent_sms_hour": 0, "tencent_sms_day": 1})
    number = phones(sandbox, 1)[0]
    outcome = send("sms_tencent", call("sms_tencent", number, "a"), call("sms_tencent", number, "b"))[1]
    assert outcome.code == "LimitExceeded.PhoneNumberDailyLimit"
    assert 13.9 * 3600 < outcome.retry_after <= 14 * 3600


def test_advertising_at_night_waits_for_the_morning(
    sandbox: Any, later: Callable[..., None], set_clock: Callable[[str], None]
) -> None:
    later(hours=13)  # 23:00
    (outcome,) = send("sms_tencent", call("sms_tencent", phones(sandbox, 1)[0]))
    assert (outcome.kind, outcome.code) == ("pause", "FailedOperation.MarketingSendTimeConstraint")
    assert 8.9 * 3600 < outcome.retry_after <= 9 * 3600


def test_who_replied_r_is_on_tencents_own_list(sandbox: Any) -> None:
    number = phones(sandbox, 1)[0]
    sandbox.control("POST", "/sms", {"vendor": "sms_tencent", "reply": [{"number": number, "text": " r "}]})
    (outcome,) = send("sms_tencent", call("sms_tencent", number))
    assert (outcome.kind, outcome.suppress) == ("refused", "on the vendor's black list")
    assert number not in outcome.message


# ----------------------------------------------------------------------------------------------------------- accounts
@pytest.mark.parametrize(
    ("vendor", "code", "words"),
    [
        ("sms_aliyun", "SignatureDoesNotMatch", "check the access key secret"),
        ("sms_tencent", "AuthFailure.SignatureFailure", "check the secret key"),
    ],
)
def test_a_wrong_secret_pauses_the_channel(sandbox: Any, vendor: str, code: str, words: str) -> None:
    wrong = replace(credentials(vendor), password="wrong")
    (outcome,) = send(vendor, call(vendor, phones(sandbox, 1)[0]), account=wrong)
    assert (outcome.kind, outcome.code) == ("pause", code)
    with pytest.raises(ConfigError, match=words):
        use(vendor, lambda channel: channel.check(), wrong)
    assert "works" in use(vendor, lambda channel: channel.check())


@pytest.mark.parametrize(
    ("vendor", "code"), [("sms_aliyun", "InvalidTimeStamp.Expired"), ("sms_tencent", "AuthFailure.SignatureExpire")]
)
def test_a_clock_that_is_off_pauses_the_channel(
    sandbox: Any, set_clock: Callable[[str], None], vendor: str, code: str
) -> None:
    set_clock("2026-03-15T10:20:00+08:00")
    (outcome,) = send(vendor, call(vendor, phones(sandbox, 1)[0]))
    assert (outcome.kind, outcome.code) == ("pause", code)


def test_what_a_connection_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"extra\.sdk_app_id \(SmsSdkAppId\) is missing"):
        CHANNELS["sms_tencent"](Credentials("t", "", "id", "key"), connections=1, timeout_seconds=1)
    account = Credentials("a", "", "id", "key", extra={"absent_is_unsent_after_seconds": "soon"})
    with pytest.raises(ConfigError, match=r"absent_is_unsent_after_seconds must be a number of seconds above 0"):
        CHANNELS["sms_aliyun"](account, connections=1, timeout_seconds=1)


def test_a_vendor_that_is_not_there_took_nothing() -> None:
    account = Credentials("sms_aliyun", "http://127.0.0.1:9", "id", "key")
    (outcome,) = send("sms_aliyun", call("sms_aliyun", "10000000001"), account=account)
    assert (outcome.kind, outcome.code) == ("retry", "connect")


# ---------------------------------------------------------------------------------------------------------- questions
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_lost_answer_is_cleared_up_by_asking(
    sandbox: Any, fault: Callable[..., None], later: Callable[..., None], vendor: str
) -> None:
    number = phones(sandbox, 1)[0]
    fault(vendor, "SendSms", "timeout_after", seconds=0.5)
    (outcome,) = send(vendor, call(vendor, number, "k"), timeout=0.2)
    assert outcome.kind == "unknown"
    assert ask(vendor, number).kind == "unknown"  # on its way
    later(minutes=2)
    found = ask(vendor, number, ago=120)
    assert (found.kind, found.message) == ("accepted", "delivered")
    assert ask(vendor, number, key="another", ago=120).kind == "unknown"
    assert received(sandbox)["total"] == 1


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_failure_of_the_carrier_is_final(
    sandbox: Any, fault: Callable[..., None], later: Callable[..., None], vendor: str
) -> None:
    number = phones(sandbox, 1)[0]
    fault(vendor, "SendSms", "receipt_failed")
    send(vendor, call(vendor, number, "k"))
    later(minutes=2)
    outcome = ask(vendor, number, ago=120)
    assert (outcome.kind, outcome.message) == ("refused", "not delivered")
    assert outcome.code in ("MOBILE_NOT_ON_SERVICE", "UNDELIV")


@pytest.mark.parametrize("vendor", VENDORS)
def test_no_receipt_is_never_a_no(
    sandbox: Any, fault: Callable[..., None], later: Callable[..., None], vendor: str
) -> None:
    number = phones(sandbox, 1)[0]
    fault(vendor, "SendSms", "receipt_lost")
    send(vendor, call(vendor, number, "k"))
    later(hours=3)
    assert ask(vendor, number, ago=3 * 3600).kind == "unknown"


def test_absence_proves_nothing_unless_the_connection_says_after_how_long(
    sandbox: Any, fault: Callable[..., None], later: Callable[..., None]
) -> None:
    number = phones(sandbox, 1)[0]
    assert ask("sms_aliyun", number, ago=3600).code == "absent"
    sure = with_extra("sms_aliyun", absent_is_unsent_after_seconds="1800")
    assert ask("sms_aliyun", number, account=sure, ago=1700).kind == "unknown"
    assert ask("sms_aliyun", number, account=sure, ago=1900).kind == "retry"
    send("sms_aliyun", call("sms_aliyun", number, "k"))
    later(minutes=40)
    assert ask("sms_aliyun", number, account=sure, ago=2400).kind == "accepted"
    fault("sms_aliyun", "QuerySendDetails", "platform_busy")
    assert ask("sms_aliyun", number, account=sure, ago=2400).kind == "unknown"
    fault("sms_aliyun", "QuerySendDetails", "timeout_before", seconds=4)
    assert use("sms_aliyun", lambda c: c.ask(Question("k", number, "", dates.now())), sure, 0.3).kind == "unknown"


def test_a_call_around_midnight_is_looked_for_on_both_days(sandbox: Any, later: Callable[..., None]) -> None:
    number = phones(sandbox, 1)[0]
    later(hours=14, seconds=1)  # 00:00:01
    send("sms_aliyun", _notice(number))
    later(hours=14, minutes=3)
    assert ask("sms_aliyun", number, ago=3 * 60 + 2).kind == "accepted"  # begun at 23:59:58
    assert ask("sms_aliyun", number, ago=14 * 3600).kind == "unknown"


def _notice(number: str) -> Call:
    return Call("k", (number,), Content(fields={"title": "烛台"}, template_id="SMS_200003", sign="夜市"))


def test_a_number_with_many_messages_is_read_page_by_page(sandbox: Any, later: Callable[..., None]) -> None:
    number = phones(sandbox, 1)[0]
    sandbox.control("POST", "/settings", {"aliyun_sms_minute": 0, "aliyun_sms_hour": 0, "aliyun_sms_day": 0})
    send("sms_aliyun", *(call("sms_aliyun", number, f"k{i}") for i in range(51)))
    later(minutes=2)
    assert ask("sms_aliyun", number, "k0", ago=120).kind == "accepted"  # the oldest stands on the second page
    assert sandbox.control("GET", "/counters")["requests"]["sms_aliyun"]["QuerySendDetails"] == 2


def test_tencent_remembers_a_week(sandbox: Any) -> None:
    assert ask("sms_tencent", phones(sandbox, 1)[0], ago=8 * 86400).code == "too_late"
