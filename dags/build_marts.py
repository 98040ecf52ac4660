"""Members, tiers and KPIs of one business date: resolves who is who, checks core, computes every mart, checks the marts.

**Who uses it**: followup_reviews and every campaign (none of them starts on a red gate), the console, the analysts. It
starts when all sources and the receipts of a night are in core. By hand, with a business date, it computes that night
again or fills one that was missed: marts depend on event times, so the rows come out as they would have that night.

**At 03:00**: **sources_complete** tries again every minute while a source is still being read; red after an hour, it names the
source: look there. A red **core_gate** or **mart_gate** names table, check and what was seen, and has stopped the night before
anybody is messaged. Look at the source's extract log first (a source that sent half a day is the usual reason), extract
again, then clear the gate. A red load_ task is our SQL: nothing of it was committed; fix the file and clear the task.

Runbook: docs/runbook.md#build_marts
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import chain, dag, task

from nightmarket.mart_graph import MART_GRAPH
from nightmarket.orchestration.assets import MART_NIGHT, RECEIPTS, source_asset
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import business_date_param
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.night import pick_business_date
from nightmarket.orchestration.sources import source_ids
from nightmarket.orchestration.sql import sql_task

SQL = Path(__file__).resolve().parents[1] / "include" / "sql"


@task
def sync_config() -> dict[str, int]:
    """Bring tier rules and accounts to what include/config says."""
    from nightmarket.marts import sync_config
    from nightmarket.sources import load_sources
    from nightmarket.warehouse import connect

    with connect(application_name="nightmarket-config") as connection:
        return sync_config(connection, load_sources().values())


@task(retries=60, retry_delay=timedelta(minutes=1))
def sources_complete(business_date: str) -> None:
    """Wait, by trying again, until every source is read and mapped to the end of the date; an hour at most."""
    from datetime import date

    from nightmarket.orchestration.completeness import require_complete

    require_complete(date.fromisoformat(business_date))


@task(multiple_outputs=False)
def night_parameters(business_date: str, **context: Any) -> dict[str, Any]:
    """The bound parameters of every SQL file of this night: the date, the thresholds of kpis.yaml, who asks and when."""
    from nightmarket import dates
    from nightmarket.marts import mart_parameters

    run_id = f"{context['dag'].dag_id}/{context['run_id']}"
    return mart_parameters(business_date) | {"run_id": run_id, "as_of_at": dates.now().isoformat()}


@task
def resolve_members(parameters: dict[str, Any]) -> None:
    """Who is who, from the evidence that changed; after a first load from all of it."""
    from datetime import datetime

    from nightmarket.mapping import resolve_members

    resolve_members(run_id=parameters["run_id"], as_of_at=datetime.fromisoformat(parameters["as_of_at"]))


@task
def predict_values(business_date: str) -> str:
    """Expected orders and value per member: a model of its own week by week, predictions night by night."""
    from nightmarket.predictions import predict_values

    return str(predict_values(business_date))


@task
def gate(name: str, business_date: str, **context: Any) -> str:
    """Every check of a layer; a failed one of severity `fail` ends the night here."""
    from datetime import date

    from nightmarket.quality import run_gate

    report = run_gate(name, date.fromisoformat(business_date), f"{context['dag'].dag_id}/{context['run_id']}")
    return str(report)


@task(outlets=[MART_NIGHT])
def publish(business_date: str, *, outlet_events: Any) -> None:
    """Tell everybody who waits for the marts of this date."""
    outlet_events[MART_NIGHT].extra = {"business_date": business_date}


@dag(
    schedule=[*(source_asset(source_id) for source_id in source_ids()), RECEIPTS],  # all of them
    catchup=False,
    max_active_runs=1,
    template_searchpath=[str(SQL)],
    default_args=DEFAULT_ARGS,
    params={"business_date": business_date_param()},
    tags=[Layer.MART, Domain.MEMBERS, Impact.TIER_1],
    doc_md=__doc__,
)
def build_marts():
    day = pick_business_date()
    parameters = night_parameters(day)
    members = resolve_members(parameters)
    core_gate = gate.override(task_id="core_gate")("core", day)
    mart_gate = gate.override(task_id="mart_gate")("mart", day)

    mart = {table: sql_task(f"mart/{table}/load.sql", parameters) for table in MART_GRAPH}
    chain(sync_config(), sources_complete(day), members, core_gate, mart["touched_members"], mart["touched_facts"])
    for table, reads in MART_GRAPH.items():
        for read in reads:
            mart[read] >> mart[table]
    predictions = predict_values(day)
    mart["member_days"] >> predictions
    leaves = [mart[table] for table in MART_GRAPH if not any(table in reads for reads in MART_GRAPH.values())]
    chain([*leaves, predictions], mart_gate, publish(day))


build_marts()
