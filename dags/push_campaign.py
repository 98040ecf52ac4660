"""Runs one campaign by hand, from the form: who would get it and what it would cost (dry run, the default), or the real
thing, with a person's approval above the size the campaign's YAML sets.

**Who uses it**: the operations manager. *Dry run* on: nothing is reserved, nothing is sent; open the log of
dry_run_report. *Dry run* off: the run stops at **approve** (tab "Required Action") when the audience is large; Reject,
and nobody answering within four hours, both mean that nothing is sent, and both are recorded. *Test recipients*: only
these member ids, with coupons of the test pool.

**At 03:00**: it only runs when somebody started it. A red check_gate is the house working: the marts of that date did
not pass, nothing goes out. Red after enqueue: clear the task; every message has its key and is sent at most once.
*The approval is for content ...*: the run changed while it waited; start the campaign again and decide again.

Runbook: docs/runbook.md#push_campaign
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import chain, dag, task

from nightmarket.orchestration.approval import RecordedApproval
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import campaign_form, check_form, person_of
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.sending import (
    check_gate,
    check_laws,
    deliver,
    enqueue,
    export_exposures,
    issue_coupons,
    reserve_coupons,
)

log = logging.getLogger(__name__)


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


@task
def build_audience(request: dict[str, Any], **context: Any) -> str:
    """Freeze configuration, audience and arms; returns the campaign run's id. Repeated, it finds its run again."""
    from datetime import date

    from nightmarket.campaigns.audience import build_run

    return build_run(
        request["campaign"],
        date.fromisoformat(request["as_of"]),
        request["mode"],
        request["created_by"],
        size_limit=request["size_limit"],
        test_members=request["test_members"],
        request_id=context["run_id"],
    )


@task(show_return_value_in_logs=False)
def dry_run_report(campaign_run: str) -> dict[str, Any]:
    """What would happen: sizes, reasons, arms, cost, coupons, masked samples. The whole report stands in this log."""
    from nightmarket.campaigns import results

    report = results.dry_run_report(campaign_run)
    log.info("%s\n\n%s", report["markdown_zh"], report["markdown_en"])
    return {key: report[key] for key in ("needs_approval", "content_hash", "markdown_zh", "markdown_en")}


@task.short_circuit
def unless_dry_run(request: dict[str, Any]) -> bool:
    """A dry run ends here."""
    return request["mode"] != "dry_run"


@task.short_circuit
def record_decision(campaign_run: str, content_hash: str, **context: Any) -> bool:
    """Write the decision down, whatever it is; go on only when it is yes. Raises when the approval is void."""
    from nightmarket.campaigns import audience

    decision = context["ti"].xcom_pull(task_ids="approve", key="decision")
    audience.record_decision(campaign_run, decision["approved"], decision["by"], decision["reason"], content_hash)
    log.info(
        "%s: %s by %s",
        campaign_run,
        "approved" if decision["approved"] else "not approved, nothing is sent",
        decision["by"],
    )
    return bool(decision["approved"])


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
    request = check_request()
    green = check_gate(request)
    campaign_run = build_audience(request)
    report = dry_run_report(campaign_run)
    approve = RecordedApproval(
        task_id="approve",
        subject="{{ ti.xcom_pull('build_audience') }}: send it? 发送吗？",
        body="{{ ti.xcom_pull('dry_run_report')['markdown_zh'] }}\n\n---\n\n{{ ti.xcom_pull('dry_run_report')['markdown_en'] }}",
        needed=report["needs_approval"],
        response_timeout=timedelta(hours=4),
        execution_timeout=None,
    )
    decision = record_decision(campaign_run, report["content_hash"])
    still_green = check_gate.override(task_id="check_gate_again")(request)
    chain(green, campaign_run)
    chain(
        report, unless_dry_run(request), approve, decision, still_green, reserve_coupons(campaign_run),
        issue_coupons(campaign_run), enqueue(campaign_run), deliver(campaign_run), export_exposures(campaign_run),
        check_laws(campaign_run),
    )  # fmt: skip


push_campaign()
