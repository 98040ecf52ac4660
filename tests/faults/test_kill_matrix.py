"""Killed (-9) in every step that comes before and after sending, and at random moments with one worker and with four.

The steps of sending itself: test_delivery_kills.py. A thousand kills: torture.py.
"""

from dataclasses import replace
from typing import Any

import pytest
from torture import SCENARIOS, Scenario, torture

from campaign_world import AS_OF, approve, start_run, states
from nightmarket.campaigns import coupons, outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.delivery import deliver
from nightmarket.campaigns.results import check_laws, dry_run_report
from nursery import Nursery, is_alive, kill

COUNT = 12
COUPON = {"stock": "winback_30", "test_stock": "test_pool"}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_killed_again_and_again_at_random(stage: Any, workers: Nursery, scenario: Scenario) -> None:
    tally = torture(stage, workers, replace(scenario, messages=48), kills=4)
    assert tally.kills >= 4
    assert (tally.duplicates, tally.lost, tally.broken) == (0, 0, [])


def killed_in(stage: Any, workers: Nursery, step: str, run_id: str, table: str, event: str, condition: str) -> None:
    """A worker does one step of a run and is killed inside its statement on `table`."""
    stage.hold(table, event, condition)
    pid = workers.worker(step, run_id)
    stage.wait_until(stage.is_held)
    assert kill(pid)
    stage.drop_sessions()
    stage.let_go(table)


def approved(stage: Any, **changes: Any) -> str:
    stage.config.campaign(**changes)
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    return run_id


def test_killed_while_the_audience_is_built_there_is_no_run(stage: Any, workers: Nursery) -> None:
    stage.audience("email", COUNT)
    killed_in(stage, workers, "campaign", "request", "push.audiences", "INSERT", "true")
    assert stage.db.execute("SELECT count(*) AS n FROM push.campaign_runs").fetchone() == {"n": 0}
    run_to_the_end(stage, workers)
    (row,) = stage.db.execute("SELECT run_id FROM push.campaign_runs").fetchall()
    assert stage.judge(row["run_id"]) == {"accepted": COUNT, "unknown": 0, "arrived": COUNT}


def run_to_the_end(stage: Any, workers: Nursery) -> None:
    pid = workers.worker("campaign", "request")
    stage.wait_until(lambda: not is_alive(pid))


def test_killed_while_enqueuing_nothing_is_in_the_outbox(stage: Any, workers: Nursery) -> None:
    stage.audience("email", COUNT)
    run_id = approved(stage)
    killed_in(stage, workers, "enqueue", run_id, "push.messages", "INSERT", f"NEW.member_id % {COUNT} = 0")
    assert states(stage.db, run_id) == {}
    assert stage.db.execute("SELECT state FROM push.campaign_runs").fetchone() == {"state": "approved"}
    assert outbox.enqueue(run_id) == COUNT
    deliver(run_id, "second", 30)
    assert stage.judge(run_id) == {"accepted": COUNT, "unknown": 0, "arrived": COUNT}


def test_killed_while_reserving_no_coupon_is_gone(stage: Any, workers: Nursery) -> None:
    stage.audience("wechat_service", COUNT)
    run_id = approved(stage, coupon=COUPON)
    killed_in(stage, workers, "reserve", run_id, "push.coupons", "INSERT", "true")
    assert coupons.coupon_counts(stage.db, run_id) == {}
    assert coupons.reserve(run_id) == COUNT


@pytest.mark.parametrize("moment", ["NEW.state = 'unknown'", "NEW.state = 'issued'"])
def test_killed_before_and_after_a_coupon_is_asked_for(stage: Any, workers: Nursery, moment: str) -> None:
    stage.audience("wechat_service", COUNT)
    run_id = approved(stage, coupon=COUPON)
    coupons.reserve(run_id)
    killed_in(stage, workers, "issue", run_id, "push.coupons", "UPDATE", moment)
    given = stage.sandbox.control("GET", "/counters")["coupons"]["by_out_request_no"]
    assert len(given) == (COUNT if "issued" in moment else 0)
    assert coupons.issue(run_id) == {"issued": COUNT}
    given = stage.sandbox.control("GET", "/counters")["coupons"]["by_out_request_no"]
    assert list(given.values()) == [1] * COUNT
    outbox.enqueue(run_id)
    deliver(run_id, "second", 30)
    assert stage.judge(run_id)["accepted"] == COUNT


@pytest.mark.parametrize("channel", ["wechat_service", "wechat_mass", "email"])
def test_killed_during_recovery(stage: Any, workers: Nursery, channel: str) -> None:
    """The first worker dies with everything in its hands, the second one while it takes that back."""
    run_id = stage.run(channel, COUNT)
    killed_in(stage, workers, "deliver", run_id, "push.attempts", "UPDATE", "NEW.outcome = 'accepted'")
    assert states(stage.db, run_id) == {"sending": COUNT}
    stage.later(minutes=10)
    killed_in(stage, workers, "recover", run_id, "push.messages", "UPDATE", "OLD.state = 'sending'")
    assert states(stage.db, run_id) == {"sending": COUNT}
    deliver(run_id, "third", 30)
    result = stage.judge(run_id)
    assert result["unknown"] == (0 if channel == "wechat_mass" else COUNT)


def test_the_same_run_by_four_schedulers_at_once(stage: Any, workers: Nursery) -> None:
    """Every task of one DAG run four times at the same moment, as after a cleared task or with a second scheduler."""
    stage.audience("wechat_service", COUNT)
    stage.config.campaign(coupon=COUPON)
    pids = [workers.worker("campaign", "request") for _ in range(4)]
    stage.wait_until(lambda: not any(is_alive(pid) for pid in pids))
    run_to_the_end(stage, workers)  # a task that was refused beside the others is retried
    (row,) = stage.db.execute("SELECT run_id FROM push.campaign_runs").fetchall()
    assert stage.judge(row["run_id"]) == {"accepted": COUNT, "unknown": 0, "arrived": COUNT}
    given = stage.sandbox.control("GET", "/counters")["coupons"]["by_out_request_no"]
    assert list(given.values()) == [1] * COUNT


@pytest.mark.parametrize("how", ["restart_database", "crash_database"])
def test_the_database_goes_away_in_the_middle(stage: Any, workers: Nursery, how: str) -> None:
    """Stopped and started, or crashed: the workers connect again and go on; what could not be recorded is listed."""
    stage.keep_commits()
    stage.audience("wechat_service", 60)
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["wechat_service"]["rate_per_second"] = 40
        data["delivery"].update(attempt_group=5, claim_size=15)
    run_id = start_run()
    pids = [workers.worker("deliver", run_id) for _ in range(2)]
    stage.wait_until(lambda: len(stage.received_keys()) > 10)
    getattr(stage, how)()
    stage.wait_until(lambda: not any(is_alive(pid) for pid in pids))
    stage.later(minutes=10)
    deliver(run_id, "next", 30)
    result = stage.judge(run_id)
    assert result["accepted"] >= 60 - 2 * 10
    check_laws(run_id)
