"""The morning's page: one HTML file per business date with what came in, what the marts say, what was sent and earned.

**Who uses it**: the operations manager, with the first coffee; it prints on paper.

**At 03:00**: let it be. The report only reads; clear the task in the morning. A full disk is the usual reason, the
sentence names the folder.

Runbook: docs/runbook.md#night_report
"""

from airflow.sdk import dag, task

from nightmarket.orchestration.assets import FOLLOWUPS
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import business_date_param
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.night import pick_business_date


@task
def write_report(business_date: str) -> str:
    """var/reports/night-<business date>.html; an older one of the same date is replaced."""
    from datetime import date

    from nightmarket.report import write_night_report
    from nightmarket.settings import get_settings

    folder = get_settings().var / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    return str(write_night_report(folder / f"night-{business_date}.html", [date.fromisoformat(business_date)]))


@dag(
    schedule=[FOLLOWUPS],
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={"business_date": business_date_param()},
    tags=[Layer.REPORT, Domain.CAMPAIGNS, Impact.TIER_3],
    doc_md=__doc__,
)
def night_report():
    write_report(pick_business_date())


night_report()
