"""docs/portrait.md is the dictionary: every column of the view and every variable of templates stands in it, with its words."""

import re
from pathlib import Path

import psycopg

from nightmarket.campaigns.rendering import VARIABLES
from nightmarket.warehouse import Row

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "portrait.md").read_text(encoding="utf-8")


def test_every_column_of_the_view_is_explained(db: psycopg.Connection[Row]) -> None:
    columns = {
        row["column_name"]
        for row in db.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'mart' AND table_name = 'member_portraits'"
        )
    }
    first = PAGE.split("## What a template may say")[0]
    named = {
        name
        for line in first.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z_]+)`", line.split("|")[1])
    }
    assert named == columns


def test_every_variable_of_templates_is_explained_in_the_same_words() -> None:
    rows = dict(
        re.findall(r"^\| `([a-z_.]+)` \| (.+) \|$", PAGE.split("## What a template may say")[1], flags=re.MULTILINE)
    )
    assert rows == VARIABLES
