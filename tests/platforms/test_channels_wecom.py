"""WeCom broadcasts: the call makes a task, an employee presses send, and each contact is asked about until it is settled."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from nightmarket import dates
from nightmarket.channels.base import Call, Content, Outcome, Question
from nightmarket.channels.wecom_broadcast import WecomBroadcast
from nightmarket.settings import ConfigError, Credentials, credentials

TEXT = "新品到店 https://m.nightmarket.test/r/g-1?s=x 夜市旗舰店｜不想再收到：https://m.nightmarket.test/u/g-1?s=x"


def group(key: str, *contacts: str, text: str = TEXT) -> Call:
    return Call(key, contacts, Content(text=text))


def work(steps: Callable[[WecomBroadcast], Any], account: Credentials | None = None, timeout: float = 5) -> Any:
    async def run() -> Any:
        async with WecomBroadcast(account or credentials("wecom"), connections=4, timeout_seconds=timeout) as channel:
            return await steps(channel)

    return asyncio.run(run())


def send(call: Call, account: Credentials | None = None, timeout: float = 5) -> Outcome:
    outcome: Outcome = work(lambda channel: channel.send(call), account, timeout)
    return outcome


def ask(msgid: str, *contacts: str) -> list[Outcome]:
    async def all_of(channel: WecomBroadcast) -> list[Outcome]:
        return [await channel.ask(Question(f"k/{one}", one, msgid, dates.now())) for one in contacts]

    return list(work(all_of))


@pytest.fixture
def contacts(sandbox: Any) -> list[str]:
    found: list[str] = sandbox.access["wecom"]["contacts"]
    assert len(found) >= 10
    return found


@pytest.fixture
def later(sandbox: Any, set_clock: Callable[[str], None]) -> Callable[[int], None]:
    def move(minutes: int) -> None:
        moment = (dates.now() + timedelta(minutes=minutes)).isoformat()
        set_clock(moment)
        sandbox.control("POST", "/clock", {"now": moment})

    return move


def arrived(sandbox: Any) -> list[str]:
    messages = sandbox.control("GET", "/messages")["messages"]
    return [message["receiver"] for message in messages if message["channel"] == "wecom_broadcast"]


def test_it_waits_for_the_employee_and_goes_out_when_they_press_send(
    sandbox: Any, contacts: list[str], later: Callable[[int], None]
) -> None:
    sent = send(group("g-1", *contacts[:6]))
    assert sent.kind == "waiting"
    assert sent.platform_message_id
    assert arrived(sandbox) == []
    assert {outcome.kind for outcome in ask(sent.platform_message_id, *contacts[:6])} == {"waiting"}
    later(31)
    assert {outcome.kind for outcome in ask(sent.platform_message_id, *contacts[:6])} == {"accepted"}
    assert sorted(arrived(sandbox)) == sorted(contacts[:6])


def test_one_broadcast_per_contact_and_day(sandbox: Any, contacts: list[str], later: Callable[[int], None]) -> None:
    first, second = send(group("g-1", *contacts[:3])), send(group("g-2", *contacts[:4]))
    later(31)
    assert {outcome.kind for outcome in ask(first.platform_message_id, *contacts[:3])} == {"accepted"}
    outcomes = ask(second.platform_message_id, *contacts[:4])
    assert [outcome.kind for outcome in outcomes] == ["refused"] * 3 + ["accepted"]
    assert not any(outcome.suppress for outcome in outcomes), "tomorrow they can have one again"
    assert len(arrived(sandbox)) == len(set(arrived(sandbox))) == 4


def test_who_left_and_who_was_never_a_contact(sandbox: Any, contacts: list[str], later: Callable[[int], None]) -> None:
    gone = sandbox.access["wecom"]["contacts_who_left"][:1]
    sent = send(group("g-1", contacts[0], *gone, "wmNOBODY"))
    later(31)
    here, left, nobody = ask(sent.platform_message_id, contacts[0], gone[0], "wmNOBODY")
    assert here.kind == "accepted"
    assert (left.kind, left.code, left.suppress) == ("refused", "2", "no contact")
    assert (nobody.kind, nobody.code, nobody.suppress) == ("refused", "not_listed", "")


def test_an_employee_who_never_presses_send(sandbox: Any, contacts: list[str], later: Callable[[int], None]) -> None:
    sandbox.control("POST", "/settings", {"wecom_confirm_minutes": -1})
    sent = send(group("g-1", *contacts[:2]))
    later(60 * 24 * 3)
    assert {outcome.kind for outcome in ask(sent.platform_message_id, *contacts[:2])} == {"waiting"}
    assert arrived(sandbox) == []


def test_a_task_is_read_once_for_all_its_contacts(sandbox: Any, contacts: list[str]) -> None:
    sent = send(group("g-1", *contacts))
    ask(sent.platform_message_id, *contacts)
    calls = sandbox.control("GET", "/counters")["requests"]["wecom"]
    assert calls["cgi-bin/externalcontact/get_groupmsg_task"] == 1
    assert calls["cgi-bin/externalcontact/get_groupmsg_send_result"] <= 3  # one per employee


@pytest.mark.parametrize("kind", ["timeout_after", "cut", "garbage", "http_500_after", "empty"])
def test_a_lost_answer_is_unknown_and_cannot_be_asked_about(sandbox: Any, contacts: list[str], kind: str) -> None:
    fault = {"platform": "wecom", "method": "add_msg_template", "kind": kind, "seconds": 0.6}
    sandbox.control("POST", "/faults", {"faults": [fault]})
    outcome = send(group("g-1", *contacts[:2]), timeout=0.3)
    assert outcome.kind == "unknown"
    (answer,) = ask(outcome.platform_message_id, contacts[0])
    assert answer.kind == "unknown"


def test_a_question_that_fails_changes_nothing(sandbox: Any, contacts: list[str]) -> None:
    sent = send(group("g-1", *contacts[:2]))
    fault = {"platform": "wecom", "method": "get_groupmsg_task", "kind": "http_500"}
    sandbox.control("POST", "/faults", {"faults": [fault]})
    assert [outcome.kind for outcome in ask(sent.platform_message_id, contacts[0])] == ["waiting"]


def test_an_expired_token_is_renewed_once(sandbox: Any, contacts: list[str]) -> None:
    fault = {"platform": "wecom", "method": "add_msg_template", "kind": "expired_token"}
    sandbox.control("POST", "/faults", {"faults": [fault]})
    assert send(group("g-1", *contacts[:2])).kind == "waiting"
    assert sandbox.control("GET", "/counters")["requests"]["wecom"]["cgi-bin/gettoken"] == 2


@pytest.mark.parametrize(
    ("kind", "outcome", "code"), [("call_limit", "pause", "45009"), ("platform_busy", "retry", "-1")]
)
def test_limits(sandbox: Any, contacts: list[str], kind: str, outcome: str, code: str) -> None:
    sandbox.control("POST", "/faults", {"faults": [{"platform": "wecom", "method": "add_msg_template", "kind": kind}]})
    got = send(group("g-1", *contacts[:2]))
    assert (got.kind, got.code) == (outcome, code)


def test_what_is_refused_before_it_leaves_the_house(sandbox: Any, contacts: list[str]) -> None:
    assert send(group("g-1")).code == "receivers"
    assert send(group("g-1", contacts[0], text="长" * 1400)).code == "text"
    assert send(group("g-1", "wmNOBODY")).kind == "refused"
    assert "wecom" not in sandbox.control("GET", "/counters")["faults_fired"]


def test_a_wrong_secret_pauses_the_channel(sandbox: Any, contacts: list[str]) -> None:
    right = credentials("wecom")
    outcome = send(group("g-1", contacts[0]), account=Credentials("wecom", right.host, right.login, "wrong"))
    assert (outcome.kind, outcome.code) == ("pause", "40001")
    with pytest.raises(ConfigError, match="corpid"):
        send(group("g-1", contacts[0]), account=Credentials("wecom", right.host))


def test_the_interfaces_can_have_other_addresses(sandbox: Any, contacts: list[str]) -> None:
    right = credentials("wecom")
    moved = Credentials(
        "wecom", right.host, right.login, right.password, extra={"create_path": "/cgi-bin/externalcontact/v9"}
    )
    assert send(group("g-1", contacts[0]), account=moved).kind == "unknown"  # 404 with a page that is no JSON
    assert sandbox.control("GET", "/counters")["requests"]["wecom"]["cgi-bin/externalcontact/v9"] == 1
