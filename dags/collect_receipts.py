"""What became of the messages and coupons: delivered, failed, redeemed, expired, as rows of core and states of push.

**Who uses it**: build_marts (coupon events are part of the campaign funnel) and the console.

**At 03:00**: nothing is lost when it fails, receipts are asked for again by the next run. *AuthError* names the WeChat
Pay merchant connection: renew it, clear the task. Without this DAG the marts of the night do not start; to let the
night go on without receipts, mark the task as success: the funnel then shows yesterday's redemptions.

*GateFailed* names what does not balance in coupons, codes or points. Look at `nightmarket coupons stock <stock>` and
docs/connections/coupons.md#when-the-gate-is-red; nothing is sent until a later run passes.

Runbook: docs/runbook.md#collect_receipts
"""

from typing import Any

from airflow.sdk import CronTriggerTimetable, dag, task

from nightmarket.orchestration.assets import RECEIPTS
from nightmarket.orchestration.defaults import DEFAULT_ARGS, NIGHT_CRON, ZONE
from nightmarket.orchestration.form import business_date_param
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.night import pick_business_date


@task(outlets=[RECEIPTS])
def collect(business_date: str, *, outlet_events: Any) -> dict[str, Any]:
    """Ask the coupon issuers about open coupons; settle messages by the events that came in."""
    from nightmarket.campaigns.results import collect_receipts

    counts = collect_receipts()
    outlet_events[RECEIPTS].extra = {"business_date": business_date, "counts": counts}
    return counts


@task
def balance(business_date: str, **context: Any) -> str:
    """The push gate: coupons, codes, points and money balance. Red: nothing is sent until a later run passes."""
    from nightmarket.quality import run_gate

    return str(run_gate("push", business_date, f"{context['dag'].dag_id}/{context['run_id']}"))


@dag(
    schedule=CronTriggerTimetable(NIGHT_CRON, timezone=ZONE),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={"business_date": business_date_param()},
    tags=[Layer.CORE, Domain.CAMPAIGNS, Impact.TIER_2],
    doc_md=__doc__,
)
def collect_receipts():
    business_date = pick_business_date()
    collect(business_date) >> balance(business_date)


collect_receipts()
