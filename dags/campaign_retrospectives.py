"""The retrospective report of every campaign run whose attribution window has closed: made once, kept, filed.

**Who uses it**: whoever plans the next campaign. The page is linked on the run's page of the console; `nightmarket results <run>`
prints it. What people learn from it goes in by the form record_learnings.

**At 03:00**: let it be. It only reads marts and writes reports; clear the task in the morning. A full disk is the usual
reason, the sentence names the folder. A report that is there is never made again with other figures.

Runbook: docs/runbook.md#campaign_retrospectives
"""

from airflow.sdk import dag, task

from nightmarket.orchestration.assets import MART_NIGHT
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.labels import Domain, Impact, Layer


@task
def write_due() -> list[str]:
    """Runs that collect_receipts called finished and whose window is closed in the marts of this night; returns their ids."""
    from nightmarket.retrospective import write_due

    return write_due()


@dag(
    schedule=[MART_NIGHT],
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=[Layer.REPORT, Domain.CAMPAIGNS, Impact.TIER_3],
    doc_md=__doc__,
)
def campaign_retrospectives():
    write_due()


campaign_retrospectives()
