"""What was learned from a campaign run, written down from the form: it stands in the run's retrospective from then on.

**Who uses it**: whoever ran the campaign, after reading its retrospective. One sentence or two; it names no person, and what
looks like a phone number or an e-mail address is refused. Nothing is changed or taken back: a second entry stands under the
first. The same from a shell: `nightmarket learnings <run> "..."`.

**At 03:00**: nobody started it.

Runbook: docs/runbook.md#record_learnings
"""

import logging
from typing import Any

from airflow.sdk import Param, dag, task

from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import check_form, person_of
from nightmarket.orchestration.labels import Domain, Impact, Layer

log = logging.getLogger(__name__)


@task(retries=1)
def write_down(**context: Any) -> str:
    """Keep the learning with its author; returns the retrospective that says it, or "" while there is none."""
    from nightmarket.retrospective import learn

    check_form(context["dag_run"].conf, context["dag"].params)
    params = context["params"]
    page = learn(params["run"], params["learning"], person_of(context["dag_run"]))
    log.info("written down; %s", page or "the retrospective is made when the attribution window is closed")
    return str(page or "")


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={
        "run": Param("", type="string", minLength=1, title="Run 轮次", description="e.g. winback_gold@2026-03-14, from the console's page Runs."),
        "learning": Param("", type="string", format="multiline", minLength=1, title="Learning 学到了什么", description="A sentence that names no person."),
    },
    tags=[Layer.REPORT, Domain.CAMPAIGNS, Impact.TIER_3],
    doc_md=__doc__,
)  # fmt: skip
def record_learnings():
    write_down()


record_learnings()
