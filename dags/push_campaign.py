"""Runs one campaign by hand, from the form: who would get it and what it would cost (dry run, the default), or the real
thing, with a person's approval above the size the campaign's YAML sets.

**Who uses it**: the operations manager. *Dry run* on: nothing is reserved, nothing is sent; open the log of
dry_run_report. *Dry run* off: the run stops at **approve** (tab "Required Action") when the audience is large; Reject,
and nobody answering in time (`approval.answer_within_hours` of the campaign's file), both mean that nothing is sent, and
both are recorded. *Test recipients*: only these member ids, with coupons of the test pool.

**At 03:00**: it only runs when somebody started it. A red check_gate is the house working: the marts of that date did
not pass, nothing goes out. Red after enqueue: clear the task; every message has its key and is sent at most once.
*The approval is for content ...*: the run changed while it waited; start the campaign again and decide again.
**approve_again** waits: late data changed the audience by more than the campaign tolerates after somebody had said yes;
the new report asks again, and silence is no again.

Runbook: docs/runbook.md#push_campaign
"""

from typing import Any

from airflow.sdk import dag, task

from nightmarket.orchestration.campaigns import campaign_flow
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import campaign_form, check_form, person_of
from nightmarket.orchestration.labels import Domain, Impact, Layer


@task
def check_request(**context: Any) -> dict[str, Any]:
    """What the form asks for, complete and checked; unknown fields are refused."""
    from nightmarket import dates

    run, params = context["dag_run"], context["params"]
    check_form(run.conf, context["dag"].params)
    recipients = [int(line) for line in params["test_recipients"] or []]
    mode = "dry_run" if params["dry_run"] else "test" if recipients else "live"
    return {
        "campaign": params["campaign"],
        "as_of": dates.business_date(params["as_of"]).isoformat(),
        "mode": mode,
        "test_members": recipients,
        "size_limit": params["size_limit"],
        "created_by": person_of(run),
    }


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=4,
    default_args=DEFAULT_ARGS,
    params=campaign_form(),
    tags=[Layer.PUSH, Domain.CAMPAIGNS, Impact.TIER_2],
    doc_md=__doc__,
)
def push_campaign():
    campaign_flow(check_request())


push_campaign()
