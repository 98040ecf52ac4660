"""Scheduled campaigns are DAGs of their own; a run is operated from a form; a void approval is asked again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from campaign_world import AS_OF, MORNING, People, approve, green_night, states, write_config
from nightmarket.campaigns import outbox
from nightmarket.campaigns.audience import build_run
from nightmarket.campaigns.operate import ACTIONS
from nightmarket.campaigns.results import dry_run_report
from nightmarket.orchestration.assets import MART_NIGHT, stream_asset
from nightmarket.orchestration.form import OPERATIONS
from nightmarket.orchestration.schedules import scheduled_campaigns
from nightmarket.settings import use_credentials_from
from nightmarket.warehouse import Row


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTMARKET_CONFIG_DIR", str(tmp_path))
    (tmp_path / "campaigns").mkdir()
    return tmp_path / "campaigns"


def timetable(folder: Path, schedule: str) -> Any:
    (folder / "some.yaml").write_text(
        f"campaign: some\n{schedule}\ntitle: {{zh: 某, en: some}}\nowner: me\n", encoding="utf-8"
    )
    found = list(scheduled_campaigns())
    assert [(one.campaign, one.title) for one in found] == [("some", "某 some")]
    return found[0].timetable


def test_every_kind_of_schedule(folder: Path) -> None:
    weekly = timetable(folder, 'schedule: {cron: "0 10 * * 1"}')
    assert (weekly.expression, str(weekly.timezone)) == ("0 10 * * 1", "Asia/Shanghai")
    dated = timetable(folder, "schedule:\n  at: 10:30\n  dates:\n    - 2026-11-11\n    - 2026-11-01")
    assert [f"{at:%Y-%m-%d %H:%M %Z}" for at in dated.event_dates] == ["2026-11-01 10:30 CST", "2026-11-11 10:30 CST"]
    assert [f"{at:%H:%M}" for at in timetable(folder, "schedule: {dates: [2026-11-11]}").event_dates] == ["08:00"]
    for spelt in ("schedule: {on: tier_change, tiers: [gold]}", 'schedule: {"on": tier_change, tiers: [gold]}'):
        assert timetable(folder, spelt) == [MART_NIGHT]


@pytest.mark.parametrize(
    "schedule",
    [
        "schedule: {cron: }",
        "schedule: [1]",
        "schedule: {dates: [tomorrow]}",
        "schedule: {on: full_moon}",
        "schedule: {{",
    ],
)
def test_a_schedule_that_cannot_be_read_is_none_and_stops_no_other_file(folder: Path, schedule: str) -> None:
    (folder / "fine.yaml").write_text('campaign: fine\nschedule: {cron: "0 1 * * *"}\n', encoding="utf-8")
    (folder / "some.yaml").write_text(f"campaign: some\n{schedule}\n", encoding="utf-8")
    found = {one.campaign: one.timetable for one in scheduled_campaigns()}
    assert set(found) == {"fine", "some"}
    assert found["fine"] is not None
    if "cron" not in schedule:
        assert found["some"] is None


def test_a_campaign_without_a_schedule_is_no_dag(folder: Path) -> None:
    (folder / "some.yaml").write_text("campaign: some\n# schedule: none\nowner: schedule\n", encoding="utf-8")
    assert list(scheduled_campaigns()) == []


def test_they_are_off_until_a_person_switches_them_on_and_say_that_they_send(bag: Any) -> None:
    for name in ("campaign_tier_up_gift", "campaign_double_eleven"):
        dag = bag.dags[name]
        assert dag.is_paused_upon_creation is True
        assert "sends for real" in dag.doc_md
        assert dag.get_task("reserve_coupons").upstream_task_ids == {"record_second_decision"}
        assert not dag.has_task("unless_dry_run")  # a scheduled run is never a dry one


def test_our_assets_are_airflows_assets_with_the_same_hash() -> None:
    from airflow.sdk import Asset

    for ours in (MART_NIGHT, stream_asset("pos_stores", "orders")):
        theirs = Asset(name=ours.name, group=ours.group)
        assert (ours, hash(ours)) == (theirs, hash(theirs))


def test_a_worker_builds_only_the_campaign_it_works_for() -> None:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager as as_a_worker

    with as_a_worker(dag_id="campaign_tier_up_gift", task_id="deliver"):
        bag = DagBag(Path(__file__).resolve().parents[2] / "dags" / "campaigns.py", bundle_name="dags-folder")
    assert set(bag.dags) == {"campaign_tier_up_gift"}


def test_nothing_is_reserved_before_both_answers_are_written_down(bag: Any) -> None:
    for name in ("push_campaign", "campaign_tier_up_gift"):
        before = bag.dags[name].get_task("reserve_coupons").get_flat_relative_ids(upstream=True)
        assert {
            "approve",
            "record_decision",
            "check_gate_again",
            "check_drift",
            "approve_again",
            "record_second_decision",
        } <= before


def test_the_form_has_the_actions_there_are() -> None:
    assert OPERATIONS == ACTIONS


@pytest.fixture(scope="module")
def stored(bag: Any, airflow_database: None) -> Any:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(bag, "dags-folder", None)
    return bag


@pytest.fixture
def run_id(
    db: psycopg.Connection[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Any
) -> Iterator[str]:
    config = write_config(tmp_path / "house", monkeypatch)
    one = [{"name": "gift", "share": 1, "template": "winback_gift"}]
    config.campaign(coupon=None, holdout_share=0, approval={"above": 1000}, variants=one, channels=["email"])
    with config.editing("channels.yaml") as data:
        data["global_holdout"]["share"] = 0
    set_clock(MORNING)
    green_night(db)
    people = People(db)
    for number in range(3):
        people.add(email=f"p{number}@mail.test")
    run_id = build_run("winback_gold", AS_OF, "live", "tester")
    approve(run_id, dry_run_report(run_id))
    outbox.enqueue(run_id)
    yield run_id
    use_credentials_from(None)


def found(run: Any) -> dict[str, str]:
    return {task.task_id: str(task.state) for task in run.get_task_instances()}


@pytest.mark.slow
def test_a_run_is_operated_from_the_form(stored: Any, db: psycopg.Connection[Row], run_id: str) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    operate_run = stored.dags["operate_run"]
    tried = operate_run.test(run_conf={"run_id": run_id, "action": "cancel", "reason": "wrong picture"})
    assert found(tried) == {
        "operate": "success",
        "approve_change": "success",
        "record_change": "success",
        "start_again": "skipped",
    }
    assert states(db, run_id) == {"queued": 3}
    done = operate_run.test(
        run_conf={"run_id": run_id, "action": "cancel", "reason": "wrong picture", "dry_run": False}
    )
    assert found(done)["start_again"] == "skipped"
    assert states(db, run_id) == {"cancelled": 3}
    actor = db.execute("SELECT actor FROM push.audit_log WHERE action = 'cancel'").fetchone()
    assert actor is not None
    assert actor["actor"] == "dag_test"  # whoever Airflow says started it
    wrong = operate_run.test(run_conf={"run_id": run_id, "action": "pause", "reason": "late", "dry_run": False})
    assert found(wrong)["operate"] == "failed"
    again = operate_run.test(run_conf={"run_id": run_id, "action": "rerun", "reason": "corrected", "dry_run": False})
    assert found(again)["start_again"] == "success"
    with create_session() as session:
        conf = [run.conf for run in session.query(DagRun).filter(DagRun.dag_id == "push_campaign")]
    assert {"campaign": "winback_gold", "as_of": "2026-03-14", "dry_run": False, "size_limit": None} in conf


@pytest.mark.slow
def test_a_changed_window_is_written_down_as_policys_yes_below_the_limit(
    stored: Any, db: psycopg.Connection[Row], run_id: str
) -> None:
    conf = {
        "run_id": run_id,
        "action": "extend",
        "reason": "longer",
        "dry_run": False,
        "opens": "09:00",
        "closes": "21:30",
    }
    run = stored.dags["operate_run"].test(run_conf=conf)
    assert found(run)["record_change"] == "success"
    row = db.execute(
        "SELECT state, approved_by, config #>> '{campaign,send_window,closes}' AS closes FROM push.campaign_runs"
    ).fetchone()
    assert row == {"state": "sending", "approved_by": "policy", "closes": "21:30:00"}


def test_what_silence_means_the_second_time(bag: Any) -> None:
    for name, task in (("push_campaign", "approve_again"), ("operate_run", "approve_change")):
        assert bag.dags[name].get_task(task).defaults == ["Reject"]
