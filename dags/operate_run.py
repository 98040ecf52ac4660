"""Pauses, resumes, cancels, extends one campaign run, or starts its campaign again for those it did not reach.

**Who uses it**: the operations manager, when something about a run that is under way is wrong. *Dry run* on (the default)
says what would happen, with counts, in the log of **operate**; off does it. Who did it, when and why is kept in the audit
log and on the run's page of the console.

**At 03:00**: nothing starts it. *Pause* stops a run at once; only calls in flight are finished. **approve_change** waits
when an extension changed the send window of a run: until somebody says yes nothing more of it goes out, no ends it.

Runbook: docs/runbook.md#operate_run
"""

import logging
from typing import Any

from airflow.sdk import chain, dag, task

from nightmarket.orchestration.campaigns import asking, record_decision
from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import check_form, operate_form, person_of
from nightmarket.orchestration.labels import Domain, Impact, Layer

log = logging.getLogger(__name__)


@task(retries=1)
def operate(**context: Any) -> dict[str, Any]:
    """Do it, or say what it would do."""
    from nightmarket.campaigns.config import SendWindow
    from nightmarket.campaigns.operate import operate as do

    run, params = context["dag_run"], context["params"]
    check_form(run.conf, context["dag"].params)
    opens, closes = params["opens"], params["closes"]
    if (opens is None) != (closes is None):
        raise ValueError("a send window needs both ends: opens and closes. Nothing was done.")
    window = SendWindow.model_validate({"opens": opens, "closes": closes}) if opens else None
    done = do(
        params["run_id"], params["action"], person_of(run), params["reason"],
        dry_run=params["dry_run"], hours=params["expires_after_hours"], window=window,
    )  # fmt: skip
    log.info(
        "%s\n%s\n%s",
        "Dry run: nothing was changed. 演练：未作任何改变。" if params["dry_run"] else "Done. 已完成。",
        done.zh,
        done.en,
    )
    return {
        "is_change": bool(done.content_hash) and not params["dry_run"],
        "needs_approval": done.needs_approval and not params["dry_run"],
        "answer_within_hours": done.answer_within_hours,
        "content_hash": done.content_hash,
        "markdown_zh": done.zh,
        "markdown_en": done.en,
        "start": None if params["dry_run"] else done.start,
    }


@task.short_circuit
def record_change(done: dict[str, Any], **context: Any) -> bool:
    """Write the decision about a change down; go on only to start a campaign again."""
    if done["is_change"]:
        record_decision.function(context["params"]["run_id"], done["content_hash"], "approve_change", **context)
    return done["start"] is not None


@task
def start_again(done: dict[str, Any], **context: Any) -> None:
    """Start push_campaign, as its form would: a new audience, a new report, a new approval.

    By what TriggerDagRunOperator raises; the module of that operator takes half a second to import.
    """
    from airflow.sdk.exceptions import DagRunTriggerException

    raise DagRunTriggerException(
        trigger_dag_id="push_campaign", dag_run_id=f"again__{context['run_id']}", conf=done["start"], reset_dag_run=False,
        skip_when_already_exists=True, wait_for_completion=False, allowed_states=[], failed_states=[], poke_interval=60,
        deferrable=False,
    )  # fmt: skip


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=4,
    default_args=DEFAULT_ARGS,
    params=operate_form(),
    tags=[Layer.PUSH, Domain.CAMPAIGNS, Impact.TIER_2],
    doc_md=__doc__,
)
def operate_run():
    done = operate()
    approve = asking(
        "approve_change",
        "{{ params.run_id }}: may it go on with this change? 改变后继续发送吗？",
        "operate",
        done["needs_approval"],
    )
    chain(approve, record_change(done), start_again(done))


operate_run()
