"""Marts from a shell or a button: one night, a stretch of past nights, or everything from empty tables.

The same SQL files in the same order as the DAG build_marts (nightmarket.mart_graph), two at a time where none waits for the
other. Each table is a transaction of its own: what was done before a failure stays, and the next run goes on from there.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import date, timedelta

from psycopg import sql

from nightmarket.mart_graph import MART_GRAPH
from nightmarket.marts import MODEL_TABLES, load_path, mart_parameters, sync_config
from nightmarket.predictions import predict_values
from nightmarket.sources import load_sources
from nightmarket.warehouse import connect, run_sql, session_lock

log = logging.getLogger(__name__)
Progress = Callable[[str, float], None]
PREDICTIONS = "member_predictions"
WORKERS = 2
LOCK_SECONDS = 5
LOGS = ("restatements", "moved_days")  # what nights found out; beside the marts themselves
BOOKS = ("touched_members", "touched_days", "touched_facts", "marks", *LOGS)


def run_night(business_date: date, *, workers: int = WORKERS, progress: Progress | None = None) -> dict[str, float]:
    """Every mart of one business date; returns seconds per table. Raises what the first failing table raised."""
    waits = {table: set(reads) for table, reads in MART_GRAPH.items()} | {PREDICTIONS: {"member_days"}}
    seconds: dict[str, float] = {}
    running: dict[Future[float], str] = {}
    with ThreadPoolExecutor(workers, "nightmarket-marts") as pool:
        while waits or running:
            for table in [name for name, reads in waits.items() if reads <= seconds.keys()]:
                del waits[table]
                running[pool.submit(_load, table, business_date)] = table
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                table = running.pop(future)
                try:
                    seconds[table] = future.result()
                except BaseException:
                    waits.clear()  # who waits for it has nothing to read; who runs may finish
                    raise
                if progress:
                    progress(table, seconds[table])
    return seconds


def _load(table: str, business_date: date) -> float:
    begun = time.monotonic()
    if table == PREDICTIONS:
        predict_values(business_date)
    else:
        with connect(application_name="nightmarket-marts") as connection:
            run_sql(connection, load_path(table), mart_parameters(business_date))
    return time.monotonic() - begun


def days_of(first: date, last: date) -> Iterator[date]:
    """Every calendar day from `first` to `last`, both included. Raises ValueError when the stretch is empty."""
    if last < first:
        raise ValueError(f"the stretch ends ({last}) before it begins ({first})")
    for number in range((last - first).days + 1):
        yield first + timedelta(days=number)


def backfill(
    first: date,
    last: date,
    *,
    from_empty: bool = False,
    workers: int = WORKERS,
    progress: Callable[[date, float], None] | None = None,
) -> dict[date, float]:
    """The nights of a stretch, oldest first; returns seconds per night. `from_empty`: every mart is emptied before.

    Without `from_empty` tables that hold a history keep what they know of later days; snapshots get the dates of the
    stretch. Raises psycopg.errors.LockNotAvailable when another backfill is running.
    """
    days = list(days_of(first, last))
    taken: dict[date, float] = {}
    with (
        connect(autocommit=True, application_name="nightmarket-backfill") as keeper,
        session_lock(keeper, "mart.backfill", LOCK_SECONDS),
    ):
        with connect(application_name="nightmarket-config") as connection:
            sync_config(connection, load_sources().values())
        if from_empty:
            empty_marts()
        for day in days:
            begun = time.monotonic()
            run_night(day, workers=workers)
            taken[day] = time.monotonic() - begun
            log.info("marts of %s: %.1f s", day, taken[day])
            if progress:
                progress(day, taken[day])
    return taken


def empty_marts() -> None:
    """Forget everything that is computed: marts, marks, logs. Facts (core) and rules stay."""
    tables = [*BOOKS, *(table for table in MART_GRAPH if table not in BOOKS), *MODEL_TABLES]
    names = sql.SQL(", ").join(sql.Identifier("mart", table) for table in tables)
    with connect(application_name="nightmarket-rebuild") as connection:
        connection.execute(sql.SQL("TRUNCATE {}").format(names))
