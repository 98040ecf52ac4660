"""Everybody of the segment is in exactly one state, for the first reason that applies, and a rerun decides the same."""

import shutil
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_world import AS_OF, MORNING, ConfigFolder, People, approve, audience, green_night, write_config
from nightmarket import dates, settings
from nightmarket.campaigns.audience import ApprovalVoid, RunRefused, build_run, record_decision, why_not
from nightmarket.campaigns.experiment import arm, unit
from nightmarket.campaigns.results import dry_run_report
from nightmarket.warehouse import Row

LAST_EVENING = datetime.fromisoformat("2026-03-14T23:00:00+08:00")


@pytest.fixture
def config(
    db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Any
) -> ConfigFolder:
    """No coupon, no hold-out, no approval: what a test is about is switched on by the test."""
    config = write_config(tmp_path / "house", monkeypatch)
    one = [{"name": "gift", "share": 1, "template": "winback_gift"}]
    config.campaign(coupon=None, holdout_share=0, approval={"above": 1000}, variants=one)
    with config.editing("channels.yaml") as data:
        data["global_holdout"]["share"] = 0
    set_clock(MORNING)
    green_night(db)
    return config


@pytest.fixture
def people(db: psycopg.Connection[Row], config: ConfigFolder) -> People:
    return People(db)


def build(**options: Any) -> str:
    return build_run("winback_gold", AS_OF, options.pop("mode", "dry_run"), "tester", **options)


def sent(
    db: psycopg.Connection[Row], member: int, at: datetime, channel: str = "wechat_mass", purpose: str = "marketing"
) -> None:
    """A message that some other campaign had accepted at an instant."""
    run_id = f"other@{at.isoformat()}-{member}"
    db.execute(
        "INSERT INTO push.campaign_runs (run_id, campaign, mode, as_of, as_of_at, config, config_hash, state, created_by, created_at, expires_at)"
        " VALUES (%s, %s, 'live', %s, %s, '{}', 'x', 'sent', 'test', %s, %s)",
        (run_id, run_id, at.date(), at, at, at + timedelta(days=2)),
    )
    db.execute(
        "INSERT INTO push.messages (message_key, run_id, member_id, step, channel, account, purpose, address, template, language,"
        " variables, state, not_before, expires_at, queued_at, accepted_at, updated_at)"
        " VALUES (%s, %s, %s, 'send', %s, 'wechat_official', %s, 'x', 't', 'zh', '{}', 'accepted', %s, %s, %s, %s, %s)",
        (run_id, run_id, member, channel, purpose, at, at + timedelta(days=2), at, at, at),
    )


def channel_of(db: psycopg.Connection[Row], run_id: str, member: int) -> str | None:
    row = db.execute(
        "SELECT channel FROM push.audiences WHERE run_id = %s AND member_id = %s", (run_id, member)
    ).fetchone()
    assert row is not None
    return row["channel"]


def test_every_gate_catches_its_member_and_nobody_is_lost(db: psycopg.Connection[Row], people: People) -> None:
    fine = [people.add(openid=f"oFINE{number}") for number in range(3)]
    wanted = dict.fromkeys(fine, "targeted")
    wanted[people.add()] = "no_address"
    wanted[people.add(openid="oGONE", following=False)] = "no_address"
    wanted[people.add(email="no@mail.test", email_consent=False)] = "no_consent"
    wanted[people.add(openid="oREFUSED", wechat_consent=False)] = "no_consent"
    wanted[people.add(openid="oBLOCKED")] = "suppressed"
    capped = people.add(openid="oCAPPED")
    wanted[capped] = "capped"
    full = people.add(openid="oFULL")
    wanted[full] = "channel_limit"
    people.add(openid="oAWAKE", sleeping=False)  # not in the segment: in no state at all
    db.execute(
        "INSERT INTO push.suppressions VALUES ('wechat', 'oBLOCKED', 'black list', 'test', %s)",
        (LAST_EVENING - timedelta(days=9),),
    )
    for days in (1, 3):
        sent(db, capped, LAST_EVENING - timedelta(days=days), channel="email")
    for days in range(9, 13):
        sent(db, full, LAST_EVENING - timedelta(days=days))
    run_id = build()
    assert audience(db, run_id) == wanted
    report = dry_run_report(run_id)
    assert report["sizes"] == {"segment": 10, "targeted": 3, "holdout": 0, "excluded": 7}
    assert sum(row["members"] for row in report["excluded"]) == 7


def test_the_first_gate_that_applies_is_the_reason(db: psycopg.Connection[Row], people: People) -> None:
    member = people.add(openid="oBOTH", wechat_consent=False)
    db.execute("INSERT INTO push.suppressions VALUES ('wechat', 'oBOTH', 'black list', 'test', %s)", (LAST_EVENING,))
    assert audience(db, build()) == {member: "no_consent"}


def test_what_happens_after_the_as_of_instant_does_not_count(db: psycopg.Connection[Row], people: People) -> None:
    member = people.add(openid="oLATER")
    people.add(openid="oPARTNER")
    midnight = dates.day_end(AS_OF)
    db.execute("INSERT INTO push.suppressions VALUES ('wechat', 'oLATER', 'black list', 'test', %s)", (midnight,))
    people.consent(people.identity_of(member, "wechat_openid"), "wechat", "marketing", False, midnight)
    for minutes in range(2):
        sent(db, member, midnight + timedelta(minutes=minutes), channel="email")
    assert set(audience(db, build()).values()) == {"targeted"}


def test_a_message_leaves_the_cap_after_its_days(db: psycopg.Connection[Row], people: People) -> None:
    inside, outside = people.add(openid="oINSIDE"), people.add(openid="oOUTSIDE")
    people.add(openid="oSOMEBODY")
    midnight = dates.day_end(AS_OF)
    for member, first in ((inside, midnight - timedelta(days=7)), (outside, midnight - timedelta(days=7, seconds=1))):
        sent(db, member, first, channel="email")
        sent(db, member, midnight - timedelta(days=1), channel="email")
    found = audience(db, build())
    assert found[inside] == "capped"
    assert found[outside] == "targeted"


def test_service_messages_do_not_count_against_the_cap(db: psycopg.Connection[Row], people: People) -> None:
    member = people.add(openid="oSERVED")
    people.add(openid="oSOMEBODY")
    for hours in range(5):
        sent(db, member, LAST_EVENING - timedelta(hours=hours), channel="wechat_template", purpose="service")
    assert audience(db, build())[member] == "targeted"


def test_the_first_allowed_channel_is_taken(db: psycopg.Connection[Row], people: People) -> None:
    wrote = people.add(openid="oWROTE", wrote_at=LAST_EVENING)
    long_ago = people.add(openid="oLONGAGO", wrote_at=LAST_EVENING - timedelta(days=2))
    mass = people.add(openid="oMASS")
    mail = people.add(email="mail@mail.test")
    both = people.add(openid="oFULL", email="full@mail.test")
    for days in range(9, 13):
        sent(db, both, LAST_EVENING - timedelta(days=days))
    run_id = build()
    chosen = {member: channel_of(db, run_id, member) for member in (wrote, long_ago, mass, mail, both)}
    assert chosen == {
        wrote: "wechat_service",
        long_ago: "wechat_mass",
        mass: "wechat_mass",
        mail: "email",
        both: "email",
    }


def test_the_service_window_must_last_until_the_planned_evening(db: psycopg.Connection[Row], people: People) -> None:
    edge = datetime.fromisoformat("2026-03-15T20:00:00+08:00") - timedelta(hours=48)
    early, late = (
        people.add(openid="oEARLY", wrote_at=edge),
        people.add(openid="oLATE", wrote_at=edge + timedelta(seconds=1)),
    )
    people.add(openid="oSOMEBODY")
    run_id = build()
    assert channel_of(db, run_id, early) == "wechat_mass"
    assert channel_of(db, run_id, late) == "wechat_service"


def test_five_service_messages_fill_the_window(
    db: psycopg.Connection[Row], people: People, config: ConfigFolder
) -> None:
    config.campaign(channels=["wechat_service"])
    with config.editing("channels.yaml") as data:
        data["frequency"] = {"messages": 100, "days": 7}
    member = people.add(openid="oTALKS", wrote_at=LAST_EVENING)
    for minutes in range(4):
        sent(db, member, LAST_EVENING + timedelta(minutes=minutes), channel="wechat_service", purpose="service")
    assert audience(db, build()) == {member: "targeted"}
    sent(db, member, LAST_EVENING + timedelta(minutes=5), channel="wechat_service", purpose="service")
    assert audience(db, build()) == {member: "channel_limit"}


def test_a_mass_send_needs_two_receivers(db: psycopg.Connection[Row], people: People) -> None:
    lone = people.add(openid="oLONE", language="en")
    assert audience(db, build()) == {lone: "alone_in_group"}
    reachable = people.add(openid="oMAIL", email="lone@mail.test", language="zh")
    run_id = build()
    assert audience(db, run_id)[reachable] == "targeted"
    assert channel_of(db, run_id, reachable) == "email"
    people.add(openid="oSECOND", language="en")
    assert audience(db, build())[lone] == "targeted"


def test_arms_are_those_of_the_experiment(db: psycopg.Connection[Row], people: People, config: ConfigFolder) -> None:
    both = [{"name": name, "share": 0.5, "template": f"winback_{name}"} for name in ("gift", "missed")]
    config.campaign(holdout_share=0.3, variants=both)
    members = [people.add(email=f"arm{number}@mail.test") for number in range(60)]
    run_id = build()
    rows = db.execute("SELECT member_id, arm, variant FROM push.audiences WHERE run_id = %s", (run_id,)).fetchall()
    variants = [("gift", Decimal("0.5")), ("missed", Decimal("0.5"))]
    assert {row["member_id"]: (row["arm"], row["variant"]) for row in rows} == {
        member: arm("winback_gold-2026", member, Decimal("0.3"), variants) for member in members
    }


def test_the_global_holdout_is_in_no_campaign(
    db: psycopg.Connection[Row], people: People, config: ConfigFolder
) -> None:
    with config.editing("channels.yaml") as data:
        data["global_holdout"] = {"share": 0.3, "salt": "everywhere"}
    members = [people.add(email=f"glob{number}@mail.test") for number in range(40)]
    held = {member for member in members if unit("everywhere", member) < 0.3}
    assert held
    assert {member for member, state in audience(db, build()).items() if state == "global_holdout"} == held


def test_the_size_limit_cuts_the_same_members_every_time(db: psycopg.Connection[Row], people: People) -> None:
    members = [people.add(email=f"size{number}@mail.test") for number in range(20)]
    first, again = audience(db, build(size_limit=7)), audience(db, build(size_limit=7))
    assert first == again
    assert sorted(first.values()).count("targeted") == 7
    assert sorted(first.values()).count("over_size_limit") == 13
    larger = audience(db, build(size_limit=12))
    assert {member for member in members if first[member] == "targeted"} < {
        m for m in members if larger[m] == "targeted"
    }


def test_the_same_day_gives_the_same_checksum_and_a_change_another(
    db: psycopg.Connection[Row], people: People, config: ConfigFolder
) -> None:
    for number in range(5):
        people.add(email=f"same{number}@mail.test")
    first, second = build(), build()
    assert (first, second) == ("winback_gold@2026-03-14#1", "winback_gold@2026-03-14#2")
    hashes = {
        row["run_id"]: (row["audience_checksum"], row["content_hash"])
        for row in db.execute("SELECT run_id, audience_checksum, content_hash FROM push.campaign_runs").fetchall()
    }
    assert hashes[first] == hashes[second]
    (config.folder / "templates/email/winback_gift/en.txt.j2").write_text(
        "Hello {{ shop.name }} {{ link }} {{ unsubscribe_link }}"
    )
    third = build()
    row = db.execute(
        "SELECT audience_checksum, content_hash FROM push.campaign_runs WHERE run_id = %s", (third,)
    ).fetchone()
    assert row is not None
    assert row["audience_checksum"] == hashes[first][0]
    assert row["content_hash"] != hashes[first][1]


def test_the_report_says_who_came_and_who_left(db: psycopg.Connection[Row], people: People) -> None:
    stays, leaves = people.add(email="stays@mail.test"), people.add(email="leaves@mail.test")
    first = dry_run_report(build())["difference"]
    assert first == {
        "against": None, "entered": 2, "left": 0, "entered_members": [masked(stays), masked(leaves)], "left_members": [],
    }  # fmt: skip
    db.execute("UPDATE mart.member_days SET day = %s WHERE member_id = %s", (AS_OF, leaves))
    enters = people.add(email="enters@mail.test")
    report = dry_run_report(build())
    assert report["difference"] == {
        "against": "winback_gold@2026-03-14#1", "entered": 1, "left": 1, "entered_members": [masked(enters)],
        "left_members": [masked(leaves)],
    }  # fmt: skip
    assert f"1 entered ({masked(enters)}), 1 left ({masked(leaves)})" in report["markdown_en"]


def masked(member: int) -> str:
    return f"…{member % 100:02d}"


def test_test_recipients_get_it_and_nobody_else(
    db: psycopg.Connection[Row], people: People, config: ConfigFolder
) -> None:
    config.campaign(holdout_share=0.5)
    people.add(email="real@mail.test")
    testers = [people.add(email=f"tester{number}@mail.test", sleeping=False) for number in range(6)]
    for tester in testers:
        for days in (1, 2):
            sent(db, tester, LAST_EVENING - timedelta(days=days), channel="email")
    run_id = build(mode="test", test_members=testers)
    assert audience(db, run_id) == dict.fromkeys(testers, "targeted")
    with pytest.raises(RunRefused, match="needs test recipients"):
        build(mode="test")
    with pytest.raises(RunRefused, match="test recipient 999999 is not a member"):
        build(mode="test", test_members=[999999])


def test_a_campaign_is_live_once_a_day(db: psycopg.Connection[Row], people: People) -> None:
    people.add(email="once@mail.test")
    assert build(mode="live", request_id="click-1") == "winback_gold@2026-03-14"
    assert build(mode="live", request_id="click-1") == "winback_gold@2026-03-14"  # a retried task finds its run
    with pytest.raises(RunRefused, match="already live for 2026-03-14: run winback_gold@2026-03-14 is building"):
        build(mode="live", request_id="click-2")


def test_after_a_refusal_a_new_run_may_start(db: psycopg.Connection[Row], people: People, config: ConfigFolder) -> None:
    people.add(email="again@mail.test")
    run_id = build(mode="live")
    report = dry_run_report(run_id)
    record_decision(run_id, False, "boss", "not today", report["content_hash"])
    record_decision(run_id, False, "boss", "not today", report["content_hash"])  # a repeated answer changes nothing
    again = build(mode="live")
    assert again == "winback_gold@2026-03-14#2"
    actions = [
        row["action"]
        for row in db.execute(
            "SELECT action FROM push.audit_log WHERE subject = %s ORDER BY audit_id", (run_id,)
        ).fetchall()
    ]
    assert actions == ["build", "report", "reject"]
    with pytest.raises(RunRefused, match="is rejected; it does not wait"):
        record_decision(run_id, True, "boss", "", report["content_hash"])


def test_an_approval_is_for_exactly_what_was_seen(db: psycopg.Connection[Row], people: People) -> None:
    member = people.add(email="seen@mail.test")
    run_id = build(mode="live")
    report = dry_run_report(run_id)
    with pytest.raises(ApprovalVoid, match="the approval is for content 0000"):
        record_decision(run_id, True, "boss", "", "0000")
    db.execute("UPDATE push.audiences SET language = 'en' WHERE run_id = %s AND member_id = %s", (run_id, member))
    with pytest.raises(ApprovalVoid):
        approve(run_id, report)
    db.execute("UPDATE push.audiences SET language = 'zh' WHERE run_id = %s AND member_id = %s", (run_id, member))
    approve(run_id, report)
    row = db.execute(
        "SELECT state, approved_by, approved_hash FROM push.campaign_runs WHERE run_id = %s", (run_id,)
    ).fetchone()
    assert row == {"state": "approved", "approved_by": "tester", "approved_hash": report["content_hash"]}


def test_nothing_is_live_on_a_red_or_unchecked_night(db: psycopg.Connection[Row], people: People) -> None:
    people.add(email="red@mail.test")
    green_night(db, is_passed=False)
    with pytest.raises(RunRefused, match=r"the night of 2026-03-14 is red \(mart.member_days: unique\)"):
        build(mode="live")
    with pytest.raises(RunRefused, match="the night of 2026-03-13 has not been checked"):
        build_run("winback_gold", AS_OF - timedelta(days=1), "live", "tester")
    green_night(db)  # the repaired night counts
    assert build(mode="live")


def test_a_day_long_past_cannot_go_live(db: psycopg.Connection[Row], people: People, set_clock: Any) -> None:
    set_clock("2026-03-17T09:00:00+08:00")
    with pytest.raises(RunRefused, match="expired at 2026-03-17 09:00"):
        build(mode="live")


def test_why_not_me(db: psycopg.Connection[Row], people: People) -> None:
    member = people.add(openid="oWHY", wechat_consent=False)
    run_id = build()
    (row,) = why_not("winback_gold", member)
    assert (row["run_id"], row["state"], row["reason"]) == (run_id, "excluded", "no_consent")
    assert row["facts"]["openid"] == "oWHY"
    assert row["facts"]["days_since_order"] == 120
    assert why_not("winback_gold", 424242)[0]["state"] == "not in the segment"


def test_a_merged_member_is_one_person(db: psycopg.Connection[Row], people: People) -> None:
    kept = people.add(email="one@mail.test")
    gone = people.add(sleeping=False)
    for days in (1, 2):
        sent(db, gone, LAST_EVENING - timedelta(days=days), channel="email")
    db.execute("UPDATE core.members SET absorbed_by = %s WHERE member_id = %s", (kept, gone))
    db.execute("UPDATE core.member_identities SET member_id = %s WHERE member_id = %s", (kept, gone))
    assert audience(db, build()) == {kept: "capped"}


def test_withdrawing_at_any_address_counts_for_the_person(db: psycopg.Connection[Row], people: People) -> None:
    member = people.add(email="first@mail.test")
    second = people._identity(member, "email", people.tokens.token("email", "second@mail.test"))
    people.consent(second, "email", "marketing", False, LAST_EVENING)
    assert audience(db, build()) == {member: "no_consent"}


def test_the_report_holds_no_clear_name(db: psycopg.Connection[Row], people: People) -> None:
    people.add(email="named@mail.test", name="欧阳震华")
    report = dry_run_report(build())
    text = str(report)
    assert "欧***，您好！" in text
    assert "欧阳" not in text
    assert "named@mail.test" not in text
    row = db.execute("SELECT report::text AS report, config::text AS config FROM push.campaign_runs").fetchone()
    assert row is not None
    assert "欧阳" not in row["report"] + row["config"]


def test_without_the_vault_the_sample_speaks(
    db: psycopg.Connection[Row], people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.add(email="novault@mail.test", name="欧阳震华")
    monkeypatch.delenv("NIGHTMARKET_VAULT_DSN")
    settings.get_settings.cache_clear()
    assert "王**，您好！" in str(dry_run_report(build())["samples"])


def test_over_budget_is_refused(db: psycopg.Connection[Row], people: People, config: ConfigFolder) -> None:
    config.campaign(budget={"messages": 10, "amount": 0.001})
    people.add(email="dear@mail.test")
    findings = dry_run_report(build())["findings"]
    assert [finding["severity"] for finding in findings] == ["fail"]
    assert "over the budget of 0.001" in findings[0]["en"]
    run_id = build(mode="live")
    with pytest.raises(RunRefused, match="over the budget"):
        dry_run_report(run_id)
    with pytest.raises(RunRefused, match="is failed; start a new one"):
        dry_run_report(run_id)


# Each gate by itself: switching one off in the SQL lets exactly its member through, so no gate is idle.
GATES = {
    "WHEN f.consented = 0 THEN 'no_consent'": "oREFUSED",
    "WHEN f.allowed = 0 THEN 'suppressed'": "oBLOCKED",
    "WHEN f.recent_count >= %(cap_messages)s::integer THEN 'capped'": "oCAPPED",
}


@pytest.mark.parametrize("gate", GATES)
def test_dropping_a_gate_is_noticed(
    db: psycopg.Connection[Row], people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    members = {
        "oREFUSED": people.add(openid="oREFUSED", wechat_consent=False),
        "oBLOCKED": people.add(openid="oBLOCKED"),
        "oCAPPED": people.add(openid="oCAPPED"),
    }
    db.execute("INSERT INTO push.suppressions VALUES ('wechat', 'oBLOCKED', 'black list', 'test', %s)", (LAST_EVENING,))
    for days in (1, 2):
        sent(db, members["oCAPPED"], LAST_EVENING - timedelta(days=days), channel="email")
    before = audience(db, build())
    assert "targeted" not in before.values()
    shutil.copytree(settings.get_settings().sql_dir, tmp_path / "sql")
    file = tmp_path / "sql" / "push" / "audience.sql"
    text = file.read_text()
    assert gate in text
    file.write_text(text.replace(gate, ""))
    monkeypatch.setenv("NIGHTMARKET_SQL_DIR", str(tmp_path / "sql"))
    settings.get_settings.cache_clear()
    after = audience(db, build())
    assert after != before
    assert {member for member in before if before[member] != after[member]} == {members[GATES[gate]]}
