"""What changed between an approval and the sending is measured; beyond the tolerance the approval is void and asked again."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_world import AS_OF, MORNING, People, approve, audience, green_night, write_config
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import ApprovalVoid, RunRefused, build_run, record_decision
from nightmarket.campaigns.drift import check_drift
from nightmarket.campaigns.results import check_laws, dry_run_report
from nightmarket.warehouse import Row

EVENING = datetime.fromisoformat(
    "2026-03-14T20:00:00+08:00"
)  # before the as-of instant: it was true, we had not heard of it


@pytest.fixture
def people(db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Any) -> People:
    config = write_config(tmp_path / "house", monkeypatch)
    one = [{"name": "gift", "share": 1, "template": "winback_gift"}]
    approval = {"above": 1000, "drift_tolerance": 0.1}
    config.campaign(coupon=None, holdout_share=0, approval=approval, variants=one, channels=["email"])
    with config.editing("channels.yaml") as data:
        data["global_holdout"]["share"] = 0
    set_clock(MORNING)
    green_night(db)
    people = People(db)
    people.config = config  # type: ignore[attr-defined]
    return people


def approved(people: People, count: int = 20) -> tuple[str, list[int]]:
    members = [people.add(email=f"p{number}@mail.test") for number in range(count)]
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    return run_id, members


def withdraw(people: People, members: list[int]) -> None:
    for member in members:
        people.consent(people.identity_of(member, "email"), "email", "marketing", False, EVENING)


def log(db: psycopg.Connection[Row], run_id: str) -> list[str]:
    return [
        row["action"]
        for row in db.execute("SELECT action FROM push.audit_log WHERE subject = %s ORDER BY audit_id", (run_id,))
    ]


def test_nothing_moved(db: psycopg.Connection[Row], people: People) -> None:
    run_id, members = approved(people)
    found = check_drift(run_id)
    assert found["is_void"] is False
    assert found["sentence"] == "0 entered, 0 left, 0 moved of 20 members: 0.00%, within the tolerance of 10.00%"
    assert log(db, run_id)[-1] == "drift"
    assert len(members) == outbox.enqueue(run_id)


def test_within_the_tolerance_the_approved_audience_stays(db: psycopg.Connection[Row], people: People) -> None:
    run_id, members = approved(people)
    withdraw(people, members[:2])  # exactly a tenth
    found = check_drift(run_id)
    assert found == {
        "is_void": False,
        "sentence": "0 entered, 2 left, 0 moved of 20 members: 10.00%, within the tolerance of 10.00%",
    }
    assert set(audience(db, run_id).values()) == {"targeted"}
    assert outbox.enqueue(run_id) == 20  # the claim asks each of them again


def test_beyond_it_the_audience_is_built_again_and_asked_about(db: psycopg.Connection[Row], people: People) -> None:
    run_id, members = approved(people)
    withdraw(people, members[:2])
    late = people.add(email="late@mail.test")  # a late order brings one more
    old = db.execute("SELECT * FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()
    assert old is not None
    found = check_drift(run_id)
    assert found["is_void"] is True
    assert found["sentence"] == "1 entered, 2 left, 0 moved of 21 members: 14.29%, beyond the tolerance of 10.00%"
    assert "19" in found["markdown_en"]
    new = db.execute("SELECT * FROM push.campaign_runs WHERE run_id = %s", (run_id,)).fetchone()
    assert new is not None
    assert (new["state"], new["approved_hash"], new["approved_by"]) == ("awaiting_approval", None, None)
    assert new["content_hash"] == found["content_hash"] != old["content_hash"]
    assert audience(db, run_id)[late] == "targeted"
    assert audience(db, run_id)[members[0]] == "no_consent"
    with pytest.raises(RunRefused, match="not approved"):
        outbox.enqueue(run_id)
    with pytest.raises(ApprovalVoid):
        record_decision(run_id, True, "tester", "", old["content_hash"])
    assert check_drift(run_id)["content_hash"] == found["content_hash"], "asked again, the answer is the same"
    record_decision(run_id, True, "tester", "fewer, fine", found["content_hash"])
    assert outbox.enqueue(run_id) == 19
    check_laws(run_id)
    assert log(db, run_id) == ["build", "report", "approve", "void", "report", "approve", "enqueue"]


def test_no_to_the_second_question_sends_nothing(db: psycopg.Connection[Row], people: People) -> None:
    run_id, members = approved(people)
    withdraw(people, members[:5])
    found = check_drift(run_id)
    record_decision(run_id, False, "nobody (time-out)", "", found["content_hash"])
    with pytest.raises(RunRefused, match="is rejected"):
        outbox.enqueue(run_id)


def test_a_merge_and_another_channel_count_too(db: psycopg.Connection[Row], people: People) -> None:
    people.config.campaign(channels=["wechat_service", "email"], routing="listed")  # type: ignore[attr-defined]
    run_id, members = approved(people, 10)
    first, second = members[:2]
    db.execute("UPDATE core.members SET absorbed_by = %s WHERE member_id = %s", (first, second))
    db.execute("UPDATE core.member_identities SET member_id = %s WHERE member_id = %s", (first, second))
    db.execute("DELETE FROM mart.member_days WHERE member_id = %s", (second,))
    identity = people._identity(members[2], "wechat_openid", "oLATE")
    db.execute(
        "INSERT INTO core.followers (source_id, openid, identity_id, is_following, followed_at, batch_id)"
        " VALUES ('wechat_official', 'oLATE', %s, TRUE, %s, 1)",
        (identity, EVENING - timedelta(days=9)),
    )
    db.execute(
        "INSERT INTO core.interactions (source_id, event_id, identity_id, kind, occurred_at) VALUES ('own_pages', 'w', %s, 'message', %s)",
        (identity, EVENING + timedelta(hours=3)),
    )
    assert check_drift(run_id)["sentence"].startswith("0 entered, 1 left, 1 moved of 10 members: 20.00%, beyond")


def test_only_whom_the_campaign_names_may_say_yes(db: psycopg.Connection[Row], people: People) -> None:
    people.config.campaign(approval={"above": 2, "by": ["vera", "wang"]})  # type: ignore[attr-defined]
    members = [people.add(email=f"p{number}@mail.test") for number in range(3)]
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    report = dry_run_report(run_id)
    with pytest.raises(RunRefused, match=r"only vera, wang may approve it \(approval.by\), not tester"):
        record_decision(run_id, True, "tester", "", report["content_hash"])
    record_decision(run_id, True, "wang", "", report["content_hash"])
    assert outbox.enqueue(run_id) == len(members)


def test_a_test_is_not_compared_and_a_run_that_is_not_approved_is_refused(
    db: psycopg.Connection[Row], people: People
) -> None:
    member = people.add(email="p@mail.test")
    run_id = build_run("winback_gold", AS_OF, "test", "tester", test_members=[member])
    assert check_drift(run_id)["is_void"] is False
    waiting = build_run("winback_gold", AS_OF, "live", "tester")
    dry_run_report(waiting)
    with pytest.raises(RunRefused, match="there is no approval to hold against anything"):
        check_drift(waiting)
