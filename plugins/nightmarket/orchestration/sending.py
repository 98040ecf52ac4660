"""The steps of everything that sends, from the gate to the laws. Three DAGs put them together.

`campaign_run` is an id of push.campaign_runs, or None for whatever the outbox holds.
"""

import logging
import os
import socket
from typing import Any

from airflow.sdk import task

from nightmarket.orchestration.tables import text_table

log = logging.getLogger(__name__)
ASK_SECONDS = 10 * 60
DELIVER_SECONDS = 45 * 60  # a task delivers so long at most; deliver_outbox goes on with the rest


@task
def check_gate(request: dict[str, Any]) -> None:
    """Nothing goes on when the marts of the as-of date are not green; a dry run is only told."""
    from datetime import date

    from nightmarket.campaigns.audience import RunRefused, require_green
    from nightmarket.warehouse import connect

    try:
        with connect(application_name="nightmarket-gate") as connection:
            require_green(connection, date.fromisoformat(request["as_of"]))
    except RunRefused as red:
        if request["mode"] != "dry_run":
            raise
        log.warning("%s This dry run shows what a live one would be refused.", red)


@task
def reserve_coupons(campaign_run: str) -> int:
    """Take the coupons this run needs from the stock's budget; nothing is issued yet."""
    from nightmarket.campaigns import coupons

    return coupons.reserve(campaign_run)


@task
def issue_coupons(campaign_run: str) -> dict[str, Any]:
    """Have the issuer put them into the members' wallets, once each: the request key repeats, the coupon does not."""
    from nightmarket.campaigns import coupons

    return coupons.issue(campaign_run)


@task
def enqueue(campaign_run: str) -> int:
    """One row per message in the outbox."""
    from nightmarket.campaigns import outbox

    return outbox.enqueue(campaign_run)


@task
def recover() -> dict[str, Any]:
    """Settle messages whose worker died: repeat where the channel takes an idempotency key, else mark them unknown."""
    from nightmarket import dates
    from nightmarket.campaigns import outbox

    now = dates.now()
    return {"at": now.isoformat(), **outbox.recover(now)}


@task
def deliver(campaign_run: str | None) -> dict[str, Any]:
    """Send what is due, each message once; what lies outside its send window stays queued for deliver_outbox."""
    from nightmarket.campaigns import delivery

    counts = delivery.deliver(campaign_run, f"{socket.gethostname()}:{os.getpid()}", DELIVER_SECONDS)
    log.info("delivered:\n%s", text_table([counts]))
    return counts


@task
def ask_platforms() -> dict[str, Any]:
    """What became of messages in doubt, and of those an employee must confirm, where the platform can be asked."""
    from nightmarket.campaigns import delivery

    return delivery.ask(f"{socket.gethostname()}:{os.getpid()}", ASK_SECONDS)


@task
def queue_second_messages() -> dict[str, Any]:
    """Over the next channel, where a campaign asks for it and no receipt came in time."""
    from nightmarket.campaigns import outbox

    return outbox.queue_second_messages()


@task
def export_exposures(campaign_run: str) -> int:
    """What was done becomes facts of core: exposures, accepted messages, issued coupons."""
    from nightmarket.campaigns import results

    return results.export_exposures(campaign_run)


@task
def check_laws(campaign_run: str) -> int:
    """Every member in one state, every coupon accounted for, preview = reality. Raises when one is broken."""
    from nightmarket.campaigns import results

    laws = results.check_laws(campaign_run)
    log.info("laws of %s:\n%s", campaign_run, "\n".join(map(str, laws)))
    return len(laws)


@task
def watch_cases() -> dict[str, int]:
    """Bad reviews open service cases, replies answer them, deadlines pass; the team is told of each once."""
    from nightmarket.campaigns import cases

    return cases.watch_cases()


@task
def settle_open_runs(recovered: dict[str, Any]) -> list[str]:
    """The two steps above for every run whose messages moved since `recovered`; raises after all of them were looked at."""
    from nightmarket.campaigns import results
    from nightmarket.warehouse import connect, run_sql

    with connect(application_name="nightmarket-settle") as connection:
        runs = [row["run_id"] for row in run_sql(connection, "push/unsettled_runs.sql", {"since": recovered["at"]})]
    broken: list[results.LawBroken] = []
    for campaign_run in runs:
        results.export_exposures(campaign_run)
        try:
            results.check_laws(campaign_run)
        except results.LawBroken as error:
            log.error("%s", error)
            broken.append(error)
    if broken:
        raise broken[0]
    return runs
