"""Two members turn out to be one person, or one to be two, while a run is under way; two runs want the same person at once.

Nobody gets the same message twice under two names, nobody gets what is meant for somebody else, the caps count the person.
"""

import threading
from datetime import timedelta
from typing import Any

import yaml

from campaign_world import AS_OF, approve, start_run
from nightmarket import dates
from nightmarket.campaigns import coupons, outbox
from nightmarket.campaigns.audience import audience_checksum, build_run, content_hash
from nightmarket.campaigns.config import Channel
from nightmarket.campaigns.delivery import deliver
from nightmarket.campaigns.operate import operate
from nightmarket.campaigns.outbox import Lane
from nightmarket.campaigns.results import check_laws, dry_run_report
from nightmarket.warehouse import connect


def merge(stage: Any, absorbed: int, survivor: int) -> None:
    """As the night leaves it when both turn out to be one person."""
    stage.db.execute("UPDATE core.member_identities SET member_id = %s WHERE member_id = %s", (survivor, absorbed))
    stage.db.execute("UPDATE core.members SET absorbed_by = %s WHERE member_id = %s", (survivor, absorbed))


def give_address(stage: Any, address: str, member: int) -> None:
    """The address is the member's from now on."""
    stage.db.execute(
        "UPDATE core.member_identities AS mi SET member_id = %s FROM core.identities AS i"
        " WHERE i.identity_id = mi.identity_id AND i.value = %s",
        (member, address),
    )


def ends(stage: Any, run_id: str) -> dict[int, str]:
    """Member -> state, or why not."""
    rows = stage.db.execute(
        "SELECT member_id, state, last_error FROM push.messages WHERE run_id = %s AND step = 'send'", (run_id,)
    )
    return {row["member_id"]: row["last_error"] or row["state"] for row in rows}


def another_campaign(stage: Any) -> None:
    folder = stage.config.folder / "config" / "campaigns"
    data = yaml.safe_load((folder / "winback_gold.yaml").read_text(encoding="utf-8"))
    data |= {"campaign": "winback_again", "salt": "again"}
    (folder / "winback_again.yaml").write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")


def start(campaign: str, **options: Any) -> str:
    run_id = build_run(campaign, AS_OF, "live", "tester", **options)
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    return run_id


def one_message_a_week(stage: Any) -> None:
    with stage.config.editing("channels.yaml") as data:
        data["frequency"] = {"messages": 1, "days": 7}


def test_two_members_who_are_one_person_get_one_message(stage: Any) -> None:
    first, second, third = stage.audience("email", 3)
    run_id = start_run()
    merge(stage, second, first)
    deliver(run_id, "w", 30)
    assert ends(stage, run_id) == {first: "accepted", second: "already_reached", third: "accepted"}
    check_laws(run_id)


def test_two_members_who_are_one_person_get_one_coupon_and_pay_once(stage: Any) -> None:
    """They merged after the approval. Each has the points for one coupon, because both have the same purse."""
    survivor, absorbed = stage.audience("wechat_service", 2)
    stage.config.campaign(
        coupon={"stock": "points_10", "test_stock": "own_test"},
        variants=[{"name": "gift", "share": 1, "template": "code_gift"}],
    )
    for member in (survivor, absorbed):
        stage.db.execute(
            "INSERT INTO mart.points_ledger (member_id, day, kind, lot_day, points) VALUES (%(m)s, %(d)s, 'earn', %(d)s, 500)",
            {"m": member, "d": AS_OF},
        )
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    merge(stage, absorbed, survivor)
    stage.db.execute("DELETE FROM mart.points_ledger WHERE member_id = %s", (absorbed,))
    assert coupons.reserve(run_id) == 1
    assert coupons.reserve(run_id) == 1
    assert coupons.issue(run_id) == {"issued": 1}
    row = stage.db.execute("SELECT mart.points_balance(%s) AS points", (survivor,)).fetchone()
    assert row["points"] == 0
    outbox.enqueue(run_id)
    deliver(run_id, "w", 30)
    assert ends(stage, run_id) == {survivor: "accepted", absorbed: "already_reached"}
    check_laws(run_id)


def test_who_was_reached_under_the_other_name_is_not_reached_again(stage: Any) -> None:
    first, second = stage.audience("email", 2)
    run_id = start_run()
    stage.db.execute(
        "UPDATE push.messages SET not_before = not_before + interval '2 hours' WHERE member_id = %s", (first,)
    )
    deliver(run_id, "w", 30)
    merge(stage, second, first)
    stage.later(hours=3)
    deliver(run_id, "w", 30)
    assert ends(stage, run_id) == {first: "already_reached", second: "accepted"}


def test_an_address_that_is_somebody_elses_now_gets_nothing(stage: Any) -> None:
    """A wrong merge was undone: the text greets one person, the address is another one's."""
    first, second = stage.audience("email", 2)
    other = stage.people.add(email="other@mail.test", sleeping=False)
    run_id = start_run()
    address = stage.db.execute("SELECT address FROM push.messages WHERE member_id = %s", (first,)).fetchone()["address"]
    give_address(stage, address, other)
    deliver(run_id, "w", 30)
    assert ends(stage, run_id) == {first: "no_address", second: "accepted"}


def test_who_became_a_held_out_person_gets_nothing(stage: Any) -> None:
    survivor, absorbed = stage.audience("email", 2)
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    stage.db.execute(
        "UPDATE push.audiences SET state = 'holdout', arm = 'holdout', variant = NULL, channel = NULL, address = NULL"
        " WHERE run_id = %s AND member_id = %s",
        (run_id, survivor),
    )
    checksum = audience_checksum(stage.db, run_id)
    stage.db.execute(
        "UPDATE push.campaign_runs SET audience_checksum = %s, content_hash = %s",
        (checksum, content_hash(checksum, stage.db.execute("SELECT config_hash FROM push.campaign_runs").fetchone()["config_hash"])),
    )  # fmt: skip
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    merge(stage, absorbed, survivor)
    deliver(run_id, "w", 30)
    assert ends(stage, run_id) == {absorbed: "holdout"}
    assert stage.received_keys() == {}


def test_a_rerun_leaves_out_addresses_that_the_first_run_reached(stage: Any) -> None:
    """One member at the first run, two at the second: the address has its message, whoever it belongs to."""
    (first,) = stage.audience("email", 1)
    second = stage.people.add(email="second@mail.test")
    merge(stage, second, first)
    run_id = start_run()
    deliver(run_id, "w", 30)
    address = stage.db.execute("SELECT address FROM push.messages").fetchone()["address"]
    operate(run_id, "cancel", "boss", "because", dry_run=False)
    stage.db.execute("UPDATE core.members SET absorbed_by = NULL WHERE member_id = %s", (second,))
    give_address(stage, address, second)
    again = start_run()
    deliver(again, "w", 30)
    assert ends(stage, again) == {}
    row = stage.db.execute(
        "SELECT reason FROM push.audiences WHERE run_id = %s AND member_id = %s", (again, second)
    ).fetchone()
    assert row["reason"] == "already_reached"


def test_the_cap_counts_what_a_person_got_under_a_former_name(stage: Any) -> None:
    one_message_a_week(stage)
    survivor, absorbed = stage.audience("email", 2)
    another_campaign(stage)
    first, second = start("winback_gold"), start("winback_again")
    for run_id, member in ((first, survivor), (second, absorbed)):
        stage.db.execute("DELETE FROM push.messages WHERE run_id = %s AND member_id = %s", (run_id, member))
    deliver(first, "w", 30)
    merge(stage, absorbed, survivor)
    deliver(second, "w", 30)
    assert ends(stage, second) == {survivor: "capped"}


def test_two_runs_that_claim_one_person_at_the_same_instant_keep_the_cap(stage: Any) -> None:
    one_message_a_week(stage)
    stage.audience("email", 1)
    another_campaign(stage)
    runs = [start("winback_gold"), start("winback_again")]
    claimed: dict[str, int] = {}
    first_has_claimed, may_commit = threading.Event(), threading.Event()

    def claim(run_id: str) -> None:
        with connect(application_name="nightmarket-outbox") as connection:
            run = connection.execute("SELECT * FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()
            assert run is not None
            channel = Channel.model_validate(run["config"]["channels"]["email"])
            claimed[run_id] = len(Lane(run, "email", channel, run_id, timedelta(seconds=60)).claim(connection, 10))
            if run_id == runs[0]:
                first_has_claimed.set()
                may_commit.wait(30)

    threads = [threading.Thread(target=claim, args=(run_id,)) for run_id in runs]
    threads[0].start()
    assert first_has_claimed.wait(30)
    threads[1].start()
    threads[1].join(1)  # it waits for its turn
    may_commit.set()
    for thread in threads:
        thread.join(30)
    assert claimed == {runs[0]: 1, runs[1]: 0}


def test_who_says_no_while_a_slow_channel_sends_is_heard_within_seconds(stage: Any) -> None:
    """Twenty-four mails at two a second: a worker that had claimed them all would write to people twelve seconds after their no."""
    members = stage.audience("email", 24)
    with stage.config.editing("channels.yaml") as data:
        data["channels"]["email"]["rate_per_second"] = 2
    run_id = start_run()
    process = stage.worker(run_id, "slow")
    stage.wait_until(lambda: list(ends(stage, run_id).values()).count("accepted") >= 2)
    for member in members:
        identity = stage.people.identity_of(member, "email")
        stage.people.consent(identity, "email", "marketing", False, dates.now())
    stage.finish(process)
    found = list(ends(stage, run_id).values())
    assert set(found) == {"accepted", "no_consent"}
    assert found.count("no_consent") >= 8
