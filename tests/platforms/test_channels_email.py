"""E-mail against a real SMTP server: headers, one-click unsubscribe, and what each refusal and silence means."""

import asyncio
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.policy import default
from typing import Any

import pytest

from nightmarket import settings
from nightmarket.channels.base import Call, Content, Outcome
from nightmarket.channels.email import Email, _refusal, check, message_id
from nightmarket.settings import ConfigError, Credentials, credentials

CONTENT = Content(
    text="您好，王小明\nhttps://m.nightmarket.test/r/k", html="<p>您好，王小明</p>", subject="广告：好久不见"
)


def call(key: str = "winback/2026-03-14/7/send", address: str = "wang@mail.test", content: Content = CONTENT) -> Call:
    return Call(key, (address,), content, "https://m.nightmarket.test/r/k", "https://m.nightmarket.test/u/k?s=x")


def send(*calls: Call, account: Credentials | None = None, together: bool = False) -> list[Outcome]:
    async def run() -> list[Outcome]:
        async with Email(account or credentials("email"), connections=3, timeout_seconds=3) as channel:
            if together:
                return list(await asyncio.gather(*(channel.send(each) for each in calls)))
            return [await channel.send(each) for each in calls]

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def _signing_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What envelope senders are signed with; nothing here needs a database."""
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nowhere")
    monkeypatch.setenv("NIGHTMARKET_TOKEN_KEY", "a test key of more than thirty-two characters")
    settings.get_settings.cache_clear()
    yield
    settings.get_settings.cache_clear()


@pytest.fixture
def fault(sandbox: Any) -> Callable[[str], None]:
    def set_fault(kind: str) -> None:
        sandbox.control("POST", "/faults", {"faults": [{"platform": "smtp", "method": "DATA", "kind": kind}]})

    return set_fault


def mails(sandbox: Any) -> list[dict[str, Any]]:
    return [message for message in sandbox.control("GET", "/messages")["messages"] if message["channel"] == "email"]


def test_a_mail_arrives_whole(sandbox: Any) -> None:
    (outcome,) = send(call())
    domain = credentials("email").extra["from_address"].split("@")[1]
    assert (outcome.kind, outcome.platform_message_id) == ("accepted", message_id("winback/2026-03-14/7/send", domain))
    (mail,) = mails(sandbox)
    assert mail["subject"] == "广告：好久不见"
    assert mail["message_id"] == outcome.platform_message_id
    assert mail["list_unsubscribe"] == "<https://m.nightmarket.test/u/k?s=x>"
    assert mail["list_unsubscribe_post"] == "List-Unsubscribe=One-Click"
    assert "您好，王小明" in mail["content"]


def test_text_comes_first_and_html_beside_it(sandbox: Any) -> None:
    message = message_from_bytes(
        Email(credentials("email"), connections=1, timeout_seconds=3).build(call()).as_bytes(), policy=default
    )
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]  # type: ignore[attr-defined]
    assert message["To"] == "wang@mail.test"
    assert message["Precedence"] == "bulk"


def test_many_mails_share_few_connections(sandbox: Any) -> None:
    outcomes = send(*(call(f"k/{number}", f"p{number}@mail.test") for number in range(30)), together=True)
    assert {outcome.kind for outcome in outcomes} == {"accepted"}
    counters = sandbox.control("GET", "/counters")
    assert counters["requests"]["smtp"]["AUTH"] <= 3
    assert set(counters["emails"]["by_message_id"].values()) == {1}


@pytest.mark.parametrize("address", ["not an address", "a@b.test\r\nBcc: all@mail.test", "a@b.test, c@d.test", ""])
def test_an_address_that_is_none_is_refused_alone(sandbox: Any, address: str) -> None:
    bad, good = send(call("bad", address), call("good"))
    assert (bad.kind, bad.code, bad.suppress) == ("refused", "address", "invalid address")
    assert good.kind == "accepted"
    assert [mail["receiver"] for mail in mails(sandbox)] == ["wang@mail.test"]


def test_a_subject_cannot_carry_a_header(sandbox: Any) -> None:
    content = Content(text="x", subject="Hello\r\nBcc: all@mail.test")
    (outcome,) = send(call(content=content))
    assert (outcome.kind, outcome.code) == ("refused", "message")
    assert mails(sandbox) == []


def test_a_dead_mailbox_is_never_written_to_again(sandbox: Any) -> None:
    (outcome,) = send(call(address="gone@mail.example"))  # the sandbox knows receivers under .test only
    assert (outcome.kind, outcome.code, outcome.suppress, outcome.suppress_days) == (
        "refused",
        "550",
        "hard bounce",
        None,
    )


@pytest.mark.parametrize(
    ("kind", "outcome", "code", "arrived"),
    [
        ("smtp_451", "retry", "451", 0),
        ("smtp_550", "pause", "550", 0),
        ("drop_after_data", "unknown", "smtp", 1),
        ("drop_before_data", "unknown", "smtp", 0),
    ],
)
def test_what_came_of_data(
    sandbox: Any, fault: Callable[[str], None], kind: str, outcome: str, code: str, arrived: int
) -> None:
    fault(kind)
    first, second = send(call("first"), call("second"))
    assert (first.kind, first.code) == (outcome, code)
    assert not first.suppress
    assert second.kind == "accepted"  # on a fresh connection when the old one is gone
    assert len(mails(sandbox)) == arrived + 1


def test_a_wrong_password_pauses_the_channel(sandbox: Any) -> None:
    account = credentials("email")
    wrong = Credentials("email", account.host, account.login, "wrong", account.port, account.extra)
    (outcome,) = send(call(), account=wrong)
    assert (outcome.kind, outcome.code) == ("pause", "535")
    with pytest.raises(ConfigError, match="the mail server refused the password"):
        asyncio.run(check(wrong))
    assert "lets" in asyncio.run(check(account))


def test_a_server_that_is_not_there_took_nothing(sandbox: Any) -> None:
    account = credentials("email")
    gone = Credentials("email", "127.0.0.1", account.login, account.password, 9, account.extra)
    (outcome,) = send(call(), account=gone)
    assert (outcome.kind, outcome.code) == ("retry", "connect")


def test_a_connection_without_a_sender_is_refused(sandbox: Any) -> None:
    with pytest.raises(ConfigError, match=r"extra\.from_address is missing"):
        Email(Credentials("email", "127.0.0.1"), connections=1, timeout_seconds=1)


def test_a_refusal_that_repeats_the_receiver_is_kept_without_it() -> None:
    outcome = _refusal(550, "5.1.1 <wang@mail.test>: Recipient\r\nunknown wang@mail.test", at_receiver=True)
    assert outcome.message == "5.1.1 <(address)>: Recipient unknown (address)"
