"""A campaign over SMS: nobody twice, nobody lost, and what is in doubt is cleared up by asking or by a receipt."""

import json
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from campaign_world import AS_OF, approve
from nightmarket import dates, landing, mapping
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.delivery import ask, deliver
from nightmarket.campaigns.results import check_laws, collect_receipts, dry_run_report, export_exposures
from nightmarket.console.receiver import Receiver
from nightmarket.platforms.base import PushRequest
from nightmarket.privacy import Tokenizer
from nightmarket.settings import credentials

PEOPLE = 12


@pytest.fixture
def campaign(stage: Any) -> None:
    """A campaign over Aliyun for 12 members, one of them with a name that is as long as names get."""
    stage.sandbox.control("POST", "/settings", {"sms_failed": 0.0, "unsubscribe": 0.0})
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["sms_aliyun"].update(timeout_seconds=1, rate_per_second=200)
    stage.config.campaign(channels=["sms_aliyun"], coupon=None, holdout_share=0)
    for number, person in enumerate(stage.sandbox.control("GET", "/people")["people"][:PEOPLE]):
        stage.people.add(phone=person["phone"], name="王小明" if number else "欧阳" + "娜" * 22)


@pytest.fixture
def run(campaign: None) -> str:
    """A run of it, in the outbox."""
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    return run_id


def arrived(stage: Any) -> Counter[tuple[str, str]]:
    messages = stage.sandbox.control("GET", "/messages")["messages"]
    return Counter((message["receiver"], message["key"]) for message in messages)


def found(stage: Any) -> Counter[str]:
    return Counter(row["state"] for row in stage.db.execute("SELECT state FROM push.messages").fetchall())


def sure(stage: Any) -> str:
    """The connection of somebody who knows that after half an hour the vendor lists everything it has taken."""
    account = stage.sandbox.access["sms_aliyun"]
    extra = {"push_secret": account["push_secret"], "absent_is_unsent_after_seconds": 1800}
    keys = {"login": account["access_key_id"], "password": account["access_key_secret"]}
    return json.dumps({"host": account["base_url"], **keys, "extra": extra})


def push_to_us(stage: Any, what: str) -> None:
    """Everything the vendor has to tell goes through our receiver."""
    receiver = Receiver()
    query = {"secret": credentials("sms_aliyun").extra["push_secret"]}
    for push in stage.sandbox.control("GET", "/sms")["sms_aliyun"]["pushed"]:
        if push["what"] == what:
            request = PushRequest("POST", "/webhooks/sms_aliyun", query, {}, json.dumps(push["body"]).encode())
            assert receiver.take("sms_aliyun", request).status == 200
    receiver.close()


def night(stage: Any, **later: float) -> None:
    stage.later(**later)
    landing.land("sms_aliyun", "events", run_id="test", until=dates.now())
    mapping.map_source("sms_aliyun", run_id="test")


def test_the_report_counts_billed_parts(stage: Any, run: str) -> None:
    row = stage.db.execute("SELECT report FROM push.campaign_runs WHERE run_id = %s", (run,)).fetchone()
    (channel,) = row["report"]["channels"]
    assert channel == {"channel": "sms_aliyun", "messages": PEOPLE, "cost_amount": "0.540"}  # 12 of one part
    assert {sample["parts"] for sample in row["report"]["samples"]} == {1}
    assert all(sample["text"].startswith("【夜市】") for sample in row["report"]["samples"])


def test_the_report_says_when_a_message_is_billed_as_several(stage: Any, campaign: None) -> None:
    path = stage.config.folder / "templates" / "sms" / "winback_gift" / "zh.txt.j2"
    path.write_text("尊敬的会员${name}，" + "店里上新了，" * 10, encoding="utf-8")
    run_id = build_run("winback_gold", AS_OF, "dry_run", "tester")
    report = dry_run_report(run_id)
    gift = [sample for sample in report["samples"] if sample["variant"] == "gift"]
    assert {sample["parts"] for sample in gift} == {2}
    assert "每条最多按 2 条计费" in report["markdown_zh"]
    assert "billed as up to 2 each" in report["markdown_en"]
    parts = sum(sample["members"] * sample["parts"] for sample in report["samples"])
    assert parts > PEOPLE
    assert report["channels"][0]["cost_amount"] == f"{parts * 0.045:.3f}"


def test_lost_answers_are_cleared_up_by_asking_and_nobody_gets_two(stage: Any, run: str) -> None:
    stage.fault(platform="sms_aliyun", method="SendSms", kind="timeout_after", times=3, after=2, seconds=1.5)
    deliver(run, "first", 60)
    assert found(stage) == {"accepted": PEOPLE - 3, "unknown": 3}
    assert len(arrived(stage)) == PEOPLE
    deliver(run, "again", 30)  # does not repeat what is in doubt
    stage.later(minutes=15)
    said = ask("test", 30)
    assert said["asked"] == 3
    assert found(stage) == {"accepted": PEOPLE}
    assert set(arrived(stage).values()) == {1}
    check_laws(run)


def test_what_was_never_taken_stays_listed_until_the_house_says_when_absence_is_proof(
    stage: Any, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.fault(platform="sms_aliyun", method="SendSms", kind="timeout_before", times=2, seconds=1.5)
    deliver(run, "first", 60)
    stage.later(hours=1)
    ask("test", 30)
    assert found(stage) == {"accepted": PEOPLE - 2, "unknown": 2}
    monkeypatch.setenv("AIRFLOW_CONN_SMS_ALIYUN", sure(stage))
    stage.later(hours=2)
    ask("test", 30)
    deliver(run, "again", 60)
    assert found(stage) == {"accepted": PEOPLE}
    assert sorted(arrived(stage).values()) == [1] * PEOPLE
    check_laws(run)


def test_a_killed_worker_leaves_nothing_twice_and_nothing_lost(
    stage: Any, campaign: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["sms_aliyun"]["rate_per_second"] = 8
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    worker = stage.worker(run_id, "first")
    stage.wait_until(lambda: len(arrived(stage)) >= 3)
    stage.kill(worker)
    stage.later(minutes=10)  # its leases are over
    deliver(run_id, "second", 60)
    doubted = found(stage)
    assert set(doubted) <= {"accepted", "unknown"}
    assert doubted["unknown"] >= 1
    assert set(arrived(stage).values()) == {1}
    monkeypatch.setenv("AIRFLOW_CONN_SMS_ALIYUN", sure(stage))
    stage.later(hours=2)
    ask("test", 30)  # what the vendor lists went out; what it does not list after so long did not
    deliver(run_id, "third", 60)
    assert found(stage) == {"accepted": PEOPLE}
    assert sorted(arrived(stage).values()) == [1] * PEOPLE
    check_laws(run_id)


def test_receipts_and_replies_come_back(stage: Any, run: str) -> None:
    stage.fault(platform="sms_aliyun", method="SendSms", kind="receipt_failed", times=1, after=1)
    deliver(run, "first", 60)
    export_exposures(run)
    stage.later(minutes=5)
    push_to_us(stage, "reports")
    night(stage, minutes=6)
    collect_receipts()
    assert found(stage) == {"delivered": PEOPLE - 1, "failed": 1}
    number = next(iter(arrived(stage)))[0]
    stage.sandbox.control("POST", "/sms", {"vendor": "sms_aliyun", "reply": [{"number": number, "text": "R"}]})
    stage.later(minutes=7)
    push_to_us(stage, "replies")
    night(stage, minutes=8)
    token = Tokenizer.from_settings().token("phone", number)
    listed = stage.db.execute(
        "SELECT address, reason FROM push.suppressions WHERE reason = 'refused by reply'"
    ).fetchall()
    assert listed == [{"address": token, "reason": "refused by reply"}]
    told = stage.db.execute("SELECT kind, detail FROM core.message_events WHERE kind = 'unsubscribed'").fetchall()
    assert told == [{"kind": "unsubscribed", "detail": "reply"}]
    words = stage.db.execute("SELECT is_granted FROM core.consents_as_of(%s) WHERE channel = 'sms' AND NOT is_granted", (dates.now() + timedelta(seconds=1),))  # fmt: skip
    assert len(words.fetchall()) == 1
