"""One scheduled campaign of include/config/campaigns, by its own `schedule`: every week, on a date, or when tiers changed.

**Who uses it**: switched off when it is new; once a person switches it on, it starts itself and **sends for real**. An
audience above the campaign's `approval.above` stops at **approve** (tab "Required Action"); nobody answering within four
hours means that nothing is sent. To see first what it would do, start push_campaign with it: a dry run, or test
recipients.

**At 03:00**: a red check_gate is the house working: the marts of that date did not pass, nothing goes out. Clear the task
when they did. *... is already live*: somebody started it by hand for the same day; leave it. To stop it for good, remove
`schedule` from its file; to stop what it sends now, operate_run.

Runbook: docs/runbook.md#campaigns
"""

from typing import Any

from airflow.sdk import DAG, get_parsing_context, task

from nightmarket.orchestration.campaigns import campaign_flow
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import person_of
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.night import business_date_of
from nightmarket.orchestration.schedules import Scheduled, scheduled_campaigns

PREFIX = "campaign_"


@task
def check_request(campaign: str, **context: Any) -> dict[str, Any]:
    """The business date whose marts decide: of the event that triggered the run, else the day before its schedule."""
    return {
        "campaign": campaign,
        "as_of": business_date_of(context).isoformat(),
        "mode": "live",
        "test_members": [],
        "size_limit": None,
        "created_by": person_of(context["dag_run"]),
    }


def campaign_dag(scheduled: Scheduled) -> DAG:
    with DAG(
        PREFIX + scheduled.campaign,
        dag_display_name=f"{PREFIX}{scheduled.campaign} {scheduled.title}",
        schedule=scheduled.timetable,
        catchup=False,
        is_paused_upon_creation=True,  # a new file sends nothing until a person switches its DAG on
        max_active_runs=1,
        default_args=DEFAULT_ARGS,
        params={},  # Airflow copies them for every task; for another date or a dry run there is push_campaign
        tags=[Layer.PUSH, Domain.CAMPAIGNS, Impact.TIER_2],
        doc_md=__doc__,
    ) as dag:
        campaign_flow(check_request(scheduled.campaign), may_be_dry=False)
    return dag


wanted = get_parsing_context().dag_id  # a task's process builds the one DAG it works for
for found in scheduled_campaigns():
    if wanted in (None, PREFIX + found.campaign):
        globals()[PREFIX + found.campaign] = campaign_dag(found)
