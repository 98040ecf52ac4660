"""The plugin as Airflow mounts it: anonymous people see nothing, signed-in ones do, senders are told they may send."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def visits(pg: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What visitors of every kind got, from a process that has Airflow and nothing of this one."""
    home = tmp_path_factory.mktemp("airflow")
    answer = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("signed_in_visits.py"))],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "plugins"),
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "ulla:viewer",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__API_AUTH__JWT_SECRET": "a test secret of more than sixty-four characters, so that nobody complains",
            "NIGHTMARKET_WAREHOUSE_DSN": pg.dsn("template_nightmarket"),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = [line for line in answer.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, answer.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


@pytest.mark.slow
def test_anonymous_callers_get_401_on_every_page(visits: dict[str, Any]) -> None:
    assert {page: seen["status"] for page, seen in visits["anonymous"].items()} == {
        "": 401, "runs": 401, "run?id=x": 401, "sources": 401,
    }  # fmt: skip
    assert not any(seen["data"] for seen in visits["anonymous"].values())


@pytest.mark.slow
def test_anonymous_browsers_are_sent_to_the_sign_in_and_back(visits: dict[str, Any]) -> None:
    assert visits["browser"]["status"] == 303
    assert visits["browser"]["location"] == "/auth/login/?next=%2Fnightmarket%2Frun%3Fid%3Da%2540b%25231"


@pytest.mark.slow
def test_a_forged_token_is_refused(visits: dict[str, Any]) -> None:
    assert visits["forged"]["status"] == 403


@pytest.mark.slow
@pytest.mark.parametrize(("role", "sender"), [("viewer", False), ("user", True), ("op", True), ("admin", True)])
def test_signed_in_people_see_the_page_and_senders_the_link(visits: dict[str, Any], role: str, sender: bool) -> None:
    assert visits[role] == {"status": 200, "location": None, "sender": sender, "name": True, "data": True}


@pytest.mark.slow
def test_a_bearer_token_works_too(visits: dict[str, Any]) -> None:
    assert (visits["bearer"]["status"], visits["bearer"]["name"]) == (200, True)


@pytest.mark.slow
def test_a_push_needs_no_sign_in_but_the_platforms_signature(visits: dict[str, Any]) -> None:
    assert visits["pushes"]["the-token"] == {"status": 200, "text": "echo-58"}  # the token of Airflow's own connection
    assert visits["pushes"]["another"]["status"] == 403
    assert "echo-58" not in visits["pushes"]["another"]["text"]
