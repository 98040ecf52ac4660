"""The sandbox's mail server."""

import smtplib
from collections.abc import Iterator
from datetime import timedelta
from email.message import EmailMessage
from typing import Any
from urllib.parse import quote

import pytest
from sandbox_client import RawClient


@pytest.fixture
def raw(sandbox_process: Any) -> RawClient:
    client = RawClient(sandbox_process.access)
    client.control("POST", "/reset", {}).raise_for_status()
    return client


def sign_in(raw: RawClient) -> smtplib.SMTP:
    account = raw.access["smtp"]
    server = smtplib.SMTP(account["host"], account["port"], timeout=10)
    server.login(account["username"], account["password"])
    return server


@pytest.fixture
def server(raw: RawClient) -> Iterator[smtplib.SMTP]:
    connection = sign_in(raw)
    yield connection
    connection.close()


def letter(to: str, key: str = "winback/2026-03-15/9/gift") -> EmailMessage:
    message = EmailMessage()
    message["From"] = "夜市 <hello@nightmarket.test>"
    message["To"] = to
    message["Subject"] = "AD 一张券"
    message["Message-ID"] = f"<{abs(hash(key))}@nightmarket.test>"
    message["List-Unsubscribe"] = f"<https://m.nightmarket.test/u/{quote(key, safe='')}?s=1>"
    message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    message.set_content("您好")
    page = f'<p>你好 <a href="https://m.nightmarket.test/r/{quote(key, safe="")}?s=1&amp;x=2">看看</a></p>'
    message.add_alternative(page, subtype="html")
    return message


def subscriber(raw: RawClient) -> str:
    return next(event["data"]["email"] for event in raw.all_events() if event["data"].get("email"))


def test_a_letter_is_kept_and_counted(raw: RawClient, server: smtplib.SMTP) -> None:
    to = subscriber(raw)
    message = letter(to)
    assert server.send_message(message) == {}
    counters = raw.control("GET", "/counters").json()
    assert counters["emails"] == {"by_message_id": {message["Message-ID"]: 1}, "by_recipient": {to: 1}}
    assert counters["messages"]["by_receiver_and_key"] == {to: {message["Message-ID"]: 1}}
    (kept,) = raw.control("GET", "/messages").json()["messages"]
    assert kept["link_key"] == kept["unsubscribe_key"] == "winback/2026-03-15/9/gift"
    assert kept["list_unsubscribe_post"] == "List-Unsubscribe=One-Click"
    assert kept["subject"] == "AD 一张券"
    assert "你好" in kept["content"]


def test_password_and_receiver_are_checked(raw: RawClient) -> None:
    account = raw.access["smtp"]
    with smtplib.SMTP(account["host"], account["port"], timeout=10) as stranger:
        with pytest.raises(smtplib.SMTPSenderRefused):
            stranger.sendmail("a@b.test", ["c@d.test"], "x")
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            stranger.login(account["username"], "guess")
        assert caught.value.smtp_code == 535
    with sign_in(raw) as known, pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        known.send_message(letter("somebody@example.com"))
    assert refused.value.recipients["somebody@example.com"][0] == 550
    assert raw.control("GET", "/counters").json()["messages"]["total"] == 0


def test_a_lost_reply_after_data(raw: RawClient, server: smtplib.SMTP) -> None:
    fault = {"platform": "smtp", "method": "DATA", "kind": "drop_after_data", "times": 1}
    raw.control("POST", "/faults", {"faults": [fault]}).raise_for_status()
    message = letter("a@mail.test")
    with pytest.raises(smtplib.SMTPServerDisconnected):
        server.send_message(message)
    assert raw.control("GET", "/counters").json()["emails"]["by_message_id"] == {message["Message-ID"]: 1}
    with sign_in(raw) as second:
        assert second.send_message(letter("b@mail.test", "other")) == {}


@pytest.mark.parametrize(("kind", "code"), [("smtp_451", 451), ("smtp_550", 550)])
def test_refused_letters_are_not_counted(raw: RawClient, server: smtplib.SMTP, kind: str, code: int) -> None:
    raw.control("POST", "/faults", {"faults": [{"platform": "smtp", "kind": kind}]}).raise_for_status()
    with pytest.raises(smtplib.SMTPDataError) as caught:
        server.send_message(letter("a@mail.test"))
    assert caught.value.smtp_code == code
    assert raw.control("GET", "/counters").json()["messages"]["total"] == 0
    assert server.send_message(letter("a@mail.test")) == {}


def test_a_connection_that_ends_before_the_letter_was_taken(raw: RawClient, server: smtplib.SMTP) -> None:
    fault = {"platform": "smtp", "kind": "drop_before_data"}
    raw.control("POST", "/faults", {"faults": [fault]}).raise_for_status()
    with pytest.raises(smtplib.SMTPServerDisconnected):
        server.send_message(letter("a@mail.test"))
    assert raw.control("GET", "/counters").json()["messages"]["total"] == 0


def test_readers_click_and_unsubscribe(raw: RawClient, server: smtplib.SMTP) -> None:
    raw.control("POST", "/settings", {"click": 1.0, "unsubscribe": 1.0}).raise_for_status()
    to = subscriber(raw)
    server.send_message(letter(to, "winback/x/9/gift"))
    later = (raw.now() + timedelta(hours=7)).isoformat()
    raw.control("POST", "/clock", {"now": later}).raise_for_status()
    events = {event["kind"]: event["data"] for event in raw.all_events() if event["kind"] in ("click", "unsubscribe")}
    assert events["click"] == {"key": "winback/x/9/gift", "openid": None}
    assert events["unsubscribe"] == {"key": "winback/x/9/gift", "channel": "email", "openid": None, "email": to}
