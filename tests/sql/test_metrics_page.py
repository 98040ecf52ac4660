"""docs/metrics.md is true: its queries run for the reading role, and it knows every column, segment and console file."""

import re
from typing import Any

import psycopg
import pytest
from metrics_page import PAGE, Block, blocks
from test_cases import SQL

from nightmarket.marts import MODEL_TABLES
from nightmarket.quality import load_tables
from nightmarket.warehouse import connect

TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("block", blocks(), ids=lambda block: f"line-{block.line}")
def test_the_reading_role_can_paste_every_query(
    block: Block, sql_database: str, pg: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", sql_database)
    name = psycopg.conninfo.conninfo_to_dict(sql_database)["dbname"]
    with connect(pg.dsn(str(name), "nightmarket_reader")) as connection:
        cursor = connection.execute(block.bound("2026-03-14"))
        assert cursor.description
    assert ":'" not in block.bound("2026-03-14"), "a psql variable that the page does not explain"


def test_every_column_of_every_mart_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMARKET_WAREHOUSE_DSN", "postgresql://nowhere")
    said_once = {
        "member_id",
        "day",
        "source_id",
        "business_date",
        "run_id",
        "campaign",
        "arm",
        "variant",
        "as_of",
        "valid_from",
    }
    missing = []
    for doc in load_tables("mart"):
        section = TEXT.partition(f"\n## {doc.table}\n")[2].partition("\n## ")[0]
        if doc.table.removeprefix("mart.") in MODEL_TABLES:
            assert "plugins/nightmarket/predictions.py" in section
        else:
            assert f"include/sql/{doc.table.replace('.', '/')}/load.sql" in section
        missing += [
            f"{doc.table}.{column}"
            for column in doc.columns
            if column not in said_once and f"`{column}`" not in section
        ]
    assert missing == []


def test_every_segment_is_listed_with_its_parameters() -> None:
    for path in (SQL / "segments").glob("*.sql"):
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{path.stem}` |"))
        wanted = set(re.findall(r"%\((\w+)\)s", path.read_text(encoding="utf-8"))) - {"business_date"}
        assert set(re.findall(r"`(\w+)`", row.split("|")[3])) == wanted


def test_every_file_and_link_of_the_page_exists() -> None:
    for name in re.findall(r"`((?:include/sql/\S+/)?[a-z_]+\.sql)`", TEXT):
        path = PAGE.parents[1] / name if "/" in name else SQL / "console" / name
        assert path.is_file(), name
    anchors = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line[:1] == "#"
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (PAGE.parent / target).is_file(), target
