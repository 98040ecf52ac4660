"""Two workers, two runs, a lost database, a platform that misbehaves: sent once, or listed, and it goes on by itself."""

import json
import os
import threading
import time
from typing import Any

import pytest

from campaign_world import AS_OF, start_run, states
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import RunRefused, build_run
from nightmarket.campaigns.delivery import ChannelPaused, deliver

SERVICE = "cgi-bin/message/custom/send"


def paused(run_id: str, worker: str) -> dict[str, Any]:
    """Deliver, and expect that a channel is paused; what was done before."""
    with pytest.raises(ChannelPaused) as caught:
        deliver(run_id, worker, 30)
    return caught.value.result


@pytest.mark.parametrize("channel", ["wechat_service", "wechat_mass", "email"])
def test_two_workers_share_one_run(stage: Any, channel: str) -> None:
    stage.audience(channel, 60)
    with stage.config.editing("channels.yaml") as data:
        data["delivery"]["claim_size"] = 10
        data["channels"]["wechat_mass"].update(group_size=10, rate_per_second=5)
        data["channels"]["wechat_service"]["rate_per_second"] = 60
        data["channels"]["email"]["rate_per_second"] = 60
    run_id = start_run()
    workers = [stage.worker(run_id, name) for name in ("one", "two")]
    results = [stage.finish(worker) for worker in workers]
    assert stage.judge(run_id) == {"accepted": 60, "unknown": 0, "arrived": 60}
    assert sum(result["calls"] for result in results) == (6 if channel == "wechat_mass" else 60)
    row = stage.db.execute("SELECT state FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()
    assert row["state"] == "sent"


def test_two_runs_of_one_campaign_at_once(stage: Any) -> None:
    stage.audience("email", 5)
    barrier, outcomes = threading.Barrier(4), []

    def start(number: int) -> None:
        barrier.wait()
        try:
            outcomes.append(build_run("winback_gold", AS_OF, "live", f"person {number}"))
        except RunRefused as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("winback_gold@2026-03-14") == 1
    assert sum("already live" in str(outcome) for outcome in outcomes) == 3


def test_delivering_again_sends_nothing_again(stage: Any) -> None:
    run_id = stage.run("wechat_service", 10)
    deliver(run_id, "first", 30)
    assert outbox.enqueue(run_id) == 10
    deliver(run_id, "again", 30)
    deliver(None, "everything", 30)
    assert stage.judge(run_id) == {"accepted": 10, "unknown": 0, "arrived": 10}


@pytest.mark.parametrize("kind", ["timeout_after", "http_500_after", "cut", "garbage"])
def test_a_lost_answer_is_listed_and_never_repeated(stage: Any, kind: str) -> None:
    run_id = stage.run("wechat_service", 10)
    stage.fault(platform="wechat_official", method=SERVICE, kind=kind, times=2, after=3, seconds=5)
    deliver(run_id, "first", 30)
    deliver(run_id, "again", 30)
    result = stage.judge(run_id)
    assert (result["accepted"], result["unknown"]) == (8, 2)
    rows = stage.db.execute("SELECT last_error FROM push.messages WHERE state = 'unknown'").fetchall()
    assert all(row["last_error"] for row in rows)


@pytest.mark.parametrize("kind", ["timeout_after", "http_500_after", "cut", "garbage", "http_500", "timeout_before"])
def test_a_mass_send_in_doubt_is_repeated_with_the_same_key_to_the_same_people(stage: Any, kind: str) -> None:
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["wechat_mass"]["timeout_seconds"] = 1
    run_id = stage.run("wechat_mass", 10)
    stage.fault(platform="wechat_official", method="cgi-bin/message/mass/send", kind=kind, times=1, seconds=2)
    someone = stage.db.execute(
        "SELECT member_id, address FROM push.messages WHERE run_id = %s LIMIT 1", (run_id,)
    ).fetchone()
    thread = threading.Thread(target=deliver, args=(run_id, "first", 30))
    thread.start()
    stage.wait_until(lambda: stage.db.execute("SELECT 1 FROM push.attempts WHERE outcome = 'unknown'").fetchone())
    # somebody withdraws between the two calls: dropping them would make it another call, and everybody would get it twice
    identity = stage.people.identity_of(someone["member_id"], "wechat_openid")
    stage.people.consent(identity, "wechat", "marketing", False)
    thread.join()
    assert stage.judge(run_id) == {"accepted": 10, "unknown": 0, "arrived": 10}


def test_the_database_connection_is_dropped_in_the_middle(stage: Any) -> None:
    stage.audience("wechat_service", 60)
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["wechat_service"]["rate_per_second"] = 40
        data["delivery"].update(attempt_group=5, claim_size=15)
    run_id = start_run()
    results: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: results.append(deliver(run_id, "first", 60)))
    thread.start()
    for _ in range(4):
        seen = len(stage.received_keys())
        stage.wait_until(lambda seen=seen: len(stage.received_keys()) > seen or not thread.is_alive())
        assert stage.drop_sessions() > 0
        time.sleep(0.3)
    thread.join()
    assert results, "delivery went on after the connection came back"
    stage.later(minutes=10)
    deliver(run_id, "second", 30)
    result = stage.judge(run_id)
    assert result["accepted"] >= 60 - 4 * 5  # a connection lost during a commit leaves at most one group in doubt


def test_a_worker_that_slept_past_its_lease_sends_nothing_more(stage: Any) -> None:
    run_id = stage.run("wechat_service", 10)
    stage.hold("push.attempts", "INSERT", "true")
    sleeper = stage.worker(run_id, "sleeper")
    stage.wait_until(stage.is_held)
    stage.later(minutes=10)  # its lease ends while it hangs
    outbox.recover()  # whatever its hanging transaction does not lock goes back to the queue
    stage.drop_sessions()
    stage.let_go("push.attempts")
    deliver(run_id, "second", 30)
    stage.finish(sleeper)
    assert stage.judge(run_id) == {"accepted": 10, "unknown": 0, "arrived": 10}


def test_a_rate_limited_platform_is_given_time(stage: Any) -> None:
    run_id = stage.run("wechat_service", 5)
    stage.fault(platform="wechat_official", method=SERVICE, kind="http_429", times=2)
    deliver(run_id, "first", 60)
    assert stage.judge(run_id) == {"accepted": 5, "unknown": 0, "arrived": 5}
    row = stage.db.execute("SELECT max(attempt_count) AS n FROM push.messages").fetchone()
    assert row["n"] == 2


def test_a_platform_that_fails_all_the_time_is_paused_not_burned_through(stage: Any) -> None:
    with stage.config.editing("channels.yaml") as data:
        data["delivery"].update(breaker_failures=5, attempt_group=5)
        data["channels"]["wechat_service"].update(connections=2)
    run_id = stage.run("wechat_service", 60)
    stage.fault(platform="wechat_official", method=SERVICE, kind="http_500", times=-1)
    (sentence,) = paused(run_id, "first")["paused"]
    reason = "5 calls in a row failed, the last one with 500: server error"
    assert sentence == f"wechat_service is paused until 2026-03-15 10:05: {reason}"
    assert states(stage.db, run_id)["queued"] >= 60 - 5 - 2 - 5
    stage.fault()
    assert "wechat_service is paused until" in paused(run_id, "second")["paused"][0]
    assert outbox.resume("wechat_service", "wechat_official", "tester")
    assert not outbox.resume("wechat_service", "wechat_official", "tester")
    deliver(run_id, "third", 30)
    result = stage.judge_unsent(run_id)
    assert result["unknown"] <= 12
    assert result["accepted"] == 60 - result["unknown"]


def test_a_daily_quota_waits_for_tomorrow(stage: Any) -> None:
    run_id = stage.run("wechat_service", 10)
    stage.fault(platform="wechat_official", method=SERVICE, kind="call_limit", times=-1)
    result = paused(run_id, "first")
    assert "daily quota of this interface reached (45009)" in result["paused"][0]
    assert states(stage.db, run_id) == {"queued": 10}
    stage.fault()
    stage.later(hours=23.5)  # 09:30 on the next day, before the run expires
    deliver(run_id, "tomorrow", 30)
    assert stage.judge(run_id) == {"accepted": 10, "unknown": 0, "arrived": 10}


def test_a_wrong_secret_stops_before_the_first_message(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    account = json.loads(os.environ["AIRFLOW_CONN_WECHAT_OFFICIAL"])
    monkeypatch.setenv("AIRFLOW_CONN_WECHAT_OFFICIAL", json.dumps({**account, "password": "wrong"}))
    run_id = stage.run("wechat_service", 10)
    result = paused(run_id, "first")
    assert result["paused"][0].endswith("WeChat gives no usable access token: invalid appsecret (40125)")
    assert states(stage.db, run_id) == {"queued": 10}


def test_a_dead_mailbox_and_a_lost_reply(stage: Any) -> None:
    stage.audience("email", 6)
    dead = stage.people.add(email="dead@mail.example")
    run_id = start_run()
    stage.fault(platform="smtp", method="DATA", kind="drop_after_data", times=1)
    deliver(run_id, "first", 30)
    assert states(stage.db, run_id) == {"accepted": 5, "failed": 1, "unknown": 1}
    rows = stage.db.execute("SELECT channel, address, reason, until FROM push.suppressions").fetchall()
    token = stage.people.tokens.token("email", "dead@mail.example")
    assert rows == [{"channel": "email", "address": token, "reason": "hard bounce", "until": None}]
    assert max(stage.received_keys().values()) == 1
    assert dead


def test_the_shared_limit_is_kept_by_two_workers(stage: Any) -> None:
    stage.audience("wechat_service", 70)
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["wechat_service"]["rate_per_second"] = 20
        data["delivery"]["claim_size"] = 10
    run_id = start_run()
    workers = [stage.worker(run_id, name) for name in ("one", "two")]
    results = [stage.finish(worker) for worker in workers]
    assert all(result["calls"] > 0 for result in results)
    rows = stage.db.execute("SELECT next_at FROM push.pace").fetchall()
    assert len(rows) == 1
    assert max(result["seconds"] for result in results) >= 70 / 20  # 70 calls at 20 a second
    assert stage.judge(run_id)["accepted"] == 70
