"""Where a message goes when its channel will not have it, when it may go, and how often an account may be called."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from campaign_world import AS_OF, sandbox_openids, start_run, states
from nightmarket import dates
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.delivery import ChannelPaused, deliver
from nightmarket.campaigns.results import check_laws, collect_receipts, dry_run_report, export_exposures
from nightmarket.console.pages import Pages
from nightmarket.console.receiver import Receiver

WROTE = datetime.fromisoformat("2026-03-14T22:00:00+08:00")


def both(stage: Any, count: int, **campaign: Any) -> list[int]:
    """Members who are reached by customer-service message and, when that fails, by mail."""
    openids = sandbox_openids(stage.sandbox)
    members = [
        stage.people.add(openid=openids[number], email=f"p{number}@mail.test", wrote_at=WROTE)
        for number in range(count)
    ]
    stage.config.campaign(channels=["wechat_service", "email"], **campaign)
    return members


def channels(stage: Any, run_id: str) -> dict[int, str]:
    rows = stage.db.execute("SELECT member_id, channel, step, state FROM push.messages WHERE run_id = %s", (run_id,))
    return {row["member_id"]: f"{row['channel']}: {row['state']}" for row in rows if row["step"] == "send"}


def test_the_cheapest_allowed_channel_comes_first_unless_the_file_says_otherwise(stage: Any) -> None:
    members = both(stage, 2)
    stage.config.campaign(channels=["email", "wechat_service"])
    assert set(channels(stage, start_run()).values()) == {"wechat_service: queued"}
    stage.db.execute("UPDATE push.campaign_runs SET state = 'cancelled'")
    stage.db.execute("UPDATE push.messages SET state = 'cancelled'")
    stage.config.campaign(channels=["email", "wechat_service"], routing="listed")
    run_id = start_run()
    assert channels(stage, run_id) == dict.fromkeys(members, "email: queued")


def test_the_report_says_what_the_way_on_may_cost(stage: Any) -> None:
    """Two members who may go on by mail (0.002) after a free message, and one whose only channel is the mail."""
    both(stage, 2)
    stage.people.add(email="only@mail.test")

    def cost(**campaign: Any) -> dict[str, str]:
        stage.config.campaign(**campaign)
        return dict(dry_run_report(build_run("winback_gold", AS_OF, "dry_run", "tester"))["cost"])

    with stage.config.editing("channels.yaml") as data:
        data["channels"]["email"]["cost_amount"] = 0.5
        data["channels"]["wechat_service"]["cost_amount"] = 0.2
    found = cost(coupon=None)
    assert (found["messages_amount"], found["fallback_amount"], found["total_amount"]) == ("0.90", "0.60", "1.50")
    assert cost(fallback={"on_refusal": False})["fallback_amount"] == "0.00"


def test_a_refused_message_goes_on_over_the_next_channel_once(stage: Any) -> None:
    """Refused by the platform, unfollowed, no longer wanted there: each goes on by mail under the same key."""
    members = both(stage, 4)
    run_id = start_run()
    stage.db.execute(
        "UPDATE push.messages SET address = 'oNOBODY' WHERE member_id = %s", (members[0],)
    )  # the platform knows no such person
    stage.db.execute(
        "INSERT INTO core.identities (kind, value, source_id, first_seen_at) VALUES ('wechat_openid', 'oNOBODY', 't', now())"
    )
    stage.db.execute(
        "INSERT INTO core.followers (source_id, openid, identity_id, is_following, followed_at, batch_id)"
        " SELECT 'wechat_official', 'oNOBODY', identity_id, true, %s, 1 FROM core.identities WHERE value = 'oNOBODY'",
        (WROTE,),
    )
    stage.db.execute(
        "INSERT INTO core.member_identities SELECT identity_id, %s, now() FROM core.identities WHERE value = 'oNOBODY'",
        (members[0],),
    )
    stage.db.execute(
        "UPDATE core.followers SET is_following = false WHERE identity_id = %s",
        (stage.people.identity_of(members[1], "wechat_openid"),),
    )  # fmt: skip
    stage.people.consent(
        stage.people.identity_of(members[2], "wechat_openid"), "wechat", "marketing", False, dates.now()
    )
    deliver(run_id, "w", 30)
    assert channels(stage, run_id) == {
        members[0]: "email: accepted",
        members[1]: "email: accepted",
        members[2]: "email: accepted",
        members[3]: "wechat_service: accepted",
    }
    calls = stage.db.execute(
        "SELECT a.channel, a.outcome FROM push.attempts AS a JOIN push.messages AS m USING (message_id)"
        " WHERE m.member_id = %s ORDER BY a.attempt_number",
        (members[0],),
    ).fetchall()
    assert [(row["channel"], row["outcome"]) for row in calls] == [("wechat_service", "refused"), ("email", "accepted")]
    assert set(stage.received_keys().values()) == {1}
    assert len(stage.received_keys()) == 4
    check_laws(run_id)


def test_without_the_fallback_a_refused_message_ends(stage: Any) -> None:
    members = both(stage, 2, fallback={"on_refusal": False})
    run_id = start_run()
    stage.db.execute(
        "UPDATE core.followers SET is_following = false WHERE identity_id = %s",
        (stage.people.identity_of(members[0], "wechat_openid"),),
    )
    deliver(run_id, "w", 30)
    assert channels(stage, run_id)[members[0]] == "wechat_service: suppressed"


def test_a_message_in_doubt_never_goes_on(stage: Any) -> None:
    """The answer to the first call was lost: it may have arrived, so no other channel is tried."""
    both(stage, 3)
    run_id = start_run()
    stage.fault(platform="wechat_official", method="cgi-bin/message/custom/send", kind="http_500_after", times=2)
    deliver(run_id, "w", 30)
    assert set(channels(stage, run_id).values()) <= {"wechat_service: unknown", "wechat_service: accepted"}
    assert "wechat_service: unknown" in channels(stage, run_id).values()
    check_laws(run_id)


def accepted_long_ago(stage: Any, run_id: str, minutes: int) -> None:
    """As if the first messages had gone over a channel that reports delivery, and time had passed."""
    stage.db.execute(
        "UPDATE push.messages SET channel = 'wechat_template', accepted_at = %s WHERE run_id = %s",
        (dates.now() - timedelta(minutes=minutes), run_id),
    )


def test_no_receipt_in_time_brings_one_second_message(stage: Any) -> None:
    members = both(stage, 4)
    run_id = start_run()
    stage.db.execute(  # as a campaign whose channels report delivery would have it
        "UPDATE push.campaign_runs SET config = jsonb_set(config, '{campaign,fallback,no_receipt_after_minutes}', '60')"
    )
    deliver(run_id, "w", 30)
    assert outbox.queue_second_messages() == {}, (
        "customer-service messages are never reported, so nobody waits for a receipt"
    )
    accepted_long_ago(stage, run_id, 59)
    assert outbox.queue_second_messages() == {}
    accepted_long_ago(stage, run_id, 61)
    stage.db.execute(
        "INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at)"
        " SELECT 'wechat_official', 'delivered/1', message_key, 'delivered', %s FROM push.messages WHERE member_id = %s",
        (dates.now(), members[0]),
    )
    stage.db.execute(
        "UPDATE push.messages SET state = 'failed', last_error = 'user block' WHERE member_id = %s", (members[1],)
    )
    assert outbox.queue_second_messages() == {run_id: 3}
    assert outbox.queue_second_messages() == {}
    deliver(run_id, "w", 30)
    seconds = stage.db.execute(
        "SELECT member_id, message_key, channel, state FROM push.messages WHERE step = 'send-2' ORDER BY member_id"
    ).fetchall()
    assert [(row["member_id"], row["channel"], row["state"]) for row in seconds] == [
        (member, "email", "accepted") for member in members[1:]
    ]
    assert seconds[0]["message_key"] == f"winback_gold/2026-03-14/{members[1]}/send/2"
    check_laws(run_id)
    stage.db.execute("UPDATE push.messages SET channel = 'wechat_service' WHERE step = 'send'")
    assert export_exposures(run_id) == 7, "both messages of a member are facts; the funnel counts the member once"


def no_receipt(stage: Any) -> str:
    """A run whose first messages went out an hour ago over a channel that reports delivery, and has not."""
    run_id = start_run()
    stage.db.execute(
        "UPDATE push.campaign_runs SET config = jsonb_set(config, '{campaign,fallback,no_receipt_after_minutes}', '60')"
    )
    deliver(run_id, "w", 30)
    accepted_long_ago(stage, run_id, 61)
    return run_id


def test_who_unsubscribed_from_the_first_message_gets_no_second_one(stage: Any) -> None:
    """The consent is there at once, the event of the page only after the night."""
    members = both(stage, 2)
    run_id = no_receipt(stage)
    row = stage.db.execute("SELECT message_key FROM push.messages WHERE member_id = %s", (members[0],)).fetchone()
    archive = Receiver()
    assert Pages(archive).withdraw(row["message_key"]) is not None
    archive.close()
    assert outbox.queue_second_messages() == {run_id: 1}
    deliver(run_id, "w", 30)
    rows = stage.db.execute("SELECT member_id, state FROM push.messages WHERE step = 'send-2'").fetchall()
    assert [(row["member_id"], row["state"]) for row in rows] == [(members[1], "accepted")]


def test_a_second_message_is_one_more_and_the_cap_counts_the_first(stage: Any) -> None:
    with stage.config.editing("channels.yaml") as data:
        data["frequency"] = {"messages": 1, "days": 7}
    both(stage, 1)
    run_id = no_receipt(stage)
    assert outbox.queue_second_messages() == {run_id: 1}
    deliver(run_id, "w", 30)
    row = stage.db.execute("SELECT state, last_error FROM push.messages WHERE step = 'send-2'").fetchone()
    assert (row["state"], row["last_error"]) == ("suppressed", "capped")


def test_a_receipt_that_comes_after_the_second_message_breaks_no_law(stage: Any) -> None:
    """It arrived in time and was reported late: nobody knew when the second one was queued."""
    both(stage, 1)
    run_id = no_receipt(stage)
    assert outbox.queue_second_messages() == {run_id: 1}
    deliver(run_id, "w", 30)
    stage.db.execute(
        "INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at)"
        " SELECT account, 'late', message_key, 'delivered', accepted_at FROM push.messages WHERE step = 'send'"
    )
    stage.later(minutes=30)
    assert collect_receipts()["delivered"] == 1
    check_laws(run_id)


@pytest.mark.parametrize("way", ["click", "person"])
def test_a_message_in_doubt_went_out_when_it_was_called_not_when_somebody_said_so(stage: Any, way: str) -> None:
    run_id = stage.run("wechat_service", 1)
    stage.fault(platform="wechat_official", method="cgi-bin/message/custom/send", kind="http_500_after", times=1)
    deliver(run_id, "w", 30)
    assert states(stage.db, run_id) == {"unknown": 1}
    row = stage.db.execute(
        "SELECT message_key, started_at FROM push.messages JOIN push.attempts USING (message_id)"
    ).fetchone()
    stage.later(days=5)
    if way == "click":
        stage.db.execute(
            "INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at) VALUES ('own_pages', 'c', %s, 'clicked', %s)",
            (row["message_key"], dates.now()),
        )
        assert collect_receipts()["delivered"] == 1
    else:
        stage.db.execute("UPDATE push.messages SET updated_at = %s", (dates.now(),))  # when it was found in doubt
        assert outbox.resolve(row["message_key"], True, "boss", "she has it") == "accepted"
    found = stage.db.execute("SELECT accepted_at FROM push.messages").fetchone()
    assert found["accepted_at"] == row["started_at"]
    check_laws(run_id)


@pytest.mark.parametrize("order", [("failed", "delivered"), ("delivered", "failed")])
def test_a_receipt_that_it_arrived_counts_whatever_came_before_or_after(stage: Any, order: tuple[str, str]) -> None:
    run_id = stage.run("email", 1)
    deliver(run_id, "w", 30)
    for kind in order:
        stage.db.execute(
            "INSERT INTO core.message_events (source_id, event_id, message_key, kind, occurred_at)"
            " SELECT account, %s, message_key, %s, %s FROM push.messages",
            (kind, kind, dates.now()),
        )
        collect_receipts()
    row = stage.db.execute("SELECT state, last_error FROM push.messages").fetchone()
    assert (row["state"], row["last_error"]) == ("delivered", None)


def test_everybody_is_written_to_on_their_own_clock(stage: Any) -> None:
    """10:00 here is 02:00 in London and 21:00 the day before in New York: they wait for their own nine o'clock."""
    members = [stage.people.add(email=f"p{number}@mail.test") for number in range(3)]
    stage.config.campaign(channels=["email"])
    for member, zone in zip(members[1:], ("Europe/London", "America/New_York"), strict=True):
        stage.db.execute(
            "UPDATE core.profiles SET time_zone = %s WHERE identity_id IN (SELECT identity_id FROM core.member_identities WHERE member_id = %s)",
            (zone, member),
        )
    run_id = start_run()
    result = deliver(run_id, "w", 30)
    assert states(stage.db, run_id) == {"accepted": 1, "queued": 2}
    assert result["waiting_until"] == "2026-03-15T17:00:00+08:00", "nine o'clock in London"
    stage.clock("2026-03-15T17:05:00+08:00")
    deliver(run_id, "w", 30)
    assert states(stage.db, run_id) == {"accepted": 2, "queued": 1}
    stage.clock("2026-03-15T21:05:00+08:00")
    assert deliver(run_id, "w", 30)["accepted"] == 3, "nine o'clock in New York, where it is summer time"
    check_laws(run_id)


def test_a_window_over_midnight_is_open_on_both_sides(stage: Any) -> None:
    stage.clock("2026-03-15T23:30:00+08:00")
    stage.people.add(email="p1@mail.test")
    with stage.config.editing("channels.yaml") as data:
        data["house_rules"] = [rule for rule in data["house_rules"] if "hours" not in rule]
    stage.config.campaign(channels=["email"], send_window={"opens": "22:00", "closes": "02:00"})
    run_id = start_run()
    stage.db.execute("UPDATE push.messages SET not_before = %s", (dates.now(),))
    stage.clock("2026-03-16T02:00:00+08:00")
    assert deliver(run_id, "w", 30)["waiting_until"] == "2026-03-16T22:00:00+08:00", "at two sharp it is closed"
    stage.clock("2026-03-16T22:00:00+08:00")
    assert deliver(run_id, "w", 30)["accepted"] == 1


@pytest.mark.parametrize(
    ("quota", "next_day"), [({"calls_per_day": 7}, True), ({"calls_per_month": 7}, False)], ids=["day", "month"]
)
def test_the_quota_of_an_account_holds_over_runs_and_workers(stage: Any, quota: dict[str, int], next_day: bool) -> None:
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["email"].update(quota)
    run_id = stage.run("email", 10)
    with pytest.raises(ChannelPaused, match=r"the quota of 7 calls a \w+ is used up"):
        deliver(run_id, "w1", 30)
    assert states(stage.db, run_id) == {"accepted": 7, "queued": 3}
    with pytest.raises(ChannelPaused):
        deliver(run_id, "w2", 30)
    assert sum(stage.received_keys().values()) == 7
    stage.clock("2026-03-16T10:00:00+08:00")
    if next_day:
        assert deliver(run_id, "w3", 30)["accepted"] == 10
        check_laws(run_id)
    else:
        with pytest.raises(ChannelPaused, match="paused until 2026-04-01"):
            deliver(run_id, "w3", 30)


def test_a_campaigns_own_cap_is_asked_again_at_sending(stage: Any) -> None:
    members = stage.audience("email", 2)
    stage.config.campaign(caps={"messages": 1, "days": 30})
    run_id = start_run()
    stage.db.execute(
        "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at, expires_at)"
        " VALUES ('last', 'winback_gold', 'live', '2026-03-01', %(now)s, '{}', 'x', 'sent', 'test', %(now)s, %(now)s)",
        {"now": dates.now()},
    )
    stage.db.execute(
        "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
        " variables, state, not_before, expires_at, queued_at, accepted_at, updated_at)"
        " VALUES ('last/1', 'last', %(member)s, 'send', 'email', 'x', 'service', 'x', 't', 'zh', '{}', 'accepted', %(at)s, %(at)s, %(at)s,"
        " %(at)s, %(at)s)",
        {"member": members[0], "at": dates.now() - timedelta(days=20)},
    )
    deliver(run_id, "w", 30)
    assert channels(stage, run_id) == {members[0]: "email: suppressed", members[1]: "email: accepted"}
