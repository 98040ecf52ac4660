"""Service cases as the team sees them: in the console and in a shell."""

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from nightmarket.campaigns.cases import watch_cases
from nightmarket.cli import app
from nightmarket.console.app import create_app
from nightmarket.warehouse import Row

AT = datetime.fromisoformat("2026-03-14T20:00:00+08:00")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def cases(db: psycopg.Connection[Row]) -> list[int]:
    """One overdue, one open, one answered late, one closed; returns their numbers."""
    numbers = []
    for number, (state, deadline) in enumerate(
        [("answered", "03-13"), ("open", "03-17"), ("overdue", "03-15"), ("closed", "03-12")]
    ):
        db.execute(
            "INSERT INTO core.reviews (source_id, review_id, order_id, rating, rating_original, content, created_at, batch_id)"
            " VALUES ('taobao_flagship', %s, %s, 1, 'bad', 'what a person wrote', %s, 1)",
            (f"r{number}", f"7000{number}", AT),
        )
        row = db.execute(
            "INSERT INTO push.service_cases (source_id, review_id, order_id, state, written_at, opened_at, deadline_at, assigned_to,"
            " answered_at, is_in_time, closed_at, close_reason) VALUES ('taobao_flagship', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
            " RETURNING case_id",
            (
                f"r{number}", f"7000{number}", state, AT, AT, f"2026-{deadline} 20:00+08", HOSTILE if state == "open" else None,
                AT if state == "answered" else None, False if state == "answered" else None, AT if state == "closed" else None,
                "called" if state == "closed" else None,
            ),
        ).fetchone()  # fmt: skip
        assert row is not None
        numbers.append(int(row["case_id"]))
    return numbers


def page(language: str = "zh", query: str = "") -> str:
    client = TestClient(create_app(require_user=lambda: "ulla"), headers={"accept-language": language})
    answer = client.get(f"/cases{query}")
    assert answer.status_code == 200
    return str(answer.text)


def test_the_page_shows_what_is_late_first_and_nothing_of_the_person(cases: list[int]) -> None:
    text = page()
    assert text.index("70002") < text.index("70001")
    assert "逾期未回复" in text
    assert "70000" not in text  # answered
    assert "what a person wrote" not in text
    assert HOSTILE not in text
    everything = page("en", "?all=1")
    assert all(f"7000{number}" in everything for number in range(4))
    assert "late" in everything
    assert "called" in everything


def test_an_empty_page_says_so(db: Any) -> None:
    assert "There is no bad review to answer." in page("en")


def test_the_commands(cases: list[int], db: psycopg.Connection[Row]) -> None:
    run = CliRunner().invoke
    shown = run(app, ["cases", "--open"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "70002" in shown.output
    assert "70000" not in shown.output
    assert "70000" in run(app, ["cases"], env={"COLUMNS": "200"}).output
    assert run(app, ["case", "assign", str(cases[2]), "小李"]).exit_code == 0
    closed = run(app, ["case", "close", str(cases[2]), "--reason", "called, sent a new one"])
    assert closed.output == f"case {cases[2]} is closed\n"
    again = run(app, ["case", "close", str(cases[2]), "--reason", "x"])
    assert (again.exit_code, f"there is no open case {cases[2]}." in again.output) == (1, True)
    row = db.execute(
        "SELECT state, assigned_to, close_reason FROM push.service_cases WHERE case_id = %s", (cases[2],)
    ).fetchone()
    assert row == {"state": "closed", "assigned_to": "小李", "close_reason": "called, sent a new one"}
    actions = db.execute("SELECT action FROM push.audit_log ORDER BY audit_id").fetchall()
    assert [row["action"] for row in actions] == ["assign_case", "close_case"]


def test_a_review_of_no_known_order_opens_a_case_too(db: psycopg.Connection[Row], set_clock: Any) -> None:
    """A mall tells who wrote, but not for which order: the case is named by the review."""
    set_clock(AT.isoformat())
    db.execute(
        "INSERT INTO core.reviews (source_id, review_id, order_id, rating, rating_original, created_at, batch_id)"
        " VALUES ('woo_mall', 'R-9001', NULL, 1, '1', %s, 1)",
        (AT - timedelta(hours=1),),
    )
    assert watch_cases()["opened"] == 1
    told = db.execute("SELECT detail ->> 'lines' AS lines FROM push.audit_log WHERE action = 'alert'").fetchone()
    assert told is not None
    assert "…9001" in told["lines"]
    assert "review <code>R-9001</code>" in page("en")
    assert "(review R-9001)" in CliRunner().invoke(app, ["cases"], env={"COLUMNS": "200"}).output
