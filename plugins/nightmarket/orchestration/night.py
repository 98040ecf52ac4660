"""Which business date a run is for. One order for every DAG: the form, then what triggered the run, then yesterday."""

import logging
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from typing import Any

from airflow.sdk import task

from nightmarket import dates
from nightmarket.orchestration.form import check_form

log = logging.getLogger(__name__)


def choose_business_date(
    param: str | None,
    event_extras: Iterable[Mapping[str, Any]] = (),
    *,
    run_type: str = "manual",
    logical_date: datetime | None = None,
    clock_moved: timedelta = timedelta(0),
) -> tuple[date, list[date]]:
    """(the business date, older dates that waited with it and are not run). Raises ValueError with a sentence.

    Events of several dates wait together when a night was missed (docs/decisions/0041-business-date.md): the newest is
    run, because marts look back over event times and need no night before them; the older ones are named, so that a
    person can start them with the parameter. A scheduled run that starts late is for the day before its schedule, not
    for the day before its start; a moved clock (demo, tests) moves its schedule too.
    """
    if param:
        return dates.business_date(param), []
    waiting = sorted({str(extra["business_date"]) for extra in event_extras if extra.get("business_date")})
    if waiting:
        days = [dates.business_date(text) for text in waiting]
        return days[-1], days[:-1]
    if logical_date is not None and run_type in ("scheduled", "backfill"):
        moved = clock_moved if run_type == "scheduled" else timedelta(0)
        return (logical_date + moved).astimezone(dates.DEFAULT_ZONE).date() - timedelta(days=1), []
    return dates.business_date(), []


def business_date_of(context: Mapping[str, Any]) -> date:
    """The business date of the running task's DAG run, after refusing unknown form fields. Logs what it chose."""
    from airflow.sdk.timezone import utcnow

    run, params = context["dag_run"], context["params"]
    check_form(run.conf, context["dag"].params)  # not context["params"]: that one has the unknown keys merged in
    events = context.get("triggering_asset_events") or {}
    chosen, older = choose_business_date(
        params.get("business_date"),
        [event.extra or {} for group in events.values() for event in group],
        run_type=str(getattr(run.run_type, "value", run.run_type)),
        logical_date=run.logical_date,
        clock_moved=dates.now() - utcnow(),
    )
    log.info("business date %s", chosen)
    for day in older:
        log.warning(
            'events of %s waited too; if its marts are missing: airflow dags trigger %s --conf \'{"business_date": "%s"}\'',
            day, run.dag_id, day,
        )  # fmt: skip
    return chosen


@task
def pick_business_date(**context: Any) -> str:
    """Form, then triggering events, then yesterday in Asia/Shanghai."""
    return business_date_of(context).isoformat()
