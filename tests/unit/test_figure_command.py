"""`nightmarket figure` and `nightmarket token`: what the report and the runbook tell people to type."""

from typing import Any

import pytest
from typer.testing import CliRunner

import night_world as world
from nightmarket.cli import app
from nightmarket.privacy import Tokenizer

runner = CliRunner()


def test_a_figure_of_the_report_can_be_computed_again(db: Any) -> None:
    world.seed_shop(db)
    answer = runner.invoke(app, ["figure", "totals_people", f"business_date={world.DAY_ONE}"])
    assert answer.exit_code == 0, answer.output
    assert str(world.MEMBERS) in answer.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tiers"], "query parameter missing: business_date (the header of include/sql/console/tiers.sql says"),
        (["tiers", "business_date=tomorrow-ish"], "invalid input syntax for type date"),
        (["nothing"], "include/sql/console/nothing.sql: this file does not exist."),
        (["../push/claim"], "give a file name without .sql"),
        (["tiers", "2026-03-12"], "then name=value pairs"),
    ],
)
def test_a_wrong_request_is_one_sentence(environment: str, arguments: list[str], sentence: str) -> None:
    answer = runner.invoke(app, ["figure", *arguments])
    assert answer.exit_code == 1
    assert sentence in answer.output
    assert "Traceback" not in answer.output


def test_a_token_is_computed_without_showing_the_value(environment: str) -> None:
    answer = runner.invoke(app, ["token", "phone"], input="+86 100 1234 5678\n")
    assert answer.exit_code == 0, answer.output
    assert answer.output.splitlines()[-1] == Tokenizer.from_settings().token("phone", "10012345678")
    assert "5678" not in answer.output
    assert runner.invoke(app, ["token", "shoe"], input="x\n").exit_code == 1
