"""What the documentation promises exists: links, anchors, environment variables, commands, DAGs, make verbs."""

import re
import textwrap
from pathlib import Path

import pytest
import yaml

from nightmarket.cli import app
from nightmarket.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
CODE = [
    path
    for folder in ("dags", "plugins", "include/config", "include/sql", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".sql", ".yaml") and path.name != "test_docs.py"
]
IMAGES = {"docs/images/airflow-night.png", "docs/images/night-report.png"}  # screenshots of a real run


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing(page: Path, target: str) -> str | None:
    path, _, anchor = target.partition("#")
    found = (page.parent / path).resolve() if path else page
    if not found.exists():
        return f"{page.relative_to(ROOT)}: {target} does not exist"
    if anchor and found.suffix == ".md" and anchor not in anchors(found):
        return f"{page.relative_to(ROOT)}: {target}: there is no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith(("http:", "https:")) and target not in IMAGES]
    assert [problem for target in local if (problem := missing(page, target))] == []


def test_documents_named_in_code_exist() -> None:
    problems = []
    for path in CODE:
        for target in re.findall(r"docs/[\w/.-]+?\.md(?:#[\w-]+)?", path.read_text(encoding="utf-8")):
            page, _, anchor = target.partition("#")
            if not (ROOT / page).exists():
                problems.append(f"{path.relative_to(ROOT)}: {target} does not exist")
            elif anchor and anchor not in anchors(ROOT / page):
                problems.append(f"{path.relative_to(ROOT)}: {target}: there is no such heading")
    assert problems == []


def test_every_dag_has_its_place_in_the_runbook() -> None:
    assert {path.stem for path in (ROOT / "dags").glob("*.py")} - anchors(ROOT / "docs" / "runbook.md") == set()


def test_every_environment_variable_is_explained() -> None:
    told = set(re.findall(r"NIGHTMARKET_[A-Z_]+", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")))
    known = {f"NIGHTMARKET_{name.upper()}" for name in Settings.model_fields}
    used = {
        name
        for path in CODE
        if path.suffix == ".py" and "plugins" in path.parts
        for name in re.findall(r"NIGHTMARKET_[A-Z_]+[A-Z]", path.read_text(encoding="utf-8"))
    }
    assert known | used <= told
    ports = {f"NIGHTMARKET_{name}" for name in ("PORT", "SANDBOX_PORT", "SMTP_PORT", "PG_PORT")}
    assert told <= known | used | ports


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_shown_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}  # type: ignore[union-attr]
    commands |= {group.name for group in app.registered_groups if group.name}
    shown = set(re.findall(r"(?:`|/)nightmarket ([a-z][a-z-]+)", text))
    assert shown <= commands
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE)) <= verbs


def test_every_secret_of_the_compose_file_is_explained() -> None:
    needed = set(re.findall(r"\$\{([A-Z_]+):\?", (ROOT / "docker-compose.yaml").read_text(encoding="utf-8")))
    assert needed
    server = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8").split("## Server")[1].split("\n## ")[0]
    assert {name for name in needed if f"`{name}`" not in server} == set()


def test_nothing_of_the_machine_it_was_written_on() -> None:
    for page in PAGES:
        assert not re.search(r"/(?:work|home|tmp)/", page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("page", ["files", "retired"])
def test_declared_tables_in_the_documents_can_be_used_as_they_stand(page: str) -> None:
    from nightmarket.platforms import files

    text = (ROOT / "docs" / "connections" / f"{page}.md").read_text()
    blocks = [yaml.safe_load(textwrap.dedent(block)) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert blocks
    for block in blocks:
        found = block if "tables" in block else next(iter(block.values()))["options"]
        assert files.streams(files.Options.model_validate(found))
