"""The page of a run: the whole report, how far it is, and who did what; in both languages, without an address."""

from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from campaign_world import AS_OF, MORNING, People, approve, green_night, write_config
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.operate import operate
from nightmarket.campaigns.results import dry_run_report
from nightmarket.console.app import create_app
from nightmarket.warehouse import Row


@pytest.fixture
def run_id(db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Any) -> str:
    """A run of three messages, paused; a dry run before it had one member more and one less."""
    config = write_config(tmp_path / "house", monkeypatch)
    config.campaign(
        coupon=None, holdout_share=0, approval={"above": 1000}, channels=["email"], exclusions={"tiers": ["bronze"]}
    )
    with config.editing("channels.yaml") as data:
        data["global_holdout"]["share"] = 0
    set_clock(MORNING)
    green_night(db)
    people = People(db)
    members = [people.add(email=f"p{number}@mail.test", language="en" if number == 2 else "zh") for number in range(3)]
    people.add(email="no@mail.test", email_consent=False)
    build_run("winback_gold", AS_OF, "dry_run", "tester")
    db.execute("UPDATE push.campaign_runs SET state = 'dry_run_done'")
    db.execute("DELETE FROM mart.member_days WHERE member_id = %s", (members[0],))
    people.add(email="late@mail.test")
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    db.execute(
        "UPDATE push.messages SET state = 'accepted', accepted_at = %s WHERE member_id = %s", (MORNING, members[1])
    )
    operate(run_id, "pause", "vera", "wrong picture", dry_run=False)
    return run_id


def page(run_id: str, language: str) -> str:
    visitor = TestClient(create_app(require_user=lambda: "ulla"), headers={"accept-language": language})
    answer = visitor.get("/run", params={"id": run_id})
    assert answer.status_code == 200
    return answer.text


def test_the_report_the_progress_and_the_log(run_id: str) -> None:
    text = page(run_id, "en")
    for words in (
        "Paused: 2026-03-15 10:00, vera: wrong picture", "1 / 3", "0.0 a second", "nothing found", 'messages <span class="strong">3</span>',
        "no consent", "Against the last run", "+1 <span", "−1 <span", "Variant gift", "Language en", "audience built",
        "paused", "looks right", "AD: ",
    ):  # fmt: skip
        assert words in text, words
    assert "mail.test" not in text.replace("help@nightmarket.test", "")
    assert "王小明" not in text


def test_the_same_in_chinese(run_id: str) -> None:
    text = page(run_id, "zh")
    for words in ("已暂停：", "发送前的报告", "未发现问题", "与上次相比", "谁在什么时候做了什么", "圈人", "未同意接收"):
        assert words in text, words


def test_a_run_without_report_or_messages_is_shown_too(db: psycopg.Connection[Row], run_id: str) -> None:
    db.execute("UPDATE push.campaign_runs SET report = NULL")
    db.execute("DELETE FROM push.messages")
    assert "发送前的报告" not in page(run_id, "zh")
