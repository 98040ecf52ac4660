"""What every DAG of ours must have, with messages that say what to add."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.sources import load_sources

ROOT = Path(__file__).resolve().parents[2]
DAGS = ROOT / "dags"
FILES = sorted(DAGS.glob("*.py"))
EXPECTED = {
    "collect_receipts", "build_marts",
    "followup_reviews", "deliver_outbox", "push_campaign", "night_report", "erase_person", "check_sources",
    "backfill_marts", "what_if_tiers", "campaign_retrospectives", "record_learnings", "operate_run", "campaign_double_eleven", "campaign_tier_up_gift",
}  # fmt: skip
OUR_SOURCES = list(load_sources(ROOT / "include" / "config" / "sources.yaml"))


def test_every_file_parses_without_network_or_variables(bag: Any) -> None:
    assert bag.import_errors == {}
    assert set(bag.dags) == EXPECTED | {f"extract_{source_id}" for source_id in OUR_SOURCES}


def test_every_dag_says_what_it_makes_who_reads_it_and_what_to_do_at_three(bag: Any) -> None:
    for dag_id, dag in bag.dags.items():
        text = dag.doc_md or ""
        for part in ("**Who uses it**", "**At 03:00**", "Runbook: docs/runbook.md#"):
            assert part in text, f"{dag_id}: its docstring lacks {part!r}"


def test_every_runbook_link_leads_somewhere(bag: Any) -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for dag_id, dag in bag.dags.items():
        for anchor in re.findall(r"docs/runbook\.md#([\w-]+)", dag.doc_md):
            assert anchor in anchors, f"{dag_id}: docs/runbook.md has no heading for #{anchor}"


def test_every_dag_has_one_tag_of_each_kind(bag: Any) -> None:
    for dag_id, dag in bag.dags.items():
        for kind in (Layer, Domain, Impact):
            allowed = {member.value for member in kind}
            prefix = next(iter(allowed)).split(":")[0] + ":"
            found = [str(tag) for tag in dag.tags if str(tag).startswith(prefix)]
            assert len(found) == 1, f"{dag_id}: give it exactly one of {sorted(allowed)}"
            assert found[0] in allowed, f"{dag_id}: {found[0]} is not one of {sorted(allowed)}"


def test_every_task_has_owner_retries_limit_and_alert(bag: Any) -> None:
    for dag_id, dag in bag.dags.items():
        assert dag.catchup is False, dag_id
        assert dag.max_active_runs <= 4, dag_id
        for task in dag.tasks:
            name = f"{dag_id}.{task.task_id}"
            assert task.owner == "nightmarket", name
            assert task.retries >= 1, name
            assert task.retry_policy is not None, name
            assert task.on_failure_callback, f"{name}: nobody is told when it fails"
            assert task.execution_timeout or task.task_id.startswith("approve"), (
                f"{name}: without execution_timeout it may hang"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_wiring_with_an_explicit_schedule(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 150, "a DAG file is wiring; move code into plugins/nightmarket"
    calls = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("dag", "DAG")
    ]
    assert calls
    for call in calls:
        assert "schedule" in {keyword.arg for keyword in call.keywords}, (
            f"line {call.lineno}: write schedule=, also for None"
        )


def test_parsing_loads_no_library_that_only_tasks_need() -> None:
    """Every task parses its file again: what a task body needs is imported in the task body."""
    code = (
        "import runpy, sys\n"
        f"for path in {[str(path) for path in FILES]!r}: runpy.run_path(path)\n"
        "heavy = ('pandas', 'matplotlib', 'aiohttp', 'nightmarket.campaigns', 'nightmarket.report', 'nightmarket.console')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_a_task_process_builds_only_its_own_extract_dag() -> None:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager as as_a_worker

    with as_a_worker(dag_id="extract_own_pages", task_id="land_events"):
        bag = DagBag(DAGS / "extract_sources.py", bundle_name="dags-folder")
    assert set(bag.dags) == {"extract_own_pages"}


def test_airflow_ignores_everything_but_dags_and_the_plugin() -> None:
    from airflow._shared.module_loading import find_path_from_directory

    def found(folder: Path) -> set[str]:
        return {
            str(Path(path).relative_to(folder))
            for path in find_path_from_directory(str(folder), ".airflowignore", "glob")
            if str(path).endswith(".py")
        }

    assert found(ROOT / "plugins") == {"nightmarket/plugin.py"}
    assert found(DAGS) == {path.name for path in FILES}


def test_the_plugin_is_the_console_and_nothing_else() -> None:
    from nightmarket.plugin import NightmarketPlugin

    (app,) = NightmarketPlugin.fastapi_apps
    (view,) = NightmarketPlugin.external_views
    assert app["url_prefix"] == "/nightmarket"
    assert view["href"] == "/nightmarket/"
    assert view["destination"] == "nav"
