"""Collects reviews: one request some days after an order was signed, one reminder, then nothing; a review stops it and is
thanked for and rewarded, whatever it says. A bad one opens a service case, which has a deadline and is told to the team.

**Who uses it**: buyers, and the service team (`nightmarket cases`, the console); review_kpis_daily and service_kpis_daily count
what it brings. It starts when the marts of a night are ready and their gate is green. Messages that fall into quiet hours wait
in the outbox for deliver_outbox, which looks at the cases' deadlines during the day.

**At 03:00**: nothing is lost when it fails: the journey is computed from tables, the next night catches up, and every
order's request has its key and goes out once. A sentence about the size guard means that far more orders than usual
became due: look at them before you raise the limit in include/config/journeys/followup_reviews.yaml.

Runbook: docs/runbook.md#followup_reviews
"""

from typing import Any

from airflow.sdk import chain, dag, task

from nightmarket.orchestration.assets import FOLLOWUPS, MART_NIGHT
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import business_date_param
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.night import pick_business_date
from nightmarket.orchestration.sending import check_laws, deliver, export_exposures, recover, watch_cases


@task
def run_reviews(business_date: str) -> str:
    """Reward reviews, queue tonight's requests, reminders, thanks and surveys, unless the night is red; returns the run's id."""
    from datetime import date

    from nightmarket.campaigns import journeys

    return journeys.run_reviews(date.fromisoformat(business_date))["run_id"]


@task(outlets=[FOLLOWUPS])
def publish(business_date: str, *, outlet_events: Any) -> None:
    """Tell night_report that the night is over."""
    outlet_events[FOLLOWUPS].extra = {"business_date": business_date}


@dag(
    schedule=[MART_NIGHT],
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={"business_date": business_date_param()},
    tags=[Layer.PUSH, Domain.REVIEWS, Impact.TIER_2],
    doc_md=__doc__,
)
def followup_reviews():
    day = pick_business_date()
    journey = run_reviews(day)
    chain(day, watch_cases())
    chain(journey, recover(), deliver(journey), export_exposures(journey), check_laws(journey), publish(day))


followup_reviews()
