"""The whole story under the real scheduler, on all of the real data, and then once more: nothing is doubled."""

import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from rich.console import Console

from nightmarket.dates import today
from nightmarket.local.airflow_api import AirflowApi
from nightmarket.local.database import LocalError, free_port
from nightmarket.local.demo import CAMPAIGN, DAYS_BETWEEN, READING_SECONDS, Demo
from nightmarket.local.stack import Ports, Stack
from nightmarket.settings import ROOT, get_settings
from nightmarket.warehouse import connect

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
SILENT, DRIFTING = "nobody_answers", "late_data"
FIRST = today() - timedelta(days=1)
SECOND = FIRST + timedelta(days=DAYS_BETWEEN)
COUNTED = (
    "raw.records", "raw.heads", "core.orders", "core.order_lines", "core.refunds", "core.reviews", "core.members",
    "core.identities", "core.member_identities", "core.consents", "core.exposures", "core.coupon_events",
    "core.message_events", "mart.member_tiers", "mart.member_days", "mart.shop_kpis_daily", "push.messages",
    "push.coupons", "push.audiences",
)  # fmt: skip


class Story(Demo):
    """The demo up to its last night: the same night once more is told from there."""

    def last_morning(self, api: AirflowApi, business_date: date) -> None:
        self.say(f"the morning after {business_date} is left out")


def two_more_campaigns(folder: Path) -> Path:
    """The house's configuration with two more campaigns that always ask; one of them does not wait long for an answer."""
    config = folder / "config"
    shutil.copytree(ROOT / "include" / "config", config)
    model = yaml.safe_load((config / "campaigns" / f"{CAMPAIGN}.yaml").read_text(encoding="utf-8"))
    del model["coupon"]
    for name, hours in ((SILENT, 0.005), (DRIFTING, 4)):
        changes = {"campaign": name, "salt": f"{name}-1", "approval": {"above": 0, "answer_within_hours": hours}}
        content = yaml.safe_dump(model | changes, allow_unicode=True, sort_keys=False)
        (config / "campaigns" / f"{name}.yaml").write_text(content, encoding="utf-8")
    return config


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, dict[str, Any]]]:
    """Both nights and the campaign, told once for all tests of this file."""
    os.environ["NIGHTMARKET_CONFIG_DIR"] = str(two_more_campaigns(tmp_path_factory.mktemp("house")))
    stack = Stack("e2e", Ports(free_port(), free_port(), free_port(), free_port()))
    story = Story(stack, Console(file=io.StringIO()))
    stack.say = story.say
    stack.wipe()
    try:
        result = story.run()
        get_settings.cache_clear()
        yield stack, result
    finally:
        stack.stop()
        del os.environ["NIGHTMARKET_CONFIG_DIR"]
        get_settings.cache_clear()


def one(query: str) -> Any:
    with connect() as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return next(iter(row.values()))


def counts() -> dict[str, int]:
    with connect() as connection:
        found = {}
        for table in COUNTED:
            row = connection.execute(f"SELECT count(*) AS n FROM {table}").fetchone()  # type: ignore[arg-type]
            assert row is not None
            found[table] = row["n"]
    return found


def test_the_figures_of_the_data_come_out(told: tuple[Stack, dict[str, Any]]) -> None:
    until = f"'{FIRST + timedelta(days=1)} 00:00 Asia/Shanghai'::timestamptz"
    paid = f"core.orders WHERE source_id = 'taobao_flagship' AND is_paid AND paid_at < {until}"
    assert one(f"SELECT count(DISTINCT identity_id) FROM {paid}") == 4338
    assert one(f"SELECT count(*) FROM {paid}") == 18532
    lines = f"core.order_lines JOIN {paid.replace('WHERE', 'USING (source_id, order_id) WHERE')}"
    assert f"{one(f'SELECT sum(line_amount) FROM {lines}'):.2f}" == "8911407.90"
    refunds = f"core.refunds WHERE source_id = 'taobao_flagship' AND is_money AND settled_at < {until}"
    assert one(f"SELECT count(*) FROM {refunds}") == 8905
    assert f"{one(f'SELECT sum(refund_amount) FROM {refunds}'):.2f}" == "611342.09"


def test_nothing_is_missing_of_what_the_world_says(told: tuple[Stack, dict[str, Any]]) -> None:
    truth = told[1]["sandbox_truth"]  # as the last night began; life went on while it ran
    now = f"'{truth['now']}'::timestamptz"
    bill = told[1]["bill"]
    assert {row["source"] for row in bill} >= {
        "taobao_flagship", "jd_pop", "youzan_mall", "wechat_store", "woo_mall", "pos_stores", "wechat_official", "weibo_brand",
    }  # fmt: skip
    assert [row for row in bill if row["difference"]] == []
    assert all(row["core"] > 0 for row in bill)
    readable = f"created_at BETWEEN {now} - INTERVAL '180 days' AND {now}"  # older ones the platform no longer shows
    reviews = f"SELECT count(*) FROM core.reviews WHERE source_id = 'taobao_flagship' AND {readable}"
    assert one(reviews) == truth["reviews_readable"]
    assert one("SELECT count(*) FROM raw.rejects WHERE resolved_at IS NULL") == 0


def test_one_person_in_several_shops_is_one_member(told: tuple[Stack, dict[str, Any]]) -> None:
    shops = "core.orders AS o JOIN core.member_identities AS mi USING (identity_id)"
    assert (
        one(
            f"SELECT count(*) FROM (SELECT member_id FROM {shops} GROUP BY 1 HAVING count(DISTINCT source_id) > 1) AS x"
        )
        > 100
    )


def test_the_campaign_reached_everybody_once_and_the_held_out_never(told: tuple[Stack, dict[str, Any]]) -> None:
    live = f"(SELECT run_id FROM push.campaign_runs WHERE campaign = '{CAMPAIGN}' AND mode = 'live')"
    targeted = one(f"SELECT count(*) FROM push.audiences WHERE state = 'targeted' AND run_id IN {live}")
    assert targeted > 300
    assert one(f"SELECT count(*) FROM push.messages WHERE run_id IN {live}") == targeted
    assert one("SELECT count(*) FROM push.messages WHERE state IN ('sending', 'unknown')") == 0
    held_out_but_messaged = "SELECT count(*) FROM push.messages m JOIN push.audiences a USING (run_id, member_id) WHERE a.state <> 'targeted'"
    assert one(held_out_but_messaged) == 0
    counters = told[0].control("/counters")
    assert counters["messages"]["max_per_receiver_and_key"] == 1


def test_the_uplift_was_measured(told: tuple[Stack, dict[str, Any]]) -> None:
    row = f"FROM mart.campaign_results WHERE campaign = '{CAMPAIGN}'"
    assert one(f"SELECT treated_count {row}") > 300
    assert one(f"SELECT holdout_count {row}") > 50
    assert one(f"SELECT uplift_low_rate <= uplift_rate AND uplift_rate <= uplift_high_rate {row}") is True
    assert one("SELECT count(*) FROM core.coupon_events WHERE kind = 'redeemed'") > 0


def test_the_laws_were_checked_and_hold(told: tuple[Stack, dict[str, Any]]) -> None:
    laws = {law["law"]: law for law in told[1]["laws"]}
    assert laws.keys() >= {"partition", "hold-outs receive nothing", "never twice", "coupons", "preview is reality"}
    assert all(law["kept_count"] == law["run_count"] > 0 for law in laws.values())
    assert one("SELECT count(*) FROM ops.gate_results WHERE gate = 'push' AND is_passed") > 0
    assert one("SELECT count(*) FROM ops.gate_results WHERE gate = 'push' AND NOT is_passed") == 0


def test_reviews_are_followed_to_the_end(told: tuple[Stack, dict[str, Any]]) -> None:
    """Over the days between the nights: asked, reminded, thanked, rewarded where the shop allows it, a case for every bad one."""
    steps = "SELECT count(*) FROM push.messages AS m JOIN push.campaign_runs AS r USING (run_id) WHERE r.campaign = 'followup_reviews'"
    for step in ("ask", "remind", "thanks"):
        assert one(f"{steps} AND m.step = '{step}'") > 0
    assert one("SELECT count(*) FROM push.service_cases") > 0
    assert (
        one(
            "SELECT count(*) FROM push.service_cases AS c JOIN core.reviews AS v USING (source_id, review_id) WHERE v.rating > 2"
        )
        == 0
    )


def test_the_report_and_the_summary_are_written(told: tuple[Stack, dict[str, Any]]) -> None:
    page = (told[0].folder / "night-report.html").read_text()
    assert "夜" in page
    assert "<svg" in page
    assert "夜市京东店" in page
    assert json.loads((told[0].folder / "summary.json").read_text())["headline"]


def test_a_second_night_and_campaign_double_nothing(told: tuple[Stack, dict[str, Any]]) -> None:
    stack, _ = told
    before, sent_before = counts(), stack.control("/counters")
    story = Demo(stack, Console(file=io.StringIO()))
    api = AirflowApi(stack.base_url, "admin", stack.admin_password, stack.check_alive)
    story.night(api, "again", SECOND)
    with pytest.raises(LocalError, match=CAMPAIGN):  # the same campaign for the same day is live once
        story.campaign(api, FIRST)
    dry_run = "SELECT count(*) FROM push.audiences JOIN push.campaign_runs USING (run_id) WHERE mode = 'dry_run'"
    after, sent_after = counts(), stack.control("/counters")
    assert one(dry_run) > 0
    after["push.audiences"] = before["push.audiences"]  # the second dry run has an audience of its own
    assert after == before
    assert sent_after["messages"]["total"] == sent_before["messages"]["total"]


def asked(api: AirflowApi, run_id: str, task_id: str) -> dict[str, Any]:
    """The question of an approval task, once a person sees it and has read it."""

    def find() -> dict[str, Any] | None:
        open_ones = api.open_approvals("push_campaign", run_id)
        return next((one for one in open_ones if one["task_instance"]["task_id"] == task_id), None)

    question: dict[str, Any] = api.wait(task_id, find, 180)
    time.sleep(READING_SECONDS)
    return question


def run_of(campaign: str) -> tuple[Any, ...]:
    """(state, approved by, decision's reason, messages) of the campaign's one run, and who did what to it."""
    query = f"""
        SELECT ARRAY[r.state, coalesce(r.approved_by, ''), coalesce(r.decision_reason, ''),
            (SELECT count(*) FROM push.messages AS m WHERE m.run_id = r.run_id)::text,
            (SELECT string_agg(l.actor || ' ' || l.action, ', ' ORDER BY l.audit_id) FROM push.audit_log AS l WHERE l.subject = r.run_id)]
        FROM push.campaign_runs AS r WHERE r.campaign = '{campaign}'
    """
    return tuple(one(query))


def test_nobody_answers_and_nothing_is_sent(told: tuple[Stack, dict[str, Any]]) -> None:
    """The wait is short here; that it ends in a recorded no is Airflow's scheduler and our task, as with four hours."""
    stack, _ = told
    api = AirflowApi(stack.base_url, "admin", stack.admin_password, stack.check_alive)
    conf = {"campaign": SILENT, "as_of": SECOND.isoformat(), "dry_run": False}
    run_id = api.trigger("push_campaign", conf)
    question = asked(api, run_id, "approve")
    assert "No answer within 0.005 hours is a no." in question["body"]
    api.wait_for_run("push_campaign", run_id)
    state, _by, _reason, messages, log = run_of(SILENT)
    assert (state, messages) == ("rejected", "0")
    assert "nobody (time-out)" in log


def test_late_data_void_an_approval_and_a_person_is_asked_again(told: tuple[Stack, dict[str, Any]]) -> None:
    stack, _ = told
    api = AirflowApi(stack.base_url, "admin", stack.admin_password, stack.check_alive)
    run_id = api.trigger("push_campaign", {"campaign": DRIFTING, "as_of": SECOND.isoformat(), "dry_run": False})
    first = asked(api, run_id, "approve")
    with connect() as connection:  # withdrawn before the as-of instant, told to us only now
        withdrawn = connection.execute(
            """
            INSERT INTO core.consents (source_id, event_id, identity_id, channel, purpose, is_granted, evidence, occurred_at)
            SELECT 'own_pages', 'late/' || mi.identity_id || '/' || f.family, mi.identity_id, f.family, 'marketing', FALSE, 'letter',
                r.as_of_at - INTERVAL '1 minute'
            FROM push.campaign_runs AS r
            JOIN push.audiences AS a ON a.run_id = r.run_id AND a.state = 'targeted' AND a.member_id %% 4 = 0
            JOIN core.member_identities AS mi ON mi.member_id = a.member_id
            CROSS JOIN (VALUES ('wechat'), ('email')) AS f (family)
            WHERE r.campaign = %s
            """,
            (DRIFTING,),
        ).rowcount
    assert withdrawn > 20
    api.approve("push_campaign", run_id, "approve", "the first report is right")
    second = asked(api, run_id, "approve_again")
    assert second["body"] != first["body"]
    assert run_of(DRIFTING)[0] == "awaiting_approval"
    api.approve("push_campaign", run_id, "approve_again", "not any more", "Reject")
    api.wait_for_run("push_campaign", run_id)
    state, by, reason, messages, log = run_of(DRIFTING)
    assert (state, by, reason, messages) == ("rejected", "admin", "not any more", "0")
    assert "drift void" in log


def test_no_clear_personal_value_stands_outside_the_vault(told: tuple[Stack, dict[str, Any]]) -> None:
    """Every text and JSON value of every table, Airflow's XComs, every log: no generated phone, no e-mail, no full name."""
    stack, _ = told
    people = stack.control("/people")["people"]
    assert len(people) > 4000
    needles = {str(person["phone"]) for person in people} | {person["email"] for person in people if person["email"]}
    names = {person["name"] for person in people if len(person["name"]) >= 3}
    pattern = re.compile(r"\b100\d{8}\b|[\w.+-]+@[\w.-]+\.test|[\u4e00-\u9fff]{3,4}")
    leaks: list[str] = []

    def scan(where: str, text: str) -> None:
        for found in pattern.findall(text):
            if found in needles or found in names:
                leaks.append(f"{where}: {found[:3]}…")

    for dsn, schemas in (
        (stack.environment["NIGHTMARKET_ADMIN_DSN"], ("raw", "core", "mart", "push", "ops")),
        (stack.server.dsn("airflow"), ("public",)),
    ):
        with psycopg.connect(dsn) as connection:
            columns = connection.execute(
                "SELECT table_schema, table_name, column_name FROM information_schema.columns JOIN information_schema.tables"
                " USING (table_schema, table_name) WHERE table_schema = ANY(%s) AND table_type = 'BASE TABLE'"
                " AND data_type IN ('text', 'character varying', 'jsonb', 'json', 'bytea')",
                (list(schemas),),
            ).fetchall()
            assert columns
            for schema, table, column in columns:
                query = f'SELECT "{column}"::text FROM "{schema}"."{table}" WHERE "{column}" IS NOT NULL'
                with connection.cursor(name="scan") as cursor:
                    for (value,) in cursor.execute(query):  # type: ignore[arg-type]
                        scan(f"{schema}.{table}.{column}", value)
    logs = [path for path in (stack.folder / "logs").rglob("*") if path.is_file() and path.name != "sandbox.log"]
    assert logs
    for path in [*logs, stack.folder / "summary.json", stack.folder / "night-report.html"]:
        scan(str(path.relative_to(stack.folder)), Path(path).read_text(errors="replace"))
    assert leaks == []
