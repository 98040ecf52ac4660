"""App pushes through the whole outbox: workers die, JPush answers late or never, and each phone rings once."""

import json
import os
from typing import Any

import pytest

from campaign_world import start_run, states
from nightmarket import dates
from nightmarket.campaigns import outbox
from nightmarket.campaigns.delivery import ChannelPaused, deliver

COUNT = 12
PUSH = {"platform": "jpush", "method": "v3/push"}


def pushed(stage: Any, count: int = COUNT, **options: Any) -> str:
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["jpush"].update(rate_per_second=100, timeout_seconds=1, **options)
    for alias in stage.sandbox.access["jpush"]["aliases"][:count]:
        stage.people.add(alias=alias)
    stage.config.campaign(channels=["jpush"])
    return start_run()


def test_all_of_it_arrives_once_and_the_laws_hold(stage: Any) -> None:
    run_id = pushed(stage)
    deliver(run_id, "w", 30)
    assert stage.judge(run_id) == {"accepted": COUNT, "unknown": 0, "arrived": COUNT}


@pytest.mark.parametrize("kind", ["timeout_after", "garbage", "http_503"])
def test_a_push_in_doubt_is_repeated_until_jpush_answers(stage: Any, kind: str) -> None:
    run_id = pushed(stage)
    stage.fault(**PUSH, kind=kind, times=5, seconds=2)
    deliver(run_id, "w", 40)
    assert stage.judge(run_id) == {"accepted": COUNT, "unknown": 0, "arrived": COUNT}
    doubts = stage.db.execute("SELECT count(*) AS n FROM push.attempts WHERE outcome = 'unknown'").fetchone()
    assert doubts["n"] == 5


def test_a_killed_worker_leaves_nothing_in_doubt(stage: Any) -> None:
    run_id = pushed(stage)
    stage.fault(**PUSH, kind="timeout_after", times=-1, seconds=20)
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["jpush"]["timeout_seconds"] = 30
    worker = stage.worker(run_id, "first")
    stage.wait_until(lambda: len(stage.received_keys()) == COUNT)
    stage.kill(worker)
    stage.fault()
    stage.later(minutes=10)
    deliver(run_id, "second", 30)
    assert stage.judge(run_id) == {"accepted": COUNT, "unknown": 0, "arrived": COUNT}


def test_after_a_day_the_doubt_stays(stage: Any) -> None:
    """JPush would push again: nobody calls it, and the messages are listed at once, not when they expire."""
    stage.config.campaign(expires_after_hours=96)
    run_id = pushed(stage, 3)
    stage.fault(**PUSH, kind="timeout_after", times=-1, seconds=9)
    worker = stage.worker(run_id, "first")
    stage.wait_until(lambda: len(stage.received_keys()) == 3)
    stage.kill(worker)
    stage.fault()
    stage.later(hours=25)
    deliver(run_id, "second", 30)
    assert stage.judge(run_id) == {"accepted": 0, "unknown": 3, "arrived": 3}
    row = stage.db.execute("SELECT min(last_error) AS word, min(expires_at) AS until FROM push.messages").fetchone()
    assert row["word"].startswith("cid_expired")
    assert row["until"] > dates.now()
    key = next(iter(stage.messages(run_id)))
    assert outbox.resolve(key, True, "tester", "the phone rang") == "accepted"


def test_a_paused_channel_is_told_to_the_team_once(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    account = json.loads(os.environ["AIRFLOW_CONN_JPUSH"]) | {"password": "wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_JPUSH", json.dumps(account))
    run_id = pushed(stage, 3)
    with pytest.raises(ChannelPaused, match="Master Secret is wrong"):
        deliver(run_id, "one", 30)
    outbox.resume("jpush", "jpush", "tester")
    with pytest.raises(ChannelPaused):
        deliver(run_id, "two", 30)
    alerts = stage.sandbox.control("GET", "/counters")["alerts"]
    assert [alert["robot"] for alert in alerts] == ["wecom", "dingtalk"]
    assert alerts[0]["text"].startswith(
        "**渠道已暂停 / channel paused: jpush**\n> AppKey or Master Secret is wrong (1004)"
    )
    assert stage.db.execute("SELECT FROM push.platform_keys").fetchone() is None
    assert states(stage.db, run_id) == {"queued": 3}


def test_a_phone_without_the_app_goes_on_to_the_mailbox(stage: Any) -> None:
    """1011 is a clear no, so the message takes its next route; the alias rests for a week."""
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["jpush"].update(rate_per_second=100)
    stage.people.add(alias="m999999", email="away@mail.test")
    stage.config.campaign(channels=["jpush", "email"])
    run_id = start_run()
    deliver(run_id, "first", 30)
    deliver(run_id, "second", 30)
    assert states(stage.db, run_id) == {"accepted": 1}
    (message,) = stage.sandbox.control("GET", "/messages")["messages"]
    assert (message["channel"], message["receiver"]) == ("email", "away@mail.test")
    rows = stage.db.execute("SELECT channel, address, reason FROM push.suppressions").fetchall()
    assert rows == [{"channel": "push", "address": "m999999", "reason": "no device"}]
