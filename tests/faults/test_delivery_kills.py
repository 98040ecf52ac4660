"""A worker is killed (-9) at every point of sending. The sandbox's counters are the judge: nobody gets a message twice, and
what cannot be known is listed."""

import signal
import time
from typing import Any

import pytest

from campaign_world import start_run
from nightmarket.campaigns.delivery import deliver
from nightmarket.channels.registry import CHANNELS as CHANNELS_BY_NAME

CHANNELS = ["wechat_service", "wechat_mass", "email"]
COUNT = 12


@pytest.mark.parametrize("channel", CHANNELS)
def test_killed_before_the_claim_nothing_happened(stage: Any, channel: str) -> None:
    run_id = stage.run(channel, COUNT)
    stage.hold("push.messages", "UPDATE", "NEW.state = 'sending'")
    worker = stage.worker(run_id, "first")
    stage.wait_until(stage.is_held)
    stage.kill(worker)
    stage.let_go("push.messages")
    assert stage.received_keys() == {}
    assert set(stage.messages(run_id).values()) == {"queued"}
    deliver(run_id, "second", 30)  # no lease to wait for
    assert stage.judge(run_id) == {"accepted": COUNT, "unknown": 0, "arrived": COUNT}


@pytest.mark.parametrize("channel", CHANNELS)
def test_killed_after_the_claim_nothing_was_sent(stage: Any, channel: str) -> None:
    run_id = stage.run(channel, COUNT)
    stage.hold("push.attempts", "INSERT", "true")
    worker = stage.worker(run_id, "first")
    stage.wait_until(stage.is_held)
    stage.kill(worker)
    stage.let_go("push.attempts")
    assert set(stage.messages(run_id).values()) == {"sending"}
    assert stage.received_keys() == {}
    stage.later(minutes=10)  # the lease is over
    result = deliver(run_id, "second", 30)
    assert result["recovered"] == {"queued": COUNT}
    assert stage.judge(run_id) == {"accepted": COUNT, "unknown": 0, "arrived": COUNT}


@pytest.mark.parametrize("channel", CHANNELS)
def test_killed_between_the_call_and_its_answer(stage: Any, channel: str) -> None:
    run_id = stage.run(channel, COUNT)
    method = {"wechat_service": "cgi-bin/message/custom/send", "wechat_mass": "cgi-bin/message/mass/send"}
    if channel == "email":  # the mail server answers, but the answer is never written down
        stage.hold("push.messages", "UPDATE", "NEW.state = 'accepted'")
    else:
        stage.fault(platform="wechat_official", method=method[channel], kind="timeout_after", seconds=20, times=-1)
    worker = stage.worker(run_id, "first")
    stage.wait_until(lambda: stage.is_held() if channel == "email" else len(stage.received_keys()) == COUNT)
    stage.kill(worker)
    stage.fault()
    stage.let_go("push.messages")
    stage.later(minutes=10)
    deliver(run_id, "second", 30)
    check_doubt(stage, run_id, channel)


@pytest.mark.parametrize("channel", [*CHANNELS, "jpush", "sms_aliyun", "wecom_broadcast"])
def test_killed_before_the_answer_is_committed(stage: Any, channel: str) -> None:
    run_id = stage.run(channel, COUNT)
    stage.hold("push.attempts", "UPDATE", "NEW.outcome IS NOT NULL")
    worker = stage.worker(run_id, "first")
    stage.wait_until(stage.is_held)
    stage.kill(worker)
    stage.let_go("push.attempts")
    assert set(stage.messages(run_id).values()) == {"sending"}
    stage.later(minutes=10)
    deliver(run_id, "second", 30)
    check_doubt(stage, run_id, channel)


def check_doubt(stage: Any, run_id: str, channel: str) -> None:
    """What the platform recognises is called again; of all others every recorded attempt is listed as unknown."""
    result = stage.judge(run_id)
    assert result["arrived"] > 0 or channel == "wecom_broadcast"  # nobody has pressed send yet
    in_doubt = 0 if CHANNELS_BY_NAME[channel].is_repeatable else COUNT
    assert (result["accepted"], result["unknown"]) == (COUNT - in_doubt, in_doubt)


@pytest.mark.parametrize("channel", ["wechat_service", "email"])
def test_a_worker_that_is_asked_to_stop_leaves_no_doubt(stage: Any, channel: str) -> None:
    """SIGTERM, as when a task is cleared: open calls are finished and recorded, the rest goes back at once."""
    stage.audience(channel, 50)
    with stage.config.editing("channels.yaml") as data:
        data["channels"][channel]["rate_per_second"] = 15
    run_id = start_run()
    worker = stage.worker(run_id, "first")
    stage.wait_until(lambda: len(stage.received_keys()) > 3)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == -signal.SIGTERM
    states = list(stage.messages(run_id).values())
    assert set(states) == {"accepted", "queued"}
    assert states.count("accepted") == len(stage.received_keys())
    deliver(run_id, "second", 30)
    assert stage.judge(run_id) == {"accepted": 50, "unknown": 0, "arrived": 50}


def test_killed_in_the_middle_only_a_group_and_the_open_calls_are_in_doubt(stage: Any) -> None:
    """The next group is written down while the last one is called: both together are never more than `attempt_group`."""
    stage.audience("wechat_service", 60)
    with stage.config.editing("channels.yaml") as data:
        data["delivery"] |= {"attempt_group": 4, "claim_size": 40}
        data["channels"]["wechat_service"] |= {"rate_per_second": 20, "connections": 2}
    run_id = start_run()
    worker = stage.worker(run_id, "first")
    stage.wait_until(lambda: len(stage.received_keys()) > 8)
    stage.kill(worker)
    written = stage.db.execute("SELECT count(*) AS n FROM push.attempts").fetchone()["n"]
    assert 0 <= written - len(stage.received_keys()) <= 4 + 2
    stage.later(minutes=10)
    deliver(run_id, "second", 30)
    result = stage.judge(run_id)
    assert result["accepted"] + result["unknown"] == 60


def test_answers_that_are_not_written_down_yet_are_in_doubt_too(stage: Any) -> None:
    """While nothing can be recorded only so many calls are begun as a crash may leave in doubt."""
    stage.audience("wechat_service", 60)
    with stage.config.editing("channels.yaml") as data:
        data["delivery"] |= {"attempt_group": 4, "claim_size": 40}
        data["channels"]["wechat_service"] |= {"rate_per_second": 500, "connections": 2}
    run_id = start_run()
    stage.hold("push.attempts", "UPDATE", "NEW.outcome = 'accepted'")
    worker = stage.worker(run_id, "first")
    stage.wait_until(stage.is_held)
    time.sleep(1)  # time enough to send all sixty
    stage.kill(worker)
    stage.let_go("push.attempts")
    assert 0 < len(stage.received_keys()) <= 4 + 2
    stage.later(minutes=10)
    deliver(run_id, "second", 30)
    result = stage.judge(run_id)
    assert result["unknown"] <= 4 + 2
    assert result["accepted"] + result["unknown"] == 60
