"""The steps of one campaign run, from the request to the laws. push_campaign, the DAG of every scheduled campaign and
operate_run put them together.
"""

import logging
from typing import Any

from airflow.sdk import chain, task

from nightmarket.orchestration.approval import RecordedApproval
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
        request_id=f"{context['dag'].dag_id}/{context['run_id']}",
    )


@task(show_return_value_in_logs=False)
def dry_run_report(campaign_run: str) -> dict[str, Any]:
    """What would happen: sizes, reasons, arms, cost, coupons, masked samples. The whole report stands in this log."""
    from nightmarket.campaigns import results
    from nightmarket.campaigns.drift import REPORTED

    report = results.dry_run_report(campaign_run)
    log.info("%s\n\n%s", report["markdown_zh"], report["markdown_en"])
    return {key: report[key] for key in REPORTED}


@task.short_circuit
def unless_dry_run(request: dict[str, Any]) -> bool:
    """A dry run ends here."""
    return request["mode"] != "dry_run"


@task.short_circuit
def record_decision(campaign_run: str, content_hash: str, approval: str = "approve", **context: Any) -> bool:
    """Write the decision down, whatever it is; go on only when it is yes. Raises when the approval is void."""
    from nightmarket.campaigns import audience

    decision = context["ti"].xcom_pull(task_ids=approval, key="decision")
    audience.record_decision(campaign_run, decision["approved"], decision["by"], decision["reason"], content_hash)
    log.info(
        "%s: %s by %s",
        campaign_run,
        "approved" if decision["approved"] else "not approved, nothing is sent",
        decision["by"],
    )
    return bool(decision["approved"])


@task(show_return_value_in_logs=False)
def check_drift(campaign_run: str) -> dict[str, Any]:
    """Is the approved audience still the answer? Beyond the campaign's tolerance it is built again, and asked about again."""
    from nightmarket.campaigns import drift

    found = drift.check_drift(campaign_run)
    if found["is_void"]:
        log.warning("%s: %s. The approval is void.\n\n%s", campaign_run, found["sentence"], found["markdown_zh"])
    return {**dict.fromkeys(drift.REPORTED), **found}


@task.short_circuit
def record_second_decision(campaign_run: str, drift: dict[str, Any], **context: Any) -> bool:
    """As record_decision, when the audience had to be built again; else the first decision stands."""
    if not drift["is_void"]:
        return True
    return bool(record_decision.function(campaign_run, drift["content_hash"], "approve_again", **context))


def asking(task_id: str, subject: str, source: str, needed: Any) -> RecordedApproval:
    """The approval of a report that the task `source` returned."""
    parts = (f"{{{{ ti.xcom_pull('{source}')['markdown_{language}'] }}}}" for language in ("zh", "en"))
    return RecordedApproval(
        task_id=task_id,
        subject=subject,
        body="\n\n---\n\n".join(parts),
        needed=needed,
        answer_within_hours=f"{{{{ ti.xcom_pull('{source}')['answer_within_hours'] }}}}",
        execution_timeout=None,
    )


def campaign_flow(request: Any, *, may_be_dry: bool = True) -> None:
    """Wire everything that follows a checked request: {campaign, as_of, mode, test_members, size_limit, created_by}.

    The run's id travels as a template: as an argument it would add an edge from build_audience to every task, drawn in the
    UI and paid for at every parse of every scheduled campaign.
    """
    run: Any = "{{ ti.xcom_pull('build_audience') }}"
    audience = build_audience(request)
    report: Any = dry_run_report(run)
    drift: Any = check_drift(run)
    approve = asking("approve", f"{run}: send it? 发送吗？", "dry_run_report", report["needs_approval"])
    approve_again = asking(
        "approve_again",
        f"{run}: the audience has changed since the approval; send it? 审批之后人群变了，还发送吗？",
        "check_drift",
        drift["needs_approval"],
    )
    chain(
        check_gate(request), audience, report, *([unless_dry_run(request)] if may_be_dry else []), approve,
        record_decision(run, report["content_hash"]), check_gate.override(task_id="check_gate_again")(request), drift,
        approve_again, record_second_decision(run, drift), reserve_coupons(run), issue_coupons(run),
        enqueue(run), deliver(run), export_exposures(run), check_laws(run),
    )  # fmt: skip
