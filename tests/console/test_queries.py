"""The files of include/sql/console keep their headers true and touch nothing personal."""

import re
from pathlib import Path

import pytest
import sqlglot
from sqlglot import exp

FOLDER = Path(__file__).resolve().parents[2] / "include" / "sql" / "console"
FILES = sorted(FOLDER.glob("*.sql"))
PERSONAL = {"address", "openid", "payload", "ciphertext", "variables", "value", "content", "email", "phone"}


def header(text: str) -> str:
    lines = [line.removeprefix("--").strip() for line in text.splitlines() if line.startswith("--")]
    return " ".join(lines)


def parse(text: str) -> exp.Expression:
    return sqlglot.parse_one(re.sub(r"%\((\w+)\)s", r":\1", text), read="postgres")


def test_there_are_files() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_header_names_exactly_what_the_query_reads_and_takes(file: Path) -> None:
    text = file.read_text()
    words = header(text)
    tables = {
        f"{table.db}.{table.name or table.this.name}" for table in parse(text).find_all(exp.Table) if table.db
    }  # or functions
    reads = words.split("Reads:")[1]
    assert "Grain:" in words
    assert set(re.findall(r"\b(?:raw|core|mart|push|ops|vault)\.[a-z_]+", reads)) == tables
    params = words.split("Params:")[1].split("Reads:")[0]
    used = set(re.findall(r"%\((\w+)\)s", text))
    assert {name for name in used if name not in params} == set()
    assert used or "none" in params


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_personal_column_is_selected(file: Path) -> None:
    query = parse(file.read_text())
    assert "vault" not in {table.db for table in query.find_all(exp.Table)}
    assert not list(query.find_all(exp.Star)) or all(
        isinstance(star.parent, exp.Count) for star in query.find_all(exp.Star)
    )
    shown = {column.name for column in query.find_all(exp.Column)} & PERSONAL
    if "identities" not in {table.name for table in query.find_all(exp.Table)}:
        shown -= {"value"}  # of an identity it is somebody's; of mart.kpi_values it is a figure
    assert shown == set()


def test_every_file_is_used_and_every_use_has_a_file() -> None:
    root = FOLDER.parents[2] / "plugins" / "nightmarket"
    files = [*(root / "console").glob("*.py"), root / "report.py", root / "retrospective.py", root / "explain_kpi.py"]
    code = "".join(path.read_text() for path in files)
    used = set(re.findall(r'read\.rows?\(\s*"(\w+)"', code))
    assert used == {file.stem for file in FILES}
