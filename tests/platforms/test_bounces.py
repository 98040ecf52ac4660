"""Bounces and complaints: real mails go out, real reports come back into a mailbox, and each is drawn the right conclusion from."""

import asyncio
import mailbox
from collections.abc import Callable
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_world import FOLLOWED
from nightmarket import dates
from nightmarket.campaigns import bounces
from nightmarket.campaigns.results import collect_receipts
from nightmarket.channels.base import Call, Content
from nightmarket.channels.email import Email
from nightmarket.channels.email_reports import Envelope, message_hash, read_report
from nightmarket.privacy import Tokenizer
from nightmarket.settings import ConfigError, Credentials, credentials
from nightmarket.warehouse import Row

Post = Callable[..., str]


@pytest.fixture
def post(sandbox: Any, db: psycopg.Connection[Row]) -> Post:
    """Send one mail as the outbox does, and let `kind` come back about it; returns its key."""
    db.execute(
        "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at,"
        " expires_at) VALUES ('run-1', 'c', 'live', '2026-03-14', %(now)s, '{}', '', 'sent', 'test', %(now)s, %(now)s)",
        {"now": FOLLOWED},
    )
    numbers = iter(range(1, 1000))

    def send(address: str, kind: str = "", state: str = "accepted") -> str:
        number = next(numbers)
        key = f"winback/2026-03-14/{number}/send"
        if kind:
            fault = {"platform": "smtp", "method": "DATA", "kind": kind}
            sandbox.control("POST", "/faults", {"faults": [fault]})

        async def call() -> Any:
            async with Email(credentials("email"), connections=1, timeout_seconds=5) as channel:
                return await channel.send(Call(key, (address,), Content(text="你好", subject="广告：好久不见")))

        outcome = asyncio.run(call())
        assert outcome.kind == "accepted"
        db.execute(
            "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
            " variables, state, not_before, expires_at, platform_message_id, queued_at, accepted_at, updated_at)"
            " VALUES (%(key)s, 'run-1', %(member)s, 'send', 'email', 'email', 'marketing', %(token)s, 't', 'zh', '{}', %(state)s,"
            " %(now)s, %(now)s, %(id)s, %(now)s, %(now)s, %(now)s)",
            {"key": key, "member": number, "token": token(address), "state": state, "now": dates.now(),
             "id": outcome.platform_message_id if state == "accepted" else None},
        )  # fmt: skip
        return key

    return send


@pytest.fixture
def wait(sandbox: Any, set_clock: Callable[[str], None]) -> Callable[..., None]:
    def by(**step: float) -> None:
        moment = (dates.now() + timedelta(**step)).isoformat()
        set_clock(moment)
        sandbox.control("POST", "/clock", {"now": moment})

    return by


def token(address: str) -> str:
    return str(Tokenizer.from_settings().token("email", address))


def states(db: psycopg.Connection[Row]) -> dict[str, str]:
    return {
        row["message_key"]: row["state"]
        for row in db.execute("SELECT message_key, state FROM push.messages").fetchall()
    }


def suppressed(db: psycopg.Connection[Row]) -> dict[str, str]:
    rows = db.execute("SELECT address, reason FROM push.suppressions WHERE channel = 'email'").fetchall()
    return {row["address"]: row["reason"] for row in rows}


def folder(sandbox: Any) -> Path:
    return Path(sandbox.access["smtp"]["bounce_folder"])


# ---------------------------------------------------------------------------------------------------------------- conclusions


def test_a_dead_mailbox(sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]) -> None:
    dead, alive = post("dead@mail.test", "dsn_hard"), post("alive@mail.test")
    assert bounces.collect() == {}
    wait(minutes=6)
    assert collect_receipts()["mails_hard"] == 1
    assert states(db) == {dead: "failed", alive: "accepted"}
    assert suppressed(db) == {token("dead@mail.test"): "bounced"}
    (event,) = db.execute("SELECT message_key, kind, detail FROM core.message_events").fetchall()
    assert event == {"message_key": dead, "kind": "bounced",
                     "detail": "hard bounce 5.1.1 smtp; 550 5.1.1 Unknown mailbox <(address)>"}  # fmt: skip
    assert len(mailbox.Maildir(folder(sandbox))) == 0, "a mail that was read names a person and is deleted"
    assert bounces.collect() == {}


def test_a_bounce_of_a_mail_whose_answer_was_lost(
    sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]
) -> None:
    """It had gone out after all, so it is not in doubt any more."""
    key = post("dead@mail.test", "dsn_hard", state="unknown")
    wait(minutes=6)
    assert bounces.collect() == {"hard": 1}
    collect_receipts()
    assert states(db) == {key: "failed"}
    assert suppressed(db) == {token("dead@mail.test"): "bounced"}


def test_a_full_mailbox_rests_after_some_mails(
    sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]
) -> None:
    for number in range(1, 4):
        post("full@mail.test", "dsn_soft")
        wait(minutes=6)
        assert collect_receipts()["mails_soft"] == 1
        assert (token("full@mail.test") in suppressed(db)) == (number == 3)
        wait(days=1)
    assert set(states(db).values()) == {"failed"}
    (rest,) = db.execute("SELECT reason, until - since AS days FROM push.suppressions").fetchall()
    assert rest == {"reason": "soft bounces", "days": timedelta(days=90)}


def test_soft_bounces_of_long_ago_do_not_count(
    sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]
) -> None:
    for _ in range(3):
        post("full@mail.test", "dsn_soft")
        wait(days=16)
        bounces.collect()
    assert suppressed(db) == {}


def test_a_delay_says_nothing(sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]) -> None:
    key = post("slow@mail.test", "dsn_delayed")
    wait(minutes=6)
    assert bounces.collect() == {"nothing": 1}
    collect_receipts()
    assert states(db) == {key: "accepted"}


def test_servers_that_refuse_us_pause_the_channel_and_no_address(
    sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]
) -> None:
    for number in range(3):
        assert db.execute("SELECT FROM push.pace WHERE paused_until IS NOT NULL").fetchone() is None
        post(f"p{number}@mail.test", "dsn_policy")
        wait(minutes=6)
        assert collect_receipts()["mails_policy"] == 1
    assert suppressed(db) == {}
    pace = db.execute("SELECT account, paused_until, pause_reason FROM push.pace").fetchone()
    assert pace is not None
    assert pace["account"] == "email:email"
    assert pace["paused_until"] > dates.now() + timedelta(hours=5)
    assert pace["pause_reason"].startswith("3 receiving servers refused us, not the receiver: policy 5.7.1")
    alerts = sandbox.control("GET", "/counters")["alerts"]
    assert [alert["robot"] for alert in alerts] == ["wecom", "dingtalk"]
    post("p9@mail.test", "dsn_policy")
    wait(minutes=6)
    bounces.collect()
    assert len(sandbox.control("GET", "/counters")["alerts"]) == 2, "the count begins anew after a pause"


def test_a_complaint_is_for_ever(
    sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]
) -> None:
    key = post("angry@mail.test", "arf")
    db.execute(
        "INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at)"
        " VALUES ('own_pages', 'click-1', %s, 'clicked', %s)",
        (key, dates.now()),
    )
    wait(minutes=6)
    assert collect_receipts()["mails_complained"] == 1
    assert suppressed(db) == {token("angry@mail.test"): "complained"}, "also of somebody who clicked"
    assert states(db) == {key: "delivered"}


def test_mailboxes_of_the_world_can_be_dead_or_complain(
    sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]
) -> None:
    sandbox.control("POST", "/settings", {"mail_dead": 0.5, "mail_complains": 0.5})
    for number in range(12):
        post(f"q{number}@mail.test")
    wait(minutes=6)
    counts = bounces.collect()
    assert counts["hard"] + counts["complained"] == 12
    assert min(counts.values()) > 0


# ---------------------------------------------------------------------------------------------------------------- the mailbox


def test_what_is_no_report_about_ours_is_kept_for_a_person(
    sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]
) -> None:
    letter = EmailMessage()
    letter["Subject"] = "Out of office"
    letter.set_content("I am away")
    box = mailbox.Maildir(folder(sandbox))
    box.add(letter)
    box.add(b"\xff\xfe not a mail at all")
    post("dead@mail.test", "dsn_hard")
    db.execute("DELETE FROM push.messages")  # nobody knows this one any more
    wait(minutes=6)
    assert bounces.collect() == {"strange": 3}
    assert len(mailbox.Maildir(folder(sandbox)).get_folder("unread")) == 3
    assert bounces.collect() == {}


def test_a_mail_that_is_read_twice_is_one_fact(
    sandbox: Any, db: psycopg.Connection[Row], post: Post, wait: Callable[..., None]
) -> None:
    """As after a crash between the commit and the deletion."""
    post("dead@mail.test", "dsn_hard")
    wait(minutes=6)
    box = mailbox.Maildir(folder(sandbox))
    raw = box.get_bytes(next(iter(box.keys())))
    assert bounces.collect() == {"hard": 1}
    box.add(raw)
    assert bounces.collect() == {}
    assert len(db.execute("SELECT FROM core.message_events").fetchall()) == 1


def test_a_folder_that_is_no_mailbox(
    sandbox: Any, db: psycopg.Connection[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_EMAIL", '{"extra": {"from_address": "a@b.test", "bounce_folder": "/nowhere"}}')
    with pytest.raises(ConfigError, match=r"extra\.bounce_folder is no Maildir"):
        bounces.collect()
    monkeypatch.setenv("AIRFLOW_CONN_EMAIL", '{"extra": {"from_address": "a@b.test"}}')
    assert bounces.collect() == {}


# ---------------------------------------------------------------------------------------------------------------- whose report

KEY = "winback/2026-03-14/1/send"


def account(**extra: str) -> Credentials:
    return Credentials("email", extra={"from_address": "hello@nightmarket.test", **extra})


def report(
    to: str, copy: str = "", status: str = "5.1.1", action: str = "failed", words: str = "smtp; 550 no"
) -> bytes:
    return (
        f"From: MAILER-DAEMON@x.test\nTo: {to}\nMIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\n\n'
        "--b\nContent-Type: text/plain\n\nsorry\n--b\nContent-Type: message/delivery-status\n\n"
        f"Reporting-MTA: dns; x.test\n\nFinal-Recipient: rfc822; a@b.test\nAction: {action}\nStatus: {status}\nDiagnostic-Code: {words}\n\n"
        f"--b\nContent-Type: text/rfc822-headers\n\n{copy}\n--b--\n"
    ).encode()


def test_the_envelope_names_the_message_and_nobody_can_make_one_up(environment: str) -> None:
    envelope = Envelope(account(bounce_address="bounces+{token}@b.nightmarket.test"))
    sender = envelope.sender(KEY, "hello@nightmarket.test")
    assert len(sender.partition("@")[0]) <= 64
    assert envelope.hash_in(f"<{sender.upper()}>") == message_hash(KEY), "servers change the case"
    forged = sender.replace(sender[sender.index("@") - 4 : sender.index("@")], "0000")
    assert envelope.hash_in(forged) is None
    found = read_report(report(sender), envelope)
    assert found is not None
    assert (found.kind, found.hashes, found.status) == ("hard", (message_hash(KEY),), "5.1.1")
    copy = f"Message-ID: <{message_hash(KEY)}@nightmarket.test>\n"
    assert read_report(report(forged, copy), envelope) is None, "with signed senders a copy alone proves nothing"


def test_without_an_address_for_bounces_the_copy_names_the_message(environment: str) -> None:
    envelope = Envelope(account())
    assert envelope.sender(KEY, "hello@nightmarket.test") == "hello@nightmarket.test"
    copy = f"Message-ID: <{message_hash(KEY)}@nightmarket.test>\n"
    found = read_report(report("hello@nightmarket.test", copy), envelope)
    assert found is not None
    assert found.hashes == (message_hash(KEY),)


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        ("5.1.1", "", "hard"),
        ("5.2.1", "", "hard"),
        ("4.4.7", "", "soft"),
        ("5.7.26", "", "policy"),
        ("", "smtp; 550 5.7.515 Access denied", "policy"),
        ("", "smtp; 552 5.2.2 full", "hard"),
    ],
)
def test_what_a_status_means(environment: str, status: str, words: str, kind: str) -> None:
    envelope = Envelope(account(bounce_address="b+{token}@b.test"))
    found = read_report(report(envelope.sender(KEY, ""), status=status, words=words), envelope)
    assert found is not None
    assert found.kind == kind


def test_a_report_without_a_status_is_for_a_person(environment: str) -> None:
    envelope = Envelope(account(bounce_address="b+{token}@b.test"))
    assert read_report(report(envelope.sender(KEY, ""), status="", words="no idea"), envelope) is None


@pytest.mark.parametrize(
    "pattern", ["bounces@b.test", "{token}", "b+{token}{token}@b.test", "a-very-long-name+{token}@b.test"]
)
def test_an_address_for_bounces_that_cannot_work(environment: str, pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"extra\.bounce_address must look like"):
        Envelope(account(bounce_address=pattern))
