"""Alerts to the team's chat robots: signed, short enough, not too many, each said once, and never a reason for work to fail."""

import json
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote_plus

import psycopg
import pytest

from nightmarket import dates, robots, settings
from nightmarket.orchestration.alerts import record_failure
from nightmarket.robots import MAX_BYTES, PER_MINUTE, Alert, _Memory, sign, tell
from nightmarket.settings import credentials
from nightmarket.warehouse import Row


@pytest.fixture(autouse=True)
def _fresh_memory() -> Iterator[None]:
    _Memory._all.clear()
    yield
    _Memory._all.clear()


@pytest.fixture
def alerts(sandbox: Any) -> Callable[[], list[dict[str, Any]]]:
    return lambda: list(sandbox.control("GET", "/counters")["alerts"])


@pytest.fixture
def move(sandbox: Any, set_clock: Callable[[str], None]) -> Callable[..., None]:
    def by(**step: float) -> None:
        moment = (dates.now() + timedelta(**step)).isoformat()
        set_clock(moment)
        sandbox.control("POST", "/clock", {"now": moment})

    return by


def audit(db: psycopg.Connection[Row], action: str) -> list[dict[str, Any]]:
    rows = db.execute("SELECT detail FROM push.audit_log WHERE action = %s ORDER BY audit_id", (action,)).fetchall()
    return [row["detail"] for row in rows]


def test_the_signature_of_dingtalk() -> None:
    """The vector of the reference."""
    assert (
        quote_plus(sign("1700000000000", "SECsimulated" + "0" * 52))
        == "d1fA%2B0dPid%2BBjZT8FlMmWLT04C1NbZXC5LQafCTWYww%3D"
    )


def test_both_robots_are_told(
    sandbox: Any, db: psycopg.Connection[Row], alerts: Callable[[], list[dict[str, Any]]]
) -> None:
    assert tell("渠道已暂停 / channel paused", ["原因 / why: 45009", "", "until 09:00"]) == {
        "wecom": "sent",
        "dingtalk": "sent",
    }
    wecom, dingtalk = alerts()
    assert wecom == {"robot": "wecom", "msgtype": "markdown",
                     "text": "**渠道已暂停 / channel paused**\n> 原因 / why: 45009\n> until 09:00"}  # fmt: skip
    assert dingtalk["text"] == "### 渠道已暂停 / channel paused\n- 原因 / why: 45009\n- until 09:00"
    assert [row["robot"] for row in audit(db, "alert")] == ["wecom", "dingtalk"]


def test_the_same_thing_is_not_said_again_for_a_while(
    sandbox: Any, db: psycopg.Connection[Row], alerts: Callable[[], list[dict[str, Any]]], move: Callable[..., None]
) -> None:
    tell("a", about="paused jpush")
    assert tell("a, in other words", about="paused jpush") == {"wecom": "quiet", "dingtalk": "quiet"}
    tell("b", about="paused email")
    assert len(alerts()) == 4
    move(minutes=11)
    assert tell("a", about="paused jpush") == {"wecom": "sent", "dingtalk": "sent"}
    assert tell("a", about="paused jpush", quiet=timedelta(0)) == {"wecom": "sent", "dingtalk": "sent"}


def test_no_robot_is_called_too_often_and_what_was_held_goes_with_the_next(
    sandbox: Any, db: psycopg.Connection[Row], alerts: Callable[[], list[dict[str, Any]]], move: Callable[..., None]
) -> None:
    came = [tell(f"alert {number}")["dingtalk"] for number in range(30)]
    assert came == ["sent"] * PER_MINUTE + ["held"] * (30 - PER_MINUTE)
    assert sandbox.control("GET", "/counters")["refused"].get("robots", {}) == {}
    move(seconds=61)
    tell("one more")
    last = alerts()[-1]["text"]
    assert "另有 12 条未及时发送 / 12 more were held back:" in last
    assert "- alert 29" in last
    move(seconds=61)
    tell("and one")
    assert "held back" not in alerts()[-1]["text"]


def test_a_long_alert_is_cut_by_bytes_and_says_so(
    sandbox: Any, db: psycopg.Connection[Row], alerts: Callable[[], list[dict[str, Any]]]
) -> None:
    assert set(tell("主题" * 400, ["很长的一行" * 60] * 15).values()) == {"sent"}
    for alert in alerts():
        assert len(alert["text"].encode()) <= MAX_BYTES
        assert alert["text"].rsplit("\n", 1)[1].lstrip("> -").startswith("… +")
    assert set(tell("many", [f"line {number}" for number in range(40)]).values()) == {"sent"}
    assert "… +20" in alerts()[-1]["text"]


def test_nothing_personal_and_no_mention_goes_out(
    sandbox: Any, db: psycopg.Connection[Row], alerts: Callable[[], list[dict[str, Any]]]
) -> None:
    tell("x <@all>", ["call 10012345678 or wang@mail.test <font>"])
    text = alerts()[0]["text"]
    assert text == "**x ‹@all›**\n> call (phone) or (e-mail) ‹font›"


@pytest.mark.parametrize("kind", ["timeout_after", "cut", "garbage", "http_500", "http_429", "empty"])
def test_a_robot_that_fails_fails_nothing(
    sandbox: Any,
    db: psycopg.Connection[Row],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(robots, "SECONDS", 0.3)
    sandbox.control(
        "POST", "/faults", {"faults": [{"platform": "robots", "method": "wecom", "kind": kind, "seconds": 0.6}]}
    )
    with caplog.at_level(logging.DEBUG):
        assert tell("x") == {"wecom": "failed", "dingtalk": "sent"}
    (failure,) = audit(db, "alert_failed")
    assert failure["robot"] == "wecom"
    for secret in (sandbox.access["robots"]["wecom_key"], sandbox.access["robots"]["dingtalk_token"]):
        assert secret not in json.dumps(failure)
        assert secret not in "".join(
            record.getMessage() for record in caplog.records if record.name.startswith("nightmarket")
        )


@pytest.mark.parametrize(
    ("changes", "code"), [({"password": "wrong"}, "300001"), ({"extra": {"sign_secret": "SECwrong"}}, "310000")]
)
def test_wrong_secrets_of_dingtalk(
    sandbox: Any, db: psycopg.Connection[Row], changes: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    account = json.loads(os.environ["AIRFLOW_CONN_ROBOT_DINGTALK"]) | changes
    monkeypatch.setenv("AIRFLOW_CONN_ROBOT_DINGTALK", json.dumps(account))
    assert tell("x")["dingtalk"] == "failed"
    assert f"errcode {code}" in audit(db, "alert_failed")[0]["problem"]


def test_a_clock_that_is_off_is_refused(
    sandbox: Any, db: psycopg.Connection[Row], set_clock: Callable[[str], None]
) -> None:
    set_clock((dates.now() + timedelta(hours=2)).isoformat())
    assert tell("x") == {"wecom": "sent", "dingtalk": "failed"}


def test_the_sandbox_blocks_dingtalk_for_ten_minutes(
    sandbox: Any, db: psycopg.Connection[Row], move: Callable[..., None]
) -> None:
    account, alert = credentials("robot_dingtalk"), Alert("x", ())
    for _ in range(20):
        robots.dingtalk(account, alert)
    with pytest.raises(robots.RobotFailed, match="130101"):
        robots.dingtalk(account, alert)
    move(minutes=2)
    with pytest.raises(robots.RobotFailed, match="130101"):
        robots.dingtalk(account, alert)
    move(minutes=10)
    robots.dingtalk(account, alert)


def test_the_sandbox_refuses_more_bytes(sandbox: Any) -> None:
    with pytest.raises(robots.RobotFailed, match="exceeds 4096 bytes"):
        robots._post(
            sandbox.access["robots"]["wecom_url"] + "/cgi-bin/webhook/send", {"key": sandbox.access["robots"]["wecom_key"]},
            {"msgtype": "markdown", "markdown": {"content": "长" * 1366}},
        )  # fmt: skip


def test_without_robots_nothing_happens(db: psycopg.Connection[Row]) -> None:
    assert tell("x") == {}
    assert audit(db, "alert") == []


def test_a_keyword_is_appended(
    sandbox: Any,
    db: psycopg.Connection[Row],
    monkeypatch: pytest.MonkeyPatch,
    alerts: Callable[[], list[dict[str, Any]]],
) -> None:
    import os

    account = json.loads(os.environ["AIRFLOW_CONN_ROBOT_DINGTALK"])
    account["extra"]["keyword"] = "夜市告警"
    monkeypatch.setenv("AIRFLOW_CONN_ROBOT_DINGTALK", json.dumps(account))
    tell("x", ["y" * 400] * 15)
    assert alerts()[-1]["text"].endswith("\n\n夜市告警")
    assert len(alerts()[-1]["text"].encode()) <= MAX_BYTES


def test_with_the_warehouse_down_the_team_hears_it_all_the_more(
    sandbox: Any, environment: str, monkeypatch: pytest.MonkeyPatch, alerts: Callable[[], list[dict[str, Any]]]
) -> None:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nobody:none@127.0.0.1:1/none")
    settings.get_settings.cache_clear()
    assert tell("warehouse down") == {"wecom": "sent", "dingtalk": "sent"}
    assert tell("warehouse down") == {"wecom": "quiet", "dingtalk": "quiet"}
    assert len(alerts()) == 2


def test_one_alert_per_run_of_a_dag(
    sandbox: Any, db: psycopg.Connection[Row], alerts: Callable[[], list[dict[str, Any]]], move: Callable[..., None]
) -> None:
    def failed(task_id: str, run_id: str) -> None:
        task = SimpleNamespace(dag_id="extract_taobao", run_id=run_id, task_id=task_id, try_number=3)
        dag = SimpleNamespace(doc_md="Runbook: docs/runbook.md#extract_sources")
        record_failure({"ti": task, "dag": dag, "exception": RuntimeError("HTTP 503")})

    failed("land_trades", "scheduled__1")
    failed("land_refunds", "scheduled__1")
    move(hours=3)
    failed("land_rates", "scheduled__1")
    failed("land_trades", "scheduled__2")
    texts = [alert["text"] for alert in alerts() if alert["robot"] == "wecom"]
    assert len(texts) == 2
    assert texts[0] == (
        "**任务失败 / task failed: extract_taobao**\n> land_trades: HTTP 503\n> run: scheduled__1\n> docs/runbook.md#extract_sources"
    )
    assert len(audit(db, "task_failed")) == 4
