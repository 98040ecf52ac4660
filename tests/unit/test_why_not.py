"""`nightmarket explain why-not` says in both languages which gate stopped a member, on which facts; `nightmarket run` does as it says."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from campaign_world import AS_OF, MORNING, People, approve, green_night, write_config
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.results import dry_run_report
from nightmarket.campaigns.why_not import explain_why_not
from nightmarket.cli import app
from nightmarket.warehouse import Row

EVENING = datetime.fromisoformat("2026-03-14T20:00:00+08:00")


@pytest.fixture
def people(db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Any) -> People:
    config = write_config(tmp_path / "house", monkeypatch)
    one = [{"name": "gift", "share": 1, "template": "winback_gift"}]
    config.campaign(
        coupon=None,
        holdout_share=0,
        approval={"above": 1000},
        variants=one,
        channels=["email"],
        filters={"languages": ["zh"]},
    )
    with config.editing("channels.yaml") as data:
        data["global_holdout"]["share"] = 0
    set_clock(MORNING)
    green_night(db)
    return People(db)


def live() -> str:
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    return run_id


def test_every_answer_names_the_gate_and_its_facts(db: psycopg.Connection[Row], people: People) -> None:
    fine = people.add(email="fine@mail.test")
    refused = people.add(email="no@mail.test", email_consent=False)
    english = people.add(email="en@mail.test", language="en")
    nowhere = people.add()
    bounced = people.add(email="gone@mail.test")
    awake = people.add(email="new@mail.test", sleeping=False)
    address = people.tokens.token("email", "gone@mail.test")
    db.execute(
        "INSERT INTO core.suppression_events (source_id, event_id, channel, kind, address, is_suppressed, reason, origin, evidence, occurred_at)"
        " VALUES ('test', 'b1', 'email', 'email', %s, TRUE, 'hard bounce', 'platform', 'test', %s)",
        (address, EVENING - timedelta(days=3)),
    )
    run_id = live()
    said = {
        member: explain_why_not("winback_gold", member) for member in (fine, refused, english, nowhere, bounced, awake)
    }
    wanted = {
        fine: ("消息状态 queued", "is to get it (email, gift, zh); its message is queued"),
        refused: ("未同意接收", "no consent to marketing stood there at the time"),
        english: ("规则 filters.languages（活动文件）；该会员为：en", "The rule is filters.languages of the campaign's file; the member has: en."),
        nowhere: ("没有这些渠道的地址", "there is no address for any of them"),
        bounced: ("屏蔽原因：email: hard bounce (2026-03-11)", "Suppressed for: email: hard bounce (2026-03-11)"),
        awake: ("不在分群 sleeping_valuable", "not in the segment sleeping_valuable (include/sql/segments/sleeping_valuable.sql) with max_days = 365, min_days = 60, min_net_amount = 300"),
    }  # fmt: skip
    for member, (zh, en) in wanted.items():
        assert run_id in said[member][0]
        assert zh in said[member][0]
        assert en in said[member][1]
        assert "mail.test" not in said[member][0] + said[member][1]
        assert address not in said[member][0] + said[member][1]


def test_before_any_run_a_dry_run_answers_and_leaves_nothing(db: psycopg.Connection[Row], people: People) -> None:
    refused = people.add(email="no@mail.test", email_consent=False)
    zh, en = explain_why_not("winback_gold", refused)
    assert "还没有为 2026-03-14 运行过" in zh
    assert "no run for 2026-03-14 yet; a run now would say: not sent: no consent" in en
    assert db.execute("SELECT count(*) AS n FROM push.audiences").fetchone() == {"n": 0}
    assert db.execute("SELECT count(*) AS n FROM push.campaign_runs").fetchone() == {"n": 0}


def test_a_merged_member_is_asked_about_under_either_id(db: psycopg.Connection[Row], people: People) -> None:
    kept, gone = people.add(email="a@mail.test"), people.add(email="b@mail.test")
    db.execute("UPDATE core.members SET absorbed_by = %s WHERE member_id = %s", (kept, gone))
    db.execute("UPDATE core.member_identities SET member_id = %s WHERE member_id = %s", (kept, gone))
    db.execute("DELETE FROM mart.member_days WHERE member_id = %s", (gone,))
    live()
    assert "its message is queued" in explain_why_not("winback_gold", gone)[1]
    assert f"merged into member {kept}" in explain_why_not("winback_gold", gone)[1]


def test_the_commands(db: psycopg.Connection[Row], people: People) -> None:
    member = people.add(email="fine@mail.test")
    run_id, shell = live(), CliRunner()
    asked = shell.invoke(app, ["explain", "why-not", "winback_gold", str(member)])
    assert asked.exit_code == 0
    assert "its message is queued" in asked.output
    assert shell.invoke(app, ["explain", "why-not", "winback_gold", "424242"]).exit_code == 1
    tried = shell.invoke(app, ["run", "cancel", run_id, "--reason", "wrong", "--dry-run"])
    assert "1 messages are never sent" in tried.output
    assert shell.invoke(app, ["run", "pause", run_id, "--reason", "look first"]).exit_code == 0
    again = shell.invoke(app, ["run", "pause", run_id, "--reason", "look first"])
    assert again.exit_code == 1
    assert "is paused already" in again.output
    shown = shell.invoke(app, ["run", "show", run_id])
    assert "pause_reason: look first" in shown.output
    assert "remaining_count: 1" in shown.output
    shell.invoke(app, ["run", "cancel", run_id, "--reason", "wrong"])
    rerun = shell.invoke(app, ["run", "rerun", run_id, "--reason", "corrected"])
    assert 'airflow dags trigger push_campaign --conf \'{"campaign": "winback_gold"' in rerun.output
    window = shell.invoke(app, ["run", "extend", run_id, "--reason", "x", "--opens", "09:00"])
    assert window.exit_code == 1
    assert "both ends" in window.output
