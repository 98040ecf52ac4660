"""The steps of everything that sends: see that the gate is green, deliver what is due, make facts of it, check the laws. Shared by three DAGs.

`campaign_run` is an id of push.campaign_runs, or None for whatever the outbox holds.
"""

import logging
import os
import socket
from typing import Any

from airflow.sdk import task

from nightmarket.orchestration.tables import text_table

log = logging.getLogger(__name__)
DELIVER_SECONDS = 45 * 60  # a task delivers so long at most; deliver_outbox goes on with the rest


@task
def check_gate(business_date: str) -> str:
    """Refuse to go on when the marts of the business date are not green."""
    from datetime import date

    from nightmarket.orchestration.gates import require_green

    return require_green(date.fromisoformat(business_date))


@task
def recover() -> dict[str, Any]:
    """Settle messages whose worker died: repeat where the channel takes an idempotency key, else mark them unknown."""
    from nightmarket import dates
    from nightmarket.campaigns import outbox

    return outbox.recover(dates.now())


@task
def deliver(campaign_run: str | None) -> dict[str, Any]:
    """Send what is due, each message once; what lies outside its send window stays queued for deliver_outbox."""
    from nightmarket.campaigns import delivery

    counts = delivery.deliver(campaign_run, f"{socket.gethostname()}:{os.getpid()}", DELIVER_SECONDS)
    log.info("delivered:\n%s", text_table([counts]))
    return counts


@task
def export_exposures(campaign_run: str) -> int:
    """What was done becomes facts of core: exposures, accepted messages, issued coupons."""
    from nightmarket.campaigns import results

    return results.export_exposures(campaign_run)


@task
def check_laws(campaign_run: str) -> list[str]:
    """Every member in one state, every coupon accounted for, preview = reality. Raises when one is broken."""
    from nightmarket.campaigns import results

    return [str(law) for law in results.check_laws(campaign_run)]
