"""The outbox: only what was approved goes in, everything is asked again before it goes out, nothing goes out late."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from campaign_world import AS_OF, start_run, states
from nightmarket import dates
from nightmarket.campaigns import logbook, outbox
from nightmarket.campaigns.audience import ApprovalVoid, RunRefused, build_run, record_decision
from nightmarket.campaigns.config import Channel, load_channels
from nightmarket.campaigns.delivery import deliver
from nightmarket.campaigns.results import LawBroken, check_laws, dry_run_report, export_exposures
from nightmarket.channels.base import Outcome
from nightmarket.privacy import erase
from nightmarket.warehouse import connect, connect_vault


def reasons(stage: Any, run_id: str) -> dict[str, str]:
    """Address -> state and reason."""
    rows = stage.db.execute("SELECT address, state, last_error FROM push.messages WHERE run_id = %s", (run_id,))
    return {
        row["address"]: f"{row['state']}: {row['last_error']}" if row["last_error"] else row["state"] for row in rows
    }


def lane(run_id: str, worker: str, name: str = "wechat_service") -> outbox.Lane:
    channel: Channel = load_channels().channels[name]
    with connect() as connection:
        run = connection.execute("SELECT * FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()
    assert run is not None
    return outbox.Lane(run, name, channel, worker, timedelta(seconds=120))


def test_only_an_approved_run_is_enqueued(stage: Any) -> None:
    stage.audience("email", 3)
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    with pytest.raises(RunRefused, match="is building, not approved"):
        outbox.enqueue(run_id)
    report = dry_run_report(run_id)
    with pytest.raises(RunRefused, match="is awaiting_approval, not approved"):
        outbox.enqueue(run_id)
    record_decision(run_id, False, "boss", "no", report["content_hash"])
    with pytest.raises(RunRefused, match="is rejected, not approved"):
        outbox.enqueue(run_id)
    dry = build_run("winback_gold", AS_OF, "dry_run", "tester")
    dry_run_report(dry)
    with pytest.raises(RunRefused, match="is dry_run_done, not approved"):
        outbox.enqueue(dry)
    assert stage.db.execute("SELECT count(*) AS n FROM push.messages").fetchone() == {"n": 0}


def test_what_changed_after_the_approval_is_not_enqueued(stage: Any) -> None:
    members = stage.audience("email", 3)
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    record_decision(run_id, True, "boss", "yes", dry_run_report(run_id)["content_hash"])
    stage.db.execute("UPDATE push.audiences SET address = 'email:other' WHERE member_id = %s", (members[0],))
    with pytest.raises(ApprovalVoid, match="changed after the approval"):
        outbox.enqueue(run_id)


def test_files_changed_after_the_approval_change_nothing(stage: Any) -> None:
    run_id = stage.run("email", 2)
    for file in (stage.config.folder / "templates" / "email" / "winback_gift").glob("*.j2"):
        file.write_text("SOMETHING ELSE")
    deliver(run_id, "w", 30)
    contents = [message["content"] for message in stage.sandbox.control("GET", "/messages")["messages"]]
    assert len(contents) == 2
    assert not any("SOMETHING ELSE" in content for content in contents)


def test_everything_is_asked_again_before_it_goes_out(stage: Any) -> None:
    """What happened between the as-of instant and the sending: each person is stopped for their own reason."""
    members = stage.audience("wechat_service", 8)
    run_id = start_run()
    openid = {
        member: stage.db.execute("SELECT address FROM push.messages WHERE member_id = %s", (member,)).fetchone()[
            "address"
        ]
        for member in members
    }
    now = dates.now()
    stage.db.execute("UPDATE core.followers SET is_following = false WHERE openid = %s", (openid[members[0]],))
    stage.people.consent(stage.people.identity_of(members[1], "wechat_openid"), "wechat", "marketing", False, now)
    stage.db.execute(
        "INSERT INTO push.suppressions VALUES ('wechat', %s, 'asked by phone', 'test', %s)", (openid[members[2]], now)
    )
    for number in range(2):
        other(stage, members[3], f"other{number}", "email", "marketing")
    for number in range(5):
        other(stage, members[4], f"service{number}", "wechat_service", "service")
    stage.db.execute(
        "UPDATE core.interactions SET occurred_at = %s WHERE identity_id = %s",
        (now - timedelta(hours=48), stage.people.identity_of(members[5], "wechat_openid")),
    )
    deliver(run_id, "w", 30)
    found = reasons(stage, run_id)
    assert [found[openid[member]] for member in members] == [
        "suppressed: unfollowed",
        "suppressed: no_consent",
        "suppressed: suppressed",
        "suppressed: capped",
        "suppressed: channel_limit",
        "suppressed: window_closed",
        "accepted",
        "accepted",
    ]
    assert set(stage.received_keys()) == {f"winback_gold/2026-03-14/{member}/send" for member in members[6:]}
    check_laws(run_id)


def other(stage: Any, member: int, name: str, channel: str, purpose: str) -> None:
    """Another run's message to a member, accepted just now."""
    stage.db.execute(
        "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at, expires_at)"
        " VALUES (%(name)s, %(name)s, 'live', %(day)s, %(now)s, '{}', 'x', 'sent', 'test', %(now)s, %(now)s) ON CONFLICT DO NOTHING",
        {"name": name, "day": AS_OF, "now": dates.now()},
    )
    stage.db.execute(
        "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
        " variables, state, not_before, expires_at, queued_at, accepted_at, updated_at)"
        " VALUES (%(key)s, %(name)s, %(member)s, 'send', %(channel)s, 'x', %(purpose)s, 'x', 't', 'zh', '{}', 'accepted', %(now)s, %(now)s,"
        " %(now)s, %(now)s, %(now)s)",
        {
            "key": f"{name}/{member}",
            "name": name,
            "member": member,
            "channel": channel,
            "purpose": purpose,
            "now": dates.now(),
        },
    )


def test_quiet_hours_wait_for_the_morning(stage: Any) -> None:
    stage.clock("2026-03-15T20:30:00+08:00")
    run_id = stage.run("email", 3)
    result = deliver(run_id, "evening", 30)
    assert result["waiting_until"] == "2026-03-16T09:00:00+08:00"
    assert states(stage.db, run_id) == {"queued": 3}
    assert stage.received_keys() == {}
    stage.clock("2026-03-16T08:59:00+08:00")
    assert deliver(run_id, "early", 30)["calls"] == 0
    stage.clock("2026-03-16T09:00:30+08:00")
    deliver(None, "morning", 30)
    assert stage.judge(run_id)["accepted"] == 3


def test_a_window_that_closes_keeps_the_rest_for_tomorrow(stage: Any) -> None:
    run_id = stage.run("email", 3)
    stage.clock("2026-03-15T20:00:00+08:00")
    assert deliver(run_id, "late", 30)["calls"] == 0
    row = stage.db.execute("SELECT DISTINCT not_before FROM push.messages").fetchone()
    assert row["not_before"] == datetime.fromisoformat("2026-03-16T09:00:00+08:00")


def test_nothing_goes_out_after_its_time(stage: Any) -> None:
    run_id = stage.run("email", 3)
    stage.clock("2026-03-17T09:00:00+08:00")  # exactly when the run expires
    result = deliver(run_id, "too late", 30)
    assert result["recovered"] == {"expired": 3}
    assert states(stage.db, run_id) == {"expired": 3}
    assert stage.received_keys() == {}
    check_laws(run_id)
    row = stage.db.execute("SELECT state FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()
    assert row["state"] == "sent"


def test_a_restored_snapshot_sends_nothing_late(stage: Any) -> None:
    """A database that was restored weeks later still holds queued rows; the claim itself refuses them."""
    run_id = stage.run("wechat_service", 3)
    stage.clock("2026-04-10T10:00:00+08:00")
    with connect(autocommit=True) as connection, connection.transaction():
        assert lane(run_id, "w").claim(connection, 10) == []
    assert set(reasons(stage, run_id).values()) == {"expired: expired"}


def test_one_bad_message_fails_alone(stage: Any) -> None:
    members = stage.audience("email", 4)
    stage.people.add(email="nasty@mail.test", name="{{7+7}}\r\nBcc: all@mail.test")
    run_id = start_run()
    erased = stage.people.tokens.token("email", "p0@mail.test")
    with connect_vault() as vault:
        erase(vault, [erased], actor="test", reason="asked by the person")
    stage.db.execute(
        'UPDATE push.messages SET variables = \'{"coupon": {"name": "x"}}\' WHERE member_id = %s', (members[1],)
    )
    deliver(run_id, "w", 30)
    found = reasons(stage, run_id)
    assert found.pop(erased) == "failed: the address was erased"
    assert found.pop(stage.people.tokens.token("email", "p1@mail.test")).startswith(
        "failed: template email/winback_gift (zh "
    )
    assert set(found.values()) == {"accepted"}
    contents = [message["content"] for message in stage.sandbox.control("GET", "/messages")["messages"]]
    assert sum("{{7+7}} Bcc: all@mail.t…" in content for content in contents) == 1


def test_a_late_answer_settles_what_was_unknown(stage: Any) -> None:
    run_id = stage.run("wechat_service", 2)
    slow = lane(run_id, "slow worker")
    with connect(autocommit=True) as connection:
        with connection.transaction():
            claimed = slow.claim(connection, 10)
        numbers, last = slow.record_attempts(connection, [row["message_id"] for row in claimed])
        assert (len(numbers), last) == (2, logbook.number(connection))
        stage.later(minutes=10)
        assert outbox.recover() == {"unknown": 2}
        answers = [slow.answer(row, numbers[row["message_id"]], Outcome("accepted", code="0")) for row in claimed]
        slow.record_answers(connection, answers[:1])
    assert sorted(states(stage.db, run_id).items()) == [("accepted", 1), ("unknown", 1)]


def test_what_no_text_can_hold_loses_no_answer(stage: Any) -> None:
    """PostgreSQL's text has no NUL and no half of a surrogate pair: one in one answer must not lose the answers of all."""
    run_id = stage.run("wechat_service", 2)
    first = lane(run_id, "worker")
    said = Outcome("accepted", platform_message_id="m\0" * 3, code="0\0", message="ok\0 and \ud800 垃圾")
    with connect(autocommit=True) as connection:
        with connection.transaction():
            claimed = first.claim(connection, 10)
        numbers, _ = first.record_attempts(connection, [row["message_id"] for row in claimed])
        answers = [
            first.answer(row, numbers[row["message_id"]], outcome)
            for row, outcome in zip(claimed, (said, Outcome("accepted", code="0")), strict=True)
        ]
        first.record_answers(connection, answers)
    assert states(stage.db, run_id) == {"accepted": 2}
    row = stage.db.execute(
        "SELECT platform_code, platform_message FROM push.attempts ORDER BY attempt_id LIMIT 1"
    ).fetchone()
    assert row == {"platform_code": "0", "platform_message": "ok and ? 垃圾"}


def test_a_lease_that_is_over_allows_no_call(stage: Any) -> None:
    run_id = stage.run("wechat_service", 2)
    slow, fast = lane(run_id, "slow"), lane(run_id, "fast")
    with connect(autocommit=True) as connection:
        with connection.transaction():
            ids = [row["message_id"] for row in slow.claim(connection, 10)]
        stage.later(minutes=10)
        assert slow.record_attempts(connection, ids) == ({}, 0)
        assert outbox.recover() == {"queued": 2}
        with connection.transaction():
            assert [row["message_id"] for row in fast.claim(connection, 10)] == ids
        assert slow.record_attempts(connection, ids) == ({}, 0)
        assert sorted(fast.record_attempts(connection, ids)[0]) == ids


def test_a_group_is_claimed_whole_or_not_at_all(stage: Any) -> None:
    run_id = stage.run("wechat_mass", 6)
    with connect(autocommit=True) as one, connect(autocommit=True) as two, one.transaction():
        assert len(lane(run_id, "one", "wechat_mass").claim(one, 1)) == 6
        with two.transaction():
            assert lane(run_id, "two", "wechat_mass").claim(two, 1) == []


def test_a_group_that_shrinks_to_one_is_not_sent(stage: Any) -> None:
    members = stage.audience("wechat_mass", 2)
    run_id = start_run()
    stage.people.consent(
        stage.people.identity_of(members[0], "wechat_openid"), "wechat", "marketing", False, dates.now()
    )
    deliver(run_id, "w", 30)
    assert sorted(reasons(stage, run_id).values()) == [
        "suppressed: alone_in_group: a mass send takes two receivers",
        "suppressed: no_consent",
    ]
    assert stage.received_keys() == {}


def test_cancelling_stops_what_is_queued(stage: Any) -> None:
    run_id = stage.run("email", 4)
    assert outbox.cancel(run_id, "boss", "wrong picture") == 4
    assert deliver(run_id, "w", 30)["calls"] == 0
    assert states(stage.db, run_id) == {"cancelled": 4}
    with pytest.raises(RunRefused, match="there is nothing to cancel"):
        outbox.cancel(run_id, "boss", "again")
    again = build_run("winback_gold", AS_OF, "live", "tester")
    assert again == "winback_gold@2026-03-14#2"
    record_decision(again, True, "boss", "better now", dry_run_report(again)["content_hash"])
    assert outbox.enqueue(again) == 4  # nobody was reached by the first run, so nobody is left out of the second
    deliver(again, "w", 30)
    assert stage.judge(again)["accepted"] == 4


def test_after_half_was_sent_a_second_run_reaches_the_other_half(stage: Any) -> None:
    members = stage.audience("email", 6)
    run_id = start_run()
    stage.db.execute(
        "UPDATE push.messages SET not_before = %s WHERE member_id = ANY(%s)",
        (dates.now() + timedelta(hours=1), members[:3]),
    )
    deliver(run_id, "w", 30)
    outbox.cancel(run_id, "boss", "pause")
    again = start_run()
    assert states(stage.db, again) == {"queued": 3}
    deliver(again, "w", 30)
    assert set(stage.received_keys().values()) == {1}
    assert len(stage.received_keys()) == 6


def test_progress_and_results_carry_no_personal_value(stage: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="nightmarket")
    run_id = stage.run("email", 3)
    result = deliver(run_id, "w", 30)
    export_exposures(run_id)
    text = caplog.text + str(result)
    assert "3 accepted" in text
    for secret in ("王小明", "mail.test"):
        assert secret not in text


def test_progress_is_told_while_it_works(stage: Any, caplog: pytest.LogCaptureFixture) -> None:
    stage.audience("email", 12)
    with stage.config.editing("channels.yaml") as data:
        data["delivery"]["progress_seconds"] = 0.4
        data["channels"]["email"]["rate_per_second"] = 10
    run_id = start_run()
    caplog.set_level("INFO", logger="nightmarket.campaigns.delivery")
    deliver(run_id, "w", 30)
    lines = [record.getMessage() for record in caplog.records if "remaining" in record.getMessage()]
    assert lines
    assert lines[-1].startswith("winback_gold@2026-03-14 email: ")
    assert "/s, " in lines[-1]


@pytest.mark.parametrize("was_sent", [True, False])
def test_a_person_decides_about_what_is_unknown(stage: Any, was_sent: bool) -> None:
    run_id = stage.run("wechat_service", 3)
    kind = "http_500_after" if was_sent else "http_500"
    stage.fault(platform="wechat_official", method="cgi-bin/message/custom/send", kind=kind, times=1)
    deliver(run_id, "w", 30)
    key = stage.db.execute("SELECT message_key FROM push.messages WHERE state = 'unknown'").fetchone()["message_key"]
    state = outbox.resolve(key, was_sent, "boss", "asked the customer")
    assert state == ("accepted" if was_sent else "queued")
    with pytest.raises(RunRefused, match="is not in state unknown"):
        outbox.resolve(key, was_sent, "boss", "again")
    deliver(run_id, "w", 30)
    assert stage.judge(run_id) == {"accepted": 3, "unknown": 0, "arrived": 3}
    action = stage.db.execute(
        "SELECT actor FROM push.audit_log WHERE action = 'resolve' AND subject = %s", (key,)
    ).fetchone()
    assert action == {"actor": "boss"}


BREAKS = {
    "partition": "INSERT INTO push.audiences (run_id, member_id, state) SELECT run_id, 424242, 'targeted' FROM push.campaign_runs",
    "nobody else is messaged": "UPDATE push.audiences SET state = 'holdout', arm = 'holdout' WHERE member_id = (SELECT min(member_id) FROM push.messages)",
    "one address once": "UPDATE push.messages SET address = (SELECT min(address) FROM push.messages)",
    "nothing late": "UPDATE push.messages SET accepted_at = expires_at + INTERVAL '1 hour'",
    "nothing unapproved": "UPDATE push.campaign_runs SET approved_hash = 'other' WHERE mode = 'live'",
    "preview is reality": "UPDATE push.campaign_runs SET report = jsonb_set(report, '{sizes,targeted}', '99') WHERE mode = 'live'",
    "never twice": "INSERT INTO push.attempts (message_id, attempt_number, worker, started_at, outcome, channel)"
    " SELECT message_id, 2, 'w', started_at, 'unknown', channel FROM push.attempts",
}


@pytest.mark.parametrize("law", BREAKS)
def test_a_broken_law_is_noticed(stage: Any, law: str) -> None:
    run_id = stage.run("email", 3)
    deliver(run_id, "w", 30)
    assert {kept.name for kept in check_laws(run_id)} >= set(BREAKS)
    stage.db.execute(BREAKS[law])
    with pytest.raises(LawBroken, match="breaks the law"):
        check_laws(run_id)
    rows = stage.db.execute(
        "SELECT check_name FROM ops.gate_results WHERE gate = 'campaign' AND run_id = %s AND NOT is_passed", (run_id,)
    ).fetchall()
    assert law in {row["check_name"] for row in rows}
