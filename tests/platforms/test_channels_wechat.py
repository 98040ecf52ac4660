"""The WeChat channels against the sandbox: what was sent arrived once, and every answer means what the outbox needs."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sandbox_client import RawClient

from campaign_world import received, sandbox_openids
from nightmarket.channels.base import Call, Content, Outcome
from nightmarket.channels.registry import CHANNELS
from nightmarket.settings import Credentials, credentials

LINK = "https://m.nightmarket.test/r/{key}?s=x"


def call(key: str, *openids: str, **content: Any) -> Call:
    text = content.pop("text", f"你好 {LINK.format(key=key)}")
    return Call(key, openids, Content(text=text, **content), LINK.format(key=key))


def notice(key: str, openid: str, **changes: str) -> Call:
    fields = {"thing1": "白色爱心烛台", "time2": "2026-03-10", "thing3": "想听听您的真实评价", **changes}
    return call(key, openid, template_id="SIMTEMPLATE00000000000000000000000000000001", fields=fields)


def send(name: str, *calls: Call, account: Credentials | None = None, timeout: float = 5) -> list[Outcome]:
    """Make the calls one after the other on one opened channel."""

    async def run() -> list[Outcome]:
        async with CHANNELS[name](
            account or credentials("wechat_official"), connections=4, timeout_seconds=timeout
        ) as channel:
            return [await channel.send(each) for each in calls]

    return asyncio.run(run())


@pytest.fixture
def open_window(sandbox: Any) -> Iterator[None]:
    """Customer-service messages to everybody, so that a test is about something else."""
    sandbox.control("POST", "/settings", {"custom_window": False})
    yield
    sandbox.control("POST", "/settings", {"custom_window": True})


@pytest.fixture
def fault(sandbox: Any) -> Callable[..., None]:
    def set_faults(*faults: dict[str, Any]) -> None:
        sandbox.control("POST", "/faults", {"faults": [{"platform": "wechat_official", **fault} for fault in faults]})

    return set_faults


def test_a_service_message_arrives_once_and_unescaped(sandbox: Any, open_window: None) -> None:
    openid = sandbox_openids(sandbox)[0]
    (outcome,) = send("wechat_service", call("k1", openid))
    assert (outcome.kind, outcome.platform_message_id) == ("accepted", "")
    (message,) = sandbox.control("GET", "/messages")["messages"]
    assert (message["receiver"], message["link_key"]) == (openid, "k1")
    assert message["content"].startswith("你好 ")


def test_outside_the_window_the_platform_refuses_for_good(sandbox: Any) -> None:
    outcomes = send("wechat_service", *(call(f"k{i}", openid) for i, openid in enumerate(sandbox_openids(sandbox))))
    refused = [outcome for outcome in outcomes if outcome.kind == "refused"]
    assert {outcome.code for outcome in refused} == {"45015"}
    assert not any(outcome.suppress for outcome in refused)
    assert len(refused) + sum(outcome.kind == "accepted" for outcome in outcomes) == len(outcomes)


def test_a_sixth_message_in_the_window_is_refused(sandbox: Any) -> None:
    openids = sandbox_openids(sandbox)
    first = send("wechat_service", *(call(f"k{i}", openid) for i, openid in enumerate(openids)))
    inside = [openid for openid, outcome in zip(openids, first, strict=True) if outcome.kind == "accepted"]
    assert inside, "some follower of the world wrote in the last 48 hours"
    outcomes = send("wechat_service", *(call(f"again{i}", inside[0]) for i in range(5)))
    assert [outcome.kind for outcome in outcomes] == ["accepted"] * 4 + ["refused"]
    assert outcomes[-1].code == "45047"


def test_a_template_message_gives_its_id(sandbox: Any) -> None:
    openid = sandbox_openids(sandbox)[0]
    (outcome,) = send("wechat_template", notice("review/taobao_flagship/1/ask", openid))
    assert outcome.kind == "accepted"
    (message,) = sandbox.control("GET", "/messages")["messages"]
    assert str(message["msgid"]) == outcome.platform_message_id
    assert message["link_key"] == "review/taobao_flagship/1/ask"
    assert message["key"] == hashlib.sha256(b"review/taobao_flagship/1/ask").hexdigest()[:32]


@pytest.mark.parametrize(
    ("changes", "code", "kind", "suppress"),
    [
        ({"openid": "oNOBODY"}, "40003", "refused", "invalid openid"),
        ({"template_id": "SIMWRONG"}, "40037", "pause", ""),
        ({"thing1": "长" * 21}, "47003", "pause", ""),
    ],
)
def test_what_a_refused_template_message_means(
    sandbox: Any, changes: dict[str, str], code: str, kind: str, suppress: str
) -> None:
    openid = changes.pop("openid", sandbox_openids(sandbox)[0])
    template_id = changes.pop("template_id", None)
    message = notice("k", openid, **changes)
    if template_id:
        message = call("k", openid, template_id=template_id, fields=message.content.fields)
    (outcome,) = send("wechat_template", message)
    assert (outcome.kind, outcome.code, outcome.suppress) == (kind, code, suppress)
    assert received(sandbox)["total"] == 0


def test_a_person_who_left_is_not_written_to_for_a_while(sandbox: Any) -> None:
    everybody = {
        event["data"]["fields"]["FromUserName"]
        for event in pushes(sandbox)
        if event["data"]["fields"].get("Event") == "unsubscribe"
    }
    gone = sorted(everybody - set(sandbox_openids(sandbox)))
    assert gone, "somebody of the world has left the account"
    (outcome,) = send("wechat_template", notice("k", gone[0]))
    assert (outcome.kind, outcome.code, outcome.suppress, outcome.suppress_days) == (
        "refused",
        "43004",
        "does not follow the account",
        2,
    )


def pushes(sandbox: Any) -> list[dict[str, Any]]:
    return [event for event in RawClient(sandbox.access).all_events() if event["kind"] == "wechat.event"]


def test_a_mass_send_is_recognised_when_it_is_repeated(sandbox: Any) -> None:
    openids = sandbox_openids(sandbox)[:10]
    group = call("g-1", *openids)
    first, second = send("wechat_mass", group, group)
    assert (first.kind, first.code) == ("accepted", "0")
    assert (second.kind, second.code) == ("accepted", "45065")
    assert first.platform_message_id == second.platform_message_id
    counted = received(sandbox)
    assert (counted["total"], counted["max_per_receiver_and_key"]) == (10, 1)


def test_a_mass_send_takes_2_to_10000_receivers_and_a_short_key(sandbox: Any) -> None:
    openids = sandbox_openids(sandbox)
    outcomes = send("wechat_mass", call("g-1", openids[0]), call("g" * 65, *openids[:2]), call("g-2", *["o"] * 10_001))
    assert [(outcome.kind, outcome.code) for outcome in outcomes] == [
        ("refused", "receivers"),
        ("refused", "clientmsgid"),
        ("refused", "receivers"),
    ]
    assert (
        sandbox.control("GET", "/counters")["requests"].get("wechat_official", {}).get("cgi-bin/message/mass/send", 0)
        == 0
    )


IN_DOUBT = [
    "http_500_after",
    "timeout_after",
    "cut",
    "truncated_json",
    "garbage",
    "empty",
    "http_500",
    "http_502",
    "http_503",
    "timeout_before",
]


@pytest.mark.parametrize("kind", IN_DOUBT)
def test_whatever_may_have_been_sent_is_unknown(
    sandbox: Any, open_window: None, fault: Callable[..., None], kind: str
) -> None:
    openid = sandbox_openids(sandbox)[0]
    send("wechat_service", call("warm", openid))  # the token is there
    fault({"method": "cgi-bin/message/custom/send", "kind": kind, "seconds": 0.6})
    (outcome,) = send("wechat_service", call("k", openid), timeout=0.3)
    assert outcome.kind == "unknown"
    assert received(sandbox)["total"] <= 2


def test_a_rate_limit_is_obeyed_and_nothing_was_sent(
    sandbox: Any, open_window: None, fault: Callable[..., None]
) -> None:
    openid = sandbox_openids(sandbox)[0]
    fault(
        {"method": "cgi-bin/message/custom/send", "kind": "http_429"},
        {"method": "cgi-bin/message/custom/send", "kind": "platform_busy"},
    )
    limited, busy, fine = send("wechat_service", *(call(f"k{i}", openid) for i in range(3)))
    assert (limited.kind, limited.code) == ("retry", "429")
    assert limited.retry_after > 0
    assert (busy.kind, busy.code) == ("retry", "-1")
    assert fine.kind == "accepted"
    assert received(sandbox)["total"] == 1


def test_the_daily_quota_pauses_until_tomorrow(sandbox: Any, open_window: None, fault: Callable[..., None]) -> None:
    fault({"method": "cgi-bin/message/custom/send", "kind": "call_limit"})
    (outcome,) = send("wechat_service", call("k", sandbox_openids(sandbox)[0]))
    assert (outcome.kind, outcome.code) == ("pause", "45009")
    assert 21 * 3600 < outcome.retry_after < 22 * 3600  # it is half past two in the night


def test_an_expired_token_is_renewed_once(sandbox: Any, open_window: None, fault: Callable[..., None]) -> None:
    openid = sandbox_openids(sandbox)[0]
    fault({"method": "cgi-bin/message/custom/send", "kind": "expired_session", "after": 1})
    outcomes = send("wechat_service", *(call(f"k{i}", openid) for i in range(3)))
    assert [outcome.kind for outcome in outcomes] == ["accepted"] * 3
    assert received(sandbox)["total"] == 3
    requests = sandbox.control("GET", "/counters")["requests"]["wechat_official"]
    assert requests["cgi-bin/message/custom/send"] == 4


def test_a_wrong_secret_pauses_the_channel(sandbox: Any) -> None:
    account = credentials("wechat_official")
    wrong = Credentials(account.conn_id, account.host, account.login, "wrong")
    (outcome,) = send("wechat_service", call("k", "oX"), account=wrong)
    assert (outcome.kind, outcome.code) == ("pause", "40125")
    assert outcome.message == "WeChat gives no usable access token: invalid appsecret"


def test_a_platform_that_is_not_there_sent_nothing(sandbox: Any) -> None:
    account = credentials("wechat_official")
    gone = Credentials(account.conn_id, "http://127.0.0.1:9", account.login, account.password)
    (outcome,) = send("wechat_service", call("k", "oX"), account=gone)
    assert (outcome.kind, outcome.code) == ("retry", "connect")
