"""Everything one source has told us since the last night: raw.records as received, then the typed tables of core.

**Who uses it**: build_marts starts when all sources have published; nothing else reads raw.

**At 03:00**: open the red task; its last line is one sentence. *AuthError*: the secret or the session is no longer good,
renew the connection named in the sentence and clear the task. *PlatformDown*, *BadPayload*, *RateLimited*: clear the
task when the platform is well again. Nothing is lost meanwhile: the cursor moves in the transaction that writes the
rows, so the next run reads everything from where the last good one stopped. A red map_ task is our SQL: raw is safe,
fix the file in include/sql/core and clear the task.

Runbook: docs/runbook.md#extract_sources
"""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, chain, get_parsing_context, task

from nightmarket.orchestration.assets import source_asset
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import business_date_param, dry_run_param, limit_param
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.night import business_date_of
from nightmarket.orchestration.sources import config_folder
from nightmarket.orchestration.sql import feeds, sql_task
from nightmarket.orchestration.tables import text_table

SQL = Path(__file__).resolve().parents[1] / "include" / "sql"
SUMMARY = ("stream", "seen", "changed", "rejected", "requests", "windows", "watermark")
log = logging.getLogger(__name__)


@task
def open_window(**context: Any) -> dict[str, str]:
    """The business date, and the instant at which all windows of this run end, whenever its tasks start or start again."""
    from nightmarket import dates

    return {"business_date": business_date_of(context).isoformat(), "until": dates.now().isoformat()}


@task
def land(source_id: str, stream: str, until: str, **context: Any) -> dict[str, Any]:
    """Windows of one stream into raw.records; the cursor moves with them."""
    from datetime import datetime

    from nightmarket.landing import land

    summary = land(
        source_id,
        stream,
        run_id=f"{context['dag'].dag_id}/{context['run_id']}",
        until=datetime.fromisoformat(until),
        limit=context["params"]["limit"],
        dry_run=context["params"]["dry_run"],
    )
    log.info(summary.sentence())
    return {name: getattr(summary, name) for name in SUMMARY}


@task
def summarise(landed: list[dict[str, Any]]) -> dict[str, int]:
    """The run as a table in this log."""
    log.info("what the platform gave us:\n%s", text_table(landed, SUMMARY))
    return {row["stream"]: row["changed"] for row in landed}


@task.short_circuit
def unless_dry_run(**context: Any) -> bool:
    """A dry run ends here: nothing was written, so there is nothing to map and nothing to publish."""
    return not context["params"]["dry_run"]


@task
def publish(source_id: str, business_date: str, changed: dict[str, int], *, outlet_events: Any) -> None:
    """Tell build_marts that this source is in core for the business date."""
    outlet_events[source_asset(source_id)].extra = {"business_date": business_date, "counts": changed}


def extract(source: Any, mappings: list[Any]) -> DAG:
    """The DAG of one source: land its streams side by side, map them as soon as what they read is there, publish."""
    from nightmarket.landing import mapping_parameters

    source_id = source.source_id
    with DAG(
        dag_id=f"extract_{source_id}",
        dag_display_name=f"extract_{source_id} {source.name}",
        schedule=source.schedule and CronTriggerTimetable(source.schedule, timezone=source.time_zone),
        catchup=False,
        max_active_runs=1,
        template_searchpath=[str(SQL)],
        default_args=DEFAULT_ARGS | {"execution_timeout": timedelta(hours=2)},
        params={
            "business_date": business_date_param(),
            "limit": limit_param(),
            "dry_run": dry_run_param(default=False, what="Call the platform and count; write nothing."),
        },
        tags=[Layer.CORE, Domain.SOURCES, Impact.TIER_1, f"platform:{source.platform}"],
        doc_md=__doc__,
    ) as dag:
        window = open_window()
        landed = [land.override(task_id=f"land_{name}")(source_id, name, window["until"]) for name in source.streams]
        changed = summarise(landed)
        parameters = mapping_parameters(source, "{{ dag.dag_id }}/{{ run_id }}", window["until"])
        published = publish.override(outlets=[source_asset(source_id)])(source_id, window["business_date"], changed)
        tasks = {file.path: sql_task(file.path, parameters) for file in mappings}
        chain(changed, unless_dry_run(), list(tasks.values()), published)
        for earlier, later in feeds(mappings, SQL):
            tasks[earlier] >> tasks[later]
    return dag


def build() -> None:
    """One DAG per block of sources.yaml; a task process needs its own only."""
    from nightmarket.landing import load_sources, mapping_files

    wanted = get_parsing_context().dag_id
    for source_id, source in load_sources(config_folder() / "sources.yaml").items():
        if wanted in (None, f"extract_{source_id}"):
            globals()[f"extract_{source_id}"] = extract(source, mapping_files(source.platform))


build()
