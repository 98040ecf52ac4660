"""Computes the marts of a stretch of past nights again, oldest first, each as its own night would have; or everything from empty tables.

**Who uses it**: whoever brought in old data, corrected core by hand, or wants the RFM history of last summer. Tables that tell
a history keep what they know of later days; tables with a snapshot per business date get the dates of the stretch. The same
from a shell: `nightmarket marts --from 2026-01-01 --day 2026-01-31`. *Rebuild* empties every mart first (facts stay) and takes as long as a
first night; figures are gone from the console until it is done.

**At 03:00**: nothing waits for it. Red: the sentence names table and reason; what was done stays, clear the task and it goes on with the
nights that are left. Do not run it beside build_marts.

Runbook: docs/runbook.md#backfill_marts
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from nightmarket.orchestration.defaults import DEFAULT_ARGS
from nightmarket.orchestration.form import check_form
from nightmarket.orchestration.labels import Domain, Impact, Layer

log = logging.getLogger(__name__)
MAX_NIGHTS = 800


@task
def plan(**context: Any) -> list[dict[str, Any]]:
    """One piece per night; the first one empties the marts when the form says so."""
    from nightmarket import dates
    from nightmarket.rebuild import days_of

    check_form(context["dag_run"].conf, context["dag"].params)
    params = context["params"]
    days = list(days_of(dates.business_date(params["first"]), dates.business_date(params["last"])))
    if len(days) > MAX_NIGHTS:
        raise ValueError(
            f"{len(days)} nights are more than {MAX_NIGHTS}: start with a shorter stretch. Nothing was done."
        )
    return [{"day": day.isoformat(), "rebuild": bool(params["rebuild"]) and day == days[0]} for day in days]


@task(map_index_template="{{ night }}", max_active_tis_per_dag=1, execution_timeout=timedelta(hours=3))
def night(piece: dict[str, Any]) -> float:
    """Every mart of one business date; returns seconds."""
    from datetime import date

    from nightmarket.rebuild import backfill

    get_current_context()["night"] = piece["day"]  # type: ignore[typeddict-unknown-key]
    day = date.fromisoformat(piece["day"])
    return round(backfill(day, day, from_empty=piece["rebuild"])[day], 1)


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={
        "first": Param(
            None, type=["null", "string"], format="date", title="From 开始", description="Empty means yesterday."
        ),
        "last": Param(
            None,
            type=["null", "string"],
            format="date",
            title="To 结束",
            description="Inclusive; empty means yesterday.",
        ),
        "rebuild": Param(
            False, type="boolean", title="Rebuild 重建", description="Empty every mart before. Facts stay."
        ),
    },
    tags=[Layer.MART, Domain.MEMBERS, Impact.TIER_3],
    doc_md=__doc__,
)
def backfill_marts():
    night.expand(piece=plan())


backfill_marts()
