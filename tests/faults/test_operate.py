"""Pause, resume, cancel, extend and run again: each in the states it is for, refused in the others, and the laws hold after it."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from campaign_world import AS_OF, approve, start_run, states
from nightmarket import dates
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import ApprovalVoid, RunRefused, build_run, record_decision
from nightmarket.campaigns.config import SendWindow
from nightmarket.campaigns.delivery import ChannelPaused, deliver
from nightmarket.campaigns.operate import ALLOWED, Done, operate, show
from nightmarket.campaigns.results import check_laws, dry_run_report


def do(run_id: str, action: str, **options: Any) -> Done:
    return operate(run_id, action, "boss", "because", dry_run=options.pop("dry_run", False), **options)


def state(stage: Any, run_id: str) -> str:
    return str(
        stage.db.execute("SELECT state FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()["state"]
    )


def actions(stage: Any, run_id: str) -> list[tuple[str, str]]:
    rows = stage.db.execute("SELECT actor, action FROM push.audit_log WHERE subject = %s ORDER BY audit_id", (run_id,))
    return [(row["actor"], row["action"]) for row in rows]


def test_a_paused_run_sends_nothing_until_it_is_resumed(stage: Any) -> None:
    run_id = stage.run("email", 4)
    tried = do(run_id, "pause", dry_run=True)
    assert "4 messages stay queued" in tried.en
    assert "4 条消息" in tried.zh
    assert ("boss", "pause") not in actions(stage, run_id)
    do(run_id, "pause")
    with pytest.raises(RunRefused, match="is paused already, by boss: because"):
        do(run_id, "pause")
    assert deliver(run_id, "w", 30)["calls"] == 0
    assert deliver(None, "w", 30)["calls"] == 0
    assert states(stage.db, run_id) == {"queued": 4}
    progress, log = show(run_id)
    assert (progress["paused_by"], progress["pause_reason"], progress["remaining_count"]) == ("boss", "because", 4)
    assert log[-1]["action"] == "pause"
    do(run_id, "resume")
    with pytest.raises(RunRefused, match="is not paused"):
        do(run_id, "resume")
    deliver(None, "w", 30)
    assert stage.judge(run_id)["accepted"] == 4
    assert actions(stage, run_id)[-2:] == [("boss", "pause"), ("boss", "resume")]


def test_a_pause_in_the_middle_lets_calls_in_flight_end_and_begins_none(stage: Any) -> None:
    stage.audience("email", 40)
    with stage.config.editing("channels.yaml") as data:
        data["delivery"] |= {"attempt_group": 2, "claim_size": 40}
        data["channels"]["email"]["rate_per_second"] = 10
    run_id = start_run()
    process = stage.worker(run_id, "paused")
    stage.wait_until(lambda: states(stage.db, run_id).get("accepted", 0) >= 3)
    do(run_id, "pause")
    paused_at = dates.now()  # what was begun before this was in flight
    stage.finish(process)
    attempts = stage.db.execute(
        "SELECT count(*) AS n FROM push.attempts WHERE started_at > %s", (paused_at,)
    ).fetchone()
    assert attempts["n"] == 0, "a call was begun after the pause"
    found = states(stage.db, run_id)
    assert set(found) == {"accepted", "queued"}, "what was leased went back"
    assert found["queued"] > 20
    do(run_id, "resume")
    stage.finish(stage.worker(run_id, "resumed"))
    assert stage.judge(run_id)["accepted"] == 40


def test_what_expires_during_a_pause_stays_unsent(stage: Any) -> None:
    run_id = stage.run("email", 2)
    do(run_id, "pause")
    stage.later(hours=60)
    with pytest.raises(RunRefused, match="expired while it was paused"):
        do(run_id, "resume")
    outbox.recover()
    assert states(stage.db, run_id) == {"expired": 2}


def test_cancelled_before_anything_was_sent(stage: Any) -> None:
    stage.audience("email", 3)
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    report = dry_run_report(run_id)
    do(run_id, "cancel")
    with pytest.raises(RunRefused, match="is cancelled; it does not wait for a decision"):
        record_decision(run_id, True, "late", "", report["content_hash"])
    with pytest.raises(RunRefused, match="is cancelled, not approved"):
        outbox.enqueue(run_id)
    check_laws(run_id)


def test_cancelled_in_the_middle_and_run_again_for_the_rest(stage: Any) -> None:
    stage.audience("email", 40)
    with stage.config.editing("channels.yaml") as data:
        data["delivery"] |= {"attempt_group": 2, "claim_size": 40}
        data["channels"]["email"]["rate_per_second"] = 10
    run_id = start_run()
    process = stage.worker(run_id, "stopped")
    stage.wait_until(lambda: states(stage.db, run_id).get("accepted", 0) >= 3)
    with pytest.raises(RunRefused, match="is sending; rerun is for runs that are rejected or cancelled or failed"):
        do(run_id, "rerun")
    do(run_id, "cancel")
    stage.finish(process)
    outbox.recover()
    found = states(stage.db, run_id)
    assert set(found) == {"accepted", "cancelled"}
    check_laws(run_id)
    done = do(run_id, "rerun")
    assert f"the {found['accepted']} members it reached get nothing more" in done.en
    assert done.start == {"campaign": "winback_gold", "as_of": "2026-03-14", "dry_run": False, "size_limit": None}
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["email"]["rate_per_second"] = 200
    again = start_run()
    assert states(stage.db, again) == {"queued": found["cancelled"]}
    deliver(again, "w", 30)
    assert set(stage.received_keys().values()) == {1}
    assert len(stage.received_keys()) == 40
    with pytest.raises(RunRefused, match=f"is already live for 2026-03-14: run {again} is sent"):
        do(run_id, "rerun")


def test_messages_with_only_clear_noes_are_taken_over_by_the_next_run(stage: Any) -> None:
    """Told to try again, or given back before the call: not sent, so the run after the cancelled one sends them."""
    run_id = stage.run("wechat_service", 3)
    stage.fault(platform="wechat_official", method="cgi-bin/message/custom/send", kind="call_limit", times=-1)
    with pytest.raises(ChannelPaused):
        deliver(run_id, "w", 30)
    assert states(stage.db, run_id) == {"queued": 3}
    row = stage.db.execute("SELECT count(*) AS n FROM push.attempts WHERE outcome = 'retry'").fetchone()
    assert row["n"] == 3
    stage.fault()
    assert outbox.resume("wechat_service", "wechat_official", "tester")
    do(run_id, "cancel")
    assert states(stage.db, run_id) == {"cancelled": 3}
    again = start_run()
    assert states(stage.db, again) == {"queued": 3}
    deliver(again, "w", 30)
    assert stage.judge(again) == {"accepted": 3, "unknown": 0, "arrived": 3}


def test_an_answer_that_asks_to_try_again_finds_the_run_cancelled(stage: Any) -> None:
    run_id = stage.run("email", 1)
    do(run_id, "cancel")
    stage.db.execute("UPDATE push.messages SET state = 'queued' WHERE run_id = %s", (run_id,))  # the answer came after
    assert outbox.recover() == {"cancelled": 1}
    assert deliver(None, "w", 30)["calls"] == 0


def test_a_longer_life_moves_the_messages_and_asks_nobody(stage: Any) -> None:
    run_id = stage.run("email", 3)
    planned = datetime.fromisoformat("2026-03-15T09:00:00+08:00")
    done = do(run_id, "extend", hours=72)
    assert done.content_hash == ""
    assert "3 messages move with it" in done.en
    row = stage.db.execute("SELECT min(expires_at) AS first, max(expires_at) AS last FROM push.messages").fetchone()
    assert row["first"] == row["last"] == planned + timedelta(hours=72)
    for hours, words in ((72, "is not later than it expires now"), (721, "are more than the 720")):
        with pytest.raises(RunRefused, match=words):
            do(run_id, "extend", hours=hours)
    stage.later(hours=48)  # after the first expiry
    deliver(run_id, "w", 30)
    assert stage.judge(run_id)["accepted"] == 3


def test_nothing_is_extended_beyond_its_coupons_or_after_its_end(stage: Any) -> None:
    stage.audience("wechat_mass", 4)
    stage.config.campaign(coupon={"stock": "winback_30", "test_stock": "test_pool"})
    run_id = start_run(with_coupons=True)
    stage.db.execute("UPDATE push.coupon_stocks SET valid_to = %s", (dates.now() + timedelta(days=5),))
    with pytest.raises(RunRefused, match=r"its coupons \(winback_30\) are valid until"):
        do(run_id, "extend", hours=720)
    stage.later(hours=60)
    with pytest.raises(RunRefused, match="has expired; what is expired is never sent"):
        do(run_id, "extend", hours=100)


def test_another_window_is_asked_about_again(stage: Any) -> None:
    run_id = stage.run("email", 3)
    old_hash = stage.db.execute("SELECT approved_hash FROM push.campaign_runs").fetchone()["approved_hash"]
    with pytest.raises(RunRefused, match=r"house\.hours"):
        do(run_id, "extend", window=SendWindow.model_validate({"opens": "09:00", "closes": "23:00"}))
    done = do(run_id, "extend", window=SendWindow.model_validate({"opens": "09:00", "closes": "22:00"}))
    assert done.content_hash
    assert state(stage, run_id) == "awaiting_approval"
    assert deliver(None, "w", 30)["calls"] == 0
    with pytest.raises(ApprovalVoid):
        record_decision(run_id, True, "boss", "", old_hash)
    stage.clock("2026-03-15T21:00:00+08:00")  # outside the old window, inside the new one
    record_decision(run_id, True, "boss", "fine", done.content_hash)
    assert state(stage, run_id) == "sending"
    deliver(run_id, "w", 30)
    assert stage.judge(run_id)["accepted"] == 3


def test_a_window_that_is_refused_leaves_what_was_approved_and_ends_the_rest(stage: Any) -> None:
    members = stage.audience("email", 4)
    run_id = start_run()
    stage.db.execute(
        "UPDATE push.messages SET not_before = %s WHERE member_id = ANY(%s)",
        (dates.now() + timedelta(hours=1), members[:2]),
    )
    deliver(run_id, "w", 30)
    done = do(run_id, "extend", window=SendWindow.model_validate({"opens": "09:00", "closes": "22:00"}))
    record_decision(run_id, False, "boss", "too late in the evening", done.content_hash)
    assert state(stage, run_id) == "cancelled"
    assert states(stage.db, run_id) == {"accepted": 2, "cancelled": 2}
    check_laws(run_id)
    approve(again := build_run("winback_gold", AS_OF, "live", "tester"), dry_run_report(again))
    assert outbox.enqueue(again) == 2


def test_a_worker_that_was_under_way_does_not_go_on_with_the_old_window(stage: Any) -> None:
    """It holds messages and the old hours; the change was approved before it asked again whether the run still sends."""
    stage.audience("email", 30)
    with stage.config.editing("channels.yaml") as data:
        data["delivery"] |= {"attempt_group": 2, "claim_size": 30}
        data["channels"]["email"]["rate_per_second"] = 5
    run_id = start_run()
    process = stage.worker(run_id, "before")
    stage.wait_until(lambda: states(stage.db, run_id).get("accepted", 0) >= 2)
    done = do(run_id, "extend", window=SendWindow.model_validate({"opens": "15:00", "closes": "16:00"}))
    record_decision(run_id, True, "boss", "in the afternoon", done.content_hash)
    changed_at = dates.now()
    stage.finish(process)
    begun = stage.db.execute("SELECT count(*) AS n FROM push.attempts WHERE started_at > %s", (changed_at,)).fetchone()
    assert begun["n"] == 0, "a call was begun in a window that is not approved any more"
    assert set(states(stage.db, run_id)) == {"accepted", "queued"}
    stage.clock("2026-03-15T15:00:00+08:00")
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["email"]["rate_per_second"] = 200
    deliver(run_id, "after", 30)
    assert stage.judge(run_id)["accepted"] == 30


def test_cancelled_while_a_change_waits_for_approval(stage: Any) -> None:
    """What went out was approved; what nobody approved is taken back with the rest."""
    members = stage.audience("email", 3)
    run_id = start_run()
    stage.db.execute(
        "UPDATE push.messages SET not_before = not_before + interval '2 hours' WHERE member_id = %s", (members[0],)
    )
    deliver(run_id, "w", 30)
    do(run_id, "extend", window=SendWindow.model_validate({"opens": "09:00", "closes": "22:00"}))
    do(run_id, "cancel")
    assert states(stage.db, run_id) == {"accepted": 2, "cancelled": 1}
    row = stage.db.execute("SELECT config, previous_config FROM push.campaign_runs").fetchone()
    assert row["config"]["campaign"]["send_window"]["closes"] == "20:00:00"
    assert row["previous_config"] is None
    check_laws(run_id)


def test_a_size_limit_holds_over_a_run_and_its_rerun(stage: Any) -> None:
    stage.audience("email", 6)

    def start() -> str:
        run_id = build_run("winback_gold", AS_OF, "live", "tester", size_limit=3)
        approve(run_id, dry_run_report(run_id))
        outbox.enqueue(run_id)
        return run_id

    run_id = start()
    one = stage.db.execute("SELECT min(member_id) AS one FROM push.messages").fetchone()["one"]
    stage.db.execute(
        "UPDATE push.messages SET not_before = not_before + interval '2 hours' WHERE member_id = %s", (one,)
    )
    deliver(run_id, "w", 30)
    do(run_id, "cancel")
    again = start()
    assert states(stage.db, again) == {"queued": 1}, "the one that the first run did not get to"
    deliver(again, "w", 30)
    assert len(stage.received_keys()) == 3
    check_laws(again)


@pytest.mark.parametrize("action", ALLOWED)
def test_every_action_names_the_states_it_is_for(stage: Any, action: str) -> None:
    run_id = stage.run("email", 2)
    wrong = next(name for name in ("finished", "dry_run_done") if name not in ALLOWED[action])
    stage.db.execute("UPDATE push.campaign_runs SET state = %s WHERE run_id = %s", (wrong, run_id))
    options = {"hours": 72} if action == "extend" else {}
    with pytest.raises(RunRefused, match=f"is {wrong}; {action} is for runs that are "):
        do(run_id, action, **options)


def test_what_makes_no_sense_is_refused(stage: Any) -> None:
    run_id = stage.run("email", 2)
    for action, options, words in (
        ("stop", {}, "there is no action 'stop'"), ("extend", {}, "extend needs one of them"), ("pause", {"hours": 3}, "belong to extend"),
    ):  # fmt: skip
        with pytest.raises(RunRefused, match=words):
            do(run_id, action, **options)
    with pytest.raises(RunRefused, match="say why"):
        operate(run_id, "pause", "boss", " ", dry_run=False)
    with pytest.raises(RunRefused, match="there is no run 'nobody'"):
        do("nobody", "pause")
