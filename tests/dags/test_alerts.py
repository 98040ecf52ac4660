"""A task that failed for good leaves a sentence and a row; with the warehouse down, at least the sentence."""

import logging
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from nightmarket import settings
from nightmarket.orchestration.alerts import first_line, record_failure
from nightmarket.warehouse import Row

CONTEXT: dict[str, Any] = {
    "ti": SimpleNamespace(dag_id="extract_own_pages", run_id="manual__1", task_id="land_events", try_number=3),
    "dag": SimpleNamespace(doc_md="... Runbook: docs/runbook.md#extract_sources"),
    "exception": RuntimeError("own_pages, events: HTTP 503\nDETAIL: Key (phone)=(...) already exists"),
}


def test_a_row_and_a_sentence(db: psycopg.Connection[Row], caplog: pytest.LogCaptureFixture, set_clock: Any) -> None:
    set_clock("2026-03-15T02:30:00+08:00")
    with caplog.at_level(logging.CRITICAL):
        record_failure(CONTEXT)
    (row,) = db.execute(
        "SELECT actor, action, subject, detail, occurred_at::date::text AS day FROM push.audit_log"
    ).fetchall()
    assert row == {
        "actor": "airflow",
        "action": "task_failed",
        "subject": "extract_own_pages/manual__1/land_events",
        "detail": {"error": "RuntimeError", "sentence": "own_pages, events: HTTP 503", "attempt": 3},
        "day": "2026-03-15",
    }
    assert (
        "failed after attempt 3: own_pages, events: HTTP 503 | what to do: docs/runbook.md#extract_sources"
        in caplog.text
    )


def test_with_the_warehouse_down_the_sentence_stays(
    environment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nobody:wrong-password@127.0.0.1:1/none")
    settings.get_settings.cache_clear()
    with caplog.at_level(logging.WARNING):
        record_failure(CONTEXT)
    assert "HTTP 503" in caplog.text
    assert "could not be written" in caplog.text
    assert "wrong-password" not in caplog.text


def test_a_drivers_second_line_never_leaves_the_task() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("")) == "ValueError"
    assert len(first_line("x" * 900)) == 500


def test_tasks_read_their_accounts_from_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    from nightmarket.orchestration.hooks import use_airflow_connections

    monkeypatch.setenv(
        "AIRFLOW_CONN_SOME_SHOP",
        '{"conn_type": "http", "host": "https://x.test", "login": "key", "password": "s3cret"}',
    )
    use_airflow_connections()
    try:
        found = settings.credentials("some_shop")
        assert (found.host, found.login, found.password) == ("https://x.test", "key", "s3cret")
        assert "s3cret" not in repr(found)
        with pytest.raises(
            settings.ConfigError, match=r"connection 'no_such_shop' is not defined: .*AIRFLOW_CONN_NO_SUCH_SHOP"
        ):
            settings.credentials("no_such_shop")
    finally:
        settings.use_credentials_from(None)
