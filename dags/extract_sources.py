"""Everything one source has told us since the last night: raw.records as received, then the typed tables of core.

**Who uses it**: build_marts starts when all sources have published; nothing else reads raw.

**By hand**: *Backfill from/to* reads a past stretch again, split into mapped tasks; *Dry run* calls the platform and
counts; *Limit* stops each stream after so many records. `nightmarket gaps` names stretches that were never read.

**At 03:00**: open the red task; its last line is one sentence. *AuthError*: the secret or the session is no longer good,
renew the connection named in the sentence and clear the task. *PlatformDown*, *BadPayload*, *RateLimited*: clear the
task when the platform is well again. Nothing is lost meanwhile: the cursor moves in the transaction that writes the
rows, so the next run reads everything from where the last good one stopped. A red into_core is our SQL: raw is safe, the
sentence names the file in include/sql/core; fix it and clear the task.

Runbook: docs/runbook.md#extract_sources
"""

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, get_current_context, get_parsing_context, task

from nightmarket.orchestration.assets import source_asset, stream_asset
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.extraction import SUMMARY, describe, land_piece, name_of, pieces_of, totals_by_stream
from nightmarket.orchestration.form import (
    backfill_params,
    business_date_param,
    dry_run_param,
    limit_param,
    streams_param,
)
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.night import business_date_of
from nightmarket.orchestration.sources import config_folder, source_ids
from nightmarket.orchestration.tables import text_table

log = logging.getLogger(__name__)


@task
def plan(**context: Any) -> list[dict[str, Any]]:
    """What to land: one piece per stream, or per stream and stretch of a backfill.

    All windows of this run end at the same instant, whenever its tasks start or start again.
    """
    from nightmarket import dates

    day, until = business_date_of(context).isoformat(), dates.now().isoformat()
    pieces = pieces_of(context["params"])
    return [{"business_date": day, "until": until, **piece} for piece in pieces]


@task(map_index_template="{{ piece_name }}")
def land(source_id: str, piece: dict[str, Any], **context: Any) -> dict[str, Any]:
    """Windows of one stream into raw.records; the cursor moves with them. A backfill leaves it where it is."""
    get_current_context()["piece_name"] = name_of(piece)  # type: ignore[typeddict-unknown-key]
    limits = {name: context["params"][name] for name in ("limit", "dry_run")}
    summary = land_piece(source_id, piece, run_id=f"{context['dag'].dag_id}/{context['run_id']}", **limits)
    log.info(summary.sentence())
    return {name: getattr(summary, name) for name in SUMMARY}


@task
def into_core(
    source_id: str,
    pieces: list[dict[str, Any]],
    landed: Iterable[dict[str, Any]],
    *,
    outlet_events: Any,
    **context: Any,
) -> None:
    """What was landed, typed, into core, table by table; then everybody who waits for this source is told.

    A dry run ends here: nothing was written, so there is nothing to map and nothing to publish.
    """
    from airflow.sdk.exceptions import AirflowSkipException

    from nightmarket.orchestration.extraction import map_landed

    rows = list(landed)
    log.info("what the platform gave us:\n%s", text_table(rows, SUMMARY))
    if context["params"]["dry_run"]:
        raise AirflowSkipException("a dry run: nothing was written")
    map_landed(source_id, pieces[0], run_id=f"{context['dag'].dag_id}/{context['run_id']}")
    business_date, totals = pieces[0]["business_date"], totals_by_stream(rows)
    for stream, counts in totals.items():
        outlet_events[stream_asset(source_id, stream)].extra = {"business_date": business_date, **counts}
    changed = {stream: counts["changed"] for stream, counts in totals.items()}
    outlet_events[source_asset(source_id)].extra = {"business_date": business_date, "counts": changed}


def extract(source: Any) -> DAG:
    """The DAG of one source: land its streams side by side, then take them into core and publish."""
    from nightmarket.sources import account_pool

    source_id = source.source_id
    with DAG(
        dag_id=f"extract_{source_id}",
        dag_display_name=f"extract_{source_id} {source.name}",
        schedule=source.schedule and CronTriggerTimetable(source.schedule, timezone=source.time_zone),
        catchup=False,
        max_active_runs=1,
        # absolute: of all that waits the older run comes first, so what is started first is done first
        default_args=DEFAULT_ARGS | {"execution_timeout": timedelta(hours=2), "weight_rule": "absolute"},
        params={
            "business_date": business_date_param(),
            **backfill_params(),
            "streams": streams_param(list(source.streams)),
            "limit": limit_param(),
            "dry_run": dry_run_param(default=False, what="Call the platform and count; write nothing."),
        },
        tags=[Layer.CORE, Domain.SOURCES, Impact.TIER_1, f"platform:{source.platform}"],
        doc_md=describe(source, __doc__),
    ) as dag:
        pieces = plan()
        landed = land.override(pool=account_pool(source.conn_id)).partial(source_id=source_id).expand(piece=pieces)
        outlets = [source_asset(source_id), *(stream_asset(source_id, stream) for stream in source.streams)]
        into_core.override(outlets=outlets)(source_id, pieces, landed)
    return dag


def build() -> None:
    """One DAG per block of sources.yaml; a task process needs its own only."""
    from nightmarket.sources import source

    path, wanted = config_folder() / "sources.yaml", get_parsing_context().dag_id
    for source_id in source_ids():
        if wanted in (None, f"extract_{source_id}"):
            globals()[f"extract_{source_id}"] = extract(source(source_id, path))


build()
