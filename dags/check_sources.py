"""A button: does every account work, for whom, what may it not read, how far off is the clock?

**Who uses it**: whoever connects a new shop or renews a key; it calls each platform a few times and writes nothing. The
same answer comes from `nightmarket check-source <source>`.

**At 03:00**: nothing depends on it. A red task's last line says what a person has to do.

Runbook: docs/runbook.md#check_sources
"""

import logging
from collections.abc import Iterable
from typing import Any

from airflow.sdk import TriggerRule, dag, get_current_context, task

from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import check_form, sources_param
from nightmarket.orchestration.labels import Domain, Impact, Layer
from nightmarket.orchestration.sources import source_ids
from nightmarket.orchestration.tables import text_table

log = logging.getLogger(__name__)


@task
def pick(**context: Any) -> list[str]:
    """The sources of the form."""
    check_form(context["dag_run"].conf, context["dag"].params)
    return list(context["params"]["sources"])


@task(map_index_template="{{ source_id }}", retries=1)
def check(source_id: str) -> dict[str, str]:
    """A few cheap calls to one account; red when it does not work."""
    from nightmarket.landing import check_source

    get_current_context()["source_id"] = source_id  # type: ignore[typeddict-unknown-key]
    sentence = check_source(source_id)
    log.info(sentence)
    return {"source": source_id, "answer": sentence.partition(": ")[2]}


@task(trigger_rule=TriggerRule.ALL_DONE)
def summarise(answers: Iterable[dict[str, str]]) -> None:
    """All answers as a table in this log; accounts that do not work are red tasks of their own."""
    log.info("what the accounts said:\n%s", text_table(list(answers), ("source", "answer")))


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={"sources": sources_param(source_ids())},
    tags=[Layer.CORE, Domain.SOURCES, Impact.TIER_3],
    doc_md=__doc__,
)
def check_sources():
    summarise(check.expand(source_id=pick()))


check_sources()
