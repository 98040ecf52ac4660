"""Erases people: their clear values leave the vault and the stored pushes for good; what stays in the warehouse is anonymous.

**Who uses it**: whoever answers erasure requests. The form takes tokens (`phone:...`), never clear values: the console
and psql show a person's tokens.

**At 03:00**: it is only started by hand. Running it twice does no harm: the second run deletes 0 rows. When pushes about
the person wait for the night (`unread` in the result and the log), run it again after the next night.

Runbook: docs/runbook.md#erase_person
"""

import logging
from typing import Any

from airflow.sdk import Param, dag, task

from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import check_form, person_of
from nightmarket.orchestration.labels import Domain, Impact, Layer

log = logging.getLogger(__name__)


@task
def check_request(**context: Any) -> dict[str, Any]:
    """Refuse unknown fields, and anything that is not a token, without repeating it."""
    from nightmarket.privacy import KINDS

    run, params = context["dag_run"], context["params"]
    check_form(run.conf, context["dag"].params)
    tokens = [str(token).strip() for token in params["tokens"] or [] if str(token).strip()]
    wrong = [number for number, token in enumerate(tokens, 1) if token.partition(":")[0] not in KINDS]
    if wrong or not tokens:
        where = f"lines {', '.join(map(str, wrong))} are not tokens" if wrong else "no token was given"
        raise ValueError(
            f"{where}: enter tokens such as phone:AbC..., one per line, not clear values. Nothing was erased."
        )
    if not str(params["reason"] or "").strip():
        raise ValueError("the reason is missing: the audit log needs one. Nothing was erased.")
    return {"tokens": tokens, "reason": params["reason"].strip(), "actor": person_of(run)}


@task
def erase(request: dict[str, Any]) -> dict[str, int]:
    """Delete vault rows and pushes and write the audit log, in one transaction; how many: secrets, pushes, unread."""
    from dataclasses import asdict

    from nightmarket.privacy import erase
    from nightmarket.warehouse import connect_vault

    with connect_vault() as connection:
        erased = erase(connection, request["tokens"], actor=request["actor"], reason=request["reason"])
    if erased.unread:
        log.warning("%d pushes about this person are not read yet: erase again after the next night", erased.unread)
    return asdict(erased)


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={
        "tokens": Param([], type="array", items={"type": "string"}, title="Tokens 令牌", description="One per line."),
        "reason": Param("", type="string", title="Reason 理由", description="Goes into the audit log."),
    },
    tags=[Layer.VAULT, Domain.PRIVACY, Impact.TIER_2],
    doc_md=__doc__,
)
def erase_person():
    erase(check_request())


erase_person()
