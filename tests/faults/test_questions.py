"""Messages in doubt, and messages an employee must let go: the platform is asked, and only its clear word counts."""

import os
from typing import Any

import pytest

from campaign_world import AS_OF, approve, start_run, states
from nightmarket import dates
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.delivery import ask, deliver
from nightmarket.campaigns.results import check_laws, dry_run_report

OPTION = "AIRFLOW_CONN_SMS_ALIYUN"


def texted(stage: Any, count: int) -> str:
    """A live run over SMS, in the outbox."""
    phones = [person["phone"] for person in stage.sandbox.control("GET", "/people")["people"]]
    for phone in sorted({phone for phone in phones if phone})[:count]:
        stage.people.add(phone=phone)
    stage.config.campaign(channels=["sms_aliyun"])
    return start_run()


def arrived(stage: Any) -> int:
    return int(stage.sandbox.control("GET", "/counters")["messages"]["total"])


def test_a_lost_answer_is_settled_by_the_platforms_ledger(stage: Any) -> None:
    run_id = texted(stage, 6)
    stage.fault(platform="sms_aliyun", method="SendSms", kind="http_500_after", times=4)
    deliver(run_id, "w", 30)
    assert states(stage.db, run_id) == {"accepted": 2, "unknown": 4}
    assert ask("asker", 30) == {}, "a call that was made just now may still be answered by itself"
    stage.later(minutes=10)
    assert ask("asker", 30) == {"asked": 4, "accepted": 4}
    assert ask("asker", 30) == {}
    assert deliver(run_id, "again", 30)["calls"] == 0
    assert arrived(stage) == 6
    check_laws(run_id)


def test_what_the_platform_does_not_know_stays_in_doubt(stage: Any) -> None:
    """The call never arrived, but the ledger's silence is no proof: nothing is sent again, and it is listed."""
    run_id = texted(stage, 3)
    stage.fault(platform="sms_aliyun", method="SendSms", kind="cut_before", times=2)
    deliver(run_id, "w", 30)
    stage.fault()
    stage.later(hours=2)
    assert ask("asker", 30) == {"asked": 2}
    assert ask("asker", 30) == {}, "the same question is not asked again at once"
    stage.later(hours=3)
    assert ask("asker", 30) == {"asked": 2}
    assert states(stage.db, run_id) == {"accepted": 1, "unknown": 2}
    assert arrived(stage) == 1


def test_a_clear_no_sends_it_again_once(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor has promised us after how long its silence is a no: then, and only then, it goes out again."""
    run_id = texted(stage, 3)
    stage.fault(platform="sms_aliyun", method="SendSms", kind="cut_before", times=2)
    deliver(run_id, "w", 30)
    stage.fault()
    assert states(stage.db, run_id) == {"accepted": 1, "unknown": 2}
    sure = os.environ[OPTION].replace('"extra": {', '"extra": {"absent_is_unsent_after_seconds": "1800", ')
    assert sure != os.environ[OPTION]
    monkeypatch.setenv(OPTION, sure)
    stage.later(minutes=20)
    assert ask("asker", 30) == {"asked": 2}
    stage.later(minutes=40)
    assert ask("asker", 30) == {"asked": 2, "queued": 2}
    assert deliver(run_id, "again", 30)["accepted"] == 3
    assert arrived(stage) == 3
    check_laws(run_id)


def test_a_question_never_overtakes_its_worker(stage: Any) -> None:
    """A worker is killed between call and answer; its message is asked about only after its lease is over and settled once."""
    run_id = texted(stage, 2)
    stage.fault(platform="sms_aliyun", method="SendSms", kind="timeout_after", times=-1, seconds=9)
    worker = stage.worker(run_id, "slow")
    stage.wait_until(lambda: arrived(stage) == 2)
    stage.kill(worker)
    stage.fault()
    assert ask("asker", 30) == {}, "nobody knows yet that the worker is dead"
    stage.later(minutes=5)
    outbox.recover()
    assert states(stage.db, run_id) == {"unknown": 2}
    assert ask("asker", 30) == {"asked": 2, "accepted": 2}
    check_laws(run_id)


def broadcast(stage: Any, count: int, **campaign: Any) -> str:
    for contact in stage.sandbox.access["wecom"]["contacts"][:count]:
        stage.people.add(contact=contact)
    stage.config.campaign(channels=["wecom_broadcast"], **campaign)
    return start_run()


def test_a_broadcast_waits_for_its_employee(stage: Any) -> None:
    run_id = broadcast(stage, 6)
    deliver(run_id, "w", 30)
    assert states(stage.db, run_id) == {"waiting_staff": 6}
    assert stage.db.execute("SELECT state FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone() == {
        "state": "sent"
    }
    assert arrived(stage) == 0
    stage.later(minutes=5)
    assert ask("asker", 30) == {"asked": 6}
    stage.later(minutes=45)
    assert ask("asker", 30) == {"asked": 6, "accepted": 6}
    assert arrived(stage) == 6
    check_laws(run_id)


def test_a_second_broadcast_of_the_day_is_not_even_made(stage: Any) -> None:
    """Also while nobody has confirmed the first one; the day after it is."""
    deliver(broadcast(stage, 3), "w", 30)
    folder = stage.config.folder / "config" / "campaigns"
    text = (folder / "winback_gold.yaml").read_text(encoding="utf-8")
    (folder / "winback_more.yaml").write_text(text.replace("winback_gold", "winback_more"), encoding="utf-8")
    run_id = build_run("winback_more", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    deliver(run_id, "w", 30)
    rows = stage.db.execute(
        "SELECT DISTINCT state, last_error FROM push.messages WHERE run_id = %s", (run_id,)
    ).fetchall()
    assert rows == [{"state": "suppressed", "last_error": "channel_limit"}]


def test_a_broadcast_nobody_confirms_ends_with_its_run(stage: Any) -> None:
    stage.sandbox.control("POST", "/settings", {"wecom_confirm_minutes": -1})
    run_id = broadcast(stage, 3)
    deliver(run_id, "w", 30)
    stage.later(hours=40)
    assert ask("asker", 30) == {"asked": 3}
    outbox.recover()
    assert states(stage.db, run_id) == {"waiting_staff": 3}
    stage.later(hours=24 * 4)
    outbox.recover()
    assert states(stage.db, run_id) == {"expired": 3}
    assert arrived(stage) == 0
    row = stage.db.execute("SELECT min(last_error) AS word FROM push.messages").fetchone()
    assert row == {"word": "expired"}
    assert dates.now() > stage.db.execute("SELECT max(expires_at) AS at FROM push.messages").fetchone()["at"]
    check_laws(run_id)
